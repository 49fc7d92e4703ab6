"""Streams of server-sent events: woken at commits, read from the ledger by number, so that none has a gap."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from agentfarm_sdk.protocol import ENDED
from agentfarm_sdk.waiting import within

from ..errors import Invalid
from ..records import Committed
from ..store.db import Database
from ..store.tables import FARM_RUN

KEEPALIVE_SECONDS = 15.0
STILL_SECONDS = 60.0  # between two looks whether who reads a stream may still do so
ENDS = "ends"  # in the place of a run: the ends of all
AGENTS, INBOX, FARM, CASES = "agents", "inbox", "surroundings", "cases"  # what lists of those show may have changed
_ASKS = ("approval.", "simulation.", "budget.", "question.")
_MOVES_INBOX = frozenset({
    "tool.doubted", "tool.resolved", "run.requeued", "run.resumed", "run.succeeded", "run.failed", "run.cancelled", "worker.died",
})  # fmt: skip
_ENDING = frozenset(f"run.{end}" for end in ENDED)
MAX_UNSENT = 4 * 1024 * 1024  # a reader that takes nothing for so long is dropped; it comes again by its last id


class Feed:
    """Tells readers of one run, or of all, that something was committed. What, they read themselves."""

    def __init__(self, db: Database) -> None:
        self._readers: dict[str | None, set[asyncio.Event]] = {}
        db.on_commit(self._heard)

    def _heard(self, committed: list[Committed]) -> None:
        for run in {one.run_id for one in committed}:
            for reader in self._readers.get(run, ()):
                reader.set()
        for reader in self._readers.get(None, ()):
            reader.set()
        if ENDS in self._readers and any(one.events[-1].kind in _ENDING for one in committed):
            self.wake(ENDS)
        if AGENTS in self._readers and any(one.run_id == FARM_RUN for one in committed):
            self.wake(AGENTS)
        if INBOX in self._readers and any(_moves_inbox(event.kind) for one in committed for event in one.events):
            self.wake(INBOX)

    def wake(self, readers: str) -> None:
        """Have the readers of a run, or of all ends, look again."""
        for reader in self._readers.get(readers, ()):
            reader.set()

    @contextmanager
    def reader(self, run_id: str | None) -> Iterator[asyncio.Event]:
        """Give an event that is set at each commit of the run (None: of any; ENDS: that ends one) while the block lasts."""
        mine = asyncio.Event()
        self._readers.setdefault(run_id, set()).add(mine)
        try:
            yield mine
        finally:
            self._readers[run_id].discard(mine)
            if not self._readers[run_id]:
                del self._readers[run_id]

    @property
    def readers(self) -> int:
        return sum(len(readers) for readers in self._readers.values())


def _moves_inbox(kind: str) -> bool:
    return kind in _MOVES_INBOX or kind.startswith(_ASKS)


def wants_stream(handler: Any) -> bool:
    return "text/event-stream" in str(handler.request.headers.get("Accept", ""))


def resume_from(handler: Any, after: int) -> int:
    """Return behind which number a stream goes on: Last-Event-ID, or ?after=. Raises Invalid."""
    text = str(handler.request.headers.get("Last-Event-ID", "")).strip()
    if not text:
        return after
    if not text.isdecimal() or len(text) > 15:
        raise Invalid(f"Last-Event-ID {text!r}", hint="send the id of the last event that you have")
    return int(text)


class Sse:
    """One open stream of an answer."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler
        self.known_at = time.monotonic()  # who reads
        handler.set_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.set_header("X-Accel-Buffering", "no")

    @property
    def open(self) -> bool:
        return not self.handler.gone.is_set()

    async def send(self, data: Any, event: str = "", number: int | None = None) -> None:
        """Send one event. `data`: JSON."""
        lines = [f"id: {number}\n" if number is not None else "", f"event: {event}\n" if event else ""]
        self.handler.write("".join(lines).encode() + b"data: " + msgspec.json.encode(data) + b"\n\n")
        await self.flush()

    async def comment(self, text: str = "") -> None:
        """Send a line that readers skip, so that nothing in between takes the stream for dead."""
        self.handler.write(f":{text}\n\n".encode())
        await self.flush()

    async def flush(self) -> None:
        stream = self.handler.request.connection.stream
        if not stream.closed() and len(stream._write_buffer) > MAX_UNSENT:
            stream.close()
        await self.handler.flush()

    async def follow(
        self,
        wake: asyncio.Event,
        read: Callable[[], Awaitable[Sequence[tuple[int, str, Any]]]],
        ended: Callable[[], bool],
    ) -> None:
        """Send what `read` gives (number, event, data) until `ended`, now and whenever woken."""
        await self.comment("here")
        while self.open:
            wake.clear()  # before reading: a commit behind it wakes again
            while rows := await read():
                for number, event, data in rows:
                    await self.send(data, event, number)
                if ended():
                    return
            if ended():
                return
            await self.pause(wake)

    async def rest(self, seconds: float) -> None:
        """Wait so long, or until the reader is gone."""
        with suppress(asyncio.TimeoutError):
            await within(self.handler.gone.wait(), seconds)

    async def pause(self, *wakes: asyncio.Event) -> None:
        """Wait until one of these is set or the reader is gone; send a byte now and then. Raises where the reader may not stay."""
        if time.monotonic() - self.known_at > STILL_SECONDS:
            await self.handler.still()
            self.known_at = time.monotonic()
        waiting = [asyncio.ensure_future(one.wait()) for one in (*wakes, self.handler.gone)]
        try:
            done, _ = await asyncio.wait(waiting, timeout=KEEPALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
        if not done:
            await self.comment()
