"""Workspaces move between real microservers, and are lost by nothing that happens on the way."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from labkit import Daemon, Lab, until
from test_lab_units import begin

from jupyterhub_agentfarm.errors import AgentFarmError, Conflict, FleetError
from jupyterhub_agentfarm.fleet.ports import is_free

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
HOME, LOST = "/var/lib/agentfarm/workspaces/a", "/var/lib/agentfarm/workspaces/c"
BIG = 80 << 20


def sums(home: Path) -> dict[str, Any]:
    """Return what is in a workspace: contents, rights, owners, links."""
    found: dict[str, Any] = {}
    for path in sorted(home.rglob("*")):
        about = path.lstat()
        content = (
            os.readlink(path)
            if path.is_symlink()
            else hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else ""
        )
        found[str(path.relative_to(home))] = (content, oct(about.st_mode), about.st_uid, int(about.st_mtime))
    return found


def fill(lab: Lab, host: int, workspace: str) -> None:
    """Leave files there as an agent would."""
    home = lab.inside(host, workspace)
    (home / "data" / "deep").mkdir(parents=True)
    (home / "data" / "deep" / "noise").write_bytes(os.urandom(3 << 20))
    (home / "data" / "b\xe4d name \n").write_text("x")
    with open(home / "big", "wb") as sink:
        sink.write(os.urandom(4096))
        sink.truncate(BIG)
    (home / "out").symlink_to("/etc/shadow")
    (home / "script").write_text("#!/bin/sh\n")
    (home / "script").chmod(0o750)
    lab.own(host, workspace)


async def move_of(daemon: Daemon) -> dict[str, Any]:
    return next(iter((await daemon.client.drains())["moves"]), {})


async def copying(daemon: Daemon) -> dict[str, Any]:
    """Wait until a copy is in its middle."""

    async def middle() -> Any:
        one = await move_of(daemon)
        assert one.get("phase") != "moved", "it was too quick to be hit"
        return one if one.get("part", 0) > 0.05 else None

    return dict(await until(middle, 60, "a copy is under way"))


async def moved(daemon: Daemon) -> dict[str, Any]:
    async def done() -> Any:
        one = await move_of(daemon)
        return one if one.get("phase") == "moved" else None

    try:
        return dict(await until(done, 90, "the workspace has moved"))
    except AssertionError as error:
        raise AssertionError(f"{await move_of(daemon)}\n{daemon.log.read_text()[-3000:]}") from error


async def test_a_workspace_moves_whole_through_a_killed_daemon_and_power_cuts_on_both_sides(
    daemon: Daemon, lab: Lab
) -> None:
    for host in (1, 2):
        added = await daemon.add(lab, host)
        assert not added["silent"], added
    await daemon.client.cordon("local", "the test is about others")
    await daemon.client.cordon("micro2", "first there")
    assert (await begin(daemon, "af-a"))["microserver"] == "micro1"
    await daemon.client.uncordon("micro2")
    here, there = lab.inside(1, HOME), lab.inside(2, HOME)
    fill(lab, 1, HOME)
    before = sums(here)
    assert (await daemon.client.move("agent-a"))["phase"] == "waiting"
    with pytest.raises(FleetError, match="being moved"):
        await daemon.client.start("af-b", user="agent-a", server="b", args=["/bin/true"], env={})
    assert (await daemon.client.show("af-a"))["state"] == "running", "nobody stopped it"
    await daemon.client.stop("af-a")
    assert (await copying(daemon))["to"] == "micro2"
    daemon.kill()
    await daemon.start()
    await copying(daemon)
    await asyncio.to_thread(lab, "kill", 1)  # the source, in the middle
    await asyncio.to_thread(lab, "start", 1)
    lab.off.clear()
    done = await moved(daemon)
    assert (done["from"], done["to"], len(done["digest"])) == ("micro1", "micro2", 64)
    assert sums(there) == before and not any(there.parent.glob(".*"))

    async def tidy() -> bool:
        return not here.exists()

    await until(tidy, what="the old copy is removed")
    await daemon.client.end_move("agent-a")
    assert (await begin(daemon, "af-a"))["microserver"] == "micro2"
    await daemon.client.stop("af-a")
    await daemon.client.cordon("micro2", "back again")
    await daemon.client.move("agent-a")
    await copying(daemon)
    await asyncio.to_thread(lab, "kill", 1)  # where it goes to, in the middle
    assert sums(there) == before
    await asyncio.to_thread(lab, "start", 1)
    lab.off.clear()
    assert (await moved(daemon))["to"] == "micro1"
    assert sums(here) == before and not any(here.parent.glob(".*"))
    assert (await begin(daemon, "af-a"))["microserver"] == "micro1"


async def test_after_a_loss_an_operator_decides_whether_a_snapshot_or_nothing_is_there(
    daemon: Daemon, lab: Lab
) -> None:
    for host in (1, 2):
        await daemon.add(lab, host)
    await daemon.client.cordon("local", "the test is about others")
    await daemon.client.cordon("micro2", "first there")
    await begin(daemon, "af-c", user="agent-c")
    await begin(daemon, "af-d", user="agent-d")
    ports = [(await daemon.shown(unit))["port"] for unit in ("af-c", "af-d")]
    await daemon.client.uncordon("micro2")
    fill(lab, 1, LOST)
    before = sums(lab.inside(1, LOST))
    [kept] = [one for one in await daemon.client.snapshot("micro1") if one["user"] == "agent-c"]  # while it runs
    assert kept["snapshot"] and kept["changed"] == 0, kept
    with pytest.raises(Conflict, match="micro1 answers"):
        await daemon.client.lost("micro1", "latest", [], "root")
    await asyncio.to_thread(lab, "cut", 1, "reset")

    async def silent() -> bool:
        return bool((await daemon.micro("micro1"))["silent"])

    await until(silent, 60, "micro1 is silent")
    with pytest.raises(AgentFarmError, match="workspace is on micro1"):
        await daemon.client.place("af-c", {}, "agent-c")
    assert (await daemon.client.explain("af-c"))["away"] == "micro1"
    [restored] = await daemon.client.lost("micro1", "latest", ["agent-c"], "root")
    assert restored["snapshot"] == kept["snapshot"]
    assert (await daemon.client.lost("micro1", "", ["agent-d"], "root"))[0]["snapshot"] is None
    assert (await moved(daemon))["to"] == "micro2"
    await daemon.client.end_move("agent-c")
    assert sums(lab.inside(2, LOST)) == before
    for unit, user in (("af-c", "agent-c"), ("af-d", "agent-d")):
        assert (await daemon.client.show(unit))["state"] == "exited"
        assert (await begin(daemon, unit, user=user))["microserver"] == "micro2"
    assert all(is_free(port, reused=False) for port in ports), "they lead there no more, and nobody holds them"
    await asyncio.to_thread(lab, "heal", 1)
    await daemon.reachable("micro1")

    async def fenced() -> bool:
        return not any(word in lab("exec", 1, "ps", "-eo", "args") for word in ("sleep 600", "server.sock"))

    await until(fenced, what="its old servers are stopped")
    assert (await daemon.client.show("af-c"))["state"] == "running"
