"""Blobs of runs, by content hash: bodies over 16 kB, images, files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import MAX_BLOB_BYTES

from ..errors import Invalid, NotFound, TooLarge
from ..records import Run
from .db import Tx
from .tables import blobs, run_blobs, uploads


def put(tx: Tx, run_id: str, sha256: str, content: bytes) -> None:
    """Keep a blob for a run; keeping it twice is harmless.

    Raises:
        TooLarge: over MAX_BLOB_BYTES.  Invalid: the bytes have another hash.
    """
    _fits(content)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Invalid("the bytes do not have the hash that they are named by", hint="send them again")
    _keep(tx, sha256, content)
    link(tx, run_id, [sha256])


def _fits(content: bytes) -> None:
    if len(content) > MAX_BLOB_BYTES:
        raise TooLarge(
            f"this blob has {len(content)} bytes",
            hint=f"at most {MAX_BLOB_BYTES} bytes; write a file and name it instead",
        )


def _keep(tx: Tx, sha256: str, content: bytes) -> None:
    if not tx.connection.execute(sa.select(blobs.c.sha256).where(blobs.c.sha256 == sha256)).scalar():
        tx.execute(blobs.insert().values(sha256=sha256, size=len(content), content=content, created_at=tx.now))


def link(tx: Tx, run_id: str, hashes: Iterable[str]) -> None:
    """Say that a run holds these blobs; again is harmless."""
    for sha256 in set(hashes):
        r = run_blobs.c
        if not tx.connection.execute(sa.select(r.run_id).where(r.run_id == run_id, r.sha256 == sha256)).scalar():
            tx.execute(run_blobs.insert().values(run_id=run_id, sha256=sha256))


def upload(tx: Tx, owner: str, sha256: str, content: bytes) -> None:
    """Keep a blob for tasks of an owner. Raises TooLarge."""
    _fits(content)
    _keep(tx, sha256, content)
    if sha256 not in uploaded(tx.connection, owner, [sha256]):
        tx.execute(uploads.insert().values(owner=owner, sha256=sha256, created_at=tx.now))


def uploaded(connection: Connection, owner: str, hashes: Iterable[str]) -> dict[str, int]:
    """Return the sizes of those that the owner has uploaded."""
    joined = sa.select(blobs.c.sha256, blobs.c.size).join(uploads, uploads.c.sha256 == blobs.c.sha256)
    rows = connection.execute(joined.where(uploads.c.owner == owner, blobs.c.sha256.in_(list(hashes))))
    return {str(sha256): int(size) for sha256, size in rows}


def check_known(connection: Connection, run: Run, hashes: Iterable[str]) -> None:
    """Raises NotFound where a run names a blob that is neither its own nor an upload of its owner."""
    wanted = set(hashes)
    its = sa.select(run_blobs.c.sha256).where(run_blobs.c.run_id == run.run_id, run_blobs.c.sha256.in_(wanted))
    foreign = wanted - set(connection.execute(its).scalars()) - set(uploaded(connection, run.owner, wanted))
    if foreign:
        raise NotFound(f"there is no blob {min(foreign)[:12]}… of this run, nor an upload of {run.owner}")


def lend(tx: Tx, owner: str, hashes: Iterable[str]) -> None:
    """Let an owner name these blobs in tasks of theirs: they stand in what the owner may see. What is gone is left out."""
    wanted = set(hashes)
    kept = tx.connection.execute(sa.select(blobs.c.sha256).where(blobs.c.sha256.in_(wanted))).scalars().all()
    for sha256 in set(kept) - set(uploaded(tx.connection, owner, wanted)):
        tx.execute(uploads.insert().values(owner=owner, sha256=sha256, created_at=tx.now))


def read(connection: Connection, hashes: Iterable[str]) -> dict[str, bytes]:
    """Return blobs by their hashes, for the gateway, which finds them named in the ledger; those that are gone are left out."""
    rows = connection.execute(sa.select(blobs.c.sha256, blobs.c.content).where(blobs.c.sha256.in_(list(hashes))))
    return {str(sha256): bytes(content) for sha256, content in rows}


def share(tx: Tx, run_id: str, other: str) -> None:
    """Let another run have all blobs that a run has: it will be told what that one was told."""
    its = sa.select(run_blobs.c.sha256).where(run_blobs.c.run_id == other)
    theirs = sa.select(sa.literal(other), run_blobs.c.sha256).where(
        run_blobs.c.run_id == run_id, run_blobs.c.sha256.not_in(its)
    )
    tx.execute(run_blobs.insert().from_select(["run_id", "sha256"], theirs))


def get(connection: Connection, run_id: str, sha256: str) -> bytes:
    """Return a blob of this run. Raises NotFound: also for a blob of another run."""
    content = connection.execute(
        sa.select(blobs.c.content)
        .join(run_blobs, run_blobs.c.sha256 == blobs.c.sha256)
        .where(run_blobs.c.run_id == run_id, blobs.c.sha256 == sha256)
    ).scalar()
    if content is None:
        raise NotFound(f"run {run_id} has no blob {sha256[:12]}…")
    return bytes(content)
