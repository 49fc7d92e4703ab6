"""One move per task, from what is towards what is wanted: a pool's task gets its agent, an agent with work its server.

Runs reach a supervisor that listens without it (handlers/claims.py hands them out at their commit).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol

from ..errors import AgentFarmError, Conflict, Invalid, NotFound, Transient
from ..hub import Hub
from ..records import Committed, Task, hub_user
from ..store import agents, children, leases, ledger, queue, tasks
from ..store.db import Database, Tx
from .lifecycle import ASSIGNED_SECONDS, Attempts, next_move
from .priority import choose_member

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0  # for what no commit tells: supervisors that come and go
WAKES = frozenset({"run.created", "run.requeued", "run.resumed"})


class Supervisors(Protocol):
    """Which agents' supervisors listen for runs."""

    def seen(self, agent: str) -> bool: ...
    def wake(self, agent: str) -> None: ...


class Scheduler:
    """Wakes at commits, and each second. `explain(unit)` tells why a server is not placed."""

    def __init__(
        self,
        db: Database,
        hub: Hub,
        supervisors: Supervisors,
        explain: Callable[[str], Awaitable[Any]],
        deadline: float = ASSIGNED_SECONDS,
    ) -> None:
        self.db, self.hub, self.supervisors, self.explain, self.deadline = db, hub, supervisors, explain, deadline
        self.attempts: dict[str, Attempts] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()
        self._soonest: float | None = None  # when time alone has something to do next (the database's clock)
        db.on_commit(self._heard)

    def _heard(self, committed: list[Committed]) -> None:
        if any(event.kind in WAKES for one in committed for event in one.events):
            self.wake()

    def wake(self) -> None:
        """Look now."""
        self._woken.set()

    def why(self, agent: str) -> str:
        """Return what the latest try to start the agent's server was answered, "" where there is nothing to tell."""
        known = self.attempts.get(agent)
        return known.why if known else ""

    async def run(self) -> None:
        """Look for ever; end what was begun when cancelled."""
        try:
            while True:
                try:
                    await self.look()
                except Transient as error:
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
        unassigned, waiting, (overdue, deadline), pause_ends = await self.db.read(
            lambda c: (
                tasks.unassigned(c),
                queue.waiting(c, now),
                queue.deadlines(c, now),
                queue.next_not_before(c, now),
            )
        )
        self._soonest = min((at for at in (deadline, pause_ends) if at is not None), default=None)
        for task_id in overdue:
            await self._overdue(task_id)
        for task in unassigned:
            await self._assign(task)
        for one in waiting:  # also those that waited for a time, or for a concurrency key of another agent's run
            self.supervisors.wake(one.agent)
        for one in waiting:
            await self._serve(one)
        for agent in set(self.attempts) - {one.agent for one in waiting}:
            if agent not in self._starting:
                del self.attempts[agent]

    async def _assign(self, task: Task) -> None:
        """Give a pool's task to the member that can take it soonest."""
        pool = task.target.removeprefix("pool:")

        def assign(tx: Tx) -> None:
            waiting = children.ancestors(tx.connection, task.parent_run)  # they wait for this very task
            members = [one for one in queue.members(tx.connection, pool, task.owner) if one not in waiting]
            load = queue.load(tx.connection, members)
            chosen = choose_member(members, {name for name in members if self.supervisors.seen(name)}, load)
            if chosen is None:
                tasks.fail(tx, task, "unplaceable", f"pool {pool} has no agent that is published and in use")
                return
            agent = agents.show(tx.connection, chosen)
            version = agents.version(tx.connection, chosen, agent.published or 0)
            tasks.assign(tx, self.db.epoch, task, tasks.Choice(chosen, version.definition, version.number))

        try:
            await self.db.write(assign)
        except Conflict:
            return  # cancelled, or assigned already
        except (Invalid, NotFound) as error:
            kind, why = error.type, error.detail  # e.g. a variable of that agent's prompt has no value
            await self.db.write(lambda tx: tasks.fail(tx, task, kind, why))

    async def _overdue(self, task_id: str) -> None:
        try:
            await self.db.write(lambda tx: tasks.cancel(tx, task_id, "service", "its deadline has passed"))
        except Conflict:
            return  # it has just ended

    async def _serve(self, waiting: queue.Waiting) -> None:
        agent, now = waiting.agent, time.monotonic()
        if agent in self._starting:
            return
        attempts = self.attempts.get(agent)
        move = next_move(self.supervisors.seen(agent), attempts, now, self.deadline)
        if move == "start":
            await self.db.write(lambda tx: leases.assign(tx, waiting.run_id))
            begun = attempts or Attempts(first=now, last=now)
            self.attempts[agent] = replace(begun, last=now, tries=begun.tries + 1)
            self._starting[agent] = asyncio.create_task(self._start(agent), name=f"start {agent}")
            self._starting[agent].add_done_callback(lambda _done: self._starting.pop(agent, None))
        elif move == "fail" and attempts is not None:
            await self._unplaceable(waiting, attempts)

    async def _start(self, agent: str) -> None:
        try:
            await self.hub.start_server(hub_user(agent))
            why = "its server was started, but its supervisor has not come"
        except AgentFarmError as error:
            why = error.detail
            log.warning("the server of %s does not start: %s", agent, why)
        if known := self.attempts.get(agent):
            self.attempts[agent] = replace(known, last=time.monotonic(), why=why)

    async def _unplaceable(self, waiting: queue.Waiting, attempts: Attempts) -> None:
        reasons = attempts.why
        try:
            placed = await self.explain(hub_user(waiting.agent))
        except AgentFarmError as error:
            reasons = f"{reasons}; {error.detail}"
        else:
            reasons = f"{reasons}; placement: {placed}" if placed else reasons

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
