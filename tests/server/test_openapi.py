"""The OpenAPI page: complete, and true under schemathesis."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
ERRORS = {"400", "401", "403", "404", "405", "409", "413", "429", "500", "503", "504"}


def executable(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed; pip install 'foreword[dev]'")
    return found


def test_every_route_says_what_it_takes_and_answers(server):
    schema = httpx.get(f"{server.url}/openapi.json").json()
    bodies = schema["components"]["schemas"]
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            where = f"{method} {path}"
            assert route["summary"], where
            assert route["description"], where
            assert set(route["responses"]) >= ERRORS, where
            if path in ("/health", "/ready", "/metrics") or path.startswith("/v1/models") or method == "delete":
                continue
            good = next(answer for status, answer in route["responses"].items() if status.startswith("2"))
            assert "example" in good["content"]["application/json"], where
            if "requestBody" in route and "rollback" not in path:
                form = route["requestBody"]["content"]["application/json"]["schema"]
                form = bodies[form["$ref"].rpartition("/")[2]] if "$ref" in form else form
                assert form["examples"], where


def test_no_request_brings_the_server_down(server, tmp_path):
    """schemathesis over the page: no 5xx, and no status that the page does not name."""
    result = subprocess.run(
        [
            *(executable("schemathesis"), "run", f"{server.url}/openapi.json", "--max-examples", "12", "--seed", "1"),
            *("--checks", "not_a_server_error,status_code_conformance,content_type_conformance"),
            *("--phases", "examples,coverage,fuzzing", "--request-timeout", "30", "--no-color"),
            *("--exclude-path", "/metrics", "--suppress-health-check", "all"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert server.engine.alive
    assert httpx.get(f"{server.url}/ready").status_code == 200


def test_the_examples_of_the_page_are_valid_json(server):
    json.dumps(httpx.get(f"{server.url}/openapi.json").json())


def test_the_dockerfile_is_clean():
    result = subprocess.run([executable("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
