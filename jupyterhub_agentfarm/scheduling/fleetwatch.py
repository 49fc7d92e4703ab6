"""What the fleet daemon notes of microservers comes into the farm's chain; and whether a silent one is lost, which only the service can tell.

A microserver is *silent* when the daemon cannot reach it. It is *lost* when nothing else is heard from it either: no run of a server
there renews its lease. Neither proves that anything there has ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from agentfarm_sdk.protocol import LEASE_SECONDS

from ..errors import AgentFarmError
from ..store import leases, notices
from ..store.db import Database

log = logging.getLogger(__name__)
LOOK_SECONDS = 5.0


class Fleet(Protocol):
    async def notices(self, after: int) -> Any: ...
    async def units(self) -> Any: ...
    async def set_lost(self, name: str, lost: bool, why: str) -> Any: ...


def why_lost(silent_for: float, renewed: Sequence[float], listens: bool, lease: float) -> str:
    """Return why a silent microserver counts as lost; "": it does not. Pure.

    silent_for: seconds since the daemon reached it; renewed: how long ago each lease of runs there was renewed last; listens: whether a
    server there asks for work, or did a moment ago.
    """
    if listens or silent_for < lease or any(ago < lease for ago in renewed):
        return ""
    ago = f", {min(renewed):.0f} s ago the last one" if renewed else ": none runs there"
    return f"it cannot be reached for {silent_for:.0f} s, and no run there renews its lease{ago}"


class FleetWatch:
    """Looks every few seconds. What cannot be asked is asked again; nothing is concluded meanwhile.

    `listens(agent)`: whether a supervisor of the agent's is there (waiting.Claims.seen).
    """

    def __init__(
        self, db: Database, fleet: Fleet, listens: Callable[[str], bool], lease: float = LEASE_SECONDS
    ) -> None:
        self.db, self.fleet, self.listens, self.lease = db, fleet, listens, lease
        self._after: int | None = None

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except AgentFarmError as error:
                log.debug("the fleet's notices: %s", error.detail)
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Look once. Raises FleetError, Transient."""
        if self._after is None:
            self._after = await self.db.read(notices.last)
        told: dict[str, Any] = await self.fleet.notices(self._after)
        if items := told["items"]:
            self._after = await self.db.write(lambda tx: notices.record(tx, items))
        if silent := told["silent"]:
            await self._judge(silent)

    async def _judge(self, silent: Mapping[str, Mapping[str, Any]]) -> None:
        """Say of each silent microserver whether it is lost, where that is news to the daemon."""
        there: dict[str, list[str]] = {name: [] for name in silent}
        for unit in await self.fleet.units():
            if unit.get("agent") and unit.get("microserver") in there:
                there[unit["microserver"]].append(str(unit["agent"]))
        agents = [agent for names in there.values() for agent in names]
        until = await self.db.read(lambda c: leases.held_until(c, agents))
        now, wall = self.db.now(), time.time()
        for name, one in silent.items():
            renewed = [now - (until[agent] - self.lease) for agent in there[name] if agent in until]
            listens = any(self.listens(agent) for agent in there[name])
            why = why_lost(wall - one["since"], renewed, listens, self.lease)
            if bool(why) != one["lost"]:
                await self.fleet.set_lost(name, bool(why), why or "runs there renew their leases: only the line is cut")
