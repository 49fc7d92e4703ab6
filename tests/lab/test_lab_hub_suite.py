"""JupyterHub's own spawner suite passes with servers that run on a microserver, over SSH."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from labkit import Lab

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from test_hub_suites import run_suite

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("lab"), pytest.mark.timeout(600)]


def test_the_hubs_own_suite_passes_with_servers_on_a_microserver(lab: Lab, tmp_path: Path) -> None:
    lab.need(1)
    lab.install(1, (lab.folder / "key.pub").read_text().strip())
    where = {
        "name": "micro1", "key": str(lab.folder / "key"), "ssh": f"root@{lab.address(1)}", "host_keys": [lab.host_key(1)],
    }  # fmt: skip
    starts = "single_user or api_token or server_token_scopes or delete_server or group_override"  # the rest starts none of ours
    options = {"AGENTFARM_SUITE_MICROSERVER": json.dumps(where), "PYTEST_ADDOPTS": f"-k '{starts}'"}
    run_suite("spawner", tmp_path, **options)
