"""Who is next at an upstream that has its hands full: owners take turns, first come first served within one owner."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager


def next_owner(waiting: Iterable[str], in_flight: dict[str, int], last: str | None) -> str | None:
    """Return the owner with the fewest requests in flight; among equals the one after `last`, by name. Pure."""
    owners = sorted(set(waiting))
    if not owners:
        return None
    return min(owners, key=lambda owner: (in_flight.get(owner, 0), last is not None and owner <= last, owner))


class Turns:
    """At most `limit` requests at once, fairly between owners."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._in_flight: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._last: str | None = None

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Wait for a turn and hold it."""
        if sum(self._in_flight.values()) >= self.limit or self._waiting:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(owner, deque()).append(place)
            self._let_in()
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():  # let in and cancelled at once: hand the turn on
                    self._leave(owner)
                raise
        else:
            self._in_flight[owner] = self._in_flight.get(owner, 0) + 1
        try:
            yield
        finally:
            self._leave(owner)

    def _leave(self, owner: str) -> None:
        self._in_flight[owner] -= 1
        if not self._in_flight[owner]:
            del self._in_flight[owner]
        self._let_in()

    def _let_in(self) -> None:
        while sum(self._in_flight.values()) < self.limit:
            owner = next_owner(self._waiting, self._in_flight, self._last)
            if owner is None:
                return
            places = self._waiting[owner]
            place = places.popleft()
            if not places:
                del self._waiting[owner]
            if place.done():
                continue
            self._last = owner
            self._in_flight[owner] = self._in_flight.get(owner, 0) + 1
            place.set_result(None)
