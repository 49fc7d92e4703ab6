"""Budgets: how much an agent, an owner or the farm may use in a day, a month or ever; and what is reserved of it.

What was used stands in `usage`; a reservation stands here from its `model.requested` to its reply, in their transactions.
Changes are on record in the farm's own chain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import new_event

from ..errors import Conflict, NotFound
from ..records import Run
from . import ledger, usage
from .db import Tx
from .tables import FARM_RUN, budgets, inbox, reservations, runs
from .tables import usage as used


@dataclass(frozen=True)
class Budget:
    """A limit. `scope`: agent, owner or farm (name ""); `unit`: usd or tokens; `period`: day, month (UTC) or total.

    `action`: what meets a run that reaches it: stop (it fails) or ask (it waits for a person).
    """

    scope: str
    name: str
    unit: str
    period: str
    amount: float
    action: str
    set_by: str
    set_at: float

    @property
    def id(self) -> str:
        return f"{self.scope}:{self.name}:{self.unit}:{self.period}"

    @property
    def words(self) -> str:
        """What it is, in words for people."""
        whose = "the farm" if self.scope == "farm" else f"{self.scope} {self.name}"
        each = {"day": " a day", "month": " a month", "total": " in all"}[self.period]
        return f"{whose} may use {self.amount:g} {'USD' if self.unit == 'usd' else 'tokens'}{each}"


@dataclass(frozen=True)
class Hold:
    """A reservation: what a model request may use at most. cost: USD."""

    hold_id: str
    run_id: str
    agent: str
    owner: str
    model: str
    tokens_in: int
    tokens_out: int
    cost: float


_HOLD = tuple(field.name for field in fields(Hold))


def key_of(period: str, now: float) -> str:
    """Return the beginning of the days that the period counts: "2026-11-21", "2026-11" or ""."""
    day = datetime.fromtimestamp(now, tz=timezone.utc).strftime("%Y-%m-%d")
    return {"day": day, "month": day[:7], "total": ""}[period]


def _where(scope: str, name: str, unit: str, period: str) -> Any:
    b = budgets.c
    return sa.and_(b.scope == scope, b.name == name, b.unit == unit, b.period == period)


def put(tx: Tx, budget: Budget) -> None:
    """Set a limit, or change it."""
    tx.execute(budgets.delete().where(_where(budget.scope, budget.name, budget.unit, budget.period)))
    tx.execute(budgets.insert().values(**asdict(budget)))
    ledger.record(tx, FARM_RUN, f"user:{budget.set_by}", [new_event("budget.changed", _told(budget))])


def remove(tx: Tx, budget: Budget, by: str) -> bool:
    """Take a limit away; return whether it was there."""
    found = tx.execute(budgets.delete().where(_where(budget.scope, budget.name, budget.unit, budget.period))).rowcount
    if found:
        ledger.record(tx, FARM_RUN, f"user:{by}", [new_event("budget.changed", {**_told(budget), "amount": None})])
    return bool(found)


def _told(budget: Budget) -> dict[str, Any]:
    return {name: getattr(budget, name) for name in ("scope", "name", "unit", "period", "amount", "action")}


def listed(connection: Connection) -> list[Budget]:
    """Return all limits: the farm's, owners', agents'."""
    b = budgets.c
    rows = connection.execute(sa.select(budgets).order_by(b.scope.desc(), b.name, b.unit, b.period))
    return [Budget(*row) for row in rows]


def spent(connection: Connection, budget: Budget, now: float) -> float:
    """Return what was used of the budget in its present period, by what is on record."""
    u = used.c
    what = sa.func.sum(u.cost) if budget.unit == "usd" else sa.func.sum(u.tokens_in + u.tokens_out)
    whose = {"agent": u.agent == budget.name, "owner": u.owner == budget.name, "farm": sa.true()}[budget.scope]
    return float(
        connection.execute(sa.select(what).where(whose, u.day.startswith(key_of(budget.period, now)))).scalar() or 0
    )


def reserve(tx: Tx, hold: Hold) -> None:
    """Write a reservation, in the transaction of its `model.requested`."""
    mark = ", ".join("?" * (len(_HOLD) + 1))
    values = tuple(getattr(hold, name) for name in _HOLD)
    tx.later(
        f"INSERT INTO reservations ({', '.join(_HOLD)}, reserved_at) VALUES ({mark}) ON CONFLICT DO NOTHING",
        (*values, tx.now),
    )


