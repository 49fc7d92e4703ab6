"""What an earlier release wrote is read for ever: its chain holds, and it folds to what it folded to then."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from agentfarm_sdk.audit import Link, check_chain

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from record import Recorded, folded  # noqa: E402

LINES = [(file.stem, line) for file in sorted(GOLDEN.glob("*.jsonl")) for line in file.read_bytes().splitlines()]
RUNS = [(release, msgspec.json.decode(line, type=Recorded)) for release, line in LINES]


@pytest.mark.parametrize(("release", "run"), RUNS, ids=[f"{release} {run.run}" for release, run in RUNS])
def test_a_run_of_that_release_is_whole_and_folds_as_it_did(release: str, run: Recorded) -> None:
    links = [
        Link(e.seq, e.header.encode(), bytes.fromhex(e.salt) if e.salt else None, e.body.encode() if e.body else None, e.n,
             bytes.fromhex(e.digest) if e.digest else None)
        for e in run.events
    ]  # fmt: skip
    checked = check_chain(run.epoch, run.run, links, run.seq, run.head)
    assert checked.ok and checked.events == len(run.events), checked
    now = folded(run.events)
    assert {name: now[name] for name in run.folded} == run.folded  # a later release may know more, nothing else


def test_there_is_a_golden_ledger() -> None:
    assert {release for release, _ in RUNS} >= {"0.1"}
