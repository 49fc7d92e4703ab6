"""Pools' tasks that no member has yet: whose turn it is, and who could take them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import ENDED

from ..records import Task
from . import queue, tasks
from .tables import CLAIMABLE, runs, turns
from .tables import tasks as task_rows

DEEP = 20  # tasks of an owner that are looked at in one go
_OPEN = (task_rows.c.run_id.is_(None), task_rows.c.ended_at.is_(None))
_WAITS = (*_OPEN, task_rows.c.status == "queued")
_PLACE = sa.tuple_(task_rows.c.target, task_rows.c.owner)


@dataclass(frozen=True)
class Line:
    """What one owner has waiting for a pool, by rank; `served`: when it was its turn last, counted up for each pool."""

    target: str
    owner: str
    served: int
    members: tuple[str, ...]  # that are published, in use, and open to the owner
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Busy:
    """How many runs of an agent nobody has claimed yet, and how many have not ended and do not wait for anything."""

    unclaimed: int = 0
    load: int = 0


def lines(connection: Connection) -> list[Line]:
    """Return what waits for a member, by pool; in each pool the owner whose turn is longest ago first."""
    found, place = list[Line](), ("", "")
    while (row := connection.execute(_after(place)).one_or_none()) is not None:
        place = (row.target, row.owner)
        found.append(_line(connection, *place))
    return sorted(found, key=lambda one: (one.target, one.served, one.tasks[0].created_at))


def some_come_after(connection: Connection) -> bool:
    """Say whether pools' tasks wait for the end of others."""
    waits = sa.select(task_rows.c.task_id).where(*_OPEN, task_rows.c.status == "waiting").limit(1)
    return connection.execute(waits).first() is not None


def _after(place: tuple[str, str]) -> sa.Select[tuple[str, str]]:
    """Select the next pool and owner behind a place: by the index, without looking at all that waits."""
    columns = (task_rows.c.target, task_rows.c.owner)
    return sa.select(*columns).where(*_WAITS, _PLACE.op(">")(sa.tuple_(*place))).order_by(*columns).limit(1)


def _line(connection: Connection, target: str, owner: str) -> Line:
    served = sa.select(turns.c.served).where(turns.c.agent == target, turns.c.owner == owner)
    where = (*_WAITS, task_rows.c.target == target, task_rows.c.owner == owner)
    members = queue.members(connection, target.removeprefix("pool:"), owner)
    first = tasks.select_tasks(connection, *where, order=(task_rows.c.rank, task_rows.c.task_id), limit=DEEP)
    return Line(target, owner, connection.execute(served).scalar() or 0, tuple(members), tuple(first))


def busy(connection: Connection, names: Iterable[str]) -> dict[str, Busy]:
    """Return how busy agents are."""
    unclaimed = sa.func.sum(sa.case((runs.c.status.in_(CLAIMABLE), 1), else_=0))
    rows = connection.execute(
        sa.select(runs.c.agent, unclaimed, sa.func.count())
        .where(runs.c.agent.in_(list(names)), runs.c.status.not_in([*ENDED, "waiting"]))
        .group_by(runs.c.agent)
    )
    return {name: Busy(int(first), int(every)) for name, first, every in rows}
