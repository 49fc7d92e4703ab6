"""Units on real microservers: started, reached, limited, ended; and what the daemon says while one is away."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.request
from typing import Any

import pytest
from labkit import Daemon, Lab, alert, is_open, until

from jupyterhub_agentfarm.errors import FleetError, Invalid, NoMicroserverFits, StartError
from jupyterhub_agentfarm.fleet.state import FIRST_UID, PLACES, UIDS
from jupyterhub_agentfarm.scheduling.reaper import proof_of_death

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# A small server on the unit's socket: says its environment, echoes what comes on a long connection.
SERVER = """
import json, os, socket, subprocess, sys, threading
os.umask(0o177)
listening = socket.socket(socket.AF_UNIX)
listening.bind(os.environ["RUNTIME_DIRECTORY"] + "/server.sock")
listening.listen()
subprocess.Popen(["/bin/sleep", "600"])
print("up", flush=True)
def serve(one):
    with one:
        while asked := one.recv(65536):
            if asked.startswith(b"GET"):
                body = json.dumps({"env": dict(os.environ), "uid": os.getuid(), "home": os.getcwd()}).encode()
                one.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
                return
            one.sendall(asked)
while True:
    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
"""
OTHER = 0xBA9876543210  # a farm


def another_farm(lab: Lab) -> str:
    """Return the id of a farm whose user ids nobody has on the first host: which range a farm has, its id says."""
    users = lab("exec", 1, "getent", "passwd").splitlines()
    ids = [int(one.split(":")[2]) for one in users if one.startswith("agentfarm-")]
    taken = {(uid - FIRST_UID) // UIDS for uid in ids}
    return next(f"{farm:012x}" for farm in range(OTHER, OTHER + PLACES) if farm % PLACES not in taken)


PYTHON = "/usr/bin/python3"


async def begin(
    daemon: Daemon, unit: str, code: str = SERVER, user: str = "agent-a", up: bool = True, **rest: Any
) -> dict[str, Any]:
    env = {"SECRET": 's3cret "quoted" $HOME `x` \\ \nnext', **rest.pop("env", {})}
    args = [PYTHON, "-c", code]
    started = await daemon.patiently(
        lambda: daemon.client.start(unit, user=user, server="", args=args, env=env, **rest)
    )
    if up:

        async def is_up() -> bool:
            return "up" in await daemon.client.logs(unit)

        await until(is_up, what=f"{unit} up")
    return started


def asked(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
        return dict(json.loads(answer.read()))


@pytest.fixture
async def micro1(daemon: Daemon, lab: Lab) -> str:
    """The only place for servers."""
    added = await daemon.add(lab, 1)
    assert not added["silent"], added
    await daemon.client.cordon("local", "the test is about another one")
    return "micro1"


async def reaches_back(lab: Lab, hub: socket.socket, url: str) -> None:
    """Hold that what a server there was told leads to us."""
    port = url.split(":")[2].split("/")[0]
    reach = f"import socket; socket.create_connection(('127.0.0.1', {port}), 60).sendall(b'hello hub')"
    await asyncio.to_thread(lab, "exec", 1, PYTHON, "-c", reach)
    hub.settimeout(60)
    assert hub.accept()[0].recv(100) == b"hello hub"


async def test_a_server_runs_is_reached_by_a_loopback_port_and_ends_whole(
    daemon: Daemon, lab: Lab, micro1: str
) -> None:
    hub = socket.create_server(("127.0.0.1", 0))
    back = f"http://127.0.0.1:{hub.getsockname()[1]}/hub/api"
    started = await begin(
        daemon,
        "af-a",
        env={"JUPYTERHUB_API_URL": back, "PATH": "/here", "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:1/user/a/"},
    )
    assert (started["microserver"], started["ip"]) == (micro1, "127.0.0.1")
    said = await asyncio.to_thread(asked, started["port"])
    assert said["env"]["SECRET"] == 's3cret "quoted" $HOME `x` \\ \nnext'
    assert said["uid"] >= 200_000 and said["home"] == said["env"]["HOME"] == "/var/lib/agentfarm/workspaces/a"
    assert (
        said["env"]["PATH"].startswith("/opt/agentfarm/venv/bin:")
        and said["env"]["JUPYTERHUB_SERVICE_URL"] == "http://127.0.0.1:8888/user/a/"
    )
    # the way back to the Hub
    await reaches_back(lab, hub, said["env"]["JUPYTERHUB_API_URL"])
    # nobody reads the environment: not by systemd, not on a disk, not by a process list
    shown = lab("exec", 1, "systemctl", "show", "agentfarm-af-a") + lab("exec", 1, "ps", "-eo", "args")
    assert "s3cret" not in shown
    found = lab("exec", 1, "sh", "-c", "grep -rl s3cret /run /var/lib /etc /tmp 2>/dev/null; true")
    assert not found, found
    assert (
        lab("exec", 1, "stat", "-c", "%a %a", "/run/agentfarm/af-a", "/run/agentfarm/af-a/server.sock").split()
        == ["700"] * 2 + ["600"] * 2
    )
    # again is the same; the end is whole
    again = await daemon.client.start("af-a", user="agent-a", server="", args=[PYTHON, "-c", SERVER], env={})
    assert (again["pid"], again["port"]) == (started["pid"], started["port"])
    assert [one["state"] for one in await daemon.client.units() if one["unit"] == "af-a"] == ["running"]
    stopped = await daemon.client.stop("af-a")
    assert stopped["state"] == "exited" and stopped["empty"] and proof_of_death(stopped)
    assert "sleep 600" not in lab("exec", 1, "ps", "-eo", "args") and not is_open(started["port"])
    assert (await begin(daemon, "af-a"))["microserver"] == micro1


async def test_a_server_takes_no_more_than_it_may_and_how_it_ended_is_said(
    daemon: Daemon, lab: Lab, micro1: str
) -> None:
    async def ended(unit: str) -> Any:
        shown = await daemon.client.show(unit)
        return shown if shown["state"] == "exited" else None

    eats = "x = bytearray(300 << 20)"
    await begin(daemon, "af-eats", eats, up=False, limits={"memory": 64 << 20})
    forks = "import os, time\nfor n in range(100):\n    if os.fork() == 0: time.sleep(60)"
    await begin(daemon, "af-forks", forks, user="agent-b", up=False, limits={"tasks": 30})
    await daemon.client.set_settings({"people": {"pin": None}})
    ends = "import sys; sys.exit(7)"
    await begin(daemon, "af-ends", ends, user="p%q/../@x+y", up=False)
    eaten, forked, done = [
        dict(await until(lambda unit=unit: ended(unit))) for unit in ("af-eats", "af-forks", "af-ends")
    ]
    assert (eaten["exit_code"], eaten["result"]) == (-9, "oom-kill") and "memory" in eaten["reason"]
    assert forked["exit_code"] == 1 and any(
        "Resource temporarily unavailable" in line for line in await daemon.client.logs("af-forks")
    )
    assert done["exit_code"] == 7 and proof_of_death(done) == "its server has ended with exit code 7"
    burns = "import time; began, used = time.monotonic(), time.process_time()\nwhile time.monotonic() < began + 3: pass\nprint(time.process_time() - used, 'up', sep='\\n', flush=True)"
    await begin(daemon, "af-burns", burns, limits={"cpu": 0.2})
    lines = await daemon.client.logs("af-burns")
    assert float(lines[lines.index("up") - 1]) < 1.5  # of 3 seconds; a fifth is allowed
    with pytest.raises(StartError, match="could not be started"):
        await daemon.client.start("af-no", user="agent-a", server="", args=["/nowhere/x"], env={})
    with pytest.raises(Invalid):
        await daemon.client.start("af-no", user="agent-a", server="", args=["/bin/true"], env={"LD_PRELOAD": "/x.so"})


# Which of NVIDIA's device nodes it finds, and whether it may open them: no driver is behind the numbers here (ENXIO); EPERM: it may not.
NODES = """
import errno, os
found = {}
for name in sorted(os.listdir("/dev")):
    if name.startswith("nvidia"):
        try:
            os.open("/dev/" + name, os.O_RDWR)
        except OSError as error:
            found[name] = errno.errorcode[error.errno]
