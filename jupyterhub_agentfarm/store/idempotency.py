"""Answers to writes that carried an Idempotency-Key: sent again within a day, the same answer; another body, refused."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import Conflict
from .db import Tx
from .tables import idempotency

KEPT_SECONDS = 86_400.0
ERASED = 410  # in place of the answer's status


@dataclass(frozen=True)
class Stored:
    status: int
    answer: bytes


def find(connection: Connection, asker: str, key: str, digest: str) -> Stored | None:
    """Return the answer that this asker's key got. Raises Conflict: the key came with another request, or the answer was erased."""
    row = connection.execute(
        sa.select(idempotency.c.digest, idempotency.c.status, idempotency.c.answer).where(
            idempotency.c.asker == asker, idempotency.c.key == key
        )
    ).one_or_none()
    if row is None:
        return None
    if row.digest != digest:
        raise Conflict(
            f"Idempotency-Key {key!r} was used for another request", hint="send the same request, or a new key"
        )
    if row.status == ERASED:
        raise Conflict("what this request was answered with was erased", hint="send a new request, with a new key")
    return Stored(row.status, bytes(row.answer))


def put(tx: Tx, asker: str, key: str, digest: str, status: int, answer: bytes) -> None:
    """Keep the answer. Again is harmless."""
    if find(tx.connection, asker, key, digest) is None:
        tx.execute(idempotency.delete().where(idempotency.c.created_at < tx.now - KEPT_SECONDS))
        tx.execute(
            idempotency.insert().values(
                asker=asker, key=key, digest=digest, status=status, answer=answer, created_at=tx.now
            )
        )


def erase(tx: Tx, task_id: str) -> None:
    """Take the words out of the answers that name a task; the same request sent again still does nothing twice."""
    i, name = idempotency.c, task_id.encode() if tx.sqlite else task_id
    found = sa.func.instr(i.answer, name) if tx.sqlite else sa.func.strpos(sa.func.encode(i.answer, "escape"), name)
    tx.execute(idempotency.update().where(found > 0).values(status=ERASED, answer=b""))
