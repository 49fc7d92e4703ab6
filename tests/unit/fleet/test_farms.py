"""Farms that share a microserver: whose a unit is, what is refused, what room the others take."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from jupyterhub_agentfarm.errors import StartError
from jupyterhub_agentfarm.fleet.helper import checks, farms, sshd
from jupyterhub_agentfarm.fleet.state import FIRST_UID, FleetState
from jupyterhub_agentfarm.records import Demand, Microserver
from jupyterhub_agentfarm.scheduling.placement import refusals

MINE, OTHER = "0123456789ab", "ba9876543210"


def started(root: Path, farm: str, unit: str, uid: int, workspace: str = "w") -> checks.Start:
    """Keep the record of a unit as a start leaves it; return its request."""
    asked: dict[str, Any] = {
        "unit": unit, "argv": ["/bin/true"], "env": {}, "workspace": workspace, "uid": uid, "limits": {"memory": 64 << 20, "cpu": 0.5},
    }  # fmt: skip
    spec = checks.start(asked)
    (root / "units" / unit).mkdir(parents=True)
    (root / "units" / unit / "unit.json").write_text(json.dumps(farms.record(spec, farm)))
    return spec


def test_a_unit_of_no_farm_is_nobodys_and_another_farms_is_others() -> None:
    assert not farms.are_others({}, MINE) and not farms.are_others({"farm": ""}, MINE)
    assert not farms.are_others({"farm": MINE}, MINE)
    assert farms.are_others({"farm": OTHER}, MINE) and farms.are_others({"farm": OTHER}, "")


def test_what_another_farm_has_is_refused_by_its_name_and_ones_own_may_start_again(tmp_path: Path) -> None:
    started(tmp_path, OTHER, "af-theirs", 300_000, "theirs")
    mine = started(tmp_path, MINE, "af-mine", 400_000, "mine")
    others = farms.of_others(MINE, tmp_path, lambda _: True)
    farms.refuse_what_is_others(mine, others)
    for change, what in (
        ({"unit": "af-theirs"}, "unit af-theirs"),
        ({"workspace": "theirs"}, "workspace theirs"),
        ({"uid": 300_000}, "user id 300000"),
    ):
        with pytest.raises(checks.Refused) as refused:
            farms.refuse_what_is_others(mine._replace(**change), others)
        assert what in refused.value.detail and refused.value.hint


def test_what_others_run_takes_room_and_what_has_ended_keeps_its_name_while_its_workspace_is_there(
    tmp_path: Path,
) -> None:
    started(tmp_path, OTHER, "af-runs", 300_000)
    started(tmp_path, OTHER, "af-ended", 300_001, "kept")
    started(tmp_path, OTHER, "af-gone", 300_002, "gone")
    started(tmp_path, MINE, "af-mine", 400_000)
    (tmp_path / "workspaces" / "kept").mkdir(parents=True)

    def runs(unit: str) -> bool:
        return unit == "af-runs"

    room = farms.room_of_others(farms.of_others(MINE, tmp_path, runs), runs)
    assert room == {"units": ["af-ended", "af-runs"], "memory": 64 << 20, "cpu": 0.5}
    assert farms.of_others(MINE, tmp_path / "nothing", runs) == {}


def test_a_server_is_not_placed_where_another_farm_has_its_name() -> None:
    farm = [Microserver("a", memory=1 << 33, memory_free=1 << 33, cpus=4, others=frozenset({"af-x"}))]
    assert "another farm" in str(refusals(Demand("af-x"), farm)["a"])
    assert refusals(Demand("af-y"), farm)["a"] is None


def test_a_farms_id_is_made_once_outlives_a_lost_state_and_says_where_its_users_begin(tmp_path: Path) -> None:
    first = FleetState(tmp_path / "fleet.json")
    first.save()
    assert FleetState(tmp_path / "fleet.json").farm == first.farm
    (tmp_path / "fleet.json").unlink()
    again = FleetState(tmp_path / "fleet.json")
    assert again.farm == first.farm and again.uid("agent-a") == first.uid("agent-a") >= FIRST_UID
    (tmp_path / "farm.id").unlink()
    assert FleetState(tmp_path / "fleet.json").farm == first.farm
    (tmp_path / "farm.id").write_text("not an id")
    with pytest.raises(StartError, match=r"farm\.id cannot be read"):
        FleetState(tmp_path / "fleet.json")


def test_the_users_of_a_state_without_an_id_go_on_where_they_were(tmp_path: Path) -> None:
    (tmp_path / "fleet.json").write_text(json.dumps({"units": {}, "uids": {"agent-a": 200_000}, "microservers": {}}))
    state = FleetState(tmp_path / "fleet.json")
    assert state.uid("agent-a") == 200_000 and state.uid("agent-b") == 200_001


def test_sessions_of_another_address_are_not_ended_for_their_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()[:2]):
        taken, _ = door.accept()
        with taken:
            assert sshd.peers(os.getpid(), door.getsockname()[1]) == {"0100007F"}
            assert sshd.same_farm(os.getpid(), door.getsockname()[1], {"0100007F", "0B4D0A0A"})
            assert not sshd.same_farm(os.getpid(), door.getsockname()[1], {"0B4D0A0A"})
            assert sshd.same_farm(os.getpid(), door.getsockname()[1], set())