print("found", found, os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
print("up", flush=True)
import time; time.sleep(600)
"""
SMI = """#!/bin/sh
echo "0, GPU-a, 00000000:01:00.0, NVIDIA A2, 15356, 9, 1, 40"
echo "1, GPU-b, 00000000:02:00.0, NVIDIA H200, 143771, 4, 0, 31"
"""


async def test_a_server_has_the_device_nodes_of_the_gpu_that_it_was_promised_and_of_no_other(
    daemon: Daemon, lab: Lab
) -> None:
    lab.need(1)
    program = lab.inside(1, "/usr/local/bin/nvidia-smi")
    program.write_text(SMI)
    program.chmod(0o755)
    nodes = {"nvidia0": 0, "nvidia1": 1, "nvidiactl": 255}
    try:
        for name, minor in nodes.items():
            lab("exec", 1, "sh", "-c", f"mknod -m 666 /dev/{name} c 195 {minor}")
        await daemon.add(lab, 1)
        await daemon.client.cordon("local", "the test is about another one")

        async def found(unit: str, demand: dict[str, Any]) -> str:
            await begin(daemon, unit, NODES, user=unit.replace("af", "agent"), demand=demand)
            return next(line for line in await daemon.client.logs(unit) if line.startswith("found"))

        big = {"gpus": 1, "gpu_memory": 20 << 30}
        assert await found("af-a", big) == "found {'nvidia1': 'ENXIO', 'nvidiactl': 'ENXIO'} GPU-b"
        assert (await found("af-b", {})).strip() == "found {}"
        lab("exec", 1, "rm", "/dev/nvidia0")
        with pytest.raises(StartError, match="no device node there: /dev/nvidia0"):
            await daemon.client.start("af-c", user="agent-c", server="", args=["/bin/true"], env={}, demand={"gpus": 1})
    finally:
        program.unlink()
        lab("exec", 1, "sh", "-c", "rm -f " + " ".join(f"/dev/{name}" for name in nodes))


async def test_one_agent_reads_nothing_of_another(daemon: Daemon, lab: Lab, micro1: str) -> None:
    first = await begin(daemon, "af-a")
    peek = f"""
import os
for path in ("/run/agentfarm/af-a", "/run/agentfarm/af-a/server.sock", "/run/agentfarm-env", "/var/lib/agentfarm/workspaces/a", "/var/lib/agentfarm/units",
             "/proc/{first["pid"]}/environ", "/root/.ssh/authorized_keys", "/etc/shadow"):
    try:
        os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)
        print("READ", path, flush=True)
    except OSError as error:
        print(type(error).__name__, path, flush=True)
