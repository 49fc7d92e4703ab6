"""The fleet daemon with real servers: they outlive it, end whole, and are found again."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub.spawner import SpawnException

from jupyterhub_agentfarm.errors import FleetError, Forbidden, Invalid, NoMicroserverFits, NotFound, StartError
from jupyterhub_agentfarm.fleet.client import FleetClient
from jupyterhub_agentfarm.fleet.helper.processes import alive, descendants, stat_of
from jupyterhub_agentfarm.fleet.zipped import helper_release, helper_version
from jupyterhub_agentfarm.scheduling.reaper import proof_of_death
from jupyterhub_agentfarm.spawner import AgentFarmSpawner, refuse_placement

# Listens on the first of its arguments once there is the file that the second one names, as a server that starts.
SLOW = """
import http.server, os, sys, time
while not os.path.exists(sys.argv[2]):
    time.sleep(0.02)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.BaseHTTPRequestHandler).serve_forever()
"""
SLEEPER = "import subprocess, time\nsubprocess.Popen(['sleep', '600'])\nprint('up', flush=True)\ntime.sleep(600)"


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not await true():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.02)


class Daemon:
    def __init__(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="aff-", dir="/tmp"))
        (self.state / "token").write_text("t")
        self.client = FleetClient(self.state / "fleet.sock", timeout=30)

    async def start(self, **others: str) -> None:
        environment = {
            **os.environ, **others, "AGENTFARM_STATE": str(self.state), "JUPYTERHUB_API_URL": "http://127.0.0.1:1/hub/api",
            "AGENTFARM_FLEET_TOKEN_FILE": str(self.state / "token"),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub_agentfarm.fleet.daemon"], env=environment, stderr=subprocess.PIPE
        )
        await until(self.answers)

    async def answers(self) -> bool:
        assert self.process.poll() is None
        try:
            await self.client.microservers()
        except FleetError:
            return False
        return True

    async def sleeper(self, unit: str = "af-a", **rest: Any) -> dict[str, Any]:
        started = await self.client.start(
            unit, user="agent-a", server="", args=[sys.executable, "-c", SLEEPER], env={"SECRET": "s3cret"}, **rest
        )

        async def up() -> bool:
            return "up" in await self.client.logs(unit)

        await until(up)
        return started

    async def stop(self) -> None:
        for unit in await self.client.units():
            await self.client.stop(unit["unit"], now=True)
        self.process.terminate()
        self.process.communicate(timeout=10)
        await until(self._removed)

    async def _removed(self) -> bool:
        """Remove the folder; a helper that was asked last may still be at its end, and leave compiled modules there."""
        shutil.rmtree(self.state, ignore_errors=True)
        return not self.state.exists()


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    made = Daemon()
    await made.start()
    yield made
    await made.stop()


async def test_a_server_runs_outlives_the_daemon_and_ends_with_all_its_descendants(daemon: Daemon) -> None:
    started = await daemon.sleeper()
    below = descendants(started["pid"])
    assert len(below) == 1
    daemon.process.kill()
    daemon.process.communicate()
    await daemon.start()
    shown = await daemon.client.show("af-a")
    assert (shown["state"], shown["pid"], shown["port"]) == ("running", started["pid"], started["port"])
    assert (await daemon.client.stop("af-a"))["state"] == "exited"
    assert not any((stat_of(pid) or ("Z",))[0] not in "ZX" for pid in [started["pid"], *below])
    assert (await daemon.client.stop("af-a"))["state"] == "exited"


async def test_starting_twice_starts_once_and_the_port_stays(daemon: Daemon) -> None:
    first, second = await asyncio.gather(daemon.sleeper(), daemon.sleeper())
    assert first["pid"] == second["pid"]
    await daemon.client.stop("af-a", now=True)
    assert (await daemon.sleeper())["port"] == first["port"]


async def test_a_daemon_works_on_when_another_release_is_put_under_it(tmp_path: Path) -> None:
    root, daemon = Path(__file__).parents[2], Daemon()
    for package in ("agentfarm_sdk", "jupyterhub_agentfarm"):
        left_out = shutil.ignore_patterns("__pycache__", "build", "labextension")
        shutil.copytree(root / package, tmp_path / package, ignore=left_out)
    await daemon.start(PYTHONPATH=str(tmp_path), PYTHONSAFEPATH="1")
    try:
        await daemon.sleeper("af-a")
        folder = tmp_path / "jupyterhub_agentfarm" / "fleet" / "helper"
        for path in folder.glob("*.py"):
            path.write_text("raise SystemExit('another release')\n")
        assert (await daemon.client.show("af-a"))["state"] == "running"
        await daemon.sleeper("af-b")
        assert (await daemon.client.joining())["helper"] == helper_version()
        # the release that is started next has the first one's copy removed
        (daemon.state / "helper" / "0123456789ab").mkdir()
        daemon.process.kill()
        daemon.process.communicate()
        await daemon.start()
        assert (await daemon.client.show("af-b"))["state"] == "running"
        assert [path.name for path in (daemon.state / "helper").iterdir()] == [helper_release()]
    finally:
        await daemon.stop()


async def test_as_many_servers_start_together_as_there_are_cores_and_the_others_wait_for_their_turn(
    daemon: Daemon, tmp_path: Path
) -> None:
    cores, client = (await daemon.client.microservers())[0]["cpus"], daemon.client
    units = [f"af-{number}" for number in range(cores + 3)]
    gates = [tmp_path / unit for unit in units]
    starts: list[asyncio.Task[Any]] = []
    for unit, gate in zip(units, gates, strict=True):
        placed = await client.place(unit, {"memory": 32 << 20, "cpu": 0.01})
        words = [sys.executable, "-c", SLOW, str(placed["port"]), str(gate)]
        starting = client.start(unit, user=unit.replace("af", "agent"), server="", args=words, env={}, turn=60)
        starts.append(asyncio.create_task(starting))

        async def is_asked_for(unit: str = unit, starting: asyncio.Task[Any] = starts[-1]) -> bool:
            return starting.done() or await client.before(unit) is not None

        await until(is_asked_for)
    await asyncio.gather(*starts[:cores])
    assert [await client.before(unit) for unit in units[cores:]] == [cores, cores + 1, cores + 2]
    starts.pop().cancel()  # a Hub that is killed, say
    last = units.pop()

    async def has_left() -> bool:
        return await client.before(last) is None

    await until(has_left)
    assert sum(one["state"] == "running" for one in await client.units()) == cores
    gates[0].touch()  # it comes up: the first of those that wait may start
    await asyncio.wait_for(starts[cores], 30)
    assert await client.before(units[-1]) == cores
    await client.stop(units[-1])
    with pytest.raises(StartError, match="stopped while it waited for its turn"):
        await starts[-1]


async def test_a_killed_server_says_how_it_ended_and_leaves_nothing(daemon: Daemon) -> None:
    started = await daemon.sleeper()
    below = descendants(started["pid"])
    os.kill(started["pid"], signal.SIGKILL)

    async def gone() -> bool:
        shown = await daemon.client.show("af-a")
        return shown["state"] == "exited" and shown["exit_code"] == -9 and not shown["reason"]

    await until(gone)
    assert not any(alive(pid, (stat_of(pid) or ("", 0, ""))[2]) for pid in below)
    assert proof_of_death(await daemon.client.show("af-a")) == "its server has ended with exit code -9"


async def test_a_server_does_not_outlive_its_keeper_nor_do_its_descendants(daemon: Daemon) -> None:
    started = await daemon.sleeper()
    found, below = stat_of(started["pid"]), descendants(started["pid"])
    assert found is not None and below
    starts = {pid: (stat_of(pid) or ("", 0, ""))[2] for pid in below}
    os.kill(found[1], signal.SIGKILL)

    async def gone() -> bool:
        return (await daemon.client.show("af-a"))["state"] == "exited"

    await until(gone)
    assert (await daemon.client.show("af-a"))["reason"] == "its keeper was killed"
    assert any(alive(pid, begun) for pid, begun in starts.items()), "they lost their parents, and run on"
    await daemon.sleeper()
    assert not any(alive(pid, begun) for pid, begun in starts.items()), "a start ends what the last life left"


async def test_a_lost_fleet_json_is_made_anew_from_units_and_workspaces(daemon: Daemon) -> None:
    started = await daemon.sleeper()
    daemon.process.kill()
    daemon.process.communicate()
    (daemon.state / "fleet.json").unlink()
    if os.getuid() == 0:
        os.chown(daemon.state / "workspaces" / "a", 200_007, 200_007)
    await daemon.start()
    shown = await daemon.client.show("af-a")
    assert (shown["state"], shown["port"], shown["user"]) == ("running", started["port"], "agent-a")
    assert (await daemon.client.place("af-b"))["port"] != started["port"]
    if os.getuid() == 0:
        assert json.loads((daemon.state / "fleet.json").read_text())["uids"] == {"agent-a": 200_007}


async def test_secrets_are_in_no_argv_and_on_no_disk(daemon: Daemon) -> None:
    await daemon.sleeper()
    text = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "s3cret" not in text
    files = [path for path in daemon.state.rglob("*") if path.is_file()]
    assert files and not any(b"s3cret" in path.read_bytes() for path in files)


async def test_a_program_that_is_not_there_is_said(daemon: Daemon) -> None:
    with pytest.raises(StartError, match="could not be started"):
        await daemon.client.start("af-b", user="agent-b", server="", args=["/nowhere/x"], env={})
    with pytest.raises(Invalid):
        await daemon.client.start("af-b", user="agent-b", server="", args=["x"], env={})
    with pytest.raises(NotFound):
        await daemon.client.show("af-z")


async def test_a_cordoned_microserver_takes_nothing_new_also_after_a_restart_and_says_why(daemon: Daemon) -> None:
    await daemon.sleeper()
    await daemon.client.cordon("local", "new disk")
    daemon.process.kill()
    daemon.process.communicate()
    await daemon.start()
    with pytest.raises(NoMicroserverFits, match=r"local: it is cordoned \(new disk\): uncordon it"):
        await daemon.client.place("af-c")
    explained = await daemon.client.explain("af-c")
    assert (
        explained["reasons"] == {"local": "it is cordoned (new disk): uncordon it"} and explained["feasible"] == "later"
    )
    assert [(one["state"], one["reason"]) for one in await daemon.client.microservers()] == [("cordoned", "new disk")]
    assert (await daemon.client.show("af-a"))["state"] == "running"
    await daemon.client.uncordon("local")
    with pytest.raises(NoMicroserverFits, match="kept for the system; 1073741824 MiB are asked for"):
        await daemon.client.place("af-c", {"memory": 1 << 50})


async def test_what_was_promised_counts_at_once_and_until_the_server_has_ended(daemon: Daemon) -> None:
    (local,) = await daemon.client.microservers()
    half = {"cpu": local["cpus"] * 0.6}
    places = await asyncio.gather(
        *(daemon.client.place(unit, half) for unit in ("af-a", "af-b")), return_exceptions=True
    )
    refused = [one for one in places if isinstance(one, NoMicroserverFits)]
    assert len(refused) == 1 and "CPUs are promised to other servers" in str(refused[0])
    first, second = ("af-a", "af-b") if isinstance(places[1], NoMicroserverFits) else ("af-b", "af-a")
    await daemon.sleeper(first, demand=half)
    explained = await daemon.client.explain(first)
    assert explained["stands"] and explained["microserver"] == "local" and "the only one that fits" in explained["why"]
    assert (await daemon.client.explain(second))["reasons"] == {"local": None}, "it asks for nothing yet"
    await daemon.client.put_demand(second, "agent-b", half, "all")
    assert (await daemon.client.explain(second))["feasible"] == "later"
    daemon.process.kill()
    daemon.process.communicate()
    await daemon.start()
    with pytest.raises(NoMicroserverFits, match="CPUs are promised"):
        await daemon.client.place(second)
    (local,) = await daemon.client.microservers()
    assert local["promised_cpu"] == pytest.approx(half["cpu"])
    await daemon.client.stop(first, now=True)
    assert (await daemon.client.place(second))["microserver"] == "local"


async def test_a_server_sees_the_gpus_that_it_was_promised_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\nprintf '0, GPU-a, 00000000:01:00.0, NVIDIA A2, 15356, 9, 1, 40\\n1, GPU-b, 00000000:02:00.0, NVIDIA H200, 143771, 4, 0, 31\\n'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    daemon = Daemon()
    try:
        await daemon.start()
        (local,) = await daemon.client.microservers()
        assert [one["name"] for one in local["gpus"]] == ["NVIDIA A2", "NVIDIA H200"] and local["labels"]["gpu"]
        shows = [
            sys.executable,
            "-c",
            "import os, time; print('gpus', os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(600)",
        ]
        for unit, demand, seen in (("af-a", {"gpus": 1, "gpu_memory": 20 << 30}, "gpus GPU-b"), ("af-b", {}, "gpus ")):
            await daemon.client.start(
                unit, user=unit.replace("af", "agent"), server="", args=shows, env={}, demand=demand
            )

            async def told(unit: str = unit, seen: str = seen) -> bool:
                return seen.strip() in [line.strip() for line in await daemon.client.logs(unit)]

            await until(told)
        with pytest.raises(NoMicroserverFits, match="1 of 2 GPUs are not taken; 1 are asked for"):
            await daemon.client.place("af-c", {"gpus": 1, "gpu_memory": 20 << 30})
        assert (await daemon.client.place("af-c", {"gpus": 1}))["microserver"] == "local", "the small one is not taken"
    finally:
        await daemon.stop()


async def test_only_agents_users_are_made_and_a_hub_that_is_away_is_transient(daemon: Daemon) -> None:
    for name in ("alice", "agent-", "agent-X", "agent-a/../../users/alice", "admin"):
        with pytest.raises((Forbidden, NotFound)):
            await daemon.client.put_user(name)
    with pytest.raises(FleetError, match="the Hub cannot be reached"):
        await daemon.client.put_user("agent-a")


async def test_a_second_daemon_is_refused_in_a_sentence(daemon: Daemon) -> None:
    second = subprocess.run(
        daemon.process.args,
        env={**os.environ, **_environment(daemon)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert second.returncode == 1 and "another fleet daemon" in second.stderr and "Traceback" not in second.stderr
    assert await daemon.answers()


def _environment(daemon: Daemon) -> dict[str, str]:
    return {"AGENTFARM_STATE": str(daemon.state), "JUPYTERHUB_API_URL": "x", "AGENTFARM_FLEET_TOKEN_FILE": "x"}


# -- the spawner: what it says while the daemon is away, and whose tokens a server runs with

SERVER = "import os, time\nprint('token', os.environ['T'], flush=True)\ntime.sleep(600)"


class _Spawner(AgentFarmSpawner):
    """Ours, with a small server and an environment that needs no Hub's database."""

    token = "first"

    def command(self) -> list[str]:
        return [sys.executable, "-c", SERVER]

    def get_env(self) -> dict[str, str]:
        return {"T": self.token}


