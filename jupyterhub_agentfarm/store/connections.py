"""Who holds a token of an agent in an editor, and until when. The token itself is the Hub's; no row and no event has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import new_event

from ..records import new_id
from . import ledger
from .db import Tx
from .tables import FARM_RUN, connections


@dataclass(frozen=True)
class Held:
    """`connection_id` stands in the note of the Hub's token: by it the token is found and deleted."""

    connection_id: str
    agent: str
    person: str
    created_at: float
    expires_at: float


def open_one(tx: Tx, agent: str, person: str, seconds: int, scopes: Sequence[str], by: str) -> Held:
    """Record that a person is given a token of the agent: before it exists. Forgets those that have expired."""
    tx.execute(connections.delete().where(connections.c.agent == agent, connections.c.expires_at <= tx.now))
    held = Held(new_id("connection"), agent, person, tx.now, tx.now + seconds)
    tx.execute(connections.insert().values(**vars(held)))
    body = {"agent": agent, "person": person, "connection": held.connection_id, "scopes": list(scopes), "seconds": seconds}  # fmt: skip
    ledger.record(tx, FARM_RUN, by, [new_event("connection.opened", body)])
    return held


def close(tx: Tx, held: Sequence[Held], reason: str, by: str) -> None:
    """Record that these tokens are no longer worth anything. One that is closed already is left out."""
    for one in held:
        if tx.execute(connections.delete().where(connections.c.connection_id == one.connection_id)).rowcount:
            body = {"agent": one.agent, "person": one.person, "connection": one.connection_id, "reason": reason}
            ledger.record(tx, FARM_RUN, by, [new_event("connection.closed", body)])


def listed(connection: Connection, agent: str, now: float) -> list[Held]:
    """Return the agent's connections that have not expired, the newest first."""
    rows = connection.execute(
        sa.select(*(connections.c[one.name] for one in fields(Held)))
        .where(connections.c.agent == agent, connections.c.expires_at > now)
        .order_by(connections.c.connection_id.desc())
    )
    return [Held(**row._mapping) for row in rows]
