"""The crash matrix: a scratch farm is killed, cut off and confused part by part, and every promise holds.

A short seeded trial on each database; AGENTFARM_CHAOS_SECONDS=600 makes longer ones, which strike with every fault.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from farmkit import clean_env

from jupyterhub_agentfarm.chaos.faults import BY_NAME
from jupyterhub_agentfarm.chaos.postgres import programs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SECONDS = float(os.environ.get("AGENTFARM_CHAOS_SECONDS", "0"))
# A short trial cannot strike with all: each fault has its place on one of the two databases.
SHORT = {
    "sqlite": ["service", "kernel", "disk-full", "zombie", "everything", "clock-forward"],
    "postgresql": ["database", "read-only", "server", "network-cut", "hub", "model"],
}


@pytest.mark.parametrize("database", sorted(SHORT))
def test_every_promise_holds_whatever_is_done_to_a_farm(database: str, tmp_path: Path) -> None:
    if database == "postgresql" and programs() is None:
        pytest.skip("no PostgreSQL server here")
    faults = ",".join(name for name in BY_NAME if SECONDS or name in SHORT[database])
    command = [
        sys.executable, "-m", "jupyterhub_agentfarm.cli", "chaos", "--json", "--seed", "11", "--database", database,
        "--faults", faults, "--duration", str(SECONDS or 15), "--lease", "3",
    ]  # fmt: skip
    done = subprocess.run(
        command, env=clean_env(), cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS + 600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["violations"] == [] and verdict["effects"] > 10 and verdict["runs"]["succeeded"] >= 3, verdict
    assert sum(verdict["faults"].values()) >= 2, verdict
