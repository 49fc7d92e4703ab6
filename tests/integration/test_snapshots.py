"""Snapshots of workspaces, taken by a real helper: what a daemon that died left of one counts for nothing, and takes no room for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyterhub_agentfarm.errors import FleetError, NotFound
from jupyterhub_agentfarm.fleet.microserver import LocalMicroserver
from jupyterhub_agentfarm.fleet.snapshots import KEPT, Snapshots

OLD = [f"2020010{day}T000000Z" for day in range(1, KEPT + 2)]


async def test_halves_that_a_killed_daemon_left_are_no_snapshots_and_go_with_the_next_one(tmp_path: Path) -> None:
    workspace = tmp_path / "state" / "workspaces" / "smith"
    workspace.mkdir(parents=True)
    (workspace / "notes.txt").write_text("work")
    snapshots, folder = Snapshots(tmp_path / "snapshots"), tmp_path / "snapshots" / "smith"
    folder.mkdir(parents=True)
    for half in (f"{OLD[0]}.tar", f"{OLD[1]}.json", f"{OLD[2]}.coming", f"{OLD[3]}.new"):
        (folder / half).write_text("{")  # killed at each line of `save` in turn
    assert snapshots.listed("smith") == []
    with pytest.raises(NotFound, match="no snapshot latest"):
        snapshots.find("smith", "latest")

    kept = await snapshots.save(LocalMicroserver("local", tmp_path / "state"), "smith")
    assert kept["bytes"] == 4 and kept["changed"] == 0
    assert sorted(path.name for path in folder.iterdir()) == [f"{kept['name']}.json", f"{kept['name']}.tar"]
    assert snapshots.find("smith", "latest") == kept

    (folder / f"{kept['name']}.tar").unlink()
    with pytest.raises(FleetError, match="cannot be read"):  # an operator removed it while it was restored
        async for _ in snapshots.read("smith", kept["name"]):
            raise AssertionError("nothing is there")
