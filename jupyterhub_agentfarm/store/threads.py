"""Threads: the ordered tasks of one conversation; at most one active run in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.fold import Fold, as_text
from agentfarm_sdk.parts import are_parts
from agentfarm_sdk.prompts import render
from agentfarm_sdk.protocol import ENDED, Definition, Event, NewEvent, new_event, timestamp

from ..errors import Conflict, Invalid, NotFound
from ..records import Run, new_id
from . import definitions, ledger
from .db import Tx
from .tables import runs, tasks, threads

POLICIES = ("enqueue", "reject", "interrupt")


def create(tx: Tx, *, agent: str, owner: str, title: str = "", policy: str = "enqueue") -> dict[str, Any]:
    """Begin a thread. `policy`: what a message meets that comes while a run is active. Raises Invalid."""
    if policy not in POLICIES:
        raise Invalid(f"there is no policy {policy!r}", hint="one of: " + ", ".join(POLICIES))
    thread_id = new_id("thread")
    tx.execute(
        threads.insert().values(
            thread_id=thread_id, agent=agent, owner=owner, title=title, policy=policy, created_at=tx.now
        )
    )
    return show(tx.connection, thread_id)


def show(connection: Connection, thread_id: str) -> dict[str, Any]:
    """Return the thread. Raises NotFound."""
    row = connection.execute(sa.select(threads).where(threads.c.thread_id == thread_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"there is no thread {thread_id}", hint="list them at /threads")
    return {**row, "created_at": timestamp(row["created_at"])}


def listed(
    connection: Connection, *, owners: Iterable[str] | None = None, agents: Iterable[str] | None = None, only: str = "", before: str | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return threads, newest first, of these owners or these agents (None and None = all); with `only` of these that agent's."""
    statement = sa.select(threads).order_by(threads.c.thread_id.desc()).limit(limit)
    if owners is not None or agents is not None:
        statement = statement.where(
            sa.or_(threads.c.owner.in_(list(owners or ())), threads.c.agent.in_(list(agents or ())))
        )
    if only:
        statement = statement.where(threads.c.agent == only)
    if before:
        statement = statement.where(threads.c.thread_id < before)
    return [{**row, "created_at": timestamp(row["created_at"])} for row in connection.execute(statement).mappings()]


def admit(tx: Tx, thread_id: str, owner: str, agent: str) -> list[str]:
    """Check that the thread is of this owner and agent and takes a message now. Raises NotFound, Conflict.

    Return the runs that the message interrupts.
    """
    thread = show(tx.connection, thread_id)
    if thread["owner"] != owner:
        raise NotFound(f"there is no thread {thread_id}")
    if thread["agent"] != agent:
        raise Conflict(
            f"thread {thread_id} is a conversation with {thread['agent']}, not with {agent}",
            hint=f"submit to {thread['agent']}, or begin another thread",
        )
    if thread["policy"] == "reject":
        active = sa.select(tasks.c.task_id).where(tasks.c.thread_id == thread_id, tasks.c.status.not_in(ENDED)).limit(1)
        if tx.connection.execute(active).scalar():
            raise Conflict(
                f"thread {thread_id} has an active run",
                hint="wait until it ends, or make the thread with policy enqueue or interrupt",
            )
    if thread["policy"] != "interrupt":
        return []
    active = sa.select(runs.c.run_id).where(
        runs.c.thread_id == thread_id, runs.c.status.not_in([*ENDED, "cancelling"]), ~runs.c.interrupted
    )
    return list(tx.connection.execute(active.order_by(runs.c.run_no)).scalars())


def opening(definition: Definition, given: Any, variables: Mapping[str, str], previous: Run | None) -> list[NewEvent]:
    """Return the messages that a run begins with: the thread so far, or the rendered prompt; then the input.

    Raises Invalid: a variable of the prompt has no value.
    """
    events = []
    if previous is not None:
        events.append(
            new_event("thread.continued", {"run": previous.run_id, "seq": previous.seq, "head": previous.head})
        )
    elif definition.prompt:
        text = render(definition.prompt, definition.variables, variables, given)
        events.append(new_event("message.added", {"role": "system", "content": text}))
    content = given if are_parts(given) else as_text(given)
    events.append(new_event("message.added", {"role": "user", "content": content}))
    return events


def opening_in_thread(connection: Connection, run: Run) -> list[NewEvent]:
    """Return the messages of a thread's run at its first lease: after the latest run that succeeded, or was interrupted."""
    interrupted = sa.and_(runs.c.status == "cancelled", runs.c.interrupted, runs.c.fence > 0)
    found = ledger.select_runs(
        connection, runs.c.thread_id == run.thread_id, sa.or_(runs.c.status == "succeeded", interrupted),
        runs.c.run_no < run.run_no, order=(runs.c.run_no.desc(),), limit=1,
    )  # fmt: skip
    given, requirements = connection.execute(
        sa.select(tasks.c.input, tasks.c.requirements).where(tasks.c.task_id == run.task_id)
    ).one()
    variables = msgspec.json.decode(requirements).get("variables", {})
    definition = definitions.get(connection, run.definition_hash)
    return opening(definition, msgspec.json.decode(given), variables, found[0] if found else None)


def said_before(connection: Connection, events: Sequence[Event]) -> list[dict[str, Any]]:
    """Return the messages that a run goes on from: those of its thread before, or of the run that it was forked from.

    Read back to the latest summary that stands for all before it, whose run needs no other.
    """
    chain: list[list[Event]] = []
    while (earlier := _goes_on_from(events)) is not None:
        events = ledger.read_events(connection, earlier[0], limit=earlier[1])
        chain.append(events)
    messages: list[dict[str, Any]] = []
    for one in reversed(chain):
        messages = _folded(one, messages)
    return messages


def _folded(events: Sequence[Event], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return Fold(history=lambda _run, _seq: before).apply_all(events).messages


def _goes_on_from(events: Sequence[Event]) -> tuple[str, int] | None:
    """Return the run and seq whose messages stand before those of these events; None where none are needed."""
    for event in reversed(events):
        if event.kind == "context.compacted" and "system" in event.data():
            return None
        if event.kind in ("thread.continued", "run.forked") and (body := event.data()).get("run"):
            return None if body.get("copied") else (str(body["run"]), int(body["seq"]))
    return None
