"""JupyterHub's own spawner suite passes with servers that run on a microserver, over SSH."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from labkit import Lab

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from test_hub_suites import run_suite

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


# Which tests of a suite start servers: the others hold nothing of ours, and run with the local backend in each CI.
SUITES = {
    "spawner": "single_user or api_token or server_token_scopes or delete_server or group_override",
    "named_servers": "",
    "shares": "",
}
ALL = os.environ.get("AGENTFARM_FAULTS", "") in ("all", "suites")


@pytest.mark.parametrize(
    "suite",
    [
        pytest.param(
            suite, marks=pytest.mark.skipif(suite != "spawner" and not ALL, reason="minutes (AGENTFARM_FAULTS=suites)")
        )
        for suite in SUITES
    ],
)
def test_the_hubs_own_suite_passes_with_servers_on_a_microserver(suite: str, lab: Lab, tmp_path: Path) -> None:
    lab.need(1)
    lab.install(1, (lab.folder / "key.pub").read_text().strip())
    where = {
        "name": "micro1", "key": str(lab.folder / "key"), "ssh": f"root@{lab.address(1)}", "host_keys": [lab.host_key(1)],
    }  # fmt: skip
    options = {"AGENTFARM_SUITE_MICROSERVER": json.dumps(where), "PYTEST_ADDOPTS": f"-k '{SUITES[suite]}'"}
    run_suite(suite, tmp_path, **options)
