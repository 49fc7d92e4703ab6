"""Agents whose servers have no place now, but may get one: they wait with the reason, and are started once a microserver has room.

They are asked about all at once, so that the room of one is not promised to each. What can never be is left to the scheduler, which fails it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from ..errors import AgentFarmError
from ..records import hub_user, unit_name

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
SELDOM = 20.0  # times as long as a look took there is none


class Fleet(Protocol):
    async def explain(self, unit: str) -> Any: ...
    async def plan(self, units: list[str]) -> Any: ...


class Places:
    """`waits`: why each of them has no place, by agent; `away`: where the files of those are whose microserver is silent. `freed()` is called when one has, or can never have one."""

    def __init__(self, fleet: Fleet, freed: Callable[[], None]) -> None:
        self.fleet, self._freed = fleet, freed
        self.waits: dict[str, str] = {}
        self.away: dict[str, str] = {}

    async def explain(self, agent: str) -> dict[str, Any]:
        """Return what each microserver says to the agent's server. Raises FleetError."""
        told: dict[str, Any] = await self.fleet.explain(unit_name(hub_user(agent)))
        return told

    async def lacks(self, agent: str) -> bool:
        """Say whether the agent's server has no place now, though it may get one; then, and where nobody can say, it waits."""
        try:
            told = await self.explain(agent)
        except AgentFarmError as error:
            self.waits[agent] = error.detail
            return True
        away = told.get("away") or ""
        stands = told["stands"] and not away  # it has its place, and only does not come
        if told["feasible"] != "later" or stands:
            return False
        self._wait(agent, told["change"], away)
        return True

    def _wait(self, agent: str, why: str, away: str) -> None:
        self.waits[agent] = words(why, away)
        if away:
            self.away[agent] = away
        else:
            self.away.pop(agent, None)

    def _go_on(self, agent: str) -> None:
        self.away.pop(agent, None)
        del self.waits[agent]

    def keep(self, agents: Collection[str]) -> None:
        """Forget all others: nothing is wanted of them, or they are there."""
        for agent in self.waits.keys() - agents:
            self._go_on(agent)

    async def run(self) -> None:
        """Look for ever, while any wait."""
        pause = LOOK_SECONDS
        while True:
            await asyncio.sleep(pause)
            began = time.monotonic()
            try:
                await self.look()
            except AgentFarmError as error:  # they wait on
                log.debug("places were not looked for: %s", error.detail)
            pause = max(LOOK_SECONDS, SELDOM * (time.monotonic() - began))

    async def look(self) -> None:
        """Let those go on that have a place by now, or never will. Raises FleetError."""
        agents = {unit_name(hub_user(agent)): agent for agent in self.waits}
        if not agents:
            return
        told: Mapping[str, Any] = await self.fleet.plan(list(agents))
        before = len(self.waits)
        for unit, agent in agents.items():
            if agent not in self.waits:
                continue
            if told["where"][unit] is None and told["feasible"][unit] == "later":
                self._wait(agent, told["why"][unit], told["away"].get(unit, ""))
            else:
                self._go_on(agent)
        if len(self.waits) < before:
            self._freed()


def words(why: str, away: str) -> str:
    """Say why a server has no place. away: where its workspace is and nobody answers, "" where that is not the reason. Pure."""
    if away:
        return f"its workspace is on {away}, which cannot be reached: it waits for it, or for agentfarm microserver lost {away}"
    return f"no microserver takes its server now: {why}"
