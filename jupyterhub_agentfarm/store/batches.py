"""Batches: tasks that were submitted together, counted together, whose results are read in their order or as they come."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import ENDED, timestamp

from ..errors import NotFound
from ..records import Placeless, new_id
from .db import Tx
from .lists import NONE, Wanted, count_tasks
from .tables import batches, tasks

_RESULT = ("place", "batch_ended", "task_id", "key", "status", "run_id", "result", "error")


def begin(tx: Tx, *, owner: str, submitted_by: str, key: str | None) -> str:
    """Return the id of the owner's batch of that key; a new one where there is none, or no key."""
    if key is not None:
        known = tx.connection.execute(
            sa.select(batches.c.batch_id).where(batches.c.owner == owner, batches.c.key == key)
        ).scalar()
        if known:
            return str(known)
    batch_id = new_id("batch")
    tx.execute(
        batches.insert().values(batch_id=batch_id, owner=owner, submitted_by=submitted_by, key=key, created_at=tx.now)
    )
    return batch_id


def of(connection: Connection, owner: str, keys: list[str]) -> str | None:
    """Return the batch that tasks of these keys were submitted in before, if they were."""
    found = sa.select(tasks.c.batch_id).where(
        tasks.c.owner == owner, tasks.c.key.in_(keys), tasks.c.batch_id.is_not(None)
    )
    return connection.execute(found.limit(1)).scalar() if keys else None


def last_place(connection: Connection, batch_id: str) -> int:
    """Return the place of the latest task of a batch, 0 where it has none."""
    return connection.execute(sa.select(sa.func.max(tasks.c.place)).where(tasks.c.batch_id == batch_id)).scalar() or 0


def show(connection: Connection, batch_id: str, placeless: Placeless = NONE) -> dict[str, Any]:
    """Return the batch: whose it is, how many tasks it has, how many of each status as people are told it. Raises NotFound."""
    row = connection.execute(sa.select(batches).where(batches.c.batch_id == batch_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"there is no batch {batch_id}", hint="its id is in each of its tasks: agentfarm task show TASK")
    counts = count_tasks(connection, Wanted(batch=batch_id, placeless=placeless), None, None)
    values = {str(name): value for name, value in row.items()}
    return {**values, "created_at": timestamp(row["created_at"]), "tasks": sum(counts.values()), "counts": counts}


def unfinished(connection: Connection, batch_id: str) -> list[str]:
    """Return the tasks that have not ended, the latest first: what waits is stopped before what runs."""
    mine = sa.select(tasks.c.task_id).where(tasks.c.batch_id == batch_id, tasks.c.status.not_in(ENDED))
    return list(connection.execute(mine.order_by(tasks.c.place.desc())).scalars())


def results(
    connection: Connection, batch_id: str, after: int, *, ordered: bool, limit: int = 200
) -> tuple[list[dict[str, Any]], bool]:
    """Return what has ended behind number `after`, and whether nothing more can come.

    The number is the place in the batch; where they are not `ordered`, as which one it ended.
    """
    number = tasks.c.place if ordered else tasks.c.batch_ended
    columns = [tasks.c[name] for name in _RESULT]
    rows = connection.execute(
        sa.select(*columns).where(tasks.c.batch_id == batch_id, number > after).order_by(number).limit(limit)
    )
    found = []
    for row in rows.mappings():
        if row["batch_ended"] is None:
            break
        values = {str(name): value for name, value in row.items()}
        for name in ("result", "error"):
            values[name] = None if values[name] is None else msgspec.json.decode(values[name])
        found.append(values)
    last = found[-1]["place" if ordered else "batch_ended"] if found else after
    rest = sa.select(tasks.c.task_id).where(tasks.c.batch_id == batch_id)
    rest = rest.where(tasks.c.place > last) if ordered else rest.where(sa.or_(number > last, number.is_(None)))
    return found, connection.execute(rest.limit(1)).first() is None
