"""What time alone decides: expired leases, and approvals that nobody gave in time.

A run is taken from a silent worker only when the silence is the worker's and not the service's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from agentfarm_sdk.protocol import LEASE_SECONDS

from ..errors import AgentFarmError, Fenced, Transient
from ..records import Run
from ..store import inbox, leases
from ..store.db import Database

log = logging.getLogger(__name__)
TICK = 1.0
JUMP = 1.0  # seconds by which a clock may differ, or a tick be late


@dataclass
class Steadiness:
    """Since when the service has served without interruption (monotonic seconds). Pure: the clocks are handed in."""

    since: float
    mono: float
    wall: float

    def tick(self, mono: float, wall: float, healthy: bool) -> float:
        """Take a look; return for how many seconds service was uninterrupted."""
        late = mono - self.mono > TICK + JUMP
        jumped = abs((wall - self.wall) - (mono - self.mono)) > JUMP
        if late or jumped or not healthy:
            self.since = mono
        self.mono, self.wall = mono, wall
        return mono - self.since


class Reaper:
    """Looks each second. Acts after one whole lease period of uninterrupted service, counted anew after each trouble."""

    def __init__(self, db: Database, lease: float = LEASE_SECONDS) -> None:
        self.db, self.lease = db, lease
        self.reaped = 0  # for metrics
        now = time.monotonic()
        self.steady = Steadiness(now, now, db.now())

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(TICK)

    async def look(self) -> None:
        """Look once."""
        try:
            wall, expired, due = await self.db.read(
                lambda c: (now := self.db.now(), leases.expired(c, now), inbox.due(c, now))
            )
        except Transient:
            self.steady.tick(time.monotonic(), time.time(), healthy=False)
            return
        for item in due:
            await self._overdue(item)
        if self.steady.tick(time.monotonic(), wall, self.db.last_error is None) < self.lease:
            return
        for run in expired:
            await self._requeue(run)

    async def _overdue(self, inbox_id: str) -> None:
        try:
            await self.db.write(lambda tx: leases.overdue(tx, inbox_id))
        except AgentFarmError as error:
            log.warning("%s is overdue, and it cannot be said so: %s", inbox_id, error)

    async def _requeue(self, run: Run) -> None:
        reason = "the lease expired"
        try:
            await self.db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, reason, None))
        except Fenced:
            return  # its worker was faster
        except AgentFarmError as error:
            log.warning("run %s, fence %d: its expired lease could not be ended: %s", run.run_id, run.fence, error)
            return
        self.reaped += 1
        log.warning("run %s: the lease of fence %d (%s) expired", run.run_id, run.fence, run.worker)
