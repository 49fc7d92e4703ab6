"""What waits for a person: approvals, calls in doubt, calls of a simulated run. Rows follow the events of the run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import Event, timestamp

from ..errors import NotFound
from ..records import Run, new_id
from .db import Tx
from .tables import inbox

_ASKS = {
    "approval.requested": "approval",
    "tool.doubted": "in_doubt",
    "simulation.requested": "simulation",
    "budget.reached": "budget",
    "question.asked": "question",
}
_CLOSES = {
    "approval.given": "approval", "approval.refused": "approval", "approval.expired": "approval",
    "tool.resolved": "in_doubt", "tool.succeeded": "in_doubt", "tool.failed": "in_doubt",
    "simulation.answered": "simulation", "budget.allowed": "budget", "budget.refused": "budget", "budget.freed": "budget",
    "question.answered": "question", "question.refused": "question", "question.expired": "question",
}  # fmt: skip
_ENDS = frozenset({"run.succeeded", "run.failed", "run.cancelled"})


def follow(tx: Tx, before: Run, run: Run, events: Iterable[Event]) -> None:
    """Open and close rows as the events say; `before` and `run`: the row before and after them."""
    for event in events:
        if kind := _ASKS.get(event.kind):
            tx.execute(
                inbox.insert().values(
                    inbox_id=new_id("inbox"), run_id=run.run_id, call=event.call or "", kind=kind, agent=run.agent, owner=run.owner,
                    detail=bytes(event.body).decode(), asked_at=tx.now, **_times(event.data(), tx.now),
                )
            )  # fmt: skip
        elif event.kind in _CLOSES:
            if event.kind in ("tool.succeeded", "tool.failed") and before.status == "running":
                continue  # the common case: nothing was in doubt
            body = event.data()
            decision = str(body.get("decision") or event.kind.split(".")[1])
            _close(
                tx,
                run,
                decision,
                event.by,
                str(body.get("reason") or ""),
                inbox.c.call == (event.call or ""),
                inbox.c.kind == _CLOSES[event.kind],
            )
        elif event.kind in _ENDS and event.kind != "run.succeeded":
            _close(tx, run, "moot", event.by, f"the run {event.kind[4:]}")
        elif event.kind == "worker.died":
            _proven(tx, run, event.data())
        elif event.kind == "approval.voted":
            _vote(tx, run, event)
        elif event.kind == "approval.escalated":
            _update(tx, run, event.call, escalated_at=tx.now, due_at=inbox.c.expires_at)


def _times(asked: dict[str, Any], now: float) -> dict[str, Any]:
    """Return when what is asked for goes to more people, and when it expires: by what the event says. Pure."""
    expires, after = asked.get("approval_expires") or asked.get("expires"), asked.get("escalate_after")
    moments = [now + seconds for seconds in (expires, after) if seconds]
    return {
        "due_at": min(moments, default=None),
        "expires_at": now + expires if expires else None,
        "escalate_to": asked.get("escalate_to") or None,
    }


def _proven(tx: Tx, run: Run, said: dict[str, Any]) -> None:
    for item in waiting_of(tx.connection, run.run_id):
        if item["kind"] == "in_doubt" and item["call"] in said["calls"]:
            detail = msgspec.json.encode({**item["detail"], "proof": said["proof"]}).decode()
            _update(tx, run, item["call"], detail=detail)


def _vote(tx: Tx, run: Run, event: Event) -> None:
    waiting = [item for item in waiting_of(tx.connection, run.run_id) if item["call"] == event.call]
    votes = waiting[0]["votes"] if waiting else []
    _update(
        tx,
        run,
        event.call,
        votes=msgspec.json.encode([*votes, {"by": event.by, "at": event.at, **event.data()}]).decode(),
    )


def _update(tx: Tx, run: Run, call: str | None, **values: Any) -> None:
    mine = (inbox.c.run_id == run.run_id, inbox.c.call == call, inbox.c.decided_at.is_(None))
    tx.execute(inbox.update().where(*mine).values(**values))


def _close(tx: Tx, run: Run, decision: str, by: str, reason: str, *where: Any) -> None:
    tx.execute(
        inbox.update()
        .where(inbox.c.run_id == run.run_id, inbox.c.decided_at.is_(None), *where)
        .values(decided_at=tx.now, decision=decision[:16], decided_by=by, reason=reason, due_at=None)
    )


def listed(
    connection: Connection, *, owners: Iterable[str] | None = None, agents: Iterable[str] | None = None, groups: Iterable[str] = (),
    waiting: bool = True, decided: bool = False, escalated: bool = False, after: str | None = None, limit: int = 50,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return items of these owners or these agents, or escalated to these groups (None and None = all).

    Oldest first; `decided`: only what was decided, newest first.
    """
    statement = sa.select(inbox).order_by(inbox.c.inbox_id.desc() if decided else inbox.c.inbox_id).limit(limit)
    if owners is not None or agents is not None:
        statement = statement.where(
            sa.or_(
                inbox.c.owner.in_(list(owners or ())),
                inbox.c.agent.in_(list(agents or ())),
                sa.and_(inbox.c.escalated_at.is_not(None), inbox.c.escalate_to.in_(list(groups))),
            )
        )
    if escalated:
        statement = statement.where(inbox.c.escalated_at.is_not(None))
    if decided:
        statement = statement.where(inbox.c.decided_at.is_not(None))
    elif waiting:
        statement = statement.where(inbox.c.decided_at.is_(None))
    if after:
        statement = statement.where(inbox.c.inbox_id < after if decided else inbox.c.inbox_id > after)
    return [_item(row) for row in connection.execute(statement).mappings()]


def show(connection: Connection, inbox_id: str) -> dict[str, Any]:
    """Return one item. Raises NotFound."""
    row = connection.execute(sa.select(inbox).where(inbox.c.inbox_id == inbox_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"there is no inbox item {inbox_id}", hint="list them by: agentfarm inbox list")
    return _item(row)


def waiting_of(connection: Connection, run_id: str) -> list[dict[str, Any]]:
    """Return the undecided items of a run."""
    rows = connection.execute(
        sa.select(inbox).where(inbox.c.run_id == run_id, inbox.c.decided_at.is_(None)).order_by(inbox.c.inbox_id)
    )
    return [_item(row) for row in rows.mappings()]


def due(connection: Connection, now: float) -> list[str]:
    """Return the items with which time alone has something to do."""
    return list(connection.execute(sa.select(inbox.c.inbox_id).where(inbox.c.due_at <= now)).scalars())


def _item(row: Any) -> dict[str, Any]:
    item = dict(row)
    item["detail"] = msgspec.json.decode(item["detail"])
    item["votes"] = msgspec.json.decode(item["votes"] or "[]")
    for name in ("asked_at", "decided_at", "expires_at", "escalated_at", "due_at"):
        item[name] = None if item[name] is None else timestamp(item[name])
    return item
