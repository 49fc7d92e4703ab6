"""Units against the Hub's servers: a server that the Hub does not have (it died while it started or deleted one) is ended.

The Hub's own looks find servers that have no unit. Called by the daemon; what to end is decided in `orphans` (pure).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from ..errors import AgentFarmError

log = logging.getLogger("agentfarm.fleet")
LOOK_SECONDS = 30.0
LOOKS = 2  # so often in a row a unit must be missing in the Hub: the first look may fall into a start


class Units(Protocol):
    async def listed(self) -> list[dict[str, Any]]: ...
    async def end(self, unit: str, pid: int) -> None: ...


class Servers(Protocol):
    async def servers(self) -> set[str]: ...


def orphans(units: Collection[str], servers: Collection[str], seen: Mapping[str, int]) -> dict[str, int]:
    """Return how often in a row each of these units was missing in the Hub. Pure."""
    return {unit: seen.get(unit, 0) + 1 for unit in units if unit not in servers}


class Reconciler:
    """Looks every so many seconds. While the Hub or a microserver is away nothing is concluded."""

    def __init__(self, units: Units, hub: Servers, seconds: float = LOOK_SECONDS) -> None:
        self.units, self.hub, self.seconds = units, hub, seconds
        self.missing: dict[str, int] = {}
        self.swept: dict[str, float] = {}  # units whose keeper was killed, by when they were started

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self.seconds)
            began = time.monotonic()
            try:
                await self.look()
            except AgentFarmError as error:
                self.missing = {}
                log.info("units were not compared with the Hub's servers: %s", error.detail)
            if (took := time.monotonic() - began) > self.seconds:
                log.warning("comparing units with the Hub's servers took %.0f s", took)

    async def look(self) -> None:
        """Look once. Raises FleetError: somebody cannot be asked."""
        units = await self.units.listed()
        for one in units:
            began = one.get("started_at")  # of one that was given up nobody says
            if one["state"] == "exited" and one.get("reason") and began and self.swept.get(one["unit"]) != began:
                self.swept[one["unit"]] = began
                log.warning("unit %s: %s; what it left is ended", one["unit"], one["reason"])
                await self.units.end(one["unit"], one["pid"])
        running = {
            one["unit"]: one["pid"] for one in units if one["state"] == "running" and one["unit"].startswith("af-")
        }
        self.missing = orphans(running, await self.hub.servers(), self.missing)
        for unit, times in list(self.missing.items()):
            if times >= LOOKS:
                log.warning("unit %s runs, and the Hub has no such server: it is stopped", unit)
                await self.units.end(unit, running[unit])
                del self.missing[unit]
