"""Test cases of agents, and what became of the tasks that tried them. Verdicts are written once, by whoever judges first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import timestamp

from ..errors import Conflict, NotFound
from ..records import new_id
from .db import Tx
from .tables import batches, case_results, cases, tasks

_JSON = ("input", "variables", "expect", "simulate")
MOST = 500  # cases of an agent


def create(tx: Tx, agent: str, by: str, values: dict[str, Any]) -> dict[str, Any]:
    """Make a case. Raises Conflict: the name is taken, or there are too many."""
    count = tx.connection.execute(sa.select(sa.func.count()).where(cases.c.agent == agent)).scalar_one()
    if count >= MOST:
        raise Conflict(f"agent {agent} has {count} cases", hint="delete those that nobody runs any more")
    _free(tx.connection, agent, values["name"], "")
    row = {
        **_texts(values),
        "case_id": new_id("case"),
        "agent": agent,
        "created_by": by,
        "created_at": tx.now,
        "changed_at": tx.now,
    }
    tx.execute(cases.insert().values(**row))
    return show(tx.connection, agent, str(row["case_id"]))


def change(tx: Tx, agent: str, case_id: str, values: dict[str, Any]) -> dict[str, Any]:
    """Change a case. Raises NotFound, Conflict."""
    show(tx.connection, agent, case_id)
    if "name" in values:
        _free(tx.connection, agent, values["name"], case_id)
    tx.execute(cases.update().where(cases.c.case_id == case_id).values(**_texts(values), changed_at=tx.now))
    return show(tx.connection, agent, case_id)


def delete(tx: Tx, agent: str, case_id: str) -> None:
    """End a case; what it came to before stays. Raises NotFound."""
    show(tx.connection, agent, case_id)
    tx.execute(cases.delete().where(cases.c.case_id == case_id))


def _free(connection: Connection, agent: str, name: str, case_id: str) -> None:
    taken = sa.select(cases.c.case_id).where(cases.c.agent == agent, cases.c.name == name, cases.c.case_id != case_id)
    if connection.execute(taken).scalar():
        raise Conflict(f"agent {agent} has a case {name!r}", hint="choose another name, or change that one")


def show(connection: Connection, agent: str, case_id: str) -> dict[str, Any]:
    """Return a case. Raises NotFound."""
    row = (
        connection.execute(sa.select(cases).where(cases.c.case_id == case_id, cases.c.agent == agent))
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise NotFound(f"agent {agent} has no case {case_id}", hint=f"they are listed at /agents/{agent}/cases")
    return _case(row)


def listed(connection: Connection, agent: str, wanted: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Return the agent's cases by name; with `wanted` these alone."""
    statement = sa.select(cases).where(cases.c.agent == agent).order_by(cases.c.name, cases.c.case_id)
    if wanted is not None:
        statement = statement.where(cases.c.case_id.in_(list(wanted)))
    return [_case(row) for row in connection.execute(statement).mappings()]


# -- what they came to ---------------------------------------------------------------------------------------------


def tried(tx: Tx, batch_id: str, agent: str, case: dict[str, Any], version: int | None, task_id: str) -> None:
    """Keep that a task tries a case, with the case's expectation as it is now."""
    row = {
        "task_id": task_id, "batch_id": batch_id, "agent": agent, "case_id": case["case_id"], "name": case["name"], "version": version,
        "expect": _text(case["expect"]),
    }  # fmt: skip
    tx.execute(case_results.insert().values(**row))


def judged(tx: Tx, task_id: str, verdict: str, checks: Sequence[Any]) -> None:
    """Write a verdict, once: what stands already stays."""
    mine = (case_results.c.task_id == task_id, case_results.c.verdict.is_(None))
    tx.execute(case_results.update().where(*mine).values(verdict=verdict, checks=_text(checks), judged_at=tx.now))


