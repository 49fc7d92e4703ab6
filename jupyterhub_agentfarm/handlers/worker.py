"""The worker's WebSocket: the messages of runs.py over one ordered connection, and what others record pushed at once.

A supervisor connects with its agent's Hub token (claim, heartbeat), a worker with its run token (open, append, model).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from agentfarm_sdk.protocol import (
    MAX_APPEND_BYTES,
    MAX_UNANSWERED,
    PROTOCOL,
    AppendRequest,
    ClaimRequest,
    Event,
    HeartbeatRequest,
    ModelRequest,
)

from ..errors import AgentFarmError, Forbidden, Invalid, Transient, Unauthenticated
from .asking import Asker
from .base import TOKEN, as_problem
from .routes import Parts, Route
from .runs import beat, own_run, tool_files

log = logging.getLogger(__name__)
PING_SECONDS = 15


class Message(msgspec.Struct, frozen=True):
    id: int
    op: str
    run: str = ""
    body: msgspec.Raw = msgspec.Raw(b"{}")


MESSAGES = msgspec.json.Decoder(Message | list[Message])


class Workers:
    """Which connections hear of which run."""

    def __init__(self) -> None:
        self._listening: dict[str, set[WorkerSocket]] = {}

    def listen(self, run_id: str, socket: WorkerSocket) -> None:
        self._listening.setdefault(run_id, set()).add(socket)
        socket.runs.add(run_id)

    def leave(self, socket: WorkerSocket) -> None:
        for run_id in socket.runs:
            self._listening[run_id].discard(socket)
            if not self._listening[run_id]:
                del self._listening[run_id]
        socket.runs.clear()

    def push(self, run_id: str, events: list[Event]) -> None:
        """Tell the run's worker and its supervisor."""
        for socket in list(self._listening.get(run_id, ())):
            socket.tell({"push": "inbox", "run": run_id, "events": events})


