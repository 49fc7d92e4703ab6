"""An answer that one asks for and many wait for; who has no more patience gets the last one, and hears how old it is."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from ..errors import FleetError

T = TypeVar("T")
PATIENCE = 2.0  # seconds, with a microserver that is slow: then what it said last is told
UNITS_SECONDS = 3.0  # for which a list of units is good that this daemon has not changed meanwhile
OLDEST_SECONDS = 60.0  # of facts to place servers by, where newer ones do not come


class Kept(Generic[T]):
    """`ask` is never asked twice at the same time. Times are monotonic seconds."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[T] | None = None
        self.value: T | None = None
        self.asked_at = self.at = -math.inf  # when the value was asked for, and when it came
        self._changed = -math.inf  # what was asked for before is not what is now
        self.problem = ""  # why the latest question got no answer

    @property
    def age(self) -> float:
        return time.monotonic() - self.at

    async def get(self, fresh: float, patience: float | None = None, oldest: float | None = None) -> T:
        """Return an answer that is at most `fresh` seconds old, or a new one.

        Who has waited for `patience` seconds gets the last one, if it is at most `oldest` seconds old (None: however old); else
        they wait on. Raises what the question raised; FleetError: there is no last one either.
        """
        if self.value is not None and self.age <= fresh:
            return self.value
        if self._asking is None:
            self._asking = asyncio.create_task(self._asked())
            self._asking.add_done_callback(_heard)
        asking = self._asking
        await asyncio.wait({asking}, timeout=patience)
        if not asking.done():
            if self.problem:
                raise FleetError(self.problem, hint="see its load, its power and its network", retry_after=2)
            if self.value is not None and (oldest is None or self.age <= oldest):
                return self.value
            if oldest is None:
                raise FleetError(
                    "it has not answered yet", hint="see its load, its power and its network", retry_after=2
                )
            await asyncio.wait({asking})
        return asking.result()

    async def _asked(self) -> T:
        began, mine = time.monotonic(), asyncio.current_task()
        try:
            value = await self._ask()
        except FleetError as error:
            self.problem = error.detail
            raise
        finally:
            if self._asking is mine:
                self._asking = None
        if began >= max(self.asked_at, self._changed):
            self.value, self.asked_at, self.at, self.problem = value, began, time.monotonic(), ""
        return value

    def stale(self) -> None:
        """Have the next one ask anew: something has changed. Who is being asked may have answered before."""
        self._asking = None
        self.at, self._changed = -math.inf, time.monotonic()


def _heard(asked: asyncio.Task[T]) -> None:
    """Take what a question raised that nobody waited for any more: it is told as `problem`."""
    if not asked.cancelled():
        asked.exception()
