"""How kernels of a person reach the farm: a unix socket that only this user can open; the server adds the token.

`AGENTFARM_SOCKET` names it to kernels and terminals. Agents' servers have none: their workers hold run tokens only.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
from tornado import web, websocket
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket

from agentfarm_sdk.protocol import MAX_APPEND_BYTES, MAX_BLOB_BYTES
from jupyterhub_agentfarm.errors import Transient

from . import routes
from .forward import Ends, Service, answer_problem, forward, refusal

LONGEST_PATH = 107  # bytes of a socket's path, unix(7)
FRAME_BYTES = 2 * MAX_APPEND_BYTES


def private_folder(near: str, name_bytes: int) -> Path:
    """Make a folder that only this user enters (0700), below `near` unless a socket's name there would be too long."""
    fits = len(near.encode()) + len("/agentfarm-12345678/") + name_bytes <= LONGEST_PATH
    return Path(tempfile.mkdtemp(prefix="agentfarm-", dir=near if fits else None))


class KernelHandler(Ends, web.RequestHandler):
    def initialize(self, service: Service, active: Callable[[], None]) -> None:
        self.service, self.active = service, active

    async def _pass(self, path: str) -> None:
        if not routes.passes(self.request.method or "", path, routes.KERNEL):
            answer_problem(self, refusal(self.request.method or "", path))
            return
        await self.run_until_closed(forward(self, self.service, path, self.request.query, run_tokens=True))
        if path.endswith("/heartbeat") and self.get_status() == 200:
            self.active()  # a run of this kernel's has a live lease: the person's server is in use, however silent it is

    get = post = put = patch = delete = _pass


class WorkerPassHandler(websocket.WebSocketHandler):
    """The worker's WebSocket of a run that is bound to a kernel, frame by frame, both ways."""

    def initialize(self, service: Service) -> None:
        self.service = service
        self._upstream: aiohttp.ClientWebSocketResponse[bool] | None = None
        self._pump: asyncio.Task[None] | None = None

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Connect to the service first: where it refuses, so do we, in its words."""
        service = self.service
        headers = service.headers(self.request.headers, run_tokens=True)
        try:
            self._upstream = await service.session().ws_connect(
                service.address("worker", ""), headers=headers, max_msg_size=FRAME_BYTES, heartbeat=20
            )
        except aiohttp.WSServerHandshakeError:
            await forward(self, service, "worker", "", run_tokens=True)  # as plain HTTP: status and problem document
            return
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            answer_problem(self, Transient("the farm's service cannot be reached", hint="it is tried again"))
            return
        await super().get(*args, **kwargs)

    def open(self, *args: str, **kwargs: str) -> None:
        self.set_nodelay(True)
        self._pump = asyncio.create_task(self._to_kernel())

    async def _to_kernel(self) -> None:
        assert self._upstream is not None
        with contextlib.suppress(websocket.WebSocketClosedError):
            async for frame in self._upstream:
                if frame.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                    await self.write_message(frame.data, binary=frame.type is aiohttp.WSMsgType.BINARY)
        self.close(self._upstream.close_code if self._upstream.close_code in (1000, 1001, 1011, 1012, 1013) else None)

    async def on_message(self, message: str | bytes) -> None:
        assert self._upstream is not None
        try:
            if isinstance(message, str):
                await self._upstream.send_str(message)
            else:
                await self._upstream.send_bytes(message)
        except (aiohttp.ClientError, ConnectionError):
            self.close()

    def on_close(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
        if self._upstream is not None:
            self._closing = asyncio.ensure_future(self._upstream.close())


class KernelSocket:
    """The socket's file and server; it lives from `start` to `stop`."""

    def __init__(self, service: Service, runtime_dir: str, active: Callable[[], None]) -> None:
        self._service, self._runtime_dir, self._active = service, runtime_dir, active
        self._folder: Path | None = None
        self._server: HTTPServer | None = None

    def start(self) -> str:
        """Listen, and return the path for AGENTFARM_SOCKET. Needs no running event loop."""
        self._folder = private_folder(self._runtime_dir, len("farm.sock"))
        path = self._folder / "farm.sock"
        options = {"service": self._service}
        whole = {**options, "active": self._active}
        app = web.Application(
            [(r"/api/v1/worker", WorkerPassHandler, options), (r"/api/v1/(.*)", KernelHandler, whole)],
            websocket_max_message_size=FRAME_BYTES, websocket_ping_interval=20, log_function=_quiet,
        )  # fmt: skip
        self._server = HTTPServer(app, max_buffer_size=MAX_BLOB_BYTES + MAX_APPEND_BYTES)
        self._server.add_socket(bind_unix_socket(str(path), mode=0o600))
        return str(path)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            await self._server.close_all_connections()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _quiet(handler: web.RequestHandler) -> None:
    """No line for each request of a kernel: the service logs them."""
