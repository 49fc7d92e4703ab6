"""Anchors: signed Merkle roots over the heads of the runs that moved, chained, one a minute while something changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.audit import (
    ANCHOR_V,
    Anchor,
    BundledAnchor,
    Leaf,
    Link,
    Signed,
    merkle_path,
    merkle_root,
    signature_holds,
)
from agentfarm_sdk.protocol import header_hash, timestamp

from ..errors import Invalid
from .db import Tx
from .tables import anchored, anchors, events, runs, tombstones

PAGE = 200  # anchors that are checked with one look at what they hold
Held = tuple[int, int, str]  # an anchor's number, the seq and the head of a run that it holds


@dataclass(frozen=True)
class Due:
    """What the next anchor is to hold: its number, the anchor before it, the last event it covers, the heads that moved."""

    number: int
    before: Signed | None
    upto: int
    leaves: list[Leaf]


def due(connection: Connection) -> Due | None:
    """Return what the next anchor is to hold; None where nothing has moved since the last one."""
    last = connection.execute(sa.select(anchors).order_by(anchors.c.number.desc()).limit(1)).one_or_none()
    covered = last.upto if last else 0
    upto = connection.execute(sa.select(sa.func.max(events.c.id))).scalar() or 0
    if upto <= covered:
        return None
    latest = (
        sa.select(events.c.run_no, sa.func.max(events.c.seq).label("seq"))
        .where(events.c.id > covered, events.c.id <= upto)
        .group_by(events.c.run_no)
        .subquery()
    )
    rows = connection.execute(
        sa.select(runs.c.run_id, events.c.seq, events.c.header)
        .join(latest, sa.and_(latest.c.run_no == events.c.run_no, latest.c.seq == events.c.seq))
        .join(runs, runs.c.run_no == events.c.run_no)
        .order_by(runs.c.run_id)
    )
    leaves = [Leaf(run, seq, header_hash(header)) for run, seq, header in rows]
    before = Signed(last.anchor, last.signature) if last else None
    return Due(last.number + 1 if last else 1, before, upto, leaves)


def text(epoch: str, wanted: Due, at: float, key: str) -> str:
    """Return the bytes to be signed, as text. Pure. `at`: epoch seconds; `key`: the public key, hex."""
    anchor = Anchor(
        v=ANCHOR_V, epoch=epoch, number=wanted.number, at=timestamp(at), leaves=len(wanted.leaves), root=merkle_root(wanted.leaves),
        prev=wanted.before.hash() if wanted.before else "", key=key, upto=wanted.upto,
    )  # fmt: skip
    return msgspec.json.encode(anchor).decode()


def keep(tx: Tx, wanted: Due, signed: Signed) -> None:
    tx.execute(
        anchors.insert().values(
            number=wanted.number, upto=wanted.upto, anchor=signed.anchor, signature=signed.signature
        )
    )
    tx.execute(
        anchored.insert(),
        [{"number": wanted.number, "run_id": one.run, "seq": one.seq, "head": one.head} for one in wanted.leaves],
    )


def listed(
    connection: Connection, after: int = 0, limit: int = 50, *, newest: bool = False
) -> list[tuple[int, Signed]]:
    """Return anchors with a number above `after`, in order; `newest`: those below it (0: the last ones), the newest first."""
    number = anchors.c.number
    below = [number < after] if after else []
    wanted = sa.select(anchors).where(*(below if newest else [number > after]))
    rows = connection.execute(wanted.order_by(number.desc() if newest else number).limit(limit))
    return [(row.number, Signed(row.anchor, row.signature)) for row in rows]


def leaves(connection: Connection, number: int) -> list[Leaf]:
    """Return what an anchor holds, in its order."""
    rows = connection.execute(
        sa.select(anchored.c.run_id, anchored.c.seq, anchored.c.head)
        .where(anchored.c.number == number)
        .order_by(anchored.c.run_id)
    )
    return [Leaf(*row) for row in rows]


def last(connection: Connection) -> tuple[Anchor, int] | None:
    """Return the latest anchor, and how many events were recorded since."""
    row = connection.execute(sa.select(anchors).order_by(anchors.c.number.desc()).limit(1)).one_or_none()
    if row is None:
        return None
    since = connection.execute(sa.select(sa.func.count()).where(events.c.id > row.upto)).scalar() or 0
    return Signed(row.anchor, row.signature).read(), since


def of_run(connection: Connection, run_id: str) -> list[BundledAnchor]:
    """Return the latest anchor that holds the run, with the proof that it does."""
    number = connection.execute(sa.select(sa.func.max(anchored.c.number)).where(anchored.c.run_id == run_id)).scalar()
    if number is None:
        return []
    held = leaves(connection, number)
    index = next(at for at, leaf in enumerate(held) if leaf.run == run_id)
    row = connection.execute(sa.select(anchors).where(anchors.c.number == number)).one()
    return [
        BundledAnchor(
            signed=Signed(row.anchor, row.signature), leaf=held[index], index=index, path=merkle_path(held, index)
        )
    ]


def held(connection: Connection, names: Sequence[str]) -> dict[str, list[Held]]:
    """Return what anchors hold of these runs, each run's in its order."""
    rows = connection.execute(
        sa.select(anchored.c.run_id, anchored.c.number, anchored.c.seq, anchored.c.head)
        .where(anchored.c.run_id.in_(names))
        .order_by(anchored.c.seq)
    )
    found: dict[str, list[Held]] = {}
    for run_id, number, seq, head in rows:
        found.setdefault(run_id, []).append((number, seq, head))
    return found


