"""Definitions by content hash: what versions and runs name."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import Definition, canonical, content_hash

from ..errors import NotFound
from .db import Tx
from .tables import definitions

MAX_KNOWN = 256
_read: dict[str, Definition] = {}  # by content hash: what was read once is the same for ever; verifying reads the bytes
_CONTENT = sa.select(definitions.c.content).where(definitions.c.hash == sa.bindparam("name"))
_KNOWN = sa.select(definitions.c.hash).where(definitions.c.hash == sa.bindparam("name"))


def put(tx: Tx, definition: Definition, name: str = "") -> str:
    """Keep the definition; return its content hash (`name`, where it is known). Keeping it twice is harmless."""
    name = name or content_hash(definition)
    if name not in tx.kept:
        if not tx.connection.execute(_KNOWN, {"name": name}).scalar():
            tx.execute(definitions.insert().values(hash=name, content=canonical(definition)))
        tx.kept.add(name)
    return name


def get(connection: Connection, name: str) -> Definition:
    """Return the definition of that content hash. Raises NotFound."""
    if (known := _read.get(name)) is not None:
        return known
    content = connection.execute(_CONTENT, {"name": name}).scalar()
    if content is None:
        raise NotFound(f"there is no definition {name[:12]}…")
    if len(_read) >= MAX_KNOWN:
        _read.clear()
    _read[name] = msgspec.json.decode(bytes(content), type=Definition)
    return _read[name]
