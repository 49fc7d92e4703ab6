"""The ledger as a worker sees it: numbered appends under a fence.

`FarmLedger` speaks to the service over one WebSocket and sends again after a cut; local.py keeps the same promises in an
SQLite file outside a farm. loop.py knows only `Ledger`.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

import msgspec

from .errors import AgentFarmError, Fenced, Hole, Transient, Unauthenticated, from_problem
from .heartbeats import Heartbeats
from .protocol import (
    BLOB_OVER,
    LEASE_SECONDS,
    MAX_UNANSWERED,
    PROTOCOL,
    AppendAnswer,
    AppendRequest,
    Event,
    HeartbeatAnswer,
    NewEvent,
    Opened,
    OpenRequest,
    beat_seconds,
    effect_seconds,
)
from .settings import api_url
from .sockets import Sockets

SIGN_IN_SECONDS = 60.0  # how long a refused token is tried again: a renewed one may be on its way
FRAME_BYTES = 65_536  # messages that together stay below this go in one frame
LATE_SECONDS = 5.0  # for telling what came of calls when the run is another's by now
PREVIEW = 8000  # characters of a large result that the model is shown
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds between attempts to connect

log = logging.getLogger("agentfarm")
_NUMBERS = itertools.count(1)  # of requests: an answer to an earlier run's that comes late is taken for no other
Inbox = Callable[[list[Event]], None]


class Ledger(Protocol):
    """What loop.py needs. `n` is the number of the last append; `on_inbox` is told what others appended."""

    run: str
    fence: int
    n: int
    on_inbox: Inbox | None
    delegates: bool  # there are other agents to submit tasks to

    async def open(self) -> Opened: ...
    async def fit(self, event: NewEvent) -> NewEvent: ...
    async def append(self, events: list[NewEvent]) -> asyncio.Future[AppendAnswer]: ...
    async def drain(self) -> None: ...
    async def may_start(self) -> None: ...
    async def fetch_file(self, sha256: str) -> bytes: ...
    async def recall(self, key: str, query: str, limit: int) -> dict[str, Any]: ...
    async def close(self) -> None: ...


@dataclass
class _Pending:
    """A request without an answer; its frame is sent again, byte for byte, after a cut."""

    op: str
    frame: bytes
    answer: asyncio.Future[msgspec.Raw]
    sent: bool = False


class _Frame(msgspec.Struct, frozen=True):
    id: int = 0
    ok: msgspec.Raw = msgspec.Raw(b"")
    error: dict[str, Any] | None = None
    push: str = ""
    run: str = ""
    events: list[Event] = []


_FRAMES = msgspec.json.Decoder(_Frame | list[_Frame])


class _Common(msgspec.Struct, frozen=True):
    """What any answer may carry beside its own."""

    token: str = ""
    inbox: list[Event] = []


class FarmLedger:
    """A run's appends over one WebSocket. Started by `open()`; belongs to the event loop that opened it.

    `renews`: this kernel keeps the lease itself (a notebook's run); else the supervisor does and calls `renewed_at`.
    `sockets`: where the connection comes from, and goes back to; without it, it is this run's alone.
    """

    delegates = True

    def __init__(
        self, url: str, run: str, fence: int, token: str, *, socket: str = "", renews: bool = False, lease: float = LEASE_SECONDS,
        sockets: Sockets | None = None,
    ) -> None:  # fmt: skip
        self.run, self.fence, self.n = run, fence, 0
        self._beat, self._effect = beat_seconds(lease), effect_seconds(lease)
        self.on_inbox: Inbox | None = None
        self._url, self._socket, self._token, self._renews = api_url(url), socket, token, renews
        self._sockets = sockets or Sockets(self._url, socket)
        self._pending: dict[int, _Pending] = {}
        self._wake, self._renewal = asyncio.Event(), asyncio.Event()
        self._renewed = 0.0
        self._refused_since: float | None = None
        self._ended: AgentFarmError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._late: set[asyncio.Task[Any]] = set()  # outcomes under way of a run that is another's by now
        self._http: Any = None
        self._beats: Heartbeats | None = None

    # -- what the loop asks for ----------------------------------------------------------------------------------

    async def open(self) -> Opened:
        """Take the run up. Raises Fenced, Unauthenticated."""
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._keep_connected()))
        asked = time.monotonic()
        asking = OpenRequest(fence=self.fence, token=self._token)
        opened = msgspec.json.decode(await self.request("open", asking), type=Opened)
        self.n = max(self.n, opened.n)
        self.renewed_at(asked)
        if self._renews and self._beats is None:
            self._beats = self._keep_lease()
        return opened

    async def append(self, events: list[NewEvent]) -> asyncio.Future[AppendAnswer]:
        """Number and send events; the future is their answer."""
        self.n += 1
        raw = msgspec.Raw(msgspec.json.encode(events))
        waiting = self._ask("append", AppendRequest(fence=self.fence, n=self.n, events=raw))

        async def answered() -> AppendAnswer:
            try:
                return msgspec.json.decode(await waiting, type=AppendAnswer)
            except Fenced:
                await self._tell_late(events)
                raise

        return asyncio.ensure_future(answered())

    async def request(self, op: str, body: Any) -> msgspec.Raw:
        """Send a request of the worker protocol and wait for its answer."""
        return await self._ask(op, body)

    async def drain(self) -> None:
        """Wait until every append is answered. Raises what stopped one."""
        while waiting := [one.answer for one in self._pending.values() if one.op == "append"]:
            await asyncio.gather(*waiting)
        if self._ended is not None:
            raise self._ended

    async def may_start(self) -> None:
        """Wait until an effect may start: not too long after the last renewal of the lease."""
        while time.monotonic() > self._renewed + self._effect:
            if self._ended is not None:
                raise self._ended
            self._renewal.clear()
            await self._renewal.wait()

    def renewed_at(self, monotonic: float) -> None:
        """Note a renewal, by the clock that all processes of a machine share (CLOCK_MONOTONIC)."""
        self._renewed = max(self._renewed, monotonic)
        self._renewal.set()

    def use_token(self, token: str) -> None:
        self._token = token or self._token

    async def recall(self, key: str, query: str, limit: int) -> dict[str, Any]:
        """Return what the agent remembers: `{items: [{key, value, changed_at}], keys: how many in all}`."""
        asked = urlencode({"key": key, "query": query, "limit": limit})
        found: dict[str, Any] = (await self._call("GET", f"/runs/{self.run}/memory?{asked}")).json()
        return found

    async def fetch_file(self, sha256: str) -> bytes:
        """Return a pinned tool's source."""
        return bytes((await self._call("GET", f"/tools/files/{sha256}")).content)

    async def close(self) -> None:
        await asyncio.sleep(0)  # what was refused just now says so itself, late
        if self._late:
            await asyncio.wait(self._late, timeout=LATE_SECONDS)
        self._end(Transient("the ledger was closed"))
        if self._beats is not None:
            self._beats.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.aclose()

    # -- the connection ------------------------------------------------------------------------------------------

    def _ask(self, op: str, body: Any) -> asyncio.Future[msgspec.Raw]:
        future: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda one: one.cancelled() or one.exception())  # whoever waits is told; nobody must
        if self._ended is not None:
            future.set_exception(self._ended)
            return future
        number = next(_NUMBERS)
        frame = msgspec.json.encode({"id": number, "op": op, "run": self.run, "body": body})
        self._pending[number] = _Pending(op, frame, future)
        self._wake.set()
        return future

    async def _keep_connected(self) -> None:
        pause = FIRST_PAUSE
        while self._ended is None:
            began = time.monotonic()
            try:
                await self._connected()
            except (OSError, asyncio.TimeoutError, Transient):
                pass  # the service is away: everything unanswered is sent again
            except Unauthenticated as error:
                self._refused_since = self._refused_since or began
                if began - self._refused_since > SIGN_IN_SECONDS:
                    self._end(error)
            except AgentFarmError as error:
                self._end(error)
            pause = FIRST_PAUSE if time.monotonic() - began > 5 else min(pause * 2, LONGEST_PAUSE)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _connected(self) -> None:
        """Hold one connection until it is cut, or the run is over."""
        from websockets.exceptions import WebSocketException

        ws = await self._sockets.take(self._token)
        self._refused_since = None
        for one in self._pending.values():
            one.sent = False
        sender = asyncio.create_task(self._send(ws))
        try:
            async for message in ws:
                found = _FRAMES.decode(message)
                for frame in [found] if isinstance(found, _Frame) else found:
                    self._receive(frame)
        except (WebSocketException, msgspec.DecodeError) as error:
            await ws.close()
            raise Transient(f"the connection to the farm was cut: {error}") from error
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            await self._sockets.give(ws)

    async def _send(self, ws: Any) -> None:
        while True:
            self._wake.clear()
            appends = size = 0
            frames: list[bytes] = []
            for one in self._pending.values():
                if one.op == "append":
                    appends += 1
                    if appends > MAX_UNANSWERED:
                        continue
                if not one.sent and (not frames or size + len(one.frame) < FRAME_BYTES):
                    one.sent = True
                    frames.append(one.frame)
                    size += len(one.frame)
            if frames:  # those of one moment in one frame: they are committed together
                await ws.send(b"[" + b",".join(frames) + b"]", text=True)
            else:
                await self._wake.wait()

    def _receive(self, frame: _Frame) -> None:
        if frame.push == "inbox":
            if frame.run == self.run:  # not of the one before, whose connection this was
                self._deliver(frame.events)
            return
        one = self._pending.get(frame.id)
        if one is None:
            return  # an answer to what was sent twice
        if frame.error is not None:
            self._refused(frame.id, one, from_problem(frame.error))
            return
        del self._pending[frame.id]
        self._wake.set()
        if frame.ok and bytes(frame.ok) != b"null":
            common = msgspec.json.decode(frame.ok, type=_Common)
            self.use_token(common.token)
            self._deliver(common.inbox)
        if not one.answer.done():
            one.answer.set_result(frame.ok)

    def _refused(self, number: int, one: _Pending, error: AgentFarmError) -> None:
        earlier = any(p.op == "append" for n, p in self._pending.items() if n < number)
        if one.op in ("append", "open") and (isinstance(error, Transient) or (isinstance(error, Hole) and earlier)):
            delay = error.retry_after if isinstance(error, Transient) else FIRST_PAUSE
            asyncio.get_running_loop().call_later(delay, self._again, number)
            return
        if isinstance(error, Fenced) or one.op == "append":
            self._end(error)  # a refused append leaves a hole for ever: nothing more can be written
            return
        del self._pending[number]
        if not one.answer.done():
            one.answer.set_exception(error)

    def _again(self, number: int) -> None:
        """Send a refused request again, with the appends behind it."""
        for n, one in self._pending.items():
            if n == number or (n > number and one.op == "append"):
                one.sent = False
        self._wake.set()

    def _deliver(self, events: list[Event]) -> None:
        if events and self.on_inbox is not None:
            self.on_inbox(events)

    def _end(self, error: AgentFarmError) -> None:
        """Nothing more can be written: whoever waits is told."""
        self._ended = self._ended or error
        pending, self._pending = self._pending, {}
        for one in pending.values():
            if not one.answer.done():
                one.answer.set_exception(self._ended)
        self._renewal.set()

    def _keep_lease(self) -> Heartbeats:
        loop = asyncio.get_running_loop()
        beats = Heartbeats(
            self._url, self.run, self.fence, socket=self._socket, beat=self._beat, token=lambda: self._token,
            renewed=lambda asked, answer: loop.call_soon_threadsafe(self._beaten, asked, answer),
            refused=lambda error: loop.call_soon_threadsafe(self._beat_refused, error),
        )  # fmt: skip
        beats.start()
        return beats

    def _beat_refused(self, error: AgentFarmError) -> None:
        """End where the lease is gone. An append under way is told so itself, or it is the one that ended the run."""
        if not any(one.op == "append" for one in self._pending.values()):
            self._end(error)

    def _beaten(self, asked: float, answer: HeartbeatAnswer) -> None:
        self.renewed_at(asked)
        self.use_token(answer.token)
        self._deliver(answer.inbox)

    # -- what is too large for a frame ---------------------------------------------------------------------------

    async def fit(self, event: NewEvent) -> NewEvent:
        """Upload a result over 16 kB; return the event with the blob's name and its beginning in place of the result."""
        body = msgspec.json.decode(event.body) if len(event.body) > BLOB_OVER else {}
        if "result" not in body:
            return event
        data = msgspec.json.encode(body["result"])
        sha256 = hashlib.sha256(data).hexdigest()
        await self._call("PUT", f"/runs/{self.run}/blobs/{sha256}", data)
        text = body["result"] if isinstance(body["result"], str) else data.decode()
        named = {"$blob": sha256, "size": len(data), "preview": text[:PREVIEW]}
        return NewEvent(
            kind=event.kind, call=event.call, body=msgspec.Raw(msgspec.json.encode({**body, "result": named}))
        )

    async def _tell_late(self, events: list[NewEvent]) -> None:
        """Say what came of calls all the same: an outcome closes a doubt while nothing else stands."""
        if (task := asyncio.current_task()) is None:
            return
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        import httpx

        for event in events:
            if event.kind not in ("tool.succeeded", "tool.failed"):
                continue
            path = f"{self._url}/runs/{self.run}/calls/{event.call}/outcome"
            content = msgspec.json.encode({"fence": self.fence, "event": event})
            headers = {"Authorization": f"token {self._token}", "Agentfarm-Protocol": str(PROTOCOL)}
            transport = httpx.AsyncHTTPTransport(uds=self._socket) if self._socket else None
            try:
                async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=LATE_SECONDS) as http:
                    answer = await http.post(path, content=content, headers=headers)
                log.warning("run %s: call %s was told late: %d", self.run, event.call, answer.status_code)
            except httpx.TransportError as error:
                log.warning("run %s: what came of call %s could not be told: %s", self.run, event.call, error)

    async def _call(self, method: str, path: str, content: bytes | None = None) -> Any:
        """Make an HTTP request that may be made twice, until the farm answers it."""
        import httpx

        if self._http is None:
            transport = httpx.AsyncHTTPTransport(uds=self._socket) if self._socket else None
            self._http = httpx.AsyncClient(transport=transport, trust_env=False, timeout=30.0)
        while True:
            if self._ended is not None:
                raise self._ended
            headers = {"Authorization": f"token {self._token}", "Agentfarm-Protocol": str(PROTOCOL)}
            try:
                response = await self._http.request(method, self._url + path, content=content, headers=headers)
            except httpx.TransportError:
                await asyncio.sleep(LONGEST_PAUSE / 2)
                continue
            if response.is_success:
                return response
            if response.status_code not in (429, 502, 503, 504):
                raise from_problem(_problem(response))
            await asyncio.sleep(LONGEST_PAUSE / 2)


def _problem(response: Any) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"detail": f"the farm answered {response.status_code}"}
