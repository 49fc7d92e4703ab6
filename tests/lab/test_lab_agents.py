"""Agents on real microservers, through a real Hub and its proxy: they work to the end, whatever becomes of daemon, line and power."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from labkit import ALIVE, Lab, skip_without_lab
from test_lab_moves import sums

from agentfarm_sdk.errors import AgentFarmError
from agentfarm_sdk.protocol import ENDED
from agentfarm_sdk.tools.registry import pinned
from jupyterhub_agentfarm.cli.main import main as command
from jupyterhub_agentfarm.errors import FleetError
from jupyterhub_agentfarm.fleet.client import FleetClient

sys.path.append(str(Path(__file__).parents[1] / "e2e"))
import lingering
from farmkit import Farm, Kernel, Person, clean_env, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
WORKSPACES = "/var/lib/agentfarm/workspaces"
SUM = json.dumps({"tool": "calculator", "arguments": {"expression": "17*23"}})


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """The address of a model server that does what the task says."""
    skip_without_lab()
    command = [sys.executable, "-m", "jupyterhub_agentfarm.chaos.model"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    process.kill()
    process.wait(10)


class Fleet:
    """A farm and the daemon's own door, for what has no command yet."""

    def __init__(self, farm: Farm) -> None:
        self.farm, self.client = farm, FleetClient(farm.state / "fleet.sock", timeout=90)

    def add(self, lab: Lab, host: int) -> None:
        lab.need(host)
        lab.install(host, asyncio.run(self.client.joining())["public_key"])
        registration = {"ssh": f"root@{lab.address(host)}", "host_keys": [lab.host_key(host)]}
        asyncio.run(self.client.register(f"micro{host}", registration))
        until(lambda: self.state(f"micro{host}") == "ready", 60, f"micro{host} is ready")

    def asked(self, what: Callable[[], Coroutine[Any, Any, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
        """Return what the daemon says, as soon as it answers: a test may have killed it."""

        def look() -> Any:
            with contextlib.suppress(FleetError):
                return (asyncio.run(what()),)

        return list(until(look, 30, "the daemon answers")[0])

    def unit(self, agent: str) -> dict[str, Any]:
        return next((one for one in self.asked(self.client.units) if one.get("agent") == agent), {})

    def where(self, agent: str) -> str:
        return str(self.unit(agent).get("microserver", ""))

    def unit_of(self, user: str) -> dict[str, Any]:
        return next((one for one in self.asked(self.client.units) if one.get("user") == user), {})

    def place(self, user: str) -> str:
        return str(self.unit_of(user).get("microserver", ""))

    def waits(self, drained: str) -> dict[str, str]:
        """Return what each workspace of a microserver that is drained waits for."""
        told = json.loads(self.farm.cli("microserver", "progress", drained, "--json").stdout)
        return {one["user"]: one["waits"] for one in told["items"]}

    def turn(self, ready: str, *cordoned: str) -> None:
        """Let one microserver take servers, and these not."""
        asyncio.run(self.client.uncordon(ready))
        for name in cordoned:
            asyncio.run(self.client.cordon(name))

    def states(self) -> dict[str, str]:
        """Return what microservers say of themselves; {} while the daemon does not answer."""
        try:
            return {one["name"]: str(one["state"]) for one in asyncio.run(self.client.microservers())}
        except AgentFarmError:
            return {}

    def command(self, *words: str) -> int:
        return command([*words, "--state", str(self.farm.state)])

    def state(self, name: str) -> str:
        return next(str(one["state"]) for one in self.asked(self.client.microservers) if one["name"] == name)


@pytest.fixture(scope="module")
def fleet(booted: Lab, model: str) -> Iterator[Fleet]:
    place = Path(tempfile.mkdtemp(prefix="afl-", dir="/tmp"))
    env = clean_env(HF_API_URL=model, HUGGING_FACE_AUTH_TOKEN="none-needed", AGENTFARM_SSH_ALIVE_SECONDS=str(ALIVE))
    farm = Farm(place / "farm", env, database=f"sqlite:///{place}/farm/farm.sqlite", options=("--no-demo",))
    farm.start()
    made = Fleet(farm)
    try:
        made.add(booted, 1)
        asyncio.run(made.client.cordon("local", "its servers go elsewhere"))
        yield made
    finally:
        with contextlib.suppress(AgentFarmError):
            for unit in asyncio.run(made.client.units()):
                asyncio.run(made.client.stop(unit["unit"], now=True))
        farm.stop()
        masters = [one for one in psutil.process_iter(["cmdline"]) if str(place) in " ".join(one.info["cmdline"] or [])]
        assert not masters, masters
        if not made.farm.leftovers():
            shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def alice(fleet: Fleet) -> Person:
    """A person with an agent that calculates and lingers."""
    person = fleet.farm.person("alice")
    publish(person, "far")
    return person


def publish(person: Person, name: str) -> None:
    (spec, code), (gorge, _) = pinned(lingering.linger), pinned(lingering.gorge)
    tools = [{"name": "calculator"}, msgspec.to_builtins(spec), msgspec.to_builtins(gorge)]
    tools.append(msgspec.to_builtins(pinned(lingering.hold)[0]))
    draft = {"prompt": "Do what you are told.", "model": {"name": "scripted"}, "tools": tools}
    with person.api() as api:
        made = api.post("/agents", json={"name": name, "draft": draft, "files": {"lingering.py": code.decode()}})
        assert made.status_code == 201, made.text
        api.post(f"/agents/{name}/publish", json={}).raise_for_status()


def linger(person: Person, workspaces: Path, mark: str) -> str:
    """Submit a task and wait until its tool is under way; return its id."""
    task = person.submit("far", json.dumps({"tool": "linger", "arguments": {"mark": mark}}))
    try:
        until((workspaces / "far" / mark).exists, 60, "the tool is under way")
    except AssertionError:
        print(person.farm.told(), person.farm.cli("placement", "explain", "far").stdout, person.task(task["task_id"]))
        raise
    return str(task["task_id"])


def kernels(fleet: Fleet, alice: Person) -> Kernel:
    """Return the way to kernels of the agent's server, which is up."""
    done = alice.settled(alice.submit("far", SUM)["task_id"])
    assert done["status"] == "succeeded", done
    kernel = fleet.farm.kernels("agent-far", alice.token)
    until(kernel.leads, 60, "the proxy leads to the server")
    return kernel


def test_an_agent_works_on_a_microserver_and_its_kernels_are_reached_through_the_proxy(
    fleet: Fleet, alice: Person, booted: Lab
) -> None:
    done = alice.settled(alice.submit("far", SUM)["task_id"])
    assert done["status"] == "succeeded" and "391" in done["result"], done
    assert fleet.where("far") == "micro1"
    said = fleet.farm.kernels("agent-far", alice.token).run("import os, platform; print(platform.node(), os.getuid())")
    host, uid = said.split()
    assert host == "micro1" and int(uid) >= 200_000
    # Nothing listens beyond loopback but sshd.
    local = {line.split()[3] for line in booted("exec", 1, "ss", "-ltnH").splitlines()}
    assert {one for one in local if not one.startswith(("127.0.0.1:", "[::1]:"))} == {"0.0.0.0:22", "[::]:22"}, local
    assert "127.0.0.1:8888" not in local


def test_a_daemon_that_is_killed_cuts_no_websocket_of_a_kernel(fleet: Fleet, alice: Person) -> None:
    kernel = kernels(fleet, alice)
    waits = "import time\nfor n in range(60):\n    time.sleep(0.1)\nprint('to the end')"

    async def kill_meanwhile() -> str:
        running = asyncio.create_task(kernel._run(waits))
        await asyncio.sleep(1)
        await asyncio.to_thread(fleet.farm.kill, "daemon")
        return await asyncio.wait_for(running, 120)

    assert asyncio.run(kill_meanwhile()) == "to the end\n"
    done = alice.settled(alice.submit("far", SUM)["task_id"])
    assert done["status"] == "succeeded", done


class Stranger(socketserver.TCPServer):
    """Takes connections and ends them."""

    allow_reuse_address = True


def test_a_port_that_a_program_took_leads_nobody_to_it_for_long_and_the_proxy_follows_the_server(
    fleet: Fleet, alice: Person
) -> None:
    kernel = kernels(fleet, alice)
    port = fleet.unit("far")["port"]
    daemon = psutil.Process(fleet.farm.ready["pids"]["daemon"])
    [master] = [
        one for one in psutil.process_iter(["cmdline"]) if f"ControlPath={fleet.farm.state}/ssh/" in " ".join(one.info["cmdline"] or [])
    ]  # fmt: skip
    daemon.suspend()
    master.kill()
    psutil.wait_procs([master], 10)
    # Not by chance: the daemon holds it, which only a program that reuses addresses passes by.
    with Stranger(("127.0.0.1", port), socketserver.BaseRequestHandler) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        daemon.resume()
        until(lambda: fleet.unit("far").get("port") not in (0, port), 60, "the server has another port")
        until(kernel.leads, 90, "the proxy leads to the server")
        stranger.shutdown()


def test_a_kernel_that_takes_all_memory_is_killed_and_said_so_and_its_server_lives(fleet: Fleet, alice: Person) -> None:
    kernels(fleet, alice)  # its server is up, also where this test runs alone
    until(lambda: fleet.unit("far").get("pid"), 60, "the daemon knows the server: it may just have begun")
    before = fleet.unit("far")
    failed = alice.settled(alice.submit("far", json.dumps({"tool": "gorge", "arguments": {}}))["task_id"], 120)
    assert failed["status"] == "failed" and "killed for want of memory" in failed["error"]["message"], failed
    done = alice.settled(alice.submit("far", SUM)["task_id"])
    assert done["status"] == "succeeded", done
    after = fleet.unit("far")
    assert (after["pid"], after["state"]) == (before["pid"], "running") and after["oom_kills"] >= 3


def test_a_power_cut_ends_no_task(fleet: Fleet, alice: Person, lab: Lab) -> None:
    task = linger(alice, lab.inside(1, WORKSPACES), "before-the-cut")
    lab("kill", 1)
    lab("start", 1)
    lab.off.clear()
    done = alice.settled(task, 120)
    assert done["status"] == "succeeded" and "the second time" in done["result"], done
    kinds = [event["kind"] for event in alice.events(done["run_id"])]
    assert kinds.count("run.leased") == 2 and "tool.doubted" not in kinds


def test_a_drain_moves_an_agent_with_its_files_and_its_run_goes_on_there_and_ends_once(
    fleet: Fleet, alice: Person, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    home, there = (lab.inside(host, f"{WORKSPACES}/far") for host in (1, 2))
    steps = [[{"tool": "hold", "arguments": {"mark": "drained"}}], [json.loads(SUM)]]
    task = str(alice.submit("far", json.dumps({"steps": steps}))["task_id"])
    until((home / "drained").exists, 60, "the tool is under way")
    fleet.add(lab, 2)
    (home / "data").mkdir()
    (home / "data" / "noise").write_bytes(os.urandom(5 << 20))
    (home / "data" / "link").symlink_to("noise")
    lab.own(1, f"{WORKSPACES}/far")
    before = sums(home / "data")
    drain = ["microserver", "drain", "micro1", "--reason", "a new disk", "--state", str(fleet.farm.state)]
    assert command([*drain, "--dry-run"]) == 0
    assert "micro2" in capsys.readouterr().out
    assert command([*drain, "--yes"]) == 0
    until(lambda: alice.task(task)["waiting"] == "paused", 30, "its run is put aside")
    (home / "drained-go").touch()
    until(lambda: alice.task(task)["status"] in ENDED, 120, "its run has ended")
    done = alice.task(task)
    assert done["status"] == "succeeded" and "391" in done["result"], done
    kinds = [event["kind"] for event in alice.events(done["run_id"])]
    counts = {kind: kinds.count(kind) for kind in ("run.leased", "tool.started", "tool.succeeded", "run.succeeded")}
    assert counts == {"run.leased": 2, "tool.started": 2, "tool.succeeded": 2, "run.succeeded": 1}
    assert (there / "drained-calls").read_text() == "x"
    assert sums(there / "data") == before and fleet.where("far") == "micro2"
    until(lambda: not home.exists(), 30, "the old copy is removed")
    until(lambda: fleet.state("micro1") == "cordoned", 30, "nothing is left there")


def test_two_are_emptied_at_once_through_a_killed_daemon_and_service_with_a_person_s_own_server(
    fleet: Fleet, alice: Person, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.turn("micro1", "micro2", "local")
    asyncio.run(fleet.client.set_settings({"people": {"pin": None}}))
    alice.server("alice")
    assert (fleet.where("far"), fleet.place("alice")) == ("micro2", "micro1")
    notes = lab.inside(1, f"{WORKSPACES}/~alice/notes")
    notes.write_text("mine")
    task = linger(alice, lab.inside(2, WORKSPACES), "two-at-once")
    fleet.turn("local")
    fleet.turn("micro2")
    drain = ("microserver", "drain", "micro1", "micro2", "--reason", "both", "--until", "move")
    assert fleet.command(*drain, "--dry-run", "--json") == 0
    plans = {one["user"]: one for plan in json.loads(capsys.readouterr().out) for one in plan["items"]}
    assert {user: one["to"] for user, one in plans.items()} == {"agent-far": "local", "alice": "local"}
    assert fleet.command(*drain, "--yes") == 0
    fleet.farm.kill("daemon")
    fleet.farm.kill("service")
    emptied = {"micro1": "cordoned", "micro2": "cordoned", "local": "ready"}
    until(lambda: fleet.states() == emptied, 120, "both are empty")
    done = alice.settled(task, 120)
    assert done["status"] == "succeeded" and "the second time" in done["result"], done
    assert fleet.where("far") == "local"
    assert (fleet.farm.state / "workspaces" / "~alice" / "notes").read_text() == "mine"
    until(lambda: not notes.exists(), 30, "the old copy is removed")
    until(lambda: fleet.unit_of("alice")["state"] == "exited", 30, "her server was stopped: nobody else may start it")
    alice.server("alice")
    assert fleet.place("alice") == "local"


def test_a_drain_of_this_machine_is_ended_in_its_middle_and_another_one_s_deadline_passes(
    fleet: Fleet, alice: Person, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    task = linger(alice, fleet.farm.state / "workspaces", "drained-local")
    fleet.turn("micro1")
    pid = fleet.unit("far")["pid"]
    drain = ("microserver", "drain", "local", "--reason", "a new disk", "--until", "finish-run", "--yes")
    assert fleet.command(*drain) == 0
    until(lambda: fleet.waits("local").get("agent-far") == "1 run goes on to the end", 30, "its run is waited for")
    assert "stopped it" in fleet.waits("local")["alice"]
    assert fleet.command("microserver", "uncordon", "local") == 0
    assert (fleet.unit("far")["pid"], alice.task(task)["status"]) == (pid, "running")
    assert fleet.command(*drain, "--deadline", "1s") == 0
    until(lambda: fleet.states().get("local") == "cordoned", 120, "nothing is left here")
    done = alice.settled(task, 120)
    assert done["status"] == "succeeded" and "the second time" in done["result"], done
    assert fleet.where("far") == "micro1"
    assert lab.inside(1, f"{WORKSPACES}/~alice/notes").read_text() == "mine"
    until(lambda: not (fleet.farm.state / "workspaces" / "~alice").exists(), 30, "the old copy is removed")
