"""Runs that need no files of their agent's go on elsewhere while its microserver is away: on a server that begins with nothing.

Such a scratch server takes no other runs (its supervisor says so with each claim), and ends as soon as its files can be reached, or
nothing is left for it. The daemon starts it on any microserver, and remembers where the files are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AbstractContextManager
from typing import Protocol

from ..errors import AgentFarmError
from ..hub import Hub
from ..records import hub_user
from ..store import leases, queue
from ..store.db import Database
from .beside import Beside
from .places import Places
from .resources import Resourcing

log = logging.getLogger(__name__)
LOOK_SECONDS = 5.0
REST_SECONDS = 1.0


class Claiming(Protocol):
    """Handed out runs (handlers/waiting.py). `scratch`: agents whose supervisors claim away from their files."""

    @property
    def scratch(self) -> set[str]: ...

    def resting(self, agent: str) -> AbstractContextManager[None]: ...


class Astray:
    """`wanted`: agents whose next start is away from their files."""

    def __init__(self, db: Database, hub: Hub, claims: Claiming, places: Places, resources: Resourcing) -> None:
        self.db, self.hub, self.claims, self.places, self.resources = db, hub, claims, places, resources
        self.wanted: set[str] = set()
        self._homeward = Beside()
        self._looked = -LOOK_SECONDS

    async def look(self) -> None:
        """Send away whose files cannot be reached and who has runs that need none; call back who may come. Raises FleetError, Transient."""
        if stranded := [agent for agent in self.places.away if agent not in self.wanted]:
            for agent in await self.db.read(lambda c: queue.anywhere(c, stranded)):
                log.warning("the files of %s cannot be reached: what needs none goes on elsewhere", agent)
                await self.resources.tell(agent, scratch=True)
                self.wanted.add(agent)
        if (now := time.monotonic()) - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._homeward.check()
            for agent in self.claims.scratch | self.wanted:
                self._homeward.begin(agent, self._call_back, agent)

    async def stop(self) -> None:
        """Break off what is under way; it is begun anew."""
        await self._homeward.stop()

    async def _call_back(self, agent: str) -> None:
        try:
            away = (await self.places.explain(agent))["away"]
            if away and await self.db.read(lambda c: queue.anywhere(c, [agent])):
                return
            with self.claims.resting(agent):
                await self._at_rest(agent)
                await self.resources.tell(agent)
                self.wanted.discard(agent)
                if agent in self.claims.scratch:
                    await self.hub.stop_server(hub_user(agent))
                    self.claims.scratch.discard(agent)
        except AgentFarmError as error:
            log.info("%s is not called back to its files yet: %s", agent, error.detail)

    async def _at_rest(self, agent: str) -> None:
        """Return when none of its runs is under way."""
        while True:
            if not await self.db.read(lambda c: leases.held_until(c, [agent])):
                return
            await asyncio.sleep(REST_SECONDS)
