"""Blobs of runs, by content hash: bodies over 16 kB, images, files."""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import MAX_BLOB_BYTES

from ..errors import Invalid, NotFound, TooLarge
from .db import Tx
from .tables import blobs, run_blobs


def put(tx: Tx, run_id: str, sha256: str, content: bytes) -> None:
    """Keep a blob for a run; keeping it twice is harmless.

    Raises:
        TooLarge: over MAX_BLOB_BYTES.  Invalid: the bytes have another hash.
    """
    if len(content) > MAX_BLOB_BYTES:
        raise TooLarge(
            f"this blob has {len(content)} bytes",
            hint=f"at most {MAX_BLOB_BYTES} bytes; write a file and name it instead",
        )
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Invalid("the bytes do not have the hash that they are named by", hint="send them again")
    if not tx.connection.execute(sa.select(blobs.c.sha256).where(blobs.c.sha256 == sha256)).scalar():
        tx.execute(blobs.insert().values(sha256=sha256, size=len(content), content=content, created_at=tx.now))
    if not tx.connection.execute(
        sa.select(run_blobs.c.run_id).where(run_blobs.c.run_id == run_id, run_blobs.c.sha256 == sha256)
    ).scalar():
        tx.execute(run_blobs.insert().values(run_id=run_id, sha256=sha256))


def share(tx: Tx, run_id: str, other: str) -> None:
    """Let another run have all blobs that a run has: it will be told what that one was told."""
    theirs = sa.select(sa.literal(other), run_blobs.c.sha256).where(run_blobs.c.run_id == run_id)
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
