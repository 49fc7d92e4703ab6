"""A service that does as it is told, and real Jupyter servers beside it: what the tests of the server extension stand on."""

from __future__ import annotations

import asyncio
import importlib.metadata
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiohttp import web

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "jupyterhub_agentfarm" / "labserver" / "config"
HUB_TOKEN = "hub-token-0123456789abcdef"
T = TypeVar("T")


async def until(look: Callable[[], T | None], seconds: float = 20.0, what: str = "") -> T:
    """Return the first true answer of `look`; AssertionError when time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := look():
            return answer
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class FakeService:
    """The service's side of the worker protocol and a few of its HTTP routes, on a real port; it remembers all it heard.

    A run's token tells the stand-in worker what to do (standin_worker.py).
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.given: dict[str, dict[str, Any]] = {}
        self.claims: list[dict[str, Any]] = []
        self.beats: list[tuple[float, str, dict[str, Any]]] = []
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.sockets: list[web.WebSocketResponse] = []
        self.handshakes: list[dict[str, str]] = []
        self.activity: list[tuple[str, dict[str, Any]]] = []
        self.inboxes: dict[str, list[dict[str, Any]]] = {}
        self.refuse: int = 0
        self.drop_next_claim = False
        self.fences = itertools.count(1)
        self.streams_open = 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=8 * 1024 * 1024)
        app.router.add_get("/api/v1/worker", self._worker)
        app.router.add_get("/api/v1/runs/{run}/events", self._stream)
        app.router.add_route("*", "/api/v1/{path:.*}", self._echo)
        app.router.add_route("*", "/hub/api{path:.*}", self._hub)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    async def stop(self) -> None:
        for ws in list(self.sockets):
            await ws.close()
        self.sockets.clear()
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    def offer(self, does: str, run: str = "", definition: str = "def-a", fresh: bool = False) -> str:
        run = run or f"run-{uuid.uuid4().hex[:12]}"
        self.waiting.put_nowait(
            {"run": run, "fence": next(self.fences), "token": f"afr.{does}", "lease": 30.0, "agent": "analyst",
             "definition": definition, "fresh_kernel": fresh}
        )  # fmt: skip
        return run

    def dead(self, run: str) -> str | None:
        return next((body["dead"] for _, one, body in self.beats if one == run and body.get("dead")), None)

    async def push(self, run: str, kind: str, body: dict[str, Any]) -> None:
        event = {"run": run, "seq": 1, "kind": kind, "at": "", "by": "user:ann", "body": body}
        for ws in self.sockets:
            await ws.send_json({"push": "inbox", "run": run, "events": [event]})

    async def _worker(self, request: web.Request) -> web.StreamResponse:
        self.handshakes.append(dict(request.headers))
        if self.refuse:
            problem = {"type": "forbidden", "title": "no", "status": self.refuse, "detail": "this token is not known"}
            return web.json_response(problem, status=self.refuse, content_type="application/problem+json")
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        self.sockets.append(ws)
        tasks: set[asyncio.Task[None]] = set()
        try:
            async for frame in ws:
                task = asyncio.create_task(self._answer(ws, frame.json()))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        finally:
            for task in tasks:
                task.cancel()
            if ws in self.sockets:
                self.sockets.remove(ws)
        return ws

    async def _answer(self, ws: web.WebSocketResponse, message: dict[str, Any]) -> None:
        ok: Any = None
        body = message["body"]
        if message["op"] == "claim":
            self.claims.append(body)
            if body["claim_id"] not in self.given:
                self.given[body["claim_id"]] = await self.waiting.get()
            if self.drop_next_claim:
                self.drop_next_claim = False
                await ws.close()
                return
            ok = self.given[body["claim_id"]]
        elif message["op"] == "heartbeat":
            self.beats.append((time.monotonic(), message["run"], body))
            ok = {
                "lease": 30.0,
                "token": f"afr.renewed-{len(self.beats)}",
                "inbox": self.inboxes.pop(message["run"], []),
            }
        else:
            ok = {"echo": message, "by": self.handshakes[-1].get("Authorization")}
        await ws.send_json({"id": message["id"], "ok": ok})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Two events, the second when the test lets it go; ends when the asker goes."""
        self.requests.append(request)
        self.streams_open += 1
        self.go_on = asyncio.Event()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            await response.prepare(request)
            await response.write(b"id: 1\nevent: run.created\ndata: {}\n\n")
            await self.go_on.wait()
            await response.write(b"id: 2\nevent: run.succeeded\ndata: {}\n\n")
        finally:
            self.streams_open -= 1
        return response

    async def _hub(self, request: web.Request) -> web.Response:
        """The few answers of a hub that a server needs: its version, whose a token is, activity."""
        path, by = request.match_info["path"], request.headers.get("Authorization", "")
        if path == "/user" and by == "token server-token":
            return web.json_response({"name": "ann", "kind": "user", "admin": False, "groups": [], "scopes": ["access:servers!server=x/"]})  # fmt: skip
        if path.endswith("/activity"):
            self.activity.append((by, await request.json()))
        headers = {"X-JupyterHub-Version": importlib.metadata.version("jupyterhub")}
        return web.json_response({"version": "6"}, headers=headers, status=404 if path == "/user" else 200)

    async def _echo(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        self.bodies.append(await request.read())
        if request.path.endswith("/nothing"):
            problem = {"type": "not-found", "title": "t", "status": 404, "detail": "no such agent", "hint": "h"}
            return web.json_response(problem, status=404, content_type="application/problem+json")
        return web.json_response(
            {"path": request.raw_path, "by": request.headers.get("Authorization")}, headers={"ETag": '"7"'}
        )


class Server:
    """A real Jupyter server with the extension, in a process of its own; the extension is found by its data file."""

    def __init__(
        self,
        folder: Path,
        service: Any,
        agent: str = "",
        worker: str = "standin_worker",
        of_hub: bool = False,
        hub_token: str = HUB_TOKEN,
        **more: str,
    ) -> None:
        self.folder, self.agent, self.token = folder, agent, "server-token"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "work").mkdir(exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/user/agent-x/"
        config = folder / "jupyter_server_config.py"
        config.write_text(f"import jupyterhub_agentfarm.labserver.kernels as kernels\nkernels.EXTENSION = {worker!r}\n")
        env = {
            **{name: os.environ[name] for name in ("PATH", "LANG", "VIRTUAL_ENV") if name in os.environ},
            "HOME": str(folder), "JUPYTER_RUNTIME_DIR": str(folder / "run"), "JUPYTER_CONFIG_DIR": str(folder),
            "JUPYTER_CONFIG_PATH": str(CONFIG), "IPYTHONDIR": str(folder / "ipython"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
            "AGENTFARM_URL": service.url, "JUPYTERHUB_API_TOKEN": hub_token, "SOME_SECRET": "not for agents",
            "PYTHONFAULTHANDLER": "1",
        }  # fmt: skip
        env |= more
        if agent:
            env["AGENTFARM_AGENT"] = agent
        self.log = folder / "server.log"
        own = [f"--ServerApp.port={self.port}", "--ServerApp.ip=127.0.0.1", "--ServerApp.base_url=/user/agent-x/",
               f"--IdentityProvider.token={self.token}"]  # fmt: skip
        if of_hub:
            own = []
            env |= {
                "JUPYTERHUB_SERVICE_URL": self.url, "JUPYTERHUB_SERVICE_PREFIX": "/user/agent-x/", "JUPYTERHUB_USER": "agent-x",
                "JUPYTERHUB_API_URL": service.url + "/hub/api", "JUPYTERHUB_BASE_URL": "/", "JUPYTERHUB_SERVER_NAME": "",
                "JUPYTERHUB_CLIENT_ID": "jupyterhub-user-x", "JUPYTERHUB_OAUTH_SCOPES": '["access:servers!server=x/"]',
                "JUPYTERHUB_OAUTH_ACCESS_SCOPES": '["access:servers!server=x/"]', "JUPYTERHUB_ACTIVITY_INTERVAL": "1",
                "JUPYTERHUB_ACTIVITY_URL": service.url + "/hub/api/users/agent-x/activity",
            }  # fmt: skip
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub.singleuser" if of_hub else "jupyter_server", "--allow-root", "--no-browser",
                 "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder / 'work'}",
                 "--ServerApp.allow_unauthenticated_access=False", *own],
                env=env, cwd=folder, stdout=out, stderr=out,
            )  # fmt: skip
        self.http: aiohttp.ClientSession | None = None

    async def ready(self) -> None:
        self.http = aiohttp.ClientSession(headers={"Authorization": f"token {self.token}"})
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                async with self.http.get(self.url + "api/status") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)
        raise AssertionError(self.log.read_text())

    async def get(self, path: str) -> Any:
        assert self.http
        async with self.http.get(self.url + path) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    def lines(self) -> list[dict[str, Any]]:
        """Return what the stand-in workers wrote down, in order."""
        file = self.folder / "work" / "workers.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def began(self, run: str) -> dict[str, Any] | None:
        return next((one for one in self.lines() if one.get("began") == run), None)

    async def execute(self, kernel: str, code: str, times: int = 1) -> tuple[str, list[float]]:
        """Execute as a visitor's notebook does; return what was printed, and the seconds that each execution took."""
        assert self.http
        printed, spent = "", []
        url = f"{self.url}api/kernels/{kernel}/channels?session_id={uuid.uuid4().hex}"
        async with self.http.ws_connect(url, max_msg_size=0) as ws:
            for _ in range(times):
                began = time.monotonic()
                printed += await self._execute(ws, code)
                spent.append(time.monotonic() - began)
        return printed, spent

    async def _execute(self, ws: aiohttp.ClientWebSocketResponse, code: str) -> str:
        message = {
            "header": {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "session": "", "version": "5.3"},
            "parent_header": {}, "metadata": {}, "channel": "shell", "buffers": [],
            "content": {"code": code, "silent": False, "store_history": False, "allow_stdin": False, "user_expressions": {}},
        }  # fmt: skip
        printed = ""
        await ws.send_json(message)
        async for frame in ws:
            got = frame.json()
            if got.get("parent_header", {}).get("msg_id") != message["header"]["msg_id"]:
                continue
            if got["header"]["msg_type"] == "stream":
                printed += got["content"]["text"]
            assert got["header"]["msg_type"] != "error", got["content"]
            if got["header"]["msg_type"] == "status" and got["content"]["execution_state"] == "idle":
                return printed
        raise AssertionError("the server closed the kernel's WebSocket")

    async def kernel(self) -> str:
        """Start a kernel as a person does; return its id."""
        assert self.http
        async with self.http.post(self.url + "api/kernels", json={"name": "python3"}) as answer:
            return str((await answer.json())["id"])

    async def stop(self, sig: int = signal.SIGTERM) -> None:
        if self.http:
            await self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(sig)
            try:
                await asyncio.to_thread(self.process.wait, 20)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGABRT)  # it writes down where it hangs
                self.process.wait()
                raise AssertionError(self.log.read_text()) from None
