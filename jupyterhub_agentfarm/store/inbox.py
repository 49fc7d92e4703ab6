"""What waits for a person: approvals and calls in doubt. Rows follow the events of the run."""

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

_ASKS = {"approval.requested": "approval", "tool.doubted": "in_doubt"}
_CLOSES = {
    "approval.given": "approval", "approval.refused": "approval", "approval.expired": "approval",
    "tool.resolved": "in_doubt", "tool.succeeded": "in_doubt", "tool.failed": "in_doubt",
}  # fmt: skip
_ENDS = frozenset({"run.succeeded", "run.failed", "run.cancelled"})


def follow(tx: Tx, before: Run, run: Run, events: Iterable[Event]) -> None:
    """Open and close rows as the events say; `before` and `run`: the row before and after them."""
    for event in events:
        if kind := _ASKS.get(event.kind):
            tx.execute(
                inbox.insert().values(
                    inbox_id=new_id("inbox"), run_id=run.run_id, call=event.call or "", kind=kind, agent=run.agent, owner=run.owner,
                    detail=bytes(event.body).decode(), asked_at=tx.now,
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
                inbox.c.call == event.call,
                inbox.c.kind == _CLOSES[event.kind],
            )
        elif event.kind in _ENDS and event.kind != "run.succeeded":
            _close(tx, run, "moot", event.by, f"the run {event.kind[4:]}")


def _close(tx: Tx, run: Run, decision: str, by: str, reason: str, *where: Any) -> None:
    tx.execute(
        inbox.update()
        .where(inbox.c.run_id == run.run_id, inbox.c.decided_at.is_(None), *where)
        .values(decided_at=tx.now, decision=decision[:16], decided_by=by, reason=reason)
    )


def listed(
    connection: Connection, *, owners: Iterable[str] | None = None, agents: Iterable[str] | None = None, waiting: bool = True, after: str | None = None, limit: int = 50
) -> list[dict[str, Any]]:  # fmt: skip
    """Return items, oldest first: of these owners or these agents (None and None = all)."""
    statement = sa.select(inbox).order_by(inbox.c.inbox_id).limit(limit)
    if owners is not None or agents is not None:
        statement = statement.where(
            sa.or_(inbox.c.owner.in_(list(owners or ())), inbox.c.agent.in_(list(agents or ())))
        )
    if waiting:
        statement = statement.where(inbox.c.decided_at.is_(None))
    if after:
        statement = statement.where(inbox.c.inbox_id > after)
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


def _item(row: Any) -> dict[str, Any]:
    item = dict(row)
    item["detail"] = msgspec.json.decode(item["detail"])
    for name in ("asked_at", "decided_at"):
        item[name] = None if item[name] is None else timestamp(item[name])
    return item