class WorkerSocket(WebSocketHandler):
    """One connection. Requests begin in the order of their arrival; answers come as they are ready."""

    parts: Parts

    def initialize(self, parts: Parts, routes: Mapping[str, Route], cookies: bool) -> None:
        self.parts, self.routes = parts, routes
        self.runs: set[str] = set()
        self.under_way: set[asyncio.Task[None]] = set()
        self.slots = asyncio.Semaphore(MAX_UNANSWERED)
        self.counted: Any = None
        self.several = False  # messages in a frame
        self.outgoing: list[dict[str, Any]] = []

    async def prepare(self) -> None:
        try:
            version = self.request.headers.get("Agentfarm-Protocol", str(PROTOCOL))
            if version != str(PROTOCOL):
                raise Invalid(f"protocol {version} is not spoken here", hint=f"this farm speaks {PROTOCOL}; update")
            found = TOKEN.match(self.request.headers.get("Authorization", ""))
            if found is None:
                raise Unauthenticated("who asks is not known", hint="send the header Authorization: token <token>")
            self.asker: Asker = await self.parts.door.by_token(found[1])
            self.routes["GET"].admit(self.asker)
        except AgentFarmError as error:
            self.set_status(error.status)
            self.set_header("Content-Type", "application/problem+json")
            if isinstance(error, Transient):
                self.set_header("Retry-After", str(max(1, round(error.retry_after))))
            self.finish(msgspec.json.encode(error.problem()))

    def check_origin(self, origin: str) -> bool:
        """A browser's page cannot send the Authorization header, and no cookie is looked at."""
        return True

    def open(self, *_args: str, **_kwargs: str) -> None:
        self.set_nodelay(True)  # two small frames in a row would take 44 ms
        if self.asker.kind == "agent":
            self.counted = self.parts.claims.connected(self.asker.name)
            self.counted.__enter__()
        elif self.asker.claims is not None:
            self.parts.workers.listen(self.asker.claims.r, self)

    def on_close(self) -> None:
        self.parts.workers.leave(self)
        if self.counted is not None:
            self.counted.__exit__(None, None, None)
        for task in self.under_way:
            if task.get_name() == "claim":  # nobody would take what it claims; the rest is done to its end
                task.cancel()

    async def on_message(self, raw: str | bytes) -> None:
        try:
            found = MESSAGES.decode(raw)
        except msgspec.DecodeError as error:
            self.tell({"id": None, "error": Invalid(f"this message cannot be read: {error}").problem()})
            return
        if isinstance(found, Message):
            await self._take(found)
            return
        self.several = True
        for message in found:
            await self._take(message)

    async def _take(self, message: Message) -> None:
        if message.op == "append":  # not more than allowed at once, and loaded first: the order of arrival stands
            await self.slots.acquire()
        try:
            work = await self._begin(message)
        except Exception as error:
            self._refuse(message, error)
            return
        task = asyncio.create_task(self._finish(message, work), name=message.op)
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    def _refuse(self, message: Message, error: BaseException) -> None:
        if message.op == "append":
            self.slots.release()
        problem = as_problem(error)
        if problem.status >= 500 and not isinstance(problem, Transient):
            log.error("op %s of run %s failed", message.op, message.run, exc_info=error)
        self.tell({"id": message.id, "error": problem.problem()})

    async def _begin(self, message: Message) -> Any:
        """Check the message; return what is to be awaited for its answer."""
        live, op, run = self.parts.live, message.op, message.run
        if op == "claim":
            if self.asker.kind != "agent":
                raise Forbidden("a claim takes the agent's own Hub token", hint="send it when connecting")
            return self._claim(msgspec.json.decode(message.body, type=ClaimRequest))
        if op == "heartbeat":
            return beat(self.parts, self.asker, run, msgspec.json.decode(message.body, type=HeartbeatRequest))
        if op == "open":
            return live.open(run, own_run(self.asker, run), tool_files)
        if op == "append":
            request = msgspec.json.decode(message.body, type=AppendRequest)
            own_run(self.asker, run, request.fence)
            await live.get(run, request.fence)
            return live.append(run, request.fence, request)
        if op == "model":
            asked = msgspec.json.decode(message.body, type=ModelRequest)
            own_run(self.asker, asked.run, asked.fence)
            return self.parts.models.model(asked)
        raise Invalid(f"there is no op {op!r}", hint="claim, heartbeat, open, append, model")

    async def _claim(self, request: ClaimRequest) -> Any:
        claim = await self.parts.claims.take(self.asker.name, request)
        if claim is not None:
            self.parts.workers.listen(claim.run, self)
        return claim

    async def _finish(self, message: Message, work: Any) -> None:
        try:
            answer = await work
        except Exception as error:
            self._refuse(message, error)
            return
        if message.op == "append":
            self.slots.release()
        self.tell({"id": message.id, "ok": answer})

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message, where the connection still stands: what was recorded is not lost by its end.

        A client that sends several messages in a frame gets several in a frame.
        """
        if not self.several:
            self._send(message)
            return
        if not self.outgoing:
            asyncio.get_running_loop().call_soon(self._send_outgoing)
        self.outgoing.append(message)

    def _send_outgoing(self) -> None:
        messages, self.outgoing = self.outgoing, []
        self._send(messages)

    def _send(self, frame: Any) -> None:
        try:
            sent = self.write_message(msgspec.json.encode(frame).decode())
        except WebSocketClosedError:
            return
        sent.add_done_callback(lambda done: done.cancelled() or done.exception())


async def upgrade(_call: Any) -> None:
    """Stand in the table for the WebSocket: a plain GET does not come here."""
    raise Invalid("this is a WebSocket", hint="connect with Upgrade: websocket")


ROUTES = [
    Route("GET", "/worker", upgrade, "The worker's messages over one WebSocket", who="worker", streams=True, socket=WorkerSocket)
]  # fmt: skip
LIMIT = MAX_APPEND_BYTES + 64 * 1024
