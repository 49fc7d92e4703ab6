"""One move per task, from what is towards what is wanted: a pool's task gets its agent, an agent with work its server.

Runs reach a supervisor that listens without it (handlers/waiting.py hands them out at their commit).
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import Protocol

from agentfarm_sdk.protocol import ENDED

from ..errors import AgentFarmError, Conflict, Transient, UserError
from ..hub import Hub
from ..records import Committed, Placeless, hub_user
from ..store import leases, ledger, pools, queue, tasks
from ..store.db import Database, Tx
from .astray import Astray, Claiming
from .beside import Beside
from .lifecycle import ASSIGNED_SECONDS, Attempts, Move, next_move
from .places import Fleet, Places
from .pools import Listening, Pools, Stuck
from .priority import to_start
from .resources import Resourcing

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0  # for what no commit tells: supervisors that come and go
PATIENCE = 2.0  # seconds that a pool's task waits for a member that listens, before another one's server is started
WAKES = frozenset({"run.created", "run.requeued", "run.resumed", "worker.died"})
FREES = frozenset({"run.leased", *(f"run.{end}" for end in ENDED)})  # room in a member, or a concurrency key


class Supervisors(Listening, Claiming, Protocol):
    def wake(self, agent: str) -> None: ...


class Scheduler:
    """Wakes at commits, and each second."""

    def __init__(
        self,
        db: Database,
        hub: Hub,
        supervisors: Supervisors,
        fleet: Fleet,
        resources: Resourcing,
        deadline: float = ASSIGNED_SECONDS,
    ) -> None:
        self.db, self.hub, self.supervisors, self.deadline = db, hub, supervisors, deadline
        self.places = Places(fleet, self.wake)
        self.resources = resources
        self.astray = Astray(db, hub, supervisors, self.places, resources)
        self.pools = Pools(db, supervisors, resources.lacking)
        self.attempts: dict[str, Attempts] = {}
        self._starting = Beside()
        self._pools_wait: dict[str, str] = {}  # targets none of whose members has a place, and why
        self._woken = asyncio.Event()
        self._ends = False  # the end of a run may let one of another agent, or a pool's task, go on
        self._soonest: float | None = None  # when time alone has something to do next (the database's clock)
        db.on_commit(self._heard)

    def _heard(self, committed: list[Committed]) -> None:
        kinds = WAKES | FREES if self._ends or self.pools.left else WAKES
        leased = {one.run_id for one in committed if any(event.kind == "run.leased" for event in one.events)}
        if any(event.kind in kinds and not (event.kind == "run.created" and one.run_id in leased)
               for one in committed for event in one.events):  # fmt: skip
            self.wake()

    def wake(self) -> None:
        """Look now."""
        self._woken.set()

    def why(self, agent: str) -> str:
        """Return what the latest try to start the agent's server was answered, "" where there is nothing to tell."""
        known = self.attempts.get(agent)
        return self.supervisors.held.get(agent) or self.places.waits.get(agent) or (known.why if known else "")

    def placeless(self) -> Placeless:
        """Return which tasks wait for a place for a server, and why."""
        return Placeless(dict(self.places.waits), self._pools_wait, frozenset(self.supervisors.scratch))

    async def run(self) -> None:
        """Look for ever; end what was begun when cancelled."""
        placing = asyncio.create_task(self.places.run(), name="places")
        try:
            while True:
                if placing.done():
                    placing.result()  # a mistake of ours: never quietly
                try:
                    await self.look()
                except (Transient, UserError) as error:  # a run may be gone by now: the next look does not find it
                    log.warning("the scheduler waits: %s", error.detail)
                woken = asyncio.ensure_future(self._woken.wait())
                try:  # not wait_for: woken in the moment of its end, it would forget that it was cancelled
                    await asyncio.wait({woken}, timeout=self._pause())
                finally:
                    woken.cancel()
                self._woken.clear()
        finally:
            placing.cancel()
            await asyncio.gather(placing, self._starting.stop(), self.astray.stop(), return_exceptions=True)

    def _pause(self) -> float:
        """Return for how long there is nothing to do, unless woken (seconds)."""
        if self._soonest is None:
            return LOOK_SECONDS
        return min(LOOK_SECONDS, max(0.0, self._soonest - self.db.now()))

    async def look(self) -> None:
        """Make the moves that are due now."""
        self._starting.check()
        now = self.db.now()
        stuck = await self.pools.look()
        waiting, (overdue, deadline), pause_ends, self._ends = await self.db.read(
            lambda c: (
                queue.waiting(c, now),
                queue.deadlines(c, now),
                queue.next_not_before(c, now),
                queue.keyed(c) or pools.some_come_after(c),
            )
        )
        self._soonest = min((at for at in (deadline, pause_ends) if at is not None), default=None)
        for task_id in overdue:
            await self._overdue(task_id)
        for one in waiting:  # also those that waited for a time, or for a concurrency key of another agent's run
            self.supervisors.wake(one.agent)
        for one in waiting:
            await self._serve(one)
        wanted = {one.agent for one in waiting}
        pools_wait: dict[str, str] = {}
        for left in stuck:
            wanted |= await self._helped(left, pools_wait)
        self._pools_wait = pools_wait
        self.places.keep({agent for agent in wanted if not self.supervisors.seen(agent)})
        await self.astray.look()
        for agent in set(self.attempts):
            if agent not in self._starting and (agent not in wanted or self.supervisors.seen(agent)):
                del self.attempts[agent]  # one that came and goes again has all its time anew

    async def _overdue(self, task_id: str) -> None:
        try:
            await self.db.write(lambda tx: tasks.cancel(tx, task_id, "service", "its deadline has passed"))
        except Conflict:
            return  # it has just ended

    def _move(self, agent: str) -> Move:
        if agent in self._starting:
            return "none"
        if agent in self.supervisors.held:  # it is told when its time begins anew
            self.attempts.pop(agent, None)
            return "none"
        if agent in self.places.waits:
            return "none"
        return next_move(self.supervisors.seen(agent), self.attempts.get(agent), time.monotonic(), self.deadline)

    def _begin(self, agent: str) -> None:
        now = time.monotonic()
        begun = self.attempts.get(agent) or Attempts(first=now, last=now)
        self.attempts[agent] = replace(begun, last=now, tries=begun.tries + 1)
        self._starting.begin(agent, self._start, agent)

    async def _serve(self, waiting: queue.Waiting) -> None:
        """Do what an agent with waiting runs needs."""
        move = self._move(waiting.agent)
        if move == "start":
            await self.db.write(lambda tx: leases.assign(tx, waiting.run_id))
            self._begin(waiting.agent)
        elif move == "fail" and not await self._lacks_place(waiting.agent):
            await self._unplaceable(waiting)

    async def _helped(self, stuck: Stuck, pools_wait: dict[str, str]) -> set[str]:
        """Start members of a pool for what those that listen have no room for; return whose attempts still matter.

        Where none listens, and none could be started in time, the task fails with the reasons; it waits as long as one may get a place.
        """
        if not stuck.alone and self.db.now() - stuck.task.created_at < PATIENCE:
            return set()
        placed = [name for name in stuck.stopped if name not in self.places.waits]
        for name in to_start(placed, self.attempts, stuck.tasks)[: stuck.most]:
            if self._move(name) == "start":
                self._begin(name)
        if stuck.alone and not placed:
            pools_wait[stuck.task.target] = "; ".join(f"{name}: {self.why(name)}" for name in stuck.stopped)
        failed = stuck.alone and stuck.most != 0 and all(self._move(name) == "fail" for name in stuck.stopped)
        if failed and not any([await self._lacks_place(name) for name in stuck.stopped]):
            whys = "; ".join([await self._reasons(name) for name in stuck.stopped])
            message = f"no agent of {stuck.task.target} could be made ready in {self.deadline:.0f} s: {whys}"
            await self.db.write(lambda tx: tasks.fail(tx, stuck.task, "unplaceable", message))
            for name in stuck.stopped:
                del self.attempts[name]
            self.wake()
        return set(stuck.stopped)

    async def _start(self, agent: str) -> None:
        away = False
        try:
            await self.resources.tell(agent, scratch=agent in self.astray.wanted)
            await self.hub.start_server(hub_user(agent))
            why, refused = "its server was started, but its supervisor has not come", False
        except AgentFarmError as error:
            why, refused = error.detail, True
            log.warning("the server of %s does not start: %s", agent, why)
            away = isinstance(error, Transient) and "hub_status" not in error.extra  # Hub or daemon: nothing was tried
        if (known := self.attempts.get(agent)) is None:
            return
        now = time.monotonic()
        self.attempts[agent] = replace(known, first=now if away else known.first, last=now, why=why, refused=refused)
        if refused or known.tries > 1:
            await self._lacks_place(agent)

    async def _lacks_place(self, agent: str) -> bool:
        """Say whether its server waits for a place from now on: then it is started when there is one."""
        lacks = await self.places.lacks(agent)
        if lacks:
            self.attempts.pop(agent, None)
        return lacks

    async def _reasons(self, agent: str) -> str:
        """Say why the agent's server is not up, by the latest try and by placement."""
        reasons = self.attempts[agent].why
        try:
            placed = await self.places.explain(agent)
        except AgentFarmError as error:
            return f"{reasons}; {error.detail}"
        against = "; ".join(f"{name}: {why}" for name, why in (placed.get("reasons") or {}).items() if why)
        return f"{reasons}; of the microservers, {against}" if against else reasons

    async def _unplaceable(self, waiting: queue.Waiting) -> None:
        reasons = await self._reasons(waiting.agent)

        def fail(tx: Tx) -> None:
            run = ledger.held(tx, waiting.run_id)
            if run.lease_until is None and run.task_id:
                message = f"agent {waiting.agent} could not be made ready in {self.deadline:.0f} s: {reasons}"
                tasks.fail(tx, tasks.show(tx.connection, run.task_id), "unplaceable", message)

        try:
            await self.db.write(fail)
        except Conflict:
            return
        del self.attempts[waiting.agent]
        self.wake()
