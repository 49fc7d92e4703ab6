"""What model servers have said that they do not take, kept so that a service that starts anew does not ask for it again."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .db import Tx
from .tables import meta

KEY = "refusals"
KEPT_SECONDS = 7 * 86_400.0  # a server may have learned it meanwhile: then it is asked again
Refusals = dict[
    str, dict[str, dict[str, float]]
]  # by server and model: parts of a request, and since when that is known


def read(connection: Connection, now: float) -> Refusals:
    """Return what is known and not too old; `now`: epoch seconds."""
    text = connection.execute(sa.select(meta.c.value).where(meta.c.key == KEY)).scalar()
    known = msgspec.json.decode(text, type=Refusals) if text else {}
    return {
        server: {
            model: fresh
            for model, parts in models.items()
            if (fresh := {part: at for part, at in parts.items() if 0 <= now - at < KEPT_SECONDS})
        }
        for server, models in known.items()
    }


def add(tx: Tx, server: str, model: str, part: str) -> None:
    known = read(tx.connection, tx.now)
    known.setdefault(server, {}).setdefault(model, {})[part] = tx.now
    tx.execute(meta.delete().where(meta.c.key == KEY))
    tx.execute(meta.insert().values(key=KEY, value=msgspec.json.encode(known).decode()))
