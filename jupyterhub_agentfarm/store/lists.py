"""What lists of tasks and runs can be narrowed to, and how many tasks there are of each status."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..records import BEGINS, Placeless, Run
from . import ledger
from .tables import FARM_RUN, runs, tasks

NONE = Placeless()
WAITS = "waiting"


@dataclass(frozen=True)
class Wanted:
    """What a list is narrowed to; None and () narrow nothing. Times are epoch seconds, of when it was submitted.

    text: stands in the input, the result or the target, as it is written there. placeless: tasks whose status is told as waiting.
    """

    status: tuple[str, ...] = ()
    agent: str | None = None
    owner: str | None = None
    mode: str | None = None
    since: float | None = None
    until: float | None = None
    text: str | None = None
    thread: str | None = None
    batch: str | None = None
    parent: str | None = None
    task: str | None = None
    placeless: Placeless = NONE


def _seen(table: Any, owners: Iterable[str] | None, agents: Iterable[str] | None) -> list[Any]:
    if owners is None and agents is None:
        return []
    return [sa.or_(table.c.owner.in_(list(owners or ())), table.c.agent.in_(list(agents or ())))]


def _common(table: Any, wanted: Wanted) -> list[Any]:
    c = table.c
    named = ((c.agent, wanted.agent), (c.owner, wanted.owner), (c.mode, wanted.mode), (c.thread_id, wanted.thread))
    where = [column == value for column, value in named if value is not None]
    if wanted.status:
        where.append(c.status.in_([*wanted.status, *(BEGINS if WAITS in wanted.status else ())]))  # by the index
        where.append(_told(table, wanted).in_(wanted.status))
    if wanted.since is not None:
        where.append(c.created_at >= wanted.since)
    if wanted.until is not None:
        where.append(c.created_at < wanted.until)
    return where


def _told(table: Any, wanted: Wanted) -> Any:
    """Return the status as people are told it: of a task that waits for a place no row says so."""
    c, lacks = table.c, wanted.placeless
    if lacks == NONE:
        return c.status
    named = [
        c.agent.in_(sorted(lacks.agents)),
        sa.and_(c.agent.is_(None), c.target.in_(sorted(lacks.pools))),
        sa.and_(c.agent.in_(sorted(lacks.astray)), c.workspace == "home"),
    ]
    return sa.case((sa.and_(c.status.in_(BEGINS), sa.or_(*named)), WAITS), else_=c.status)


def tasks_where(wanted: Wanted, owners: Iterable[str] | None, agents: Iterable[str] | None) -> list[Any]:
    """Return the conditions on `tables.tasks`: of these owners or these agents (None and None = all)."""
    c, where = tasks.c, [*_seen(tasks, owners, agents), *_common(tasks, wanted)]
    named = ((c.batch_id, wanted.batch), (c.parent_run, wanted.parent), (c.task_id, wanted.task))
    where += [column == value for column, value in named if value is not None]
    if wanted.text:
        where.append(
            sa.or_(*(column.contains(wanted.text, autoescape=True) for column in (c.input, c.result, c.target)))
        )
    return where


def count_tasks(
    connection: Connection, wanted: Wanted, owners: Iterable[str] | None, agents: Iterable[str] | None
) -> dict[str, int]:
    """Return how many tasks there are of each status, as people are told it."""
    told = _told(tasks, wanted).label("told")
    counted = sa.select(told, sa.func.count()).where(*tasks_where(wanted, owners, agents)).group_by("told")
    return {str(status): int(count) for status, count in connection.execute(counted)}


def listed_runs(
    connection: Connection, wanted: Wanted, owners: Iterable[str] | None, agents: Iterable[str] | None, *, before: int | None, limit: int
) -> list[Run]:  # fmt: skip
    """Return runs, newest first."""
    where = [runs.c.run_id != FARM_RUN, *_seen(runs, owners, agents), *_common(runs, wanted)]
    if wanted.task is not None:
        where.append(runs.c.task_id == wanted.task)
    if before is not None:
        where.append(runs.c.run_no < before)
    return ledger.select_runs(connection, *where, order=(runs.c.run_no.desc(),), limit=limit)
