"""Of what a kernel died, as Linux counts it, and that a kernel is the first to die."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jupyterhub_agentfarm.labserver import memory


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/farm.slice/a.service\n", "groups/farm.slice/a.service/memory.events"),
        ("5:cpu:/x\n4:memory:/farm.slice/a.service\n0::/\n", "groups/memory/farm.slice/a.service/memory.oom_control"),
        ("0::/\n", "proc/vmstat"),
    ],
)
def test_kills_for_memory_are_counted_where_the_server_is(tmp_path: Path, groups: str, file: str) -> None:
    proc, counted = tmp_path / "proc", tmp_path / file
    for path in (proc / "self" / "cgroup", counted):
        path.parent.mkdir(parents=True, exist_ok=True)
    (proc / "self" / "cgroup").write_text(groups)
    counted.write_text("oom_kill_disable 0\noom_kill 3\n")
    kills = memory.Kills(tmp_path / "groups", proc)
    assert not kills.fresh()
    counted.write_text("oom_kill_disable 0\noom_kill 4\n")
    assert kills.fresh() and not kills.fresh()


def test_where_nothing_counts_nothing_was_killed(tmp_path: Path) -> None:
    assert not memory.Kills(tmp_path, tmp_path).fresh()


@pytest.mark.skipif(sys.platform != "linux", reason="oom_score_adj is Linux's")
def test_a_kernel_is_killed_before_its_server() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        memory.dies_first(child.pid)
        ours = int(Path("/proc/self/oom_score_adj").read_text())
        assert int(Path(f"/proc/{child.pid}/oom_score_adj").read_text()) == min(1000, max(0, ours) + memory.FIRST)
    finally:
        child.communicate(b"\n")
    memory.dies_first(child.pid)  # gone: nothing to say