def spawner(socket: Path) -> Any:
    return _Spawner(user=SimpleNamespace(name="agent-a", url="/user/agent-a/", id=1), fleet_socket=str(socket))


async def test_a_server_that_a_dead_hub_left_is_replaced_by_one_with_the_tokens_of_this_start(daemon: Daemon) -> None:
    dead = spawner(daemon.state / "fleet.sock")
    await dead.start()
    left = await daemon.client.show(dead.unit)
    anew = spawner(daemon.state / "fleet.sock")
    anew.token = "second"
    ip, port = await anew.start()

    async def told() -> bool:
        return "token second" in await daemon.client.logs(anew.unit)

    await until(told)
    shown = await daemon.client.show(anew.unit)
    assert shown["state"] == "running" and shown["pid"] != left["pid"]
    assert await anew.get_url() == f"http://{ip}:{port}" and await anew.poll() is None


async def test_nothing_is_said_dead_for_lack_of_contact_and_the_end_is_told_when_the_daemon_is_back(
    daemon: Daemon,
) -> None:
    asked = spawner(daemon.state / "fleet.sock")
    await asked.start()
    state = asked.get_state()
    daemon.process.kill()
    daemon.process.communicate()
    again = spawner(daemon.state / "fleet.sock")
    again.load_state(state)
    assert await again.poll() is None
    await again.get_url()  # never raises
    with pytest.raises(SpawnException, match="the fleet daemon cannot be reached"):
        await again.start()
    await daemon.start()
    assert await again.poll() is None
    await again.stop()
    await again.stop()
    assert await again.poll() is not None


def test_a_microserver_that_a_user_names_is_refused() -> None:
    with pytest.raises(SpawnException, match="the farm chooses"):
        refuse_placement(None, {"microserver": "local"})
