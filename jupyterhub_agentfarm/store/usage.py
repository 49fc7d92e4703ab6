"""What was used: requests, tokens and cost by day, agent, owner and model. Written with the reply it counts."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .db import Tx
from .tables import usage


def add(
    tx: Tx, *, agent: str, owner: str, model: str, tokens_in: int, tokens_out: int, cost: float | None, estimated: bool = False
) -> None:  # fmt: skip
    """Count one reply. cost: USD, None where the model has no price; estimated: nobody counted the tokens."""
    day = datetime.fromtimestamp(tx.now, tz=timezone.utc).strftime("%Y-%m-%d")
    tx.count((day, agent, owner, model), (1, tokens_in, tokens_out, cost or 0.0, int(estimated), int(cost is None)))


def listed(connection: Connection, *, owners: Iterable[str] | None = None, since: str = "") -> list[dict[str, Any]]:
    """Return rows of these owners (None = all) from the day `since` (YYYY-MM-DD) on."""
    statement = (
        sa.select(usage).where(usage.c.day >= since).order_by(usage.c.day, usage.c.owner, usage.c.agent, usage.c.model)
    )
    if owners is not None:
        statement = statement.where(usage.c.owner.in_(list(owners)))
    return [dict(row) for row in connection.execute(statement).mappings()]
