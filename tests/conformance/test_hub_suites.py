"""JupyterHub's own suites pass against our spawner, each in a process of its own with a hub, a proxy and a fleet daemon."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent
PROXY = HERE.parents[1] / "node_modules" / ".bin"


# Of the suite of shares those that start a server: the rest, as the suites of services, asks a Hub in which nothing of ours runs.
STARTS = "spawner user named_servers shares::test_share_flow_full shares::test_accept_share_page_next_url"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_hubs_own_suites_pass_against_our_spawner(tmp_path: Path) -> None:
    run_suite(STARTS, tmp_path)


def run_suite(suite: str, tmp_path: Path, **env: str) -> None:
    """Run JupyterHub's own suites in a process of their own; servers are started there."""
    path = f"{PROXY}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if shutil.which("configurable-http-proxy", path=path) is None:
        pytest.skip("configurable-http-proxy is not installed: npm ci")
    mark = tmp_path / "mark"
    command = [
        sys.executable, "-m", "pytest", "-p", "hubsuite", "-p", "no:cacheprovider", "-p", "no:xdist", "-q", "--tb=short", "--show-capture=no", "-c", str(HERE / "hubsuite.ini"), "--rootdir", str(tmp_path),
        # They ask for a free port and use it later: other tests may have taken it meanwhile, and the service ends at once.
        # Where that one took it after the look whether the service is there, the proxy says 503.
        # One of them has been seen to wait for ever for a service of its own.
        "--reruns", "2", "--only-rerun", "DID NOT RAISE TimeoutExpired", "--only-rerun", "assert 503 ==", "--timeout", "90", "--only-rerun", "Timeout >",
        "--pyargs", *(f"jupyterhub.tests.test_{name}" for name in suite.split()),
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "JUPYTERHUB_", "AGENTFARM_"))}
    environment |= {
        "PATH": path,
        "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}",
        "AGENTFARM_SUITE_MARK": str(mark),
        **env,
    }
    # Into a file: a service that a test forgot would hold a pipe open for ever.
    with (tmp_path / "out").open("w+") as out:
        done = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            done.wait(timeout=580)
        finally:
            done.kill()
            end_forgotten()
        out.seek(0)
        told = out.read()
    assert done.returncode == 0, told[-10000:]
    assert mark.exists(), "no server was started by our spawner"
    assert re.search(r"\d+ passed", told)


def end_forgotten() -> None:
    """End the services of the Hub's own tests that outlived them: those that this checkout's Python runs."""
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if one.cmdline()[:1] == [sys.executable] and "mockservice.py" in " ".join(one.cmdline()):
                one.kill()
