"""The worker's WebSocket: the messages of runs.py over one ordered connection, and what others record pushed at once.

A supervisor connects with its agent's Hub token (claim, heartbeat), a worker with its run token (open, append, model). A
kernel keeps its connection for the next run, which signs in with its own token as it opens.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from tornado.web import RequestHandler
from websockets.frames import CloseCode

from agentfarm_sdk.protocol import (
    MAX_APPEND_BYTES,
    MAX_UNANSWERED,
    PROTOCOL,
    AppendRequest,
    ClaimRequest,
    Event,
    HeartbeatRequest,
    ModelRequest,
    OpenRequest,
)

from ..errors import AgentFarmError, Forbidden, Invalid, Transient, Unauthenticated
from .asking import Asker
from .base import TOKEN, as_problem
from .feed import STILL_SECONDS
from .routes import Parts, Route
from .runs import beat, own_run, tool_files
from .wire import Wire, upgrade

log = logging.getLogger(__name__)
PING_SECONDS = 15.0
MAX_WAITING = 64  # messages of a connection that are not begun; then nothing more is read
# Of one run, or of one agent's supervisors: each needs one, and may have left some that are not over yet.
MAX_CONNECTIONS = 64
MAX_BEGUN = 256  # that are begun and not answered: a supervisor has one for each of its kernels, a worker a few


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
        self.open: set[WorkerSocket] = set()
        self._of: collections.Counter[str] = collections.Counter()  # connections by whose they were when they began

    def begin(self, socket: WorkerSocket, whose: str) -> None:
        """Count a connection until it is over."""
        self.open.add(socket)
        self._of[whose] += 1

    def end(self, socket: WorkerSocket, whose: str) -> None:
        self.leave(socket)
        if socket in self.open:
            self.open.discard(socket)
            self._of[whose] -= 1
            if not self._of[whose]:
                del self._of[whose]

    def admit(self, whose: str) -> None:
        """Raises Transient: so many connections are open already."""
        if self._of[whose] >= MAX_CONNECTIONS:
            raise Transient(
                f"{whose} has {MAX_CONNECTIONS} connections open", hint="one is enough: close those that are not used"
            )

    def close(self) -> None:
        """End all connections: the service stops. Who was connected comes again."""
        for socket in list(self.open):
            socket.wire.close(CloseCode.GOING_AWAY)

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


class WorkerSocket(RequestHandler):
    """One connection. Requests begin in the order of their arrival; answers come as they are ready.

    A browser's page cannot send the Authorization header, and no cookie is looked at: any origin may ask.
    """

    parts: Parts

    def initialize(self, parts: Parts, routes: Mapping[str, Route], cookies: bool) -> None:
        self.parts, self.routes = parts, routes
        self.runs: set[str] = set()
        self.under_way: set[asyncio.Task[None]] = set()
        self.appends = 0  # begun and not answered
        self.waiting: collections.deque[Message] = collections.deque()
        self.answered = asyncio.Event()
        self.wire = Wire(LIMIT, PING_SECONDS, self.take, self.closed)
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
            self.token, self.known_at = found[1], time.monotonic()
            self.asker: Asker = await self.parts.door.by_token(self.token)
            self.routes["GET"].admit(self.asker)
            self.whose = self.asker.name  # a kernel's connection goes on with its next run
            self.parts.workers.admit(self.whose)
        except AgentFarmError as error:
            self.set_status(error.status)
            self.set_header("Content-Type", "application/problem+json")
            if isinstance(error, Transient):
                self.set_header("Retry-After", str(max(1, round(error.retry_after))))
            self.finish(msgspec.json.encode(error.problem()))

    async def get(self, **_path: str) -> None:
        try:
            await upgrade(self, self.wire)
        except Invalid as error:
            self.set_status(error.status)
            self.set_header("Content-Type", "application/problem+json")
            self.finish(msgspec.json.encode(error.problem()))
            return
        if not self.wire.stands:
            return
        self.parts.workers.begin(self, self.whose)
        if self.asker.kind == "agent":
            self.counted = self.parts.claims.connected(self.asker.name)
            self.counted.__enter__()
        elif self.asker.claims is not None:
            self.parts.workers.listen(self.asker.claims.r, self)

    def closed(self) -> None:
        self.parts.workers.end(self, self.whose)
        if self.counted is not None:
            self.counted.__exit__(None, None, None)
        for task in self.under_way:
            if task.get_name() == "claim":  # nobody would take what it claims; the rest is done to its end
                task.cancel()

    def take(self, raw: bytes) -> None:
        """Begin what came in one frame, in its order."""
        try:
            found = MESSAGES.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.tell({"id": None, "error": Invalid(f"this message cannot be read: {error}").problem()})
            return
        if isinstance(found, list):
            self.several = True
        for message in found if isinstance(found, list) else [found]:
            if self.waiting or not self._at_once(message):
                self._begin_later(message)
            else:
                self._begin(message)

    def _at_once(self, message: Message) -> bool:
        """Say whether a message can begin now: not more appends than allowed, of runs that are in memory."""
        return message.op != "append" or (self.appends < MAX_UNANSWERED and self.parts.live.knows(message.run))

    def _begin_later(self, message: Message) -> None:
        self.waiting.append(message)
        if len(self.waiting) == 1:
            task = asyncio.create_task(self._begin_waiting(), name="waiting")
            self.under_way.add(task)
            task.add_done_callback(self.under_way.discard)
        if len(self.waiting) == MAX_WAITING:
            self.wire.hold(True)

    async def _begin_waiting(self) -> None:
        """Begin what waits, in the order of arrival: appends not more than allowed at once, their runs loaded first."""
        while self.waiting:
            message = self.waiting[0]
            try:
                if message.op == "append":
                    while self.appends >= MAX_UNANSWERED:
                        self.answered.clear()
                        await self.answered.wait()
                    request = msgspec.json.decode(message.body, type=AppendRequest)
                    own_run(self.asker, message.run, request.fence)
                    await self.parts.live.get(message.run, request.fence)
            except Exception as error:
                self._refuse(message, await self.parts.db.certain(error))
            else:
                self._begin(message)
            if len(self.waiting) == MAX_WAITING:
                self.wire.hold(False)
            self.waiting.popleft()

    def _begin(self, message: Message) -> None:
        try:
            if len(self.under_way) >= MAX_BEGUN:
                raise Transient(
                    f"{MAX_BEGUN} messages of this connection have no answer yet",
                    hint="wait for answers, then ask again",
                )
            work = self._work(message)
        except Exception as error:
            self._refuse(message, error)
            return
        if message.op == "append":
            self.appends += 1
        task = asyncio.create_task(self._finish(message, work), name=message.op)
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    def _refuse(self, message: Message, error: BaseException) -> None:
        problem = as_problem(error)
        if problem.status >= 500 and not isinstance(problem, Transient):
            log.error("op %s of run %s failed", message.op, message.run, exc_info=error)
        self.tell({"id": message.id, "error": problem.problem()})

    def _work(self, message: Message) -> Any:
        """Check the message; return what is to be awaited for its answer."""
        live, op, run = self.parts.live, message.op, message.run
        if op == "claim":
            if self.asker.kind != "agent":
                raise Forbidden("a claim takes the agent's own Hub token", hint="send it when connecting")
            return self._claim(msgspec.json.decode(message.body, type=ClaimRequest))
        if op == "heartbeat":
            return beat(self.parts, self.asker, run, msgspec.json.decode(message.body, type=HeartbeatRequest))
        if op == "open":
            self._sign_in(run, msgspec.json.decode(message.body, type=OpenRequest))
            return live.open(run, own_run(self.asker, run), tool_files)
        if op == "append":
            request = msgspec.json.decode(message.body, type=AppendRequest)
            own_run(self.asker, run, request.fence)
            return live.append(run, request.fence, request)
        if op == "model":
            asked = msgspec.json.decode(message.body, type=ModelRequest)
            own_run(self.asker, asked.run, asked.fence)
            return self.parts.models.model(asked)
        raise Invalid(f"there is no op {op!r}", hint="claim, heartbeat, open, append, model")

    def _sign_in(self, run: str, asked: OpenRequest) -> None:
        """Let a kernel's connection go on with its next run. Raises Unauthenticated; Forbidden: it is no worker's."""
        before = self.asker.claims
        if before is None:
            raise Forbidden("a run is opened with its own token", hint="connect with the run token")
        if asked.token and (before.r, before.f) != (run, asked.fence):
            self.asker = self.parts.door.by_run_token(asked.token)
            self.parts.workers.leave(self)
            self.parts.workers.listen(self.asker.name, self)

    async def _claim(self, request: ClaimRequest) -> Any:
        if time.monotonic() - self.known_at > STILL_SECONDS:
            await self._still()
        claim = await self.parts.claims.take(self.asker.name, request)
        if claim is not None:
            self.parts.workers.listen(claim.run, self)
        return claim

    async def _still(self) -> None:
        """Ask again whose connection this is: it stands for as long as its server. While the Hub is away it stays whose it was.

        Raises Unauthenticated, Forbidden: its token is worth nothing any more.
        """
        try:
            self.asker = await self.parts.door.by_token(self.token)
        except Transient:
            return
        self.routes["GET"].admit(self.asker)
        self.known_at = time.monotonic()

    async def _finish(self, message: Message, work: Any) -> None:
        try:
            answer = await work
        except Exception as error:
            self._refuse(message, await self.parts.db.certain(error))
            return
        finally:
            if message.op == "append":
                self.appends -= 1
                self.answered.set()
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
        self.wire.send(msgspec.json.encode(frame))


async def plain(_call: Any) -> None:
    """Stand in the table for the WebSocket: a plain GET does not come here."""
    raise Invalid("this is a WebSocket", hint="connect with Upgrade: websocket")


ROUTES = [
    Route("GET", "/worker", plain, "The worker's messages over one WebSocket", who="worker", streams=True, socket=WorkerSocket)
]  # fmt: skip
LIMIT = MAX_APPEND_BYTES + 64 * 1024
