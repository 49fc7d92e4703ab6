"""What time alone decides: expired leases, and approvals that nobody gave in time.

A run is taken from a silent worker only when the silence is the worker's and not the service's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agentfarm_sdk.protocol import LEASE_SECONDS
from agentfarm_sdk.waiting import within

from ..errors import AgentFarmError, Fenced, Transient
from ..records import Run
from ..store import effects, inbox, jumps, leases
from ..store.db import Database

log = logging.getLogger(__name__)
TICK = 1.0
ASK_SECONDS = 2.0  # between two questions about servers whose workers are silent
PROOF_SECONDS = 5.0  # for the fleet daemon to say how a server ended
AT_ONCE = 0.5  # for which a look waits for that: a microserver that answers slowly holds up nobody's timers and leases
RESTARTED = "the machine was restarted"
JUMP = 1.0  # seconds by which a clock may differ, or a tick be late
DRIFT = 0.05  # seconds: less is how clocks are, and not followed


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

    def waited(self, seconds: float) -> None:
        """Do not count so many seconds as a late look: a slow microserver was asked meanwhile, and the service served."""
        self.mono, self.wall = self.mono + seconds, self.wall + seconds


def proof_of_death(unit: Mapping[str, Any]) -> str | None:
    """Return what proves that nothing of a server runs any more, from the fleet daemon's word on its unit. Pure.

    On microservers with systemd the unit's control group is looked at. A keeper says how a server ended when all that it started is gone
    too; where the keeper was killed, nobody knows yet.
    """
    if unit.get("state") == "exited" and unit.get("empty"):
        return str(unit.get("reason") or f"its server has ended with exit code {unit.get('exit_code')}")
    if unit.get("state") != "exited" or unit.get("reason") not in (None, "", RESTARTED):
        return None
    return RESTARTED if unit.get("reason") else f"its server has ended with exit code {unit.get('exit_code')}"


class Reaper:
    """Looks each second. Acts after one whole lease period of uninterrupted service, counted anew after each trouble.

    `unit` tells the state of the server of an agent (fleet/client.py).
    """

    def __init__(
        self,
        db: Database,
        lease: float = LEASE_SECONDS,
        unit: Callable[[str], Awaitable[Mapping[str, Any]]] | None = None,
    ) -> None:
        self.db, self.lease, self.unit = db, lease, unit
        self.reaped = 0  # for metrics
        self._asked = -ASK_SECONDS
        self._asking: asyncio.Task[None] | None = None
        self.pause = TICK  # seconds until the next look: less where a timer is due before
        now = time.monotonic()
        self.steady = Steadiness(now, now, db.now())

    async def run(self) -> None:
        """Look for ever."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(self.pause)
        finally:
            if self._asking is not None:
                self._asking.cancel()

    async def look(self) -> None:
        """Look once."""
        try:
            wall, strayed, silent, expired, due, timers, next_timer = await self.db.read(
                lambda c: (
                    now := self.db.now(),
                    self.db.strayed(c),
                    leases.silent(c, now, self.lease),
                    leases.expired(c, now, self.lease + JUMP),
                    inbox.due(c, now),
                    effects.due(c, now),
                    effects.next_due(c, now),
                )
            )
        except Transient:
            self.steady.tick(time.monotonic(), self.db.now(), healthy=False)
            return
        self.pause = TICK if next_timer is None else min(TICK, max(0.01, next_timer - wall))
        for run_id, call in timers:
            await self._fire(run_id, call)
        for item in due:
            await self._overdue(item)
        await self._follow(strayed)
        await self._ask(silent)
        if self.steady.tick(time.monotonic(), self.db.now(), self.db.last_error is None) < self.lease:
            return
        began = time.monotonic()
        proofs = await self._proofs(expired)
        self.steady.waited(time.monotonic() - began)
        for run in expired:
            await self._requeue(run, proofs.get(run.agent))

    async def _ask(self, silent: list[Run]) -> None:
        """Ask for the servers of silent workers, one question at a time; it is waited for only where the answer comes at once."""
        if self._asking is None and silent and time.monotonic() - self._asked >= ASK_SECONDS:
            self._asking = asyncio.create_task(self._take_dead(silent))
            await asyncio.wait({self._asking}, timeout=AT_ONCE)
        if self._asking is not None and self._asking.done():
            asking, self._asking = self._asking, None
            asking.result()

    async def _take_dead(self, silent: list[Run]) -> None:
        """Take the runs of servers that are proven dead at once: a proof needs neither the lease's end nor steady service."""
        proofs = await self._proofs(silent)
        self._asked = time.monotonic()
        for run in silent:
            if proof := proofs[run.agent]:
                await self._requeue(run, proof)

    async def _proofs(self, runs: list[Run]) -> dict[str, str | None]:
        agents = {run.agent for run in runs if not run.bound}
        return dict(zip(agents, await asyncio.gather(*map(self._proof, agents)), strict=True))

    async def _follow(self, strayed: float) -> None:
        """Let the farm's clock follow the one that it goes by, and keep durations over a jump: no run is older by it."""
        if abs(strayed) > JUMP:
            try:
                await self.db.write(lambda tx: jumps.jumped(tx, strayed))
            except AgentFarmError as error:
                log.warning("the clock has jumped by %.1f s, which cannot be recorded yet: %s", strayed, error)
                return
            log.warning("the clock has jumped by %.1f s: leases and limits go on as they were", strayed)
        elif abs(strayed) > DRIFT:
            self.db.move(strayed)

    async def _fire(self, run_id: str, call: str) -> None:
        try:
            await self.db.write(lambda tx: leases.fire(tx, run_id, call))
        except AgentFarmError as error:
            log.warning("run %s: the timer of call %s cannot fire: %s", run_id, call, error)

    async def _overdue(self, inbox_id: str) -> None:
        try:
            await self.db.write(lambda tx: leases.overdue(tx, inbox_id))
        except AgentFarmError as error:
            log.warning("%s is overdue, and it cannot be said so: %s", inbox_id, error)

    async def _proof(self, agent: str) -> str | None:
        """Ask whether the agent's server is dead, and all that it started; no answer proves nothing."""
        if self.unit is None:
            return None
        try:
            return proof_of_death(await within(self.unit(agent), PROOF_SECONDS))
        except (AgentFarmError, asyncio.TimeoutError) as error:
            log.info("whether the server of %s is dead is not known: %s", agent, error or "no answer")
            return None

    async def _requeue(self, run: Run, proof: str | None) -> None:
        reason = "the worker died" if proof else "the lease expired"
        try:
            await self.db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, reason, proof))
        except Fenced:
            return  # its worker was faster
        except AgentFarmError as error:
            log.warning("run %s, fence %d: its expired lease could not be ended: %s", run.run_id, run.fence, error)
            return
        self.reaped += 1
        log.warning("run %s: fence %d (%s): %s: %s", run.run_id, run.fence, run.worker, reason, proof or "silent")
