"""Kill a run's process at every commit and inside every tool: the next one goes on, and nothing happens twice."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sdk_child

import agentfarm_sdk
from agentfarm_sdk.localfile import LocalFile
from agentfarm_sdk.protocol import call_key

CHILD = Path(sdk_child.__file__)
ONCE = {"first": "c0-0", "second": "c0-1"}
# Commits of a whole run: lease; reply and admission; two outcomes; reply and admission; outcome; reply; end.
COMMITS = 8


def drive(folder: Path, run: str, when: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(agentfarm_sdk.__file__).parents[1])}
    command = [sys.executable, str(CHILD), str(folder), run, when]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def effects(folder: Path) -> collections.Counter[str]:
    file = folder / "effects"
    return collections.Counter(file.read_text().splitlines() if file.exists() else [])


@pytest.mark.parametrize(
    "when", [*(f"commit:{k}" for k in range(1, COMMITS + 1)), "inside:first", "inside:second", "inside:third"]
)
def test_a_killed_run_goes_on_from_its_last_recorded_step(tmp_path: Path, when: str) -> None:
    ledger = LocalFile(tmp_path / "ledger.sqlite")
    run = ledger.create(sdk_child.AGENT.definition, "go")
    killed = drive(tmp_path, run, when)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    before = ledger.fold(run)
    recorded = {call.call for call in before.calls.values() if not call.open}

    if not before.ended:
        after = drive(tmp_path, run, "never")
        assert after.returncode == 0, after.stderr
    fold, seen = ledger.fold(run), effects(tmp_path)
    doubted = {call.call for call in fold.open_calls}
    assert doubted == {call.call for call in before.open_calls if call.effect == "once"}, (
        "in doubt is what was under way"
    )
    assert fold.status == ("waiting" if doubted else "succeeded")
    assert ledger.verify(run)["ok"]
    for name, call in ONCE.items():
        key = call_key(ledger.epoch, run, call)
        assert seen[f"{name} {key}"] <= 1, "a once call was made twice"
        assert call not in recorded or seen[f"{name} {key}"] == 1, "a recorded call was made"
    assert all(line.split()[1] == call_key(ledger.epoch, run, "c1-0") for line in seen if line.startswith("third"))
    if when == "inside:third":
        assert seen[f"third {call_key(ledger.epoch, run, 'c1-0')}"] == 2, "an idempotent call is repeated with its key"
    ledger.close()


def test_a_whole_run_makes_the_commits_that_the_kills_are_at(tmp_path: Path) -> None:
    ledger = LocalFile(tmp_path / "ledger.sqlite")
    run = ledger.create(sdk_child.AGENT.definition, "go")
    done = drive(tmp_path, run, f"commit:{COMMITS + 1}")
    assert (done.returncode, done.stdout.split()) == (0, ["succeeded"]), done.stderr
    assert sum(effects(tmp_path).values()) == 3
    ledger.close()


def test_a_doubt_that_a_person_settles_lets_the_run_go_on(tmp_path: Path) -> None:
    ledger = LocalFile(tmp_path / "ledger.sqlite")
    run = ledger.create(sdk_child.AGENT.definition, "go")
    drive(tmp_path, run, "inside:first")
    drive(tmp_path, run, "never")
    for call in [call.call for call in ledger.fold(run).open_calls]:
        ledger.decide(run, call, "happened", result="seen at the exchange", reason="looked it up")
    assert drive(tmp_path, run, "never").stdout.split() == ["succeeded"]
    assert max(effects(tmp_path).values()) == 1
    ledger.close()
