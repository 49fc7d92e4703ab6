"""A whole farm for the tests: started by its own command, spoken to from outside, its processes killed by number."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import websockets

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


def until(look: Callable[[], T | None], seconds: float, what: str, every: float = 0.1) -> T:
    """Return the first true answer of `look`; raises AssertionError with its last answer when time is up."""
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        if last := look():
            return last
        time.sleep(every)
    raise AssertionError(f"not within {seconds:.0f} s: {what} (last: {last!r})")


class Counter:
    """The outside world, in a process of its own: what really reached it, and how often."""

    def __init__(self, directory: Path) -> None:
        self.file, self.directory = directory / "effects.jsonl", directory
        self.file.touch()
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("counter.py")), str(self.file)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def requests(self, name: str) -> list[dict[str, Any]]:
        """Return every request that reached it under this name, as they stand on disk."""
        lines = [json.loads(line) for line in self.file.read_text().splitlines()]
        return [line for line in lines if line["name"] == name]

    def effects(self, name: str) -> int:
        """Return how often something happened: a key that came before happens once."""
        return sum(bool(one["new"]) for one in self.requests(name))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)


@dataclass
class Farm:
    """One farm under its launcher. `ready` is what the launcher writes when everything answers."""

    state: Path
    env: dict[str, str]
    launcher: subprocess.Popen[bytes] = field(init=False)
    ready: dict[str, Any] = field(init=False)

    def start(self, seconds: float = 120) -> None:
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker = self.state / "ready.json"
        marker.unlink(missing_ok=True)
        self.log = self.state.parent / f"{self.state.name}.log"
        with self.log.open("ab") as out:
            self.launcher = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub_agentfarm.cli", "up", "--state", str(self.state), "--port", "0"],
                cwd=ROOT, env=self.env, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        until(
            lambda: marker.exists() or self.launcher.poll() is not None, seconds, f"the farm is ready, see {self.log}"
        )
        assert self.launcher.poll() is None, self.log.read_text()[-4000:]
        self.ready = json.loads(marker.read_text())

    def stop(self) -> None:
        self.launcher.send_signal(signal.SIGINT)
        try:
            self.launcher.wait(30)
        except subprocess.TimeoutExpired:
            self.launcher.kill()
            self.launcher.wait(10)


def kill(pid: int) -> None:
    """End a process as a power cut would, and wait until it is gone (or is a zombie of somebody else's)."""
    process = psutil.Process(pid)
    process.send_signal(signal.SIGKILL)
    until(lambda: not psutil.pid_exists(pid) or process.status() == psutil.STATUS_ZOMBIE, 10, f"process {pid} is gone")


class Kernel:
    """A kernel of somebody's server, driven as a notebook drives it: REST and WebSocket through the proxy."""

    def __init__(self, base: str, host: str, token: str) -> None:
        self.base, self.host, self.token = base, host, token

    def run(self, code: str, seconds: float = 60) -> str:
        """Execute in a new kernel; return what it printed. Raises AssertionError with the traceback."""
        return asyncio.run(asyncio.wait_for(self._run(code), seconds))

    async def _run(self, code: str) -> str:
        headers = {"Authorization": f"token {self.token}", "Host": self.host}
        async with httpx.AsyncClient(base_url=self.base, headers=headers, timeout=30) as http:
            kernel = (await http.post("api/kernels", json={"name": "python3"})).raise_for_status().json()["id"]
            try:
                return await self._execute(kernel, code, headers)
            finally:
                await http.delete(f"api/kernels/{kernel}")

    async def _execute(self, kernel: str, code: str, headers: dict[str, str]) -> str:
        where = httpx.URL(self.base)
        url = f"ws://{self.host}{where.path}api/kernels/{kernel}/channels?session_id={uuid.uuid4().hex}"
        message = {
            "header": {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "session": "", "version": "5.3"},
            "parent_header": {}, "metadata": {}, "channel": "shell", "buffers": [],
            "content": {"code": code, "silent": False, "store_history": False, "allow_stdin": False, "user_expressions": {}},
        }  # fmt: skip
        printed: list[str] = []
        async with websockets.connect(
            url,
            host=where.host,
            port=where.port,
            additional_headers={"Authorization": headers["Authorization"]},
            max_size=None,
        ) as ws:
            await ws.send(json.dumps(message))
            async for frame in ws:
                got = json.loads(frame)
                if got.get("parent_header", {}).get("msg_id") != message["header"]["msg_id"]:
                    continue
                kind, content = got["header"]["msg_type"], got["content"]
                if kind == "stream":
                    printed.append(content["text"])
                elif kind == "error":
                    raise AssertionError("\n".join(content["traceback"]) + "\n" + "".join(printed))
                elif kind == "execute_reply":
                    assert content["status"] == "ok", content
                elif kind == "status" and content["execution_state"] == "idle":
                    return "".join(printed)
        raise AssertionError("the kernel's WebSocket was closed")


def clean_env(**more: str) -> dict[str, str]:
    """Return this process's environment without what would configure a farm, a hub or a model."""
    drop = ("AGENTFARM_", "JUPYTERHUB_", "HF_", "HUGGING_FACE", "DB_CONNECTION", "QUESTDB", "CONFIGPROXY")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | more
