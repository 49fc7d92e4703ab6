"""What is promised to servers, and when it is taken back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from jupyterhub_agentfarm.errors import NoMicroserverFits
from jupyterhub_agentfarm.fleet.placing import Placing
from jupyterhub_agentfarm.fleet.state import FleetState

FACTS: dict[str, Any] = {
    "cpus": 8, "load": 0.0, "memory": 32 << 30, "memory_free": 30 << 30, "gpus": [{"name": "one", "memory": 32 << 30}],
}  # fmt: skip


class Machine:
    state = "ready"

    silent_since: float | None = None

    async def facts(self, patience: float | None = None, oldest: float | None = None) -> dict[str, Any]:
        return FACTS


def test_a_server_that_starts_while_its_microserver_tells_what_it_runs_keeps_its_gpu(tmp_path: Path) -> None:
    placing = Placing(FleetState(tmp_path / "fleet.json"), {"here": Machine()})
    placing.choose(placing.demand("af-one", {"gpus": 1}, "agent-one"), {"here": FACTS})
    asked = time.time()
    placing.started("af-one")
    placing.compare({}, {"here": asked})  # the answer is of a moment in which it was not there yet
    with pytest.raises(NoMicroserverFits):
        placing.choose(placing.demand("af-two", {"gpus": 1}, "agent-two"), {"here": FACTS})
    placing.compare({}, {"here": time.time() + 1})  # it has ended
    placing.choose(placing.demand("af-two", {"gpus": 1}, "agent-two"), {"here": FACTS})
