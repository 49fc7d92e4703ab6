"""The crash matrix: a scratch farm is killed, cut off and confused part by part, and every promise holds.

Each day a short trial on each database begins one fault further on, so that all have their turn, however few fit into it;
AGENTFARM_CHAOS_SEED=7 repeats one, AGENTFARM_CHAOS_SECONDS=600 makes longer ones, which strike with every fault. The whole
matrix, every process behind every kind of event, is `agentfarm chaos --all`, and `--all --database postgresql`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest
from farmkit import clean_env

from jupyterhub_agentfarm.chaos.postgres import programs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SECONDS = float(os.environ.get("AGENTFARM_CHAOS_SECONDS", "15"))
TODAY = datetime.now(timezone.utc).date().toordinal()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_every_promise_holds_whatever_is_done_to_a_farm(database: str, tmp_path: Path) -> None:
    if database == "postgresql" and programs() is None:
        pytest.skip("no PostgreSQL server here")
    seed = int(os.environ.get("AGENTFARM_CHAOS_SEED", TODAY + 11 * (database == "postgresql")))
    command = [
        sys.executable, "-m", "jupyterhub_agentfarm.cli", "chaos", "--json", "--seed", str(seed), "--database", database,
        "--duration", str(SECONDS), "--lease", "3",
    ]  # fmt: skip
    done = subprocess.run(
        command, env=clean_env(), cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS + 900, check=False
    )
    print(done.stderr)  # the seed, and what struck when
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["violations"] == [] and verdict["effects"] > 3 and verdict["runs"]["succeeded"] >= 3, verdict
    assert verdict["strikes"], verdict
