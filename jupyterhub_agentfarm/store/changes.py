"""All events of the farm in the order of their commits, as far as an asker may see them; and what metrics count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import Event, read_event, timestamp

from .tables import FARM_RUN, events, inbox, runs, tasks, usage


def latest(connection: Connection) -> int:
    """Return the number of the newest event."""
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(events.c.id), 0))).scalar_one())


_RUN = ("agent", "owner", "status", "waiting", "seq")
_TASK = (
    "task_id", "agent", "owner", "target", "run_id", "thread_id", "batch_id", "priority", "status", "waiting", "created_at", "ended_at",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """An event, its number in the farm, and the rows of its run and task as they are now; `task` None: it is of no task."""

    number: int
    event: Event
    run: dict[str, Any]
    task: dict[str, Any] | None


def after(
    connection: Connection, number: int, *, owner: str | None, agents: Iterable[str], limit: int = 200, bodies: bool = True
) -> tuple[list[Change], int]:  # fmt: skip
    """Return what came behind `number` of this owner's and these agents' runs (owner None = all), and up to where was looked."""
    top = latest(connection)  # one writer counts them up: nothing can come before it later
    body = events.c.body if bodies else sa.null()
    statement = (
        sa.select(events.c.id, events.c.header, body, *(runs.c[name] for name in _RUN), *(tasks.c[name] for name in _TASK))
        .join(runs, runs.c.run_no == events.c.run_no)
        .outerjoin(tasks, tasks.c.task_id == runs.c.task_id)
        .where(events.c.id > number, events.c.id <= top)
        .order_by(events.c.id)
        .limit(limit)
    )  # fmt: skip
    if owner is not None:
        seen = sa.or_(runs.c.owner == owner, runs.c.agent.in_(list(agents)))
        statement = statement.where(seen, runs.c.run_id != FARM_RUN)
    found = [_change(row) for row in connection.execute(statement)]
    return found, found[-1].number if len(found) == limit else max(number, top)


def _change(row: Any) -> Change:
    number, header, body, *values = row
    run = dict(zip(_RUN, values, strict=False))
    task = dict(zip(_TASK, values[len(_RUN) :], strict=True))
    for name in ("created_at", "ended_at"):
        task[name] = None if task[name] is None else timestamp(task[name])
    event = read_event(bytes(header), None if body is None else bytes(body))
    return Change(int(number), event, run, task if task["task_id"] else None)


def inbox_counts(
    connection: Connection, *, owners: Iterable[str] | None, agents: Iterable[str] | None, groups: Iterable[str]
) -> dict[str, int]:
    """Return how many inbox items wait, by kind: of these owners or agents, or escalated to these groups (None = all)."""
    statement = sa.select(inbox.c.kind, sa.func.count()).where(inbox.c.decided_at.is_(None)).group_by(inbox.c.kind)
    if owners is not None or agents is not None:
        escalated = sa.and_(inbox.c.escalated_at.is_not(None), inbox.c.escalate_to.in_(list(groups)))
        mine = sa.or_(inbox.c.owner.in_(list(owners or ())), inbox.c.agent.in_(list(agents or ())), escalated)
        statement = statement.where(mine)
    return {str(kind): int(count) for kind, count in connection.execute(statement)}


def counts(connection: Connection, now: float) -> dict[str, list[tuple[Any, ...]]]:
    """Return what metrics are made of, counted off the rows: runs, tasks, queue, inbox, usage."""

    def rows(*columns: Any, by: tuple[Any, ...], where: Any = True) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in connection.execute(sa.select(*by, *columns).where(where).group_by(*by))]

    count, ours = sa.func.count(), runs.c.run_id != FARM_RUN
    return {
        "runs": rows(count, by=(runs.c.agent, runs.c.status), where=ours),
        "run_seconds": rows(
            count, sa.func.sum(runs.c.ended_at - runs.c.created_at), by=(runs.c.status,),
            where=sa.and_(ours, runs.c.ended_at.is_not(None)),
        ),
        "tasks": rows(count, by=(tasks.c.status,)),
        "queue": rows(
            count, sa.func.max(now - runs.c.created_at), by=(runs.c.priority,),
            where=sa.and_(ours, runs.c.status.in_(("queued", "assigned"))),
        ),
        "inbox": rows(
            count, sa.func.max(now - inbox.c.asked_at), by=(inbox.c.kind, inbox.c.agent), where=inbox.c.decided_at.is_(None)
        ),
        "usage": rows(
            sa.func.sum(usage.c.requests), sa.func.sum(usage.c.tokens_in), sa.func.sum(usage.c.tokens_out),
            sa.func.sum(usage.c.cost), by=(usage.c.model,),
        ),
    }  # fmt: skip
