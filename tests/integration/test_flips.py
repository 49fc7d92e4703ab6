"""A byte flipped anywhere in what proves something is found and named: in the database, and in the kept file of anchors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from servicekit import Service
from test_audit import change, cli, worked
from test_erasure import farm  # noqa: F401 - the fixture

from jupyterhub_agentfarm.monitoring.anchoring import Anchoring
from jupyterhub_agentfarm.store import agents, tables
from jupyterhub_agentfarm.store.tables import STATUSES

EVIDENCE = {
    "events": "run_no seq header salt body n digest",
    "runs": "run_id epoch head seq fence last_n agent owner version definition_hash mode task_id bound thread_id status",
    "anchors": "number anchor signature upto",
    "anchored": "run_id seq head",
    "tombstones": "run_id epoch seq head deleted_at deleted_by",
    "definitions": "hash content",
    "files": "sha256 content",
    "blobs": "sha256 content",
}


def flipped(value: Any, at: float) -> Any:
    """Return the value with one bit changed, `at` from 0 to 1 through its length; numbers are another number."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1000  # a number that no other row has
    if value in STATUSES:  # the database takes no other word
        return "failed" if value == "succeeded" else "succeeded"
    where = int(at * len(value))
    if isinstance(value, str):
        return value[:where] + chr(ord(value[where]) ^ 1) + value[where + 1 :]
    return value[:where] + bytes([value[where] ^ 1]) + value[where + 1 :]


def raw(column: sa.Column[Any]) -> Any:
    """As it lies in the database: packed."""
    return sa.type_coerce(column, sa.LargeBinary) if isinstance(column.type, tables.Packed) else column


def flips(connection: sa.engine.Connection, chosen: random.Random) -> Iterator[tuple[str, Any, Any]]:
    """Yield what is flipped, the statement that flips it, and the one that mends it: some bytes of every value."""
    for name, columns in EVIDENCE.items():
        table = tables.metadata.tables[name]
        keys = list(table.primary_key.columns)
        for column in (table.c[one] for one in columns.split()):
            rows = connection.execute(
                sa.select(raw(column).label("value"), *(k.label(f"k{i}") for i, k in enumerate(keys)))
            ).all()
            mine = [row for row in rows if row.value not in (None, b"", "") and not (name == "runs" and row.k0 == 1)]
            assert mine, f"nothing to flip in {name}.{column.name}"
            for row in chosen.sample(mine, min(len(mine), 3)):
                value = bytes(row.value) if isinstance(row.value, memoryview) else row.value
                wrong = flipped(value, chosen.random())
                kind = sa.LargeBinary() if isinstance(value, bytes) else column.type
                told = dict(zip(keys, row[1:], strict=True))

                def setting(
                    old: Any, new: Any, told: dict[Any, Any] = told, column: Any = column, kind: Any = kind
                ) -> Any:
                    where = [key == (old if key is column else value) for key, value in told.items()]
                    return column.table.update().where(*where).values({column: sa.literal(new, kind)})

                yield f"{name}.{column.name} of {tuple(row[1:])}", setting(value, wrong), setting(wrong, value)


async def test_whichever_byte_in_the_database_is_flipped_it_is_found(farm: Service, tmp_path: Path) -> None:  # noqa: F811
    anchoring = Anchoring(farm.db, b"k" * 32, tmp_path / "anchors.jsonl")
    run, gone = await worked(farm), await worked(farm, "other")
    await anchoring.anchor()
    await farm.ok("ann", "POST", f"/runs/{run}/erase", {"reason": "r", "seqs": [2]})
    await farm.ok("ann", "DELETE", f"/runs/{gone}?reason=r")
    await anchoring.anchor()
    thread = await farm.ok("ann", "POST", "/threads", {"agent": "analyst"})
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "x", "thread_id": thread["thread_id"]})
    await farm.db.write(lambda tx: agents.put_file(tx, "tool.py", b"def tool(): ..."))
    missed = []
    for what, forged, mended in await farm.db.read(lambda c: list(flips(c, random.Random(4)))):
        await change(farm, forged)
        told = await farm.ok("operator", "GET", "/audit/verify")
        if told["ok"] or not all(one["why"] for one in told["broken"]):
            missed.append(f"{what}: {forged.compile().params}")
        await change(farm, mended)
    assert missed == []
    assert (await farm.ok("operator", "GET", "/audit/verify"))["ok"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_whichever_byte_of_the_kept_file_is_flipped_it_is_found(farm: Service, tmp_path: Path) -> None:  # noqa: F811
    anchoring = Anchoring(farm.db, b"k" * 32, tmp_path / "anchors.jsonl")
    await worked(farm)
    await anchoring.anchor()
    await worked(farm, "other")
    await anchoring.anchor()
    content, copy = anchoring.file.read_bytes(), tmp_path / "copy.jsonl"
    chosen, missed = random.Random(5), []
    for at in chosen.sample(range(len(content)), 60):
        if content[at : at + 1] == b"\n":
            continue
        copy.write_bytes(flipped(content, at / len(content) + 1e-9))
        if await cli("audit", "verify", "--anchors", str(copy)) == 0:
            missed.append(f"byte {at}: {content[max(0, at - 20) : at + 20]!r}")
    assert missed == []
    copy.write_bytes(content)
    assert await cli("audit", "verify", "--anchors", str(copy)) == 0