def flaw(holds: Iterable[Held], links: Sequence[Link]) -> tuple[int, str] | None:
    """Return the first event of a run that is not what an anchor holds, and why; None where all agree. Pure."""
    for number, seq, head in holds:
        if seq > len(links):
            return len(links) + 1, f"anchor {number} holds {seq} events: the last ones are gone"
        if header_hash(links[seq - 1].header) != head:
            return seq, f"anchor {number} holds another event here: it was replaced"
    return None


def damaged(connection: Connection) -> str:
    """Say which anchor is not what its leaves, its successor and its signature say; "" where all are."""
    before, known = "", 0
    page = sa.select(anchors).where(anchors.c.number > sa.bindparam("known")).order_by(anchors.c.number).limit(PAGE)
    while rows := connection.execute(page, {"known": known}).all():
        found = _leaves(connection, rows[0].number, rows[-1].number)
        for row in rows:
            if why := _damage(row, found.get(row.number, []), before):
                return why
            before, known = Signed(row.anchor, row.signature).hash(), row.number
    return ""


def _leaves(connection: Connection, first: int, last: int) -> dict[int, list[Leaf]]:
    rows = connection.execute(
        sa.select(anchored.c.number, anchored.c.run_id, anchored.c.seq, anchored.c.head)
        .where(anchored.c.number.between(first, last))
        .order_by(anchored.c.number, anchored.c.run_id)
    )
    found: dict[int, list[Leaf]] = {}
    for number, *leaf in rows:
        found.setdefault(number, []).append(Leaf(*leaf))
    return found


def _damage(row: sa.Row[Any], holds: Sequence[Leaf], before: str) -> str:
    """Say how an anchor is not what its leaves, the one before it and its signature say; "" where it is. Pure."""
    signed = Signed(row.anchor, row.signature)
    try:
        anchor = signed.read()
    except Invalid as error:
        return f"anchor {row.number}: {error.detail}"
    if not signature_holds(signed, anchor):
        return f"anchor {row.number} was changed: its signature does not hold"
    if anchor.number != row.number or anchor.prev != before:
        return f"anchor {row.number} does not follow the one before it"
    if anchor.upto is not None and anchor.upto != row.upto:
        return f"up to which event anchor {row.number} reaches was changed"
    if (anchor.leaves, anchor.root) != (len(holds), merkle_root(holds)):
        return f"what anchor {row.number} holds was changed"
    return ""


def missing(connection: Connection) -> list[str]:
    """Return runs that an anchor holds and that are not here any more, nor deleted by anybody."""
    gone = (anchored.c.run_id.not_in(sa.select(known.c.run_id)) for known in (runs, tombstones))
    return list(connection.execute(sa.select(anchored.c.run_id).where(*gone).distinct()).scalars())
