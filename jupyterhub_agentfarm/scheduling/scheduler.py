"""One move per task, from what is towards what is wanted: a pool's task gets its agent, an agent with work its server.

Runs reach a supervisor that listens without it (handlers/waiting.py hands them out at their commit).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol

from agentfarm_sdk.protocol import ENDED

from ..errors import AgentFarmError, Conflict, Transient, UserError
from ..hub import Hub
from ..records import Committed, hub_user
from ..store import leases, ledger, pools, queue, tasks
from ..store.db import Database, Tx
from .lifecycle import ASSIGNED_SECONDS, Attempts, Move, next_move
from .pools import Listening, Pools, Stuck
from .priority import to_start
from .resources import Resourcing

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0  # for what no commit tells: supervisors that come and go
PATIENCE = 2.0  # seconds that a pool's task waits for a member that listens, before another one's server is started
WAKES = frozenset({"run.created", "run.requeued", "run.resumed", "worker.died"})
FREES = frozenset({"run.leased", *(f"run.{end}" for end in ENDED)})  # room in a member, or a concurrency key


class Supervisors(Listening, Protocol):
    def wake(self, agent: str) -> None: ...


class Scheduler:
    """Wakes at commits, and each second. `explain(unit)` tells why a server is not placed."""

    def __init__(
        self,
        db: Database,
        hub: Hub,
        supervisors: Supervisors,
        explain: Callable[[str], Awaitable[Any]],
        resources: Resourcing,
        deadline: float = ASSIGNED_SECONDS,
    ) -> None:
        self.db, self.hub, self.supervisors, self.explain, self.deadline = db, hub, supervisors, explain, deadline
        self.resources = resources
        self.pools = Pools(db, supervisors, resources.lacking)
        self.attempts: dict[str, Attempts] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}
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
        return self.supervisors.held.get(agent) or (known.why if known else "")

    async def run(self) -> None:
        """Look for ever; end what was begun when cancelled."""
        try:
            while True:
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
            for one in self._starting.values():
                one.cancel()
            await asyncio.gather(*self._starting.values(), return_exceptions=True)

    def _pause(self) -> float:
        """Return for how long there is nothing to do, unless woken (seconds)."""
        if self._soonest is None:
            return LOOK_SECONDS
        return min(LOOK_SECONDS, max(0.0, self._soonest - self.db.now()))

    async def look(self) -> None:
        """Make the moves that are due now."""
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
        for left in stuck:
            wanted |= await self._helped(left)
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
        return next_move(self.supervisors.seen(agent), self.attempts.get(agent), time.monotonic(), self.deadline)

    def _begin(self, agent: str) -> None:
        now = time.monotonic()
        begun = self.attempts.get(agent) or Attempts(first=now, last=now)
        self.attempts[agent] = replace(begun, last=now, tries=begun.tries + 1)
        self._starting[agent] = asyncio.create_task(self._start(agent), name=f"start {agent}")
        self._starting[agent].add_done_callback(lambda _done: self._starting.pop(agent, None))

    async def _serve(self, waiting: queue.Waiting) -> None:
        """Do what an agent with waiting runs needs."""
        move = self._move(waiting.agent)
        if move == "start":
            await self.db.write(lambda tx: leases.assign(tx, waiting.run_id))
            self._begin(waiting.agent)
        elif move == "fail" and not await self._waits_for_files(waiting.agent):
            await self._unplaceable(waiting)

    async def _helped(self, stuck: Stuck) -> set[str]:
        """Start members of a pool for what those that listen have no room for; return whose attempts still matter.

        Where none listens, and none could be started in time, the task fails with the reasons.
        """
        if not stuck.alone and self.db.now() - stuck.task.created_at < PATIENCE:
            return set()
        for name in to_start(stuck.stopped, self.attempts, stuck.tasks)[: stuck.most]:
            if self._move(name) == "start":
                self._begin(name)
        if stuck.alone and stuck.most != 0 and all(self._move(name) == "fail" for name in stuck.stopped):
            whys = "; ".join([await self._reasons(name) for name in stuck.stopped])
            message = f"no agent of {stuck.task.target} could be made ready in {self.deadline:.0f} s: {whys}"
            await self.db.write(lambda tx: tasks.fail(tx, stuck.task, "unplaceable", message))
            for name in stuck.stopped:
                del self.attempts[name]
            self.wake()
        return set(stuck.stopped)

    async def _start(self, agent: str) -> None:
        try:
            await self.resources.tell(agent)
            await self.hub.start_server(hub_user(agent))
            why, refused = "its server was started, but its supervisor has not come", False
        except AgentFarmError as error:
            why, refused = error.detail, True
            log.warning("the server of %s does not start: %s", agent, why)
        if known := self.attempts.get(agent):
            self.attempts[agent] = replace(known, last=time.monotonic(), why=why, refused=refused)

    async def _reasons(self, agent: str) -> str:
        """Say why the agent's server is not up, by the latest try and by placement."""
        reasons = self.attempts[agent].why
        try:
            placed = await self.explain(hub_user(agent))
        except AgentFarmError as error:
            return f"{reasons}; {error.detail}"
        against = "; ".join(f"{name}: {why}" for name, why in (placed.get("reasons") or {}).items() if why)
        return f"{reasons}; of the microservers, {against}" if against else reasons

    async def _waits_for_files(self, agent: str) -> bool:
        """Say whether its workspace is where nobody can ask now: it waits for that microserver, or for an operator's word."""
        try:
            away = (await self.explain(hub_user(agent))).get("away")
        except AgentFarmError:
            return False
        if away:
            why = f"its workspace is on {away}, which cannot be reached: it waits for it, or for agentfarm microserver lost {away}"
            now = time.monotonic()
            self.attempts[agent] = Attempts(
                first=now, last=now, tries=self.attempts[agent].tries, why=why, refused=True
            )
        return bool(away)

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
