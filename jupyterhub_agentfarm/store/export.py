"""All events of the farm as they are kept, in the order of their commits."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import header_hash

from .tables import events, runs


class Exported(msgspec.Struct, frozen=True):
    """An event. header, body: the texts that were hashed (body null: erased); salt, digest: hex. `id` only grows."""

    id: int
    run: str
    seq: int
    hash: str
    header: str
    salt: str | None
    body: str | None
    n: int | None
    digest: str | None


def page(connection: Connection, after: int, limit: int) -> list[Exported]:
    """Return the events behind number `after`."""
    e = events.c
    rows = connection.execute(
        sa.select(e.id, runs.c.run_id, e.seq, e.header, e.salt, e.body, e.n, e.digest)
        .join(runs, runs.c.run_no == e.run_no)
        .where(e.id > after)
        .order_by(e.id)
        .limit(limit)
    )
    return [
        Exported(
            number, run_id, seq, header_hash(header), header.decode("utf-8", "replace"), _hex(salt),
            None if body is None else body.decode("utf-8", "replace"), n, _hex(digest),
        )
        for number, run_id, seq, header, salt, body, n, digest in rows
    ]  # fmt: skip


def _hex(value: bytes | None) -> str | None:
    return None if value is None else bytes(value).hex()
