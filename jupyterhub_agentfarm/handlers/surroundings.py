"""The farm around the service as it was last seen: microservers, units, the Hub's servers. Asked once for all who look.

Lists show it, and the stream of changes tells of it: so there is no request for each row, nor for each viewer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import AgentFarmError
from ..records import hub_user, unit_name
from .feed import FARM, Feed
from .views import ServerState

log = logging.getLogger(__name__)
FRESH_SECONDS = 2.0  # what was seen so lately is not asked for again
WATCH_SECONDS = 3.0  # how often it is looked at while somebody watches
STEADY = (
    "load",
    "memory_free",
    "disk_free",
    "uptime",
    "time",
    "took",
    "seen_at",
    "clock_offset",
    "clock_unsure",
    "cpu_time",
    "cpu_ratio",
    "pressure",
    "inodes_free",
    "gpus",
)  # these move always: a change of them alone is told seldom


@dataclass(frozen=True)
class Seen:
    """`hub_servers`: by hub user, those that run or are on their way; None where the Hub did not say."""

    microservers: list[dict[str, Any]] = field(default_factory=list)
    units: dict[str, dict[str, Any]] = field(default_factory=dict)
    hub_servers: dict[str, dict[str, Any]] | None = None
    at: float = 0.0

    def server(self, agent: str, why: str = "") -> ServerState:
        """Return how the agent's server is. Without the Hub's word, by whether its unit runs."""
        user = hub_user(agent)
        unit = self.units.get(unit_name(user)) or {}
        runs = unit.get("state") == "running"
        server: dict[str, Any] = {"ready": runs} if self.hub_servers is None else self.hub_servers.get(user, {})
        ready, pending = bool(server.get("ready")), server.get("pending")
        place = unit.get("microserver") if ready or pending or runs else None
        here = str(unit.get("why", "")) if place else ""
        return ServerState(ready=ready, pending=pending, microserver=place, reasons="" if ready else why, why=here)

    @property
    def steady(self) -> list[dict[str, Any]]:
        return [{key: value for key, value in one.items() if key not in STEADY} for one in self.microservers]


class Surroundings:
    """Asks the fleet daemon and the Hub. What does not answer is told as it was last known."""

    def __init__(self, hub: Any, fleet: Any, feed: Feed) -> None:
        self.hub, self.fleet, self.feed = hub, fleet, feed
        self.seen = Seen()
        self._asking: asyncio.Task[Seen] | None = None
        self._watchers = 0
        self._watching: asyncio.Task[None] | None = None

    async def look(self) -> Seen:
        """Return what is seen now, or was seen a moment ago."""
        if time.monotonic() - self.seen.at < FRESH_SECONDS and self.seen.at:
            return self.seen
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    def stale(self) -> None:
        """Have the next one who looks ask anew: something was started or stopped."""
        self.seen = replace(self.seen, at=0.0)
        self._asking = None  # who is being asked may have answered before
        self.feed.wake(FARM)

    async def _ask(self) -> Seen:
        old = self.seen
        micro, units, servers = await asyncio.gather(
            _told(self.fleet.microservers(), old.microservers), _told(self.fleet.units(), None),
            _told(self.hub.agents_servers(), None),
        )  # fmt: skip
        known = old.units if units is None else {one["unit"]: one for one in units}
        found = Seen(list(micro), known, servers, time.monotonic())
        if self._asking is asyncio.current_task():
            self.seen = found
        return found

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep looking while the block lasts, and wake the readers of FARM at changes."""
        self._watchers += 1
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers and self._watching is not None:
                self._watching.cancel()
                self._watching = None  # who comes before it has ended begins another one

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            await self.look()
            self.feed.wake(FARM)  # each reader compares with what it told last


async def _told(asking: Any, otherwise: Any) -> Any:
    try:
        return await asking
    except AgentFarmError as error:
        log.debug("the farm's surroundings: %s", error.detail)
        return otherwise
