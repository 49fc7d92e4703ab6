"""Evidence bundles: a run with all that proves it, in one file that is checked without a farm (agentfarm_sdk/audit.py)."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from importlib.resources import files as resources

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.audit import BUNDLE_V, BundledEvent, BundledRun, Link
from agentfarm_sdk.protocol import timestamp

from ..errors import NotFound
from . import anchors, ledger
from .engines import still
from .tables import blobs, definitions, files, run_blobs


def make(connection: Connection, run_id: str, now: float) -> bytes:
    """Return the run's bundle as a zip. `now`: epoch seconds. Raises NotFound."""
    with still(connection):  # it may go on while this is read
        return _made(connection, run_id, now)


def _made(connection: Connection, run_id: str, now: float) -> bytes:
    run = ledger.read_run(connection, run_id)
    links = ledger.read_links(connection, run)
    about = BundledRun(
        v=BUNDLE_V, run_id=run_id, epoch=run.epoch, agent=run.agent, owner=run.owner, definition_hash=run.definition_hash,
        seq=run.seq, head=run.head, exported_at=timestamp(now),
    )  # fmt: skip
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("README.txt", resources("jupyterhub_agentfarm.store").joinpath("bundle.txt").read_bytes())
        bundle.writestr("run.json", msgspec.json.encode(about))
        bundle.writestr("events.jsonl", b"".join(_line(_event(link)) for link in links))
        bundle.writestr("anchors.jsonl", b"".join(_line(one) for one in anchors.of_run(connection, run_id)))
        for name, content in _parts(connection, run_id, run.definition_hash):
            bundle.writestr(name, content)
    return out.getvalue()


def _parts(connection: Connection, run_id: str, definition_hash: str) -> Iterator[tuple[str, bytes]]:
    """Yield the definition, the sources of its tools, and the run's blobs."""
    content = connection.execute(sa.select(definitions.c.content).where(definitions.c.hash == definition_hash)).scalar()
    if content is None:
        raise NotFound(f"the definition {definition_hash[:12]}… of run {run_id} is gone")
    yield "definition.json", bytes(content)
    sources = [str(tool.get("source", "")) for tool in msgspec.json.decode(bytes(content)).get("tools", [])]
    pinned = {source[5:] for source in sources if source.startswith("file@")}
    for sha256, source in connection.execute(
        sa.select(files.c.sha256, files.c.content).where(files.c.sha256.in_(pinned))
    ):
        yield f"files/{sha256}", bytes(source)
    held = (
        sa.select(blobs.c.sha256, blobs.c.content)
        .join(run_blobs, run_blobs.c.sha256 == blobs.c.sha256)
        .where(run_blobs.c.run_id == run_id)
    )
    for sha256, blob in connection.execute(held):
        yield f"blobs/{sha256}", bytes(blob)


def _event(link: Link) -> BundledEvent:
    return BundledEvent(
        seq=link.seq, header=link.header.decode("utf-8", "replace"), salt=link.salt.hex() if link.salt else None,
        body=None if link.body is None else link.body.decode("utf-8", "replace"), n=link.n, digest=link.digest.hex() if link.digest else None,
    )  # fmt: skip


def _line(value: msgspec.Struct) -> bytes:
    return msgspec.json.encode(value) + b"\n"
