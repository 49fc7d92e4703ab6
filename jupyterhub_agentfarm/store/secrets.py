"""Secrets of tools: encrypted rows. Who may write them the handlers say; nobody reads them back but an admission."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import new_event

from . import ledger
from .db import Tx
from .tables import FARM_RUN, secrets


def put(tx: Tx, owner: str, name: str, ciphertext: bytes) -> None:
    """Keep a secret under its owner; the value comes encrypted."""
    _drop(tx, owner, name)
    _record(tx, "secret.set", owner, name)
    tx.execute(secrets.insert().values(owner=owner, name=name, ciphertext=ciphertext, updated_at=tx.now))


def drop(tx: Tx, owner: str, name: str) -> bool:
    """Forget a secret; return whether there was one."""
    if not _drop(tx, owner, name):
        return False
    _record(tx, "secret.deleted", owner, name)
    return True


def _record(tx: Tx, kind: str, owner: str, name: str) -> None:
    """Only owners touch their secrets. The farm's chain gets the name alone."""
    ledger.record(tx, FARM_RUN, f"user:{owner}", [new_event(kind, {"owner": owner, "name": name})])


def _drop(tx: Tx, owner: str, name: str) -> bool:
    return tx.execute(secrets.delete().where(secrets.c.owner == owner, secrets.c.name == name)).rowcount > 0


def names(connection: Connection, owner: str) -> list[tuple[str, float]]:
    """Return name and time of each secret of the owner."""
    rows = connection.execute(
        sa.select(secrets.c.name, secrets.c.updated_at).where(secrets.c.owner == owner).order_by(secrets.c.name)
    )
    return [(str(name), float(at)) for name, at in rows]


def get(connection: Connection, owner: str, wanted: Iterable[str]) -> dict[str, bytes]:
    """Return the ciphertexts of those names that the owner has."""
    rows = connection.execute(
        sa.select(secrets.c.name, secrets.c.ciphertext).where(
            secrets.c.owner == owner, secrets.c.name.in_(list(wanted))
        )
    )
    return {str(name): bytes(ciphertext) for name, ciphertext in rows}
