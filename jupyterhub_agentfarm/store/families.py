"""A run and all that it delegated, and they again: whose limits bound it, and what all of them have used."""

from __future__ import annotations

from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import Limits

from . import definitions, ledger
from .children import MAX_DEPTH
from .latest import REPLIES
from .tables import runs, tasks


@dataclass(frozen=True)
class Member:
    """A run in the line from a child to the run that nobody delegated."""

    run_id: str
    agent: str
    limits: Limits


@dataclass
class Used:
    """What a run and all that it delegated have used; `seen`: up to which event of each of them that counts."""

    tokens: int = 0
    cost: float = 0.0  # USD
    seen: dict[str, int] = field(default_factory=dict)


def line(connection: Connection, run_id: str) -> list[Member]:
    """Return the run, the one that delegated it, and so on."""
    found, at = list[Member](), str(run_id)
    while at and len(found) <= MAX_DEPTH:
        step = (
            sa.select(runs.c.agent, runs.c.definition_hash, tasks.c.parent_run)
            .join(tasks, tasks.c.task_id == runs.c.task_id, isouter=True)
            .where(runs.c.run_id == at)
        )
        row = connection.execute(step).one()
        found.append(Member(at, row.agent, definitions.get(connection, row.definition_hash).limits))
        at = row.parent_run or ""
    return found


def used(connection: Connection, run_id: str) -> Used:
    """Return what is on record of a run and all that it delegated."""
    found, level = Used(), [run_id]
    while level:
        for one in level:
            for event in ledger.read_events(connection, one):
                found.seen[one] = event.seq
                if event.kind in REPLIES:
                    body = event.data()
                    spent = body.get("usage") or {}
                    found.tokens += int(spent.get("input", 0)) + int(spent.get("output", 0))
                    found.cost += float(body.get("cost") or 0.0)
        below = sa.select(runs.c.run_id).join(tasks, tasks.c.task_id == runs.c.task_id)
        level = list(connection.execute(below.where(tasks.c.parent_run.in_(level))).scalars())
    return found
