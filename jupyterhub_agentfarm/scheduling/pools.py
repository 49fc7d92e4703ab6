"""Gives pools' tasks to their members, late: a task stays the pool's until a member that listens has room for it.

So a slow member holds nothing up, and owners take turns. The scheduler calls it, and starts the members that it asks for.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..errors import Conflict, FleetError, Invalid, NotFound
from ..records import Task
from ..store import agents, children, poolrules, pools, tasks, turns
from ..store.db import Database, Tx
from ..store.pools import Busy, Line
from .priority import choose_member

log = logging.getLogger(__name__)


class Listening(Protocol):
    """Which agents' supervisors listen for runs."""

    @property
    def held(self) -> Mapping[str, str]: ...  # agents that take no run for now

    def seen(self, agent: str) -> bool: ...


Lacking = Callable[[Mapping[str, Any], Sequence[str]], Awaitable[dict[str, str]]]  # what agents lack for a task


@dataclass(frozen=True)
class Stuck:
    """A task that no member has room for now; starting one of `stopped` would help. `alone`: none listens."""

    task: Task
    stopped: tuple[str, ...]
    alone: bool
    tasks: int  # of the same owner that wait for the pool, this one too
    most: int | None = None  # of `stopped` that may be started; None: all


class Pools:
    def __init__(self, db: Database, supervisors: Listening, lacking: Lacking) -> None:
        self.db, self.supervisors, self.lacking = db, supervisors, lacking
        self.rules: dict[str, poolrules.Rules] = {}
        self.left = False  # some wait for a member to have room

    async def look(self) -> list[Stuck]:
        """Give away what there is room for; return the first of each owner's that is left."""
        lines = await self.db.read(pools.lines)
        self.rules = await self.db.read(poolrules.of) if lines else {}
        members = {name for line in lines for name in line.members}
        load = await self.db.read(lambda c: pools.busy(c, members)) if members else {}
        found: list[Stuck] = []
        for target in dict.fromkeys(line.target for line in lines):
            found += await self._serve([line for line in lines if line.target == target], load)
        self.left = bool(found)
        return found

    async def _serve(self, lines: list[Line], load: dict[str, Busy]) -> list[Stuck]:
        """Let the owners who wait for one pool take turns, until nobody has room for any of them."""
        stuck: list[Stuck] = []
        many = len(lines) > 1
        while lines:
            line, lines = lines[0], lines[1:]
            task = line.tasks[0]
            try:
                members = await self._members(line, task)
            except FleetError as error:
                log.warning("%s waits: %s", task.task_id, error.detail)
                stuck.append(Stuck(task, (), False, len(line.tasks)))
                continue
            listening = {name for name in members if self.supervisors.seen(name) and name not in self.supervisors.held}
            chosen = choose_member(sorted(listening), load)
            if chosen is None and members:
                stopped = tuple(name for name in members if name not in listening)
                most = poolrules.started(self.rules, line.target.removeprefix("pool:"))
                up = sum(1 for name in line.members if self.supervisors.seen(name))
                stuck.append(
                    Stuck(task, stopped, not listening, len(line.tasks), None if most is None else max(0, most - up))
                )
                continue
            if chosen is None:
                await self._fail(task, "unplaceable", await self._nobody(line, task))
            elif await self._assign(task, chosen, many):
                before = load.get(chosen, Busy())
                load[chosen] = Busy(before.unclaimed + 1, before.load + 1)
            if len(line.tasks) > 1:
                lines.append(replace(line, tasks=line.tasks[1:]))
        return stuck

    async def _members(self, line: Line, task: Task) -> list[str]:
        members = list(line.members)
        if task.parent_run is not None:
            waiting = await self.db.read(lambda c: children.ancestors(c, task.parent_run))  # for this very task
            members = [name for name in members if name not in waiting]
        lacking = await self.lacking(task.requirements, members)
        return [name for name in members if not lacking[name]]

    async def _nobody(self, line: Line, task: Task) -> str:
        lacking = await self.lacking(task.requirements, line.members)
        if whys := "; ".join(f"{name}: {why}" for name, why in sorted(lacking.items()) if why):
            return f"no agent of {line.target} has what the task needs: {whys}"
        return f"{line.target} has no agent that is published and in use"

    async def _assign(self, task: Task, chosen: str, many: bool) -> bool:
        def assign(tx: Tx) -> None:
            agent = agents.show(tx.connection, chosen)
            version = agents.version(tx.connection, chosen, agent.published or 0)
            tasks.assign(tx, self.db.epoch, task, tasks.Choice(chosen, version.definition, version.number))
            if many:
                turns.served(tx, task.target, task.owner)

        try:
            await self.db.write(assign)
        except Conflict:
            return False  # cancelled, or assigned already
        except (Invalid, NotFound) as error:
            await self._fail(task, error.type, error.detail)  # e.g. a variable of that agent's prompt has no value
            return False
        return True

    async def _fail(self, task: Task, kind: str, why: str) -> None:
        await self.db.write(lambda tx: tasks.fail(tx, task, kind, why))