def results(connection: Connection, agent: str, batch_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return what became of the tasks of these case runs, in the order of their submission."""
    t, r = tasks.c, case_results.c
    statement = (
        sa.select(case_results, t.status, t.waiting, t.run_id, t.input, t.result, t.error, t.place, t.owner)
        .join(tasks, t.task_id == r.task_id)
        .where(r.agent == agent, r.batch_id.in_(list(batch_ids)))
        .order_by(r.batch_id, t.place)
    )
    return [_decoded(row) for row in connection.execute(statement).mappings()]


def case_runs(connection: Connection, agent: str, before: str | None, limit: int) -> list[dict[str, Any]]:
    """Return the batches that tried cases of the agent, newest first."""
    mine = sa.select(case_results.c.batch_id).where(case_results.c.agent == agent)
    statement = sa.select(batches).where(batches.c.batch_id.in_(mine)).order_by(batches.c.batch_id.desc()).limit(limit)
    if before:
        statement = statement.where(batches.c.batch_id < before)
    return [
        {"batch_id": row.batch_id, "submitted_by": row.submitted_by, "created_at": timestamp(row.created_at)}
        for row in connection.execute(statement)
    ]


def newest(connection: Connection) -> str:
    """Return the id of the latest case run of all; "" where there is none."""
    return str(connection.execute(sa.select(sa.func.max(case_results.c.batch_id))).scalar() or "")


def standing(
    connection: Connection, agents: Iterable[str] | None, known: Iterable[str], newer: str
) -> list[tuple[str, str, int | None, str | None, int]]:
    """Count verdicts by case run and version, of those that wait for one, that are `known`, or came after `newer`.

    Returns (batch, agent, version, verdict, how many), versions in the order of their submission. `agents` None: of all.
    """
    r = case_results.c
    open_ = sa.select(r.batch_id).where(r.verdict.is_(None))
    statement = (
        sa.select(r.batch_id, r.agent, r.version, r.verdict, sa.func.count())
        .where(sa.or_(r.batch_id.in_(open_), r.batch_id.in_(list(known)), r.batch_id > newer))
        .group_by(r.batch_id, r.agent, r.version, r.verdict)
        .order_by(r.batch_id, sa.func.min(r.task_id))
    )
    if agents is not None:
        statement = statement.where(r.agent.in_(list(agents)))
    return [
        (batch, agent, version, verdict, count)
        for batch, agent, version, verdict, count in connection.execute(statement)
    ]


def due(connection: Connection, limit: int) -> list[dict[str, Any]]:
    """Return what has ended and is not judged, the oldest first."""
    t, r = tasks.c, case_results.c
    statement = (
        sa.select(r.task_id, r.expect, t.status, t.input, t.result, t.error, t.owner)
        .join(tasks, t.task_id == r.task_id)
        .where(r.verdict.is_(None), t.ended_at.is_not(None))
        .order_by(r.task_id)
        .limit(limit)
    )
    return [_decoded(row) for row in connection.execute(statement).mappings()]


def unjudged(connection: Connection) -> bool:
    """Say whether anything waits for a verdict, ended or not."""
    return (
        connection.execute(sa.select(case_results.c.task_id).where(case_results.c.verdict.is_(None)).limit(1)).first()
        is not None
    )


def _decoded(row: Any) -> dict[str, Any]:
    values = {str(name): value for name, value in row.items()}
    for name in ("expect", "checks", "input", "result", "error"):
        if values.get(name) is not None:
            values[name] = msgspec.json.decode(values[name])
    return values


def forget(tx: Tx, task_id: str) -> None:
    """Take out what the verdict on a task says of its result, which was erased; which run judged it stays known."""
    found = tx.connection.execute(sa.select(case_results.c.checks).where(case_results.c.task_id == task_id)).scalar()
    if found:
        left = [{**one, "why": ""} for one in msgspec.json.decode(found)]
        tx.execute(case_results.update().where(case_results.c.task_id == task_id).values(checks=_text(left)))


def told(connection: Connection, task_id: str, run_id: str) -> tuple[list[str], list[str]]:
    """Return the cases that were saved from a run, and the runs in which a model judged its task's result."""
    saved = sa.select(cases.c.agent, cases.c.name).where(cases.c.from_run == run_id).order_by(cases.c.name)
    checks = connection.execute(sa.select(case_results.c.checks).where(case_results.c.task_id == task_id)).scalar()
    judges = [str(one["judge_run"]) for one in msgspec.json.decode(checks or "[]") if one.get("judge_run")]
    return [f"{agent}: {name}" for agent, name in connection.execute(saved)], judges


def _case(row: Any) -> dict[str, Any]:
    values = {str(name): value for name, value in row.items()}
    for name in _JSON:
        values[name] = None if values[name] is None else msgspec.json.decode(values[name])
    return values


def _texts(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _text(value) if name in _JSON and value is not None else value for name, value in values.items()}


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
