"""How many files the farm's processes may have open, and what becomes of them on a full disk."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from jupyterhub_agentfarm.launcher import keeper


def test_the_launcher_lets_its_processes_open_more_files_than_a_session_begins_with() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import resource, subprocess\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))\n"
            "from jupyterhub_agentfarm.launcher.up import open_many_files\n"
            "open_many_files()\n"
            "subprocess.run(['sh', '-c', 'ulimit -n'], check=True)\n",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "512"


def test_a_grown_log_that_no_disk_has_room_for_is_cut_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    monkeypatch.setattr(keeper, "LOG_BYTES", 10)
    log = tmp_path / "hub.log"
    log.write_text("x" * 20)
    keeper.rotate(log)
    assert log.read_text() == "" and list(tmp_path.iterdir()) == [log]
