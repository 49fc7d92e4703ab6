"""Which process leads, by the file in the state directory: a former one that hangs is ended, one that steps down is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jupyterhub_agentfarm.errors import StartError
from jupyterhub_agentfarm.standby import LEADING, end_former, shared_address, step_down

Child = subprocess.Popen[bytes]


@pytest.fixture
def former() -> Iterator[Child]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child
    child.kill()
    child.wait()


def leads(folder: Path, process: Child, later: float = 0.0) -> None:
    told = {"pid": process.pid, "started": psutil.Process(process.pid).create_time() + later}
    (folder / LEADING).write_text(json.dumps(told))


def test_a_former_leader_that_is_stopped_is_ended(tmp_path: Path, former: Child) -> None:
    former.send_signal(signal.SIGSTOP)
    leads(tmp_path, former)
    end_former(tmp_path)
    assert former.wait(30) == -signal.SIGKILL
    assert json.loads((tmp_path / LEADING).read_text())["pid"] == os.getpid()


def test_another_process_that_has_its_number_by_now_is_left_alone(tmp_path: Path, former: Child) -> None:
    leads(tmp_path, former, later=-5.0)
    end_former(tmp_path)
    assert former.poll() is None


def test_one_that_has_stepped_down_is_left_to_end_in_order(tmp_path: Path, former: Child) -> None:
    leads(tmp_path, former)
    step_down(tmp_path)
    end_former(tmp_path)
    assert former.poll() is None


@pytest.mark.parametrize("text", ["", "{}", '{"pid": "x", "started": 1}', "[1]", '{"pid": 0, "started": 0}'])
def test_a_file_that_says_nothing_ends_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / LEADING).write_text(text)
    end_former(tmp_path)
    assert json.loads((tmp_path / LEADING).read_text())["pid"] == os.getpid()


def test_an_address_that_is_no_socket_is_refused_with_the_way_out() -> None:
    assert shared_address({}) == []
    for given in ("many", "99999"):
        with pytest.raises(StartError, match="no socket") as said:
            shared_address({"AGENTFARM_SERVICE_FD": given})
        assert "--standby" in said.value.hint
