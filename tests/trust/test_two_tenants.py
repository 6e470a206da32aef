"""The victim of this folder is what its tests take it for."""

from __future__ import annotations


def test_each_tenant_reaches_its_own_tasks_and_the_base_model(start, victim):
    server = start()
    for key, own, foreign in (("ann", "a", "b"), ("ben", "b", "a")):
        for name in (f"{own}-say", f"{own}-text", victim.model):
            assert server.complete(key, name).status_code == 200, server.written()
        refused = [server.complete(key, f"{foreign}-{end}") for end in ("say", "new")]
        assert [each.status_code for each in refused] == [403, 403]
        assert refused[0].text == refused[1].text.replace("-new", "-say"), "it tells whether a task is there"
    assert server.ask("POST", "/v1/classify", {"model": "a-mood", "input": ["fun"]}, key="ann").status_code == 200
    assert server.ask("GET", "/metrics", key="boss").status_code == 200
    assert server.ask("GET", "/metrics", key="ann").status_code == 403
    assert server.complete("boss", "a-say").text != server.complete("boss", "b-say").text
    used = server.cpu_seconds()
    assert used > 0 < server.rss_bytes()
    server.restart()
    assert server.complete("ann", "a-say").status_code == 200
    assert server.stop() == 0
