"""Where words of a run stand but in the run: what erasing it can reach too, and what it can only name."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import Header, new_event

from ..records import Run
from . import cases, ledger
from .db import Tx
from .tables import FARM_RUN, memory, run_blobs, runs, task_links, tasks


class Left(msgspec.Struct, frozen=True):
    """A place that still holds words of an erased run. `what`: run, memory, stubs, case or blob; `where`: its id, or the key."""

    what: str
    where: str
    why: str


def forget(tx: Tx, run: Run, by: str) -> None:
    """Let agents forget what this run remembered; the farm's own chain says who did so."""
    mine = sa.select(memory.c.agent, memory.c.key).where(memory.c.run_id == run.run_id)
    for agent, key in tx.connection.execute(mine).all():
        tx.execute(memory.delete().where(memory.c.agent == agent, memory.c.key == key, memory.c.run_id == run.run_id))
        ledger.record(tx, FARM_RUN, by, [new_event("memory.forgotten", {"agent": agent, "key": key})])


def left(connection: Connection, run: Run) -> list[Left]:
    """Return what else holds words of the run: other runs that were told them, what is remembered, blobs that others name."""
    key = sa.select(memory.c.agent, memory.c.key).where(memory.c.run_id == run.run_id).order_by(memory.c.key)
    found = [Left("memory", f"{agent}: {name}", "the agent remembers it") for agent, name in connection.execute(key)]
    created = ledger.read_events(connection, run.run_id, limit=1)[0].data()
    if (created.get("simulate") or {}).get("stubs"):
        found.append(Left("stubs", run.run_id, "its first event says what answered its simulated calls, and is kept"))
    found += [Left("run", other, why) for other, why in _told(connection, run)]
    saved, judges = cases.told(connection, run.task_id, run.run_id)
    found += [Left("case", name, "the test case was saved from it") for name in saved]
    found += [Left("run", judge, "its model judged the result") for judge in judges]
    named = sa.select(run_blobs.c.sha256).where(run_blobs.c.run_id == run.run_id)
    return found + [
        Left("blob", sha, "what is left of the run names it") for sha in connection.execute(named).scalars()
    ]


def _told(connection: Connection, run: Run) -> list[tuple[str, str]]:
    """Return the runs that were told words of this one and hold them still, with the reason."""
    t, found = tasks.c, list[tuple[str, str]]()
    asked = {"message.added"}
    mine = connection.execute(sa.select(t.parent_run, t.parent_call).where(t.task_id == run.task_id)).one_or_none()
    if mine is not None and mine.parent_run and _holds(connection, mine.parent_run, _CHILD, mine.parent_call):
        found.append((mine.parent_run, "it delegated the task, and was told the result"))
    others = (
        ("another run of the same task", sa.select(runs.c.run_id).where(runs.c.task_id == run.task_id)),
        ("the run delegated it", _of_tasks(t.parent_run == run.run_id)),
        ("its task got the result", _of_tasks(t.task_id.in_(_after(run)), t.options.contains('"results":true'))),
    )
    for why, statement in others:
        names = connection.execute(statement.where(runs.c.run_id != run.run_id)).scalars().all()
        found += [(name, why) for name in names if _holds(connection, name, asked)]
    return found


_CHILD = frozenset({"child.submitted", "child.finished"})


def _of_tasks(*where: sa.ColumnElement[bool]) -> sa.Select[tuple[str]]:
    return sa.select(runs.c.run_id).join(tasks, tasks.c.task_id == runs.c.task_id).where(*where)


def _after(run: Run) -> sa.Select[tuple[str]]:
    return sa.select(task_links.c.task_id).where(task_links.c.after_task == run.task_id)


def _holds(connection: Connection, run_id: str, kinds: Collection[str], call: str | None = None) -> bool:
    for link in ledger.read_links(connection, ledger.read_run(connection, run_id)):
        header = msgspec.json.decode(link.header, type=Header)
        if link.body is not None and header.kind in kinds and call in (None, header.call):
            return True
    return False
