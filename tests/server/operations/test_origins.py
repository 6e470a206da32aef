"""Pages of other sites: names that are not the server's, methods that change something, bodies as forms send them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from foreword.bank.bank import Bank
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.server.operations.origins import KnownHosts
from server.running_server import RunningServer

PAGE = "https://shop.example"
BODY = '{"name": "evil", "prompt": "You are evil."}'
JSON = {"Content-Type": "application/json"}


@contextmanager
def served(server: RunningServer, folder, **options) -> Iterator[str]:
    with serve_in_background(create_app(server.engine, Bank(folder), **options)) as url:
        yield url


@pytest.mark.parametrize(
    ("address", "allowed", "known", "unknown"),
    [
        (
            "127.0.0.1",
            (),
            ["localhost", "LOCALHOST.", "app.localhost", "127.0.0.1", "::1", "10.0.0.7", "foreword"],
            ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "box.local", "1.2.3.4.5", "127.1.x"],
        ),
        (
            "0.0.0.0",
            (),
            ["box", "box.local", "foreword.shop.svc.cluster.local"],
            ["evil.example", "local.evil.example"],
        ),
        ("box.example", (), ["box.example", "BOX.example."], ["a.box.example", "evil.example"]),
        ("::1", ("api.example.com",), ["api.example.com"], ["example.com", "x.api.example.com"]),
        ("::1", ("*.Example.com",), ["api.example.com", "a.b.example.com"], ["example.com", "evilexample.com"]),
        ("::1", ("*",), ["evil.example"], []),
    ],
)
def test_names_of_a_server(address, allowed, known, unknown):
    hosts = KnownHosts.of_server(address, allowed)
    assert [name for name in known if name not in hosts] == []
    assert [name for name in unknown if name in hosts] == []


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/tasks", "/docs"])
def test_a_host_that_is_not_known_is_421(server, path):
    for host in ("evil.example", "evil.example:8000", "user@localhost", "local host", "[::1", "[zz]"):
        response = httpx.get(server.url + path, headers={"Host": host})
        assert response.status_code == 421, host
        assert "--allowed-host" in response.json()["error"]["message"]
    for host in ("localhost", "localhost:8000", "[::1]:8000", "192.168.0.7:80"):
        assert httpx.get(server.url + path, headers={"Host": host}).status_code == 200


OWN = "http://localhost:8000"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 201),
        ({"Sec-Fetch-Site": "none"}, 201),
        ({"Origin": OWN}, 201),
        ({"Referer": f"{OWN}/ui/"}, 201),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": OWN}, 403),
        ({"Sec-Fetch-Site": "anything"}, 403),
        ({"Origin": PAGE}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Origin": "http://localhost"}, 403),
        ({"Origin": "https://localhost:8000"}, 403),
        ({"Origin": "http://localhost.evil.example:8000"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Referer": f"{PAGE}/page"}, 403),
    ],
)
@pytest.mark.parametrize("method", ["publish", "rollback"])
def test_only_a_page_of_the_server_itself_changes_something(server, tmp_path, headers, status, method):
    with served(server, tmp_path) as url:
        headers = {"Host": "localhost:8000", **headers}
        if method == "publish":
            response = httpx.post(f"{url}/v1/tasks", content=BODY, headers=JSON | headers)
            assert response.status_code == status
        else:
            response = httpx.post(f"{url}/v1/tasks/none/rollback", headers=headers)
            assert response.status_code == (404 if status == 201 else 403)
        assert Bank(tmp_path).names() == (["evil"] if (status, method) == (201, "publish") else [])


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/mixed", "x/json", None])
def test_a_body_that_is_not_json_is_415(server, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    for path in ("/v1/tasks", "/v1/completions", "/v1/tasks/none/rollback"):
        response = httpx.post(server.url + path, content=BODY, headers=headers)
        assert response.status_code == 415
        assert "-H 'Content-Type: application/json'" in response.json()["error"]["message"]
    chunked = httpx.post(f"{server.url}/v1/tasks", content=iter([BODY.encode()]), headers=headers)
    assert chunked.status_code == 415
    pin = httpx.post(f"{server.url}/v1/tasks/none/pin", headers=headers)
    assert pin.status_code == (404 if kind is None else 415)
    assert httpx.post(f"{server.url}/v1/tasks/none/pin", files={"a": b"b"}).status_code == 415


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"])
def test_json_by_any_name_is_read(server, kind):
    response = httpx.post(f"{server.url}/v1/tasks", content="{", headers={"Content-Type": kind})
    assert response.status_code == 400


def test_pages_that_are_named_may_ask(server, tmp_path):
    with served(server, tmp_path, cors_origins=[PAGE]) as url:
        headers = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "true"}
        preflight = httpx.options(f"{url}/v1/tasks", headers=headers | asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-private-network"] == "true"
        published = httpx.post(f"{url}/v1/tasks", content=BODY, headers=JSON | headers)
        assert (published.status_code, published.headers["access-control-allow-origin"]) == (201, PAGE)
        other = httpx.post(f"{url}/v1/tasks", content=BODY, headers=JSON | {"Origin": f"{PAGE}:444"})
        assert other.status_code == 403
        assert f"frame-ancestors 'self' {PAGE}" in httpx.get(f"{url}/docs").headers["content-security-policy"]


ATTACK = """<!doctype html><title>attack</title><script>
const url = URL_OF_SERVER, body = '{"name": "evil", "prompt": "You are evil."}';
async function attempt(path, options) {
  try { return (await fetch(url + path, options)).type; } catch (error) { return "failed"; }
}
async function attack() {
  const plain = {method: "POST", mode: "no-cors", body: new Blob([body], {type: "text/plain"})};
  const form = new FormData(); form.append("name", "evil"); form.append("prefix", new Blob(["x"]), "p.safetensors");
  await attempt("/v1/tasks", plain);
  await attempt("/v1/tasks", {method: "POST", mode: "no-cors", body: form});
  await attempt("/v1/tasks", {method: "POST", mode: "no-cors", body: new URLSearchParams({name: "evil"})});
  await attempt("/v1/tasks/poet/pin", {method: "POST", mode: "no-cors"});
  await attempt("/v1/tasks/poet/rollback", {method: "POST", mode: "no-cors"});
  const json = {"Content-Type": "application/json"};
  await attempt("/v1/tasks", {method: "POST", body, headers: json});
  await attempt("/v1/tasks/poet", {method: "DELETE"});
  navigator.sendBeacon(url + "/v1/tasks", body);
  for (const enctype of ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded"]) {
    const [sent, frame, field] = ["form", "iframe", "input"].map(name => document.createElement(name));
    frame.name = enctype; document.body.append(frame, sent);
    Object.assign(sent, {action: url + "/v1/tasks", method: "POST", enctype, target: enctype});
    Object.assign(field, {name: body.slice(0, -1) + ', "ttl": "', value: '7d"}'}); sent.append(field);
    await new Promise(done => { frame.onload = done; sent.submit(); });
  }
  const own = document.createElement("form");
  Object.assign(own, {action: url + "/v1/tasks/poet/pin", method: "POST", target: "text/plain"});
  document.body.append(own);
  await new Promise(done => { document.querySelector("iframe").onload = done; own.submit(); });
  return await attempt("/v1/models", {});
}
</script><body></body>"""


@contextmanager
def attacking_page(url: str) -> Iterator[str]:
    content = ATTACK.replace("URL_OF_SERVER", f'"{url}"').encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base
            """Nothing."""

    page = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{page.server_port}/"
    finally:
        page.shutdown()
        page.server_close()


def test_a_page_of_another_site_in_a_browser_changes_nothing(server, tmp_path):
    pytest.importorskip("playwright", reason="a browser is driven by Playwright: pip install playwright")
    from server.running_server import learned_task
    from server.ui.browser import running_browser

    bank = Bank(tmp_path)
    for seed in (1, 2):
        bank.publish(learned_task(server.lm, "poet", seed=seed))
    with served(server, tmp_path) as url, running_browser() as browser:
        before = httpx.get(f"{url}/v1/tasks").json()
        with attacking_page(url) as attacker:
            page = browser.new_page()
            page.goto(attacker)
            assert page.evaluate("attack()") == "failed"  # to read, too
        assert httpx.get(f"{url}/v1/tasks").json() == before
        own = browser.new_page()
        own.goto(f"{url}/health")
        status = own.evaluate(
            """async () => (await fetch('/v1/tasks', {method: 'POST', headers: {'Content-Type': 'application/json'},
            body: JSON.stringify({name: 'mine', prompt: 'You are kind.'})})).status"""
        )
        assert status == 201
    assert bank.names() == ["mine", "poet"]
