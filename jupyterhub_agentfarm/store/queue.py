"""What the scheduler looks at: agents with runs that wait for a worker, members of pools, deadlines that passed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import Mode

from . import turns
from .tables import CLAIMABLE, agents, grants, runs, tasks

MAX_OVERDUE = 200  # tasks looked at in one go


@dataclass(frozen=True)
class Waiting:
    """An agent with claimable runs: the run whose turn is next, and since when it waits (epoch seconds)."""

    agent: str
    run_id: str
    since: float


def waiting(connection: Connection, now: float) -> list[Waiting]:
    """Return the agents that have runs to be claimed now, one row each, the longest waiting first."""
    return [
        Waiting(agent, run_id, max(created, not_before or 0.0))
        for agent, run_id, created, not_before in connection.execute(turns.WAITING, {"now": now})
    ]


def anywhere(connection: Connection, agents: Collection[str]) -> set[str]:
    """Return those of these agents with runs to be claimed, or under way, whose tasks need no files of theirs."""
    if not agents:
        return set()
    rows = connection.execute(
        sa.select(runs.c.agent)
        .distinct()
        .join(tasks, tasks.c.task_id == runs.c.task_id)
        .where(
            runs.c.agent.in_(sorted(agents)), tasks.c.workspace == "none", runs.c.bound.is_(False),
            sa.or_(runs.c.status.in_(CLAIMABLE), runs.c.lease_until.is_not(None)),
        )
    )  # fmt: skip
    return set(rows.scalars())


def next_not_before(connection: Connection, now: float) -> float | None:
    """Return when the next run that has to wait may be claimed again."""
    found = connection.execute(
        sa.select(sa.func.min(runs.c.not_before)).where(runs.c.not_before > now, runs.c.status.in_(CLAIMABLE))
    ).scalar()
    return None if found is None else float(found)


def keyed(connection: Connection) -> bool:
    """Say whether runs with a concurrency key have not ended."""
    one = sa.select(runs.c.run_no).where(runs.c.concurrency_key.is_not(None), runs.c.ended_at.is_(None)).limit(1)
    return connection.execute(one).first() is not None


def under_way(connection: Connection, agent: str) -> list[tuple[str, Mode]]:
    """Return run and mode of the agent's runs that a worker holds, but for live ones."""
    rows = connection.execute(
        sa.select(runs.c.run_id, runs.c.mode).where(
            runs.c.agent == agent, runs.c.lease_until.is_not(None), runs.c.mode != "live"
        )
    )
    return [(run_id, mode) for run_id, mode in rows]


def members(connection: Connection, pool: str, owner: str) -> list[str]:
    """Return the pool's agents that are published, in use, and open to the task's owner."""
    shared = sa.select(grants.c.agent).where(grants.c.person == owner, grants.c.rights.in_(("chat", "manage")))
    return list(
        connection.execute(
            sa.select(agents.c.name)
            .where(
                agents.c.pool == pool,
                agents.c.retired_at.is_(None),
                agents.c.published.is_not(None),
                sa.or_(agents.c.owner == owner, agents.c.name.in_(shared)),
            )
            .order_by(agents.c.name)
        ).scalars()
    )


def deadlines(connection: Connection, now: float) -> tuple[list[str], float | None]:
    """Return the tasks whose deadline has passed before they ended, and when the next one passes (epoch seconds)."""
    asked = sa.exists().where(runs.c.run_id == tasks.c.run_id, runs.c.cancel.is_not(None))  # it is being cancelled
    rows = connection.execute(
        sa.select(tasks.c.task_id, tasks.c.deadline)
        .where(tasks.c.deadline.is_not(None), tasks.c.ended_at.is_(None), ~asked)
        .order_by(tasks.c.deadline)
        .limit(MAX_OVERDUE)
    ).all()
    passed = [task_id for task_id, deadline in rows if deadline <= now]
    return passed, next((float(deadline) for _, deadline in rows if deadline > now), None)