for path in ("/etc/x", "/opt/agentfarm/x", "/var/lib/agentfarm/workspaces/x"):
    try:
        open(path, "w")
        print("WRITTEN", path, flush=True)
    except OSError:
        pass
open("mine", "w").close()
print("up", flush=True)
"""
    await begin(daemon, "af-b", peek, user="agent-b")
    lines = await daemon.client.logs("af-b")
    assert not [line for line in lines if line.startswith(("READ", "WRITTEN"))], lines
    assert len([line for line in lines if line.startswith(("PermissionError", "FileNotFoundError"))]) == 8


async def test_a_daemon_that_is_killed_cuts_nothing(daemon: Daemon, lab: Lab, micro1: str) -> None:
    started = await begin(daemon, "af-a")
    with socket.create_connection(("127.0.0.1", started["port"]), 60) as wire:
        wire.sendall(b"before")
        assert wire.recv(100) == b"before"
        daemon.kill()
        wire.sendall(b"meanwhile")
        assert wire.recv(100) == b"meanwhile"
        await daemon.start()
        await daemon.reachable(micro1)
        shown = await daemon.client.show("af-a")
        assert (shown["state"], shown["pid"], shown["port"]) == ("running", started["pid"], started["port"])
        wire.sendall(b"after")
        assert wire.recv(100) == b"after"


@alert
async def test_a_microserver_that_is_cut_off_is_unknown_and_what_was_stopped_meanwhile_is_stopped_when_it_returns(
    daemon: Daemon, lab: Lab, micro1: str
) -> None:
    hub = socket.create_server(("127.0.0.1", 0))
    back = f"http://127.0.0.1:{hub.getsockname()[1]}/hub/api"
    kept = await begin(daemon, "af-kept", env={"JUPYTERHUB_API_URL": back})
    unwanted = await begin(daemon, "af-unwanted", user="agent-b")
    lab("cut", 1)

    async def silent() -> bool:
        return bool((await daemon.micro(micro1))["silent"])

    await until(silent, what="the silence seen")
    assert (await daemon.client.show("af-kept"))["state"] == "unknown"
    assert proof_of_death(await daemon.client.show("af-kept")) is None
    with pytest.raises(FleetError):
        await daemon.client.stop("af-unwanted")
    with pytest.raises(NoMicroserverFits, match=r"micro1: it is silent \("):
        await daemon.client.place("af-new", user="agent-c")
    with pytest.raises(NoMicroserverFits, match="its workspace is on micro1"):
        await daemon.client.uncordon("local")
        await daemon.client.place("af-kept2", user="agent-a")
    lab("heal", 1)
    await daemon.reachable(micro1)
    shown = await daemon.shown("af-kept")
    assert (shown["state"], shown["pid"], shown["port"]) == ("running", kept["pid"], kept["port"])
    # sshd still held the port that led back, for the connection that nobody has any more
    await reaches_back(lab, hub, (await asyncio.to_thread(asked, kept["port"]))["env"]["JUPYTERHUB_API_URL"])
    assert (await daemon.shown("af-unwanted"))["state"] == "exited" and unwanted["pid"]


@alert
async def test_a_microserver_without_power_is_unknown_and_its_return_proves_that_its_servers_ended(
    daemon: Daemon, lab: Lab, micro1: str
) -> None:
    await begin(daemon, "af-a")
    lab("kill", 1)

    async def silent() -> bool:
        return bool((await daemon.micro(micro1))["silent"])

    await until(silent, what="the silence seen")
    assert (await daemon.client.show("af-a"))["state"] == "unknown"
    lab("start", 1)
    await daemon.reachable(micro1)
    shown = await daemon.shown("af-a")
    assert (shown["state"], shown["reason"]) == ("exited", "the machine was restarted")
    assert proof_of_death(shown) == "the machine was restarted"
    assert (await begin(daemon, "af-a"))["microserver"] == micro1


async def test_a_host_key_that_has_changed_is_refused_in_words_until_the_operator_gives_the_new_one(
    daemon: Daemon, lab: Lab, micro1: str
) -> None:
    lab("rekey", 1)
    lab("cut", 1, "reset")

    async def silent() -> bool:
        return bool((await daemon.micro(micro1))["silent"])

    await until(silent, what="the silence seen")
    lab("heal", 1)

    async def refused() -> bool:
        return "host key is not the one" in (await daemon.micro(micro1))["silent"]

    await until(refused, what="the refusal")
    assert not (await daemon.add(lab, 1))["silent"]


async def test_farms_that_share_a_microserver_leave_each_others_servers_alone(
    daemon: Daemon, lab: Lab, micro1: str
) -> None:
    mine = await begin(daemon, "af-a")
    other = Daemon(farm=another_farm(lab))
    try:
        await other.start()
        assert not (await other.add(lab, 1))["silent"]
        await other.client.cordon("local", "the test is about another one")
        assert [one for one in await other.client.units() if one["state"] == "running"] == []
        assert (await other.micro(micro1))["promised_memory"] >= 512 << 20, "what another farm runs takes room"
        with pytest.raises(NoMicroserverFits, match="another farm has a server of this name there"):
            await other.client.place("af-a", user="agent-a")
        with pytest.raises(StartError, match="another farm has the workspace a on this microserver"):
            await begin(other, "af-again", user="agent-a", up=False)
        theirs = await begin(other, "af-theirs", user="agent-theirs")
        assert theirs["uid"] != mine["uid"]
        # each stops its own only, whatever it is asked, and what a lost fleet.json is made from is its own too
        for made, unit in ((daemon, "af-a"), (other, "af-theirs")):
            made.kill()
            state = json.loads((made.state / "fleet.json").read_text())
            (made.state / "fleet.json").write_text(json.dumps(state | {"units": {}}))
            await made.start()
            await made.reachable(micro1)
            assert [one["unit"] for one in await made.client.units() if one["state"] == "running"] == [unit]
        await other.client.stop("af-theirs")
        assert (await daemon.client.show("af-a"))["pid"] == mine["pid"]
    finally:
        lab.mend()
        await other.stop()
    assert (await daemon.client.show("af-a"))["state"] == "running"


async def test_a_server_whose_record_names_no_farm_stays_with_the_farm_that_knows_it(
    daemon: Daemon, lab: Lab, micro1: str
) -> None:
    started = await begin(daemon, "af-a")
    record = lab.inside(1, "/var/lib/agentfarm/units/af-a/unit.json")
    kept = json.loads(record.read_text())
    record.write_text(json.dumps({name: value for name, value in kept.items() if name != "farm"}))
    other = Daemon(farm=another_farm(lab))
    try:
        await other.start()
        await other.add(lab, 1)
        assert "af-a" not in [one["unit"] for one in await other.client.units()]
    finally:
        await other.stop()
    shown = await daemon.client.show("af-a")
    assert (shown["state"], shown["pid"]) == ("running", started["pid"])
    await daemon.client.stop("af-a")
    await begin(daemon, "af-a")
    assert json.loads(record.read_text())["farm"] == daemon.farm
