"""`TwoTenants`: a real ``foreword serve`` with the keys of two tenants and of an administrator."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

import foreword
from foreword.server.operations.api_keys import ApiKey, digest_of, new_key
from trust.victim import TENANTS, Victim

SOURCE = Path(foreword.__file__).parents[1]
SECONDS = 180.0
"""That a start may take."""
SERVING = re.compile(r"^serving .* at (http://[^\s,]+)", re.MULTILINE)
OPTIONS = {
    "embedded": (),
    "llamacpp": ("--allow-other-weights",),  # the file was not converted by Foreword
    "vllm": ("--dtype", "float32", "--", "--enforce-eager", "--max-num-seqs", "32"),
}


class TwoTenants:
    """A server process; ``ann`` reaches ``a-*``, ``ben`` reaches ``b-*``, both the base model; ``boss`` administers.

    Args:
        place: for its keys, its home, its temporary files and what it writes.
        victim: its model and bank.
        flags: of ``foreword serve``.
        limits: by key, more fields of `ApiKey`.

    Attributes:
        keys: secrets by name.
        url: of the server.
        process: the server, once started.
    """

    def __init__(self, place: Path, victim: Victim, *flags: str, **limits: dict[str, int]) -> None:
        self.place, self.victim, self._flags = place, victim, flags
        self.keys = {name: new_key() for name in (*TENANTS, "boss")}
        lines = [
            ApiKey(
                name=name,
                sha256=digest_of(secret),
                tasks=["*"] if name == "boss" else [f"{TENANTS[name]}-*", victim.model],
                admin=name == "boss",
                **limits.get(name, {}),  # type: ignore[arg-type] - its limits are integers
            ).model_dump_json()
            for name, secret in self.keys.items()
        ]
        (place / "keys.jsonl").write_text("\n".join(lines) + "\n")
        (place / "tmp").mkdir()
        self.client = httpx.Client(
            timeout=120, limits=httpx.Limits(max_connections=512, max_keepalive_connections=0), trust_env=False
        )
        self.start()

    def start(self) -> None:
        """Start it, as at first or again with the same keys."""
        options = ["--model", self.victim.model, "--bank", self.victim.bank.location, "--port", "0"]
        options += ["--api-keys", str(self.place / "keys.jsonl"), "--engine", self.victim.engine]
        options += OPTIONS[self.victim.engine]
        environment = {
            **os.environ,
            "FOREWORD_HOME": str(self.place / "home"),
            "TMPDIR": str(self.place / "tmp"),
            "PYTHONPATH": str(SOURCE),
            "PYTHONFAULTHANDLER": "1",
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        }
        command = [sys.executable, "-m", "foreword", "serve", "--no-ui", *self._flags, *options]
        with open(self.place / "stdout", "ab") as out, open(self.place / "stderr", "ab") as err:
            before = err.tell()
            self.process = subprocess.Popen(command, stdout=out, stderr=err, cwd=self.victim.place, env=environment)
        deadline = time.monotonic() + SECONDS
        errors = self.place / "stderr"
        while not (found := SERVING.search(said := errors.read_bytes()[before:].decode(errors="replace"))):
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        self.url = found[1]

    def stop(self, by: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Signal it and wait; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(by)
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()

    def restart(self, by: int = signal.SIGTERM) -> None:
        self.stop(by)
        self.start()

    def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, **options: Any
    ) -> httpx.Response:
        """One request on a connection of its own.

        Args:
            body: sent as JSON.
            key: a name of `keys`.
            options: of `httpx.Client.request`.
        """
        headers = {"Authorization": f"Bearer {self.keys[key]}"} if key else {}
        headers |= options.pop("headers", {})
        given = {"json": body} if body is not None else {}
        return self.client.request(method, f"{self.url}{path}", headers=headers, **given, **options)

    def complete(self, key: str, task: str, prompt: Any = "Hi", max_tokens: int = 4, **more: Any) -> httpx.Response:
        """A greedy completion that does not stop at the end of a text."""
        body = {"model": task, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        return self.ask("POST", "/v1/completions", body | more, key=key)

    def cpu_seconds(self) -> float:
        """That it and its own processes have used."""
        times = [each.cpu_times() for each in self._processes()]
        return sum(each.user + each.system for each in times)

    def rss_bytes(self) -> int:
        """Resident memory of it and its own processes."""
        return sum(each.memory_info().rss for each in self._processes())

    def written(self) -> str:
        """All it wrote to stdout and stderr."""
        files = (self.place / "stdout", self.place / "stderr")
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def _processes(self) -> list[psutil.Process]:
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]
