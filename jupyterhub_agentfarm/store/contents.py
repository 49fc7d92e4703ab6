"""What is kept by its hash, held against it: definitions, sources of tools, blobs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.audit import Link

from ..records import Run
from .tables import FARM_RUN, blobs, definitions, files, run_blobs


def flaw(connection: Connection, run: Run, links: Sequence[Link]) -> tuple[int, str] | None:
    """Return the event whose definition or blob is gone, or not what it was, and why; None where all are."""
    named = sa.select(definitions.c.content).where(definitions.c.hash == run.definition_hash)
    content = connection.execute(named).scalar()
    if run.run_id != FARM_RUN and (content is None or _hash(content) != run.definition_hash):
        return 1, f"the definition that it names {'is gone' if content is None else 'was changed'}"
    held = (
        sa.select(run_blobs.c.sha256, blobs.c.content)
        .join(blobs, blobs.c.sha256 == run_blobs.c.sha256, isouter=True)
        .where(run_blobs.c.run_id == run.run_id)
    )
    for sha256, blob in connection.execute(held):
        if blob is None or _hash(blob) != sha256:
            by = (link.seq for link in links if link.body is not None and str(sha256).encode() in link.body)
            return next(by, 1), f"the blob {sha256[:12]}… that it names {'is gone' if blob is None else 'was changed'}"
    return None


def flaws(connection: Connection) -> list[str]:
    """Return what is wrong with definitions and sources of tools, whether a run used them or not."""
    found = []
    for what, rows in (
        ("definition", sa.select(definitions.c.hash, definitions.c.content)),
        ("tool file", sa.select(files.c.sha256, files.c.content)),
    ):
        found += [
            f"{what} {name[:12]}… was changed" for name, content in connection.execute(rows) if _hash(content) != name
        ]
    return found


def _hash(content: bytes) -> str:
    return hashlib.sha256(bytes(content)).hexdigest()
