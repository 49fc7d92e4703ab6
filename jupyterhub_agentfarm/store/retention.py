"""How long bodies of events are kept, by kind. Rows of `meta` say how far it has come, so that nothing is looked at twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import ENDED, new_event

from . import erasure, ledger
from .db import Tx
from .tables import FARM_RUN, meta, runs

KEY = "retention"
DAY = 86_400.0  # seconds
PAGE = 100


class Progress(msgspec.Struct, frozen=True):
    """`rules`: kind -> days; "*" is every other kind. `marks`: kind -> runs that ended up to then are done (epoch seconds)."""

    rules: dict[str, float] = {}
    marks: dict[str, float] = {}


@dataclass(frozen=True)
class Old:
    """A run whose bodies of a kind are due. `busy`: another run of its thread has not ended and still needs them."""

    run_no: int
    run_id: str
    ended_at: float
    busy: bool


def progress(connection: Connection) -> Progress:
    text = connection.execute(sa.select(meta.c.value).where(meta.c.key == KEY)).scalar()
    return msgspec.json.decode(text, type=Progress) if text else Progress()


def keep(tx: Tx, now: Progress) -> None:
    """Write down how far it has come. Other rules are an event of the farm's own chain."""
    if now.rules != progress(tx.connection).rules:
        ledger.record(tx, FARM_RUN, "service", [new_event("retention.changed", {"days": now.rules})])
    tx.execute(meta.delete().where(meta.c.key == KEY))
    tx.execute(meta.insert().values(key=KEY, value=msgspec.json.encode(now).decode()))


def due(connection: Connection, above: float, upto: float, after: tuple[float, int]) -> list[Old]:
    """Return runs that ended in (above, upto], in order, behind the one that `after` (ended_at, run_no) names."""
    r = runs.c
    behind = sa.or_(r.ended_at > after[0], sa.and_(r.ended_at == after[0], r.run_no > after[1]))
    rows = connection.execute(
        sa.select(r.run_no, r.run_id, r.ended_at, r.thread_id)
        .where(r.status.in_(ENDED), r.ended_at > above, r.ended_at <= upto, behind)
        .order_by(r.ended_at, r.run_no)
        .limit(PAGE)
    )
    return [
        Old(no, run_id, at, thread is not None and erasure.thread_goes_on(connection, thread))
        for no, run_id, at, thread in rows.all()
    ]


def erase(tx: Tx, run_id: str, kind: str, rules: Mapping[str, float]) -> int:
    """Erase what one rule says of a run; return how many bodies went."""

    def wanted(_seq: int, found: str) -> bool:
        return found == kind or (kind == "*" and found not in rules)

    reason = f"retention: {rules[kind]:g} days"
    return erasure.erase(tx, run_id, "service", reason, wanted).bodies