def release(tx: Tx, hold: Hold) -> None:
    """Take a reservation away, in the transaction that counts what was used instead. Twice is harmless."""
    tx.later("DELETE FROM reservations WHERE hold_id = ?", (hold.hold_id,))


def settle_in_full(tx: Tx, hold: Hold) -> None:
    """Count all that was reserved, marked estimated: nobody knows what the request came to."""
    usage.add(
        tx, agent=hold.agent, owner=hold.owner, model=hold.model, tokens_in=hold.tokens_in, tokens_out=hold.tokens_out,
        cost=hold.cost, estimated=True,
    )  # fmt: skip
    release(tx, hold)
    why = {"type": "lost", "message": "the service ended before the reply came; what was reserved is counted"}
    counted = {"input": hold.tokens_in, "output": hold.tokens_out, "estimated": True}
    body = {
        "request": hold.hold_id,
        "error": {**why, "status": 0},
        "usage": counted,
        "cost": hold.cost,
        "retry_in": None,
    }
    try:
        ledger.record(tx, hold.run_id, "gateway", [new_event("model.failed", body)])
    except (Conflict, NotFound):  # it has ended since: the usage says it all the same
        return


def orphans(connection: Connection) -> list[Hold]:
    """Return the reservations that are written; when the service starts, those of its former life."""
    columns = [reservations.c[name] for name in _HOLD]
    return [Hold(*row) for row in connection.execute(sa.select(*columns).order_by(reservations.c.reserved_at))]


def waiting(connection: Connection) -> list[tuple[str, bytes]]:
    """Return (run, detail) of each run that waits for a budget."""
    statement = (
        sa.select(inbox.c.run_id, inbox.c.detail)
        .join(runs, runs.c.run_id == inbox.c.run_id)
        .where(inbox.c.kind == "budget", inbox.c.decided_at.is_(None), runs.c.waiting == "budget")
        .order_by(inbox.c.inbox_id)
    )
    return [(run_id, detail.encode()) for run_id, detail in connection.execute(statement)]


def waived(connection: Connection) -> dict[str, list[str]]:
    """Return the runs that have not ended for which a person waived a budget, by its id."""
    statement = (
        sa.select(inbox.c.run_id, inbox.c.detail)
        .join(runs, runs.c.run_id == inbox.c.run_id)
        .where(inbox.c.kind == "budget", inbox.c.decision == "allowed", runs.c.ended_at.is_(None))
        .order_by(inbox.c.inbox_id)
    )
    found: dict[str, list[str]] = {}
    for run_id, detail in connection.execute(statement):
        named = found.setdefault(str(msgspec.json.decode(detail).get("budget")), [])
        named += [] if run_id in named else [run_id]
    return found


def go_on(tx: Tx, run_id: str, by: str, budget_id: str, reason: str) -> Run:
    """Let a run that waits for a budget queue again; one that does not is left as it is."""
    run = ledger.held(tx, run_id)
    if run.status == "waiting" and run.waiting == "budget":
        body = {"budget": budget_id, "reason": reason}
        freed = [new_event("budget.freed", body), new_event("run.requeued", {"reason": reason, "proof": None})]
        ledger.record(tx, run_id, by, freed)
    return ledger.held(tx, run_id)


USAGE_KEYS = ("day", "agent", "owner", "model")


def usage_by(
    connection: Connection, keys: Iterable[str], *, owner: str | None, agents: Iterable[str] = (), since: str = "", until: str = "", limit: int = 1000
) -> list[dict[str, Any]]:  # fmt: skip
    """Return usage summed by the keys (of USAGE_KEYS), newest day first. owner None = everybody's; days inclusive."""
    columns = [used.c[key] for key in USAGE_KEYS if key in set(keys)]
    sums = [
        sa.cast(sa.func.sum(used.c[name]), used.c[name].type).label(name)  # PostgreSQL sums bigints to decimals
        for name in ("requests", "tokens_in", "tokens_out", "cost", "estimated", "unpriced")
    ]
    statement = sa.select(*columns, *sums).group_by(*columns).limit(limit)
    for column in columns:
        statement = statement.order_by(column.desc() if column.name == "day" else column)
    if owner is not None:
        statement = statement.where(sa.or_(used.c.owner == owner, used.c.agent.in_(list(agents))))
    if since:
        statement = statement.where(used.c.day >= since)
    if until:
        statement = statement.where(used.c.day <= until)
    return [{**row} for row in connection.execute(statement).mappings() if row["requests"] is not None]
