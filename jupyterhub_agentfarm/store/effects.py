"""Effects in this database: what agents remember, and timers. Rows follow the events of a run, in their transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.effects import MAX_KEYS, RECALLED_BYTES
from agentfarm_sdk.fold import as_text
from agentfarm_sdk.protocol import Event, moment, timestamp

from ..errors import Forbidden, NotFound
from ..records import Run
from .db import Tx
from .tables import FARM_RUN, memory, timers

FOLLOWED = frozenset({"memory.remembered", "memory.forgotten", "timer.set", "timer.fired"})
_KEPT = 2 * MAX_KEYS  # workers look for room before they remember; several at once may find the same


def follow(tx: Tx, run: Run, events: Iterable[Event]) -> None:
    """Do what the events say. A simulated run remembers nothing. Raises Forbidden: a worker did not look for room."""
    for event in events:
        if event.kind not in FOLLOWED or run.run_id == FARM_RUN:
            continue
        body = event.data()
        if event.kind == "timer.set":
            after = body.get("after")  # seconds by this clock: the worker's may go otherwise
            due = moment(body["until"]) if after is None else tx.now + after
            tx.execute(timers.insert().values(run_id=run.run_id, call=event.call, due_at=due))
        elif event.kind == "timer.fired":
            clear(tx, run.run_id, str(event.call))
        elif run.mode != "simulate":
            _change(tx, run, body, remember=event.kind == "memory.remembered")


def clear(tx: Tx, run_id: str, call: str) -> None:
    """Forget a timer."""
    tx.execute(timers.delete().where(timers.c.run_id == run_id, timers.c.call == call))


def _change(tx: Tx, run: Run, body: dict[str, Any], *, remember: bool) -> None:
    agent, owner = whose(run)
    tx.execute(memory.delete().where(*_of(agent, owner), memory.c.key == body["key"]))
    if not remember:
        return
    if keys(tx.connection, agent, owner) >= _KEPT:
        raise Forbidden(f"{agent} remembers {_KEPT} keys", hint="look for room before you remember")
    value = msgspec.json.encode(body.get("value")).decode()
    tx.execute(
        memory.insert().values(
            agent=agent, owner=owner, key=body["key"], value=value, run_id=run.run_id, changed_at=tx.now
        )
    )


def whose(run: Run) -> tuple[str, str]:
    """Return agent and owner of a run's memory: a notebook's agent is its person's own, whatever its name."""
    return run.agent, run.owner if run.bound else ""


def _of(agent: str, owner: str) -> tuple[Any, Any]:
    return memory.c.agent == agent, memory.c.owner == owner


def keys(connection: Connection, agent: str, owner: str = "") -> int:
    """Return how many keys the agent remembers."""
    return int(connection.execute(sa.select(sa.func.count()).where(*_of(agent, owner))).scalar_one())


def recalled(
    connection: Connection, agent: str, owner: str = "", *, key: str = "", query: str = "", limit: int, most: int = RECALLED_BYTES
) -> list[dict[str, Any]]:  # fmt: skip
    """Return entries `{key, value, run_id, changed_at}`, latest first: of a key, or those that have all words of `query`.

    `most`: bytes of values in all; the first one is given whatever its size.
    """
    statement = sa.select(memory).where(*_of(agent, owner)).order_by(memory.c.changed_at.desc(), memory.c.key)
    if key:
        statement = statement.where(memory.c.key == key)
    words, found, size = query.casefold().split(), list[dict[str, Any]](), 0
    for row in connection.execute(statement).mappings():
        size += len(row["value"])
        if len(found) >= limit or (found and size > most):
            break
        value = msgspec.json.decode(row["value"])
        text = f"{row['key']} {as_text(value)}".casefold() if words else ""
        if all(word in text for word in words):
            entry = {"key": row["key"], "value": value, "run_id": row["run_id"]}
            found.append({**entry, "changed_at": timestamp(row["changed_at"])})
        else:
            size -= len(row["value"])
    return found


def listed(connection: Connection, agent: str, *, after: str = "", limit: int = 50) -> list[dict[str, Any]]:
    """Return an agent's entries in the order of their keys."""
    statement = sa.select(memory).where(*_of(agent, ""), memory.c.key > after).order_by(memory.c.key).limit(limit)
    return [
        {"key": row["key"], "value": msgspec.json.decode(row["value"]), "run_id": row["run_id"],
         "changed_at": timestamp(row["changed_at"])}
        for row in connection.execute(statement).mappings()
    ]  # fmt: skip


def forget(tx: Tx, agent: str, key: str) -> None:
    """Let an agent forget a key. Raises NotFound."""
    gone = tx.execute(memory.delete().where(*_of(agent, ""), memory.c.key == key))
    if gone.rowcount == 0:
        raise NotFound(f"{agent} remembers nothing as {key!r}", hint=f"list it by: agentfarm agent memory {agent}")


def due(connection: Connection, now: float) -> list[tuple[str, str]]:
    """Return run and call of the timers whose time has come."""
    rows = connection.execute(sa.select(timers.c.run_id, timers.c.call).where(timers.c.due_at <= now))
    return [(run_id, call) for run_id, call in rows]


def next_due(connection: Connection, now: float) -> float | None:
    """Return when the next timer after `now` is due."""
    return connection.execute(sa.select(sa.func.min(timers.c.due_at)).where(timers.c.due_at > now)).scalar()
