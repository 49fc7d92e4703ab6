"""What happened to microservers, as the fleet daemon notes it, in the farm's own chain: each once, whoever tells it how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import new_event, timestamp

from . import ledger
from .db import Tx
from .tables import FARM_RUN, meta

KEY = "notices"  # in `meta`: the number of the last one that is recorded
KINDS = frozenset({
    "microserver.tainted", "microserver.untainted", "microserver.lost", "microserver.returned", "microserver.added", "microserver.removed",
})  # fmt: skip


def last(connection: Connection) -> int:
    """Return the number of the last notice that is recorded."""
    return int(connection.execute(sa.select(meta.c.value).where(meta.c.key == KEY)).scalar() or 0)


def record(tx: Tx, items: Sequence[Mapping[str, Any]]) -> int:
    """Record the notices {id, kind, at, microserver, by: who had it done, …} that are not recorded yet; return the number of the last one."""
    known = last(tx.connection)
    fresh = sorted((one for one in items if one["id"] > known and one["kind"] in KINDS), key=lambda one: one["id"])
    if not fresh:
        return known
    for one in fresh:
        event = new_event(str(one["kind"]), {**_body(one), "noted_at": timestamp(one["at"])})
        ledger.record(tx, FARM_RUN, str(one.get("by") or "service"), [event])
    tx.execute(meta.delete().where(meta.c.key == KEY))
    tx.execute(meta.insert().values(key=KEY, value=str(fresh[-1]["id"])))
    return int(fresh[-1]["id"])


def _body(one: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if name not in ("id", "kind", "at", "by")}
