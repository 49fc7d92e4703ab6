"""Why a task waits, in words: what is before it in the queue, and what it waits for. Read when somebody asks."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import ENDED

from ..records import Task
from .pools import Busy
from .pools import busy as busy
from .tables import CLAIMABLE, runs, task_links, tasks
from .turns import rank

MOST = 5  # named


def why_busy(load: Busy | None, listens: bool) -> str:
    """Say what keeps a member that listens from a task, "" where nothing does. Pure."""
    if not listens or load is None or not load.unclaimed:
        return ""
    return f"{load.unclaimed} of its runs wait for a kernel"


def waits(connection: Connection, task: Task, now: float) -> list[str]:
    """Return what the task waits for, the nearest reason first."""
    found = [*_after(connection, task)]
    run = connection.execute(sa.select(runs).where(runs.c.run_id == task.run_id)).one_or_none() if task.run_id else None
    if run is not None and run.status == "waiting":
        found.append(f"its run waits: {run.waiting}")
    if run is not None and run.lease_until is not None:
        return [*found, f"its run goes on: {run.worker}"]
    if run is not None and run.status in CLAIMABLE:
        found += _before(connection, run, now)
    if run is None and task.status == "queued":
        found += _before_in_pool(connection, task)
    return found


def _after(connection: Connection, task: Task) -> list[str]:
    before = sa.select(tasks.c.task_id).join(task_links, task_links.c.after_task == tasks.c.task_id)
    rows = connection.execute(
        before.where(task_links.c.task_id == task.task_id, tasks.c.ended_at.is_(None)).limit(MOST)
    ).scalars()
    return [f"it comes after {one}, which has not ended" for one in rows]


def _before(connection: Connection, run: sa.Row[tuple[object, ...]], now: float) -> list[str]:
    row = run._mapping
    found = []
    if row["not_before"] and row["not_before"] > now:
        found.append(f"it is tried again in {row['not_before'] - now:.0f} s")
    if row["thread_id"]:
        earlier = connection.execute(
            sa.select(runs.c.run_id)
            .where(runs.c.thread_id == row["thread_id"], runs.c.run_no < row["run_no"], runs.c.status.not_in(ENDED))
            .limit(1)
        ).scalar()
        if earlier:
            found.append(f"{earlier} of the same thread is before it")
    if row["concurrency_key"] and not row["fence"]:
        held = list(
            connection.execute(
                sa.select(runs.c.run_id)
                .where(
                    runs.c.owner == row["owner"], runs.c.concurrency_key == row["concurrency_key"], runs.c.ended_at.is_(None),
                    runs.c.fence > 0,
                )
                .limit(MOST)
            ).scalars()
        )  # fmt: skip
        if len(held) >= row["concurrency"]:
            found.append(f"its concurrency key {row['concurrency_key']} is held by {', '.join(held)}")
    place = (runs.c.rank < row["rank"], sa.and_(runs.c.rank == row["rank"], runs.c.run_no < row["run_no"]))
    waiting = (runs.c.agent == row["agent"], runs.c.status.in_(CLAIMABLE))
    mine = connection.execute(
        sa.select(sa.func.count()).select_from(runs).where(*waiting, runs.c.owner == row["owner"], sa.or_(*place))
    ).scalar_one()
    others = connection.execute(
        sa.select(sa.func.count(sa.distinct(runs.c.owner))).where(*waiting, runs.c.owner != row["owner"])
    ).scalar_one()
    return [*found, *_line(int(mine), int(others), str(row["agent"]))]


def _before_in_pool(connection: Connection, task: Task) -> list[str]:
    mine_first = rank(task.created_at, task.priority)
    waiting = (
        tasks.c.target == task.target,
        tasks.c.run_id.is_(None),
        tasks.c.ended_at.is_(None),
        tasks.c.status == "queued",
    )
    mine = connection.execute(
        sa.select(sa.func.count())
        .select_from(tasks)
        .where(
            *waiting, tasks.c.owner == task.owner,
            sa.or_(tasks.c.rank < mine_first, sa.and_(tasks.c.rank == mine_first, tasks.c.task_id < task.task_id)),
        )
    ).scalar_one()  # fmt: skip
    others = connection.execute(
        sa.select(sa.func.count(sa.distinct(tasks.c.owner))).where(*waiting, tasks.c.owner != task.owner)
    ).scalar_one()
    return _line(int(mine), int(others), task.target)


def _line(mine: int, others: int, whom: str) -> list[str]:
    found = [f"{mine} of its owner's tasks stand before it at {whom}" if mine else f"it is its owner's next at {whom}"]
    return [*found, f"{others} other owners wait there too: they take turns"] if others else found
