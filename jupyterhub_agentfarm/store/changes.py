"""All events of the farm in the order of their commits, as far as an asker may see them; and what metrics count."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import Event, read_event

from .tables import FARM_RUN, events, inbox, runs, tasks, usage


def latest(connection: Connection) -> int:
    """Return the number of the newest event."""
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(events.c.id), 0))).scalar_one())


def after(
    connection: Connection, number: int, *, owner: str | None, agents: Iterable[str], limit: int = 200
) -> list[tuple[int, str, Event]]:
    """Return (number, agent, event) behind `number` of this owner's and these agents' runs; owner None = all."""
    statement = (
        sa.select(events.c.id, runs.c.agent, events.c.header, events.c.body)
        .join(runs, runs.c.run_no == events.c.run_no)
        .where(events.c.id > number)
        .order_by(events.c.id)
        .limit(limit)
    )
    if owner is not None:
        seen = sa.or_(runs.c.owner == owner, runs.c.agent.in_(list(agents)))
        statement = statement.where(seen, runs.c.run_id != FARM_RUN)
    return [
        (int(number), str(agent), read_event(bytes(header), None if body is None else bytes(body)))
        for number, agent, header, body in connection.execute(statement)
    ]


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
