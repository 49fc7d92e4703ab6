"""A walk over the matrix: each point is judged by itself, and one that was interrupted goes on where it was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jupyterhub_agentfarm.chaos.scratch import Scratch
from jupyterhub_agentfarm.chaos.trial import Struck, Trial, chosen, matrix
from jupyterhub_agentfarm.chaos.walk import Walked, grid
from jupyterhub_agentfarm.errors import Invalid


def test_what_has_held_is_not_walked_again_and_what_was_broken_is(tmp_path: Path) -> None:
    points = tmp_path / "points.jsonl"
    pairs = matrix(chosen("service,kernel", "sqlite"), ["tool.started", "run.leased"])
    first = Walked(points, "sqlite")
    assert first.left(pairs) == pairs
    first.add(Struck("service", "tool.started", ["t"], runs=["r"]))
    first.add(Struck("service", "run.leased", ["t"], runs=["r"], broken=["r: twice"]))
    first.add(Struck("kernel", "run.leased", ["t"], broken=["r: twice"]))
    Walked(points, "postgresql").add(Struck("kernel", "tool.started", ["t"]))
    again = Walked(points, "sqlite")
    again.add(Struck("kernel", "run.leased", ["t"], runs=["r"]))
    left = [(fault.name, kind) for fault, kind in Walked(points, "sqlite").left(pairs)]
    assert left == [("service", "run.leased"), ("kernel", "tool.started")]
    rows, columns = grid(again.points)
    assert columns[1:] == ["service", "kernel"]
    assert rows == [["tool.started", "1", ""], ["run.leased", "BROKEN", "1"]]


def test_a_point_that_was_cut_off_in_the_middle_of_its_line_is_walked_again(tmp_path: Path) -> None:
    points, pairs = tmp_path / "points.jsonl", matrix(chosen("service", "sqlite"), ["tool.started", "run.leased"])
    for kind in ("tool.started", "run.leased"):
        Walked(points, "sqlite").add(Struck("service", kind, ["t"], runs=["r"]))
    points.write_bytes(points.read_bytes()[:-20])
    again = Walked(points, "sqlite")
    assert [kind for _, kind in again.left(pairs)] == ["run.leased"]
    again.add(Struck("service", "run.leased", ["t"], runs=["r"]))
    assert Walked(points, "sqlite").left(pairs) == []
    points.write_text("[1]\n")
    with pytest.raises(Invalid, match="line 1"):
        Walked(points, "sqlite")


def test_a_strike_is_judged_by_its_own_tasks_as_soon_as_they_have_ended() -> None:
    farm: Any = SimpleNamespace(postgres=None)
    judged = list[Struck]()
    trial = Trial(farm, 1, [], print, judged.append)
    judge: Any = SimpleNamespace(
        of_run=lambda run, _allowed: ["run-2: lost"] if run == "run-2" else [], of_world=lambda _tasks: []
    )
    trial.judge = judge
    for number, status in ((1, "succeeded"), (2, "running"), (3, "failed")):
        name = f"task-{number}"
        trial.tasks[name] = {
            "task_id": name,
            "run_id": f"run-{number}",
            "status": status,
            "waiting": None,
            "parent_run": None,
        }
    trial.verdict.strikes = [
        Struck("hub", "run.failed", ["task-1"], "run-3"),
        Struck("hub", "tool.started", ["task-1"], "run-2"),
    ]
    trial._settle()
    assert [(one.kind, one.runs, one.broken) for one in judged] == [("run.failed", ["run-1", "run-3"], [])]
    trial.tasks["task-2"]["status"] = "succeeded"
    trial._settle()
    trial._settle()
    assert [(one.kind, one.broken) for one in judged[1:]] == [("tool.started", ["run-2: lost"])]


def test_the_kernel_that_drives_the_run_is_struck_and_where_none_does_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm = Scratch.__new__(Scratch)
    farm.directory = tmp_path
    (tmp_path / "units" / "af-a").mkdir(parents=True)
    handed = "[I] run {}, fence {} goes to worker kernel 1 (pid {})\n"
    told = [("run-1", 2, 12), ("run-1", 1, 11), ("run-2", 9, 13)]
    (tmp_path / "units" / "af-a" / "log").write_text("".join(handed.format(*one) for one in told))
    monkeypatch.setattr(Scratch, "kernels", lambda _farm: [SimpleNamespace(pid=pid) for pid in (11, 12, 13)])
    for run, pids in (("run-1", [12]), ("run-2", [13]), ("run-9", [11, 12, 13]), ("", [11, 12, 13])):
        farm.aim("chaos-a", run)
        assert [one.pid for one in farm.drivers()] == pids
