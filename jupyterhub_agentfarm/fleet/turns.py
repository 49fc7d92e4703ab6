"""Whose turn it is to start. A server takes a whole core while it starts; many at once on an old machine would all be late.

On each microserver at most as many start together as it has cores; the others wait, first come first served. Called by the daemon.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

from agentfarm_sdk.waiting import within

from ..errors import StartError

LONGEST_SECONDS = 30.0  # for which one that starts keeps others waiting: it may be stuck
LOOK_SECONDS = 0.3  # between looks whether those that start are up, while another waits


def whose_turn(waiting: Sequence[str], starting: int, cores: int) -> list[str]:
    """Return which of those that wait, in the order of their coming, may start beside so many that do."""
    return list(waiting[: max(0, max(1, cores) - starting)])


class Turns:
    """The starts on all microservers. Taking or ending a turn twice is harmless. is_up: whether a unit has started."""

    def __init__(self, is_up: Callable[[str], Awaitable[bool]]) -> None:
        self._is_up = is_up
        self._waiting: dict[str, str] = {}  # unit: where; in the order of their coming
        self._asking: collections.Counter[str] = collections.Counter()  # requests that wait for a unit's turn
        self._began: dict[str, dict[str, float]] = {}  # where: {unit that starts: since when, monotonic}
        self._changed = asyncio.Event()

    async def take(self, unit: str, there: str, cores: int, gone: asyncio.Event) -> None:
        """Return when the unit may start there. Raises StartError: it was stopped while it waited, or who asked is `gone`."""
        self._waiting[unit] = there
        self._asking[unit] += 1
        try:
            await self._wait(unit, there, cores, gone)
        finally:
            self._asking[unit] -= 1
            if not self._asking[unit]:  # nobody waits for it any more
                del self._asking[unit]
                if self._waiting.pop(unit, None):
                    self._tell()

    async def _wait(self, unit: str, there: str, cores: int, gone: asyncio.Event) -> None:
        while self._waiting.get(unit) == there:
            if gone.is_set():
                raise StartError("who asked for it went away while it waited for its turn", hint="start it again")
            if unit in whose_turn(self._line(there), len(self._starting(there)), cores):
                del self._waiting[unit]
                self._began[there][unit] = time.monotonic()
                self._tell()
                return
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._changed.wait(), LOOK_SECONDS)
            if self._line(there)[:1] == [unit]:  # one looks for all
                await self._look(there)
        if unit not in self._starting(there):  # else another request of the same start was the first to see its turn
            raise StartError("it was stopped while it waited for its turn to start", hint="start it again")

    def before(self, unit: str) -> int | None:
        """Return how many start, or will, before a unit that waits for its turn; None: it does not wait."""
        there = self._waiting.get(unit)
        return None if there is None else len(self._starting(there)) + self._line(there).index(unit)

    def end(self, unit: str) -> None:
        """Let others start: the unit has started, has ended, or is not to be started any more."""
        self._waiting.pop(unit, None)
        for began in self._began.values():
            began.pop(unit, None)
        self._tell()

    async def _look(self, there: str) -> None:
        """End the turns of those that are up."""
        for unit in [*self._starting(there)]:
            if await self._is_up(unit):
                self.end(unit)

    def _starting(self, there: str) -> dict[str, float]:
        """Return those that start there, without those that took too long."""
        now, began = time.monotonic(), self._began.get(there, {})
        self._began[there] = {unit: at for unit, at in began.items() if now - at < LONGEST_SECONDS}
        return self._began[there]

    def _line(self, there: str) -> list[str]:
        return [unit for unit, where in self._waiting.items() if where == there]

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
