"""What a hostile server tries from inside on a real microserver: each is tried, and comes to nothing. docs/security.md has the table."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from labkit import Daemon, Lab, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PYTHON = "/usr/bin/python3"
HOSTILE = (Path(__file__).parent / "hostile.py").read_text()
FAR = "198.51.100.7"  # of documentation: public, and nobody's
# Another agent: has a file, a socket, a port on loopback; asks the tick store's port where `ask` says so.
VICTIM = """
import os, socket, sys, time
open("notes.txt", "w").write("mine")
inside = socket.socket(socket.AF_UNIX)
inside.bind(os.environ["RUNTIME_DIRECTORY"] + "/server.sock")
inside.listen()
port = socket.create_server(("127.0.0.1", 0))
print("port", port.getsockname()[1], flush=True)
print("up", flush=True)
while True:
    time.sleep(0.2)
    if os.path.exists("ask"):
        os.unlink("ask")
        try:
            socket.create_connection(("127.0.0.1", 8812), 3)
            print("squatted", flush=True)
        except OSError as error:
            print("not squatted", flush=True)
"""
# A service of the machine's own, on all addresses.
SERVICE = "import socket, time\ns = socket.create_server(('0.0.0.0', 8900))\ntime.sleep(600)"


async def begin(daemon: Daemon, unit: str, user: str, code: str, **rest: Any) -> dict[str, Any]:
    env = {"SECRET": "s3cret", **rest.pop("env", {})}
    args = [PYTHON, "-c", code]
    started = await daemon.patiently(
        lambda: daemon.client.start(unit, user=user, server="", args=args, env=env, **rest)
    )

    async def is_up() -> bool:
        return "up" in await daemon.client.logs(unit)

    await until(is_up, 60, f"{unit} up")
    return started


async def said(daemon: Daemon, unit: str, word: str) -> str:
    async def there() -> Any:
        return [line for line in await daemon.client.logs(unit) if word in line]

    return str((await until(there, 30, word))[-1])


@pytest.fixture
async def micro1(daemon: Daemon, lab: Lab) -> str:
    lab.need(2)
    added = await daemon.add(lab, 1)
    assert not added["silent"] and added["walls"] == "nft" and added["isolation"] == "", added
    await daemon.client.cordon("local", "the test is about another one")
    return "micro1"


async def test_whatever_a_hostile_server_tries_from_inside_comes_to_nothing(
    daemon: Daemon, lab: Lab, micro1: str
) -> None:
    hub, private = socket.create_server(("127.0.0.1", 0)), socket.create_server((lab.env()["AFLAB_HUB"], 0))
    other = lab.address(2)
    # what the units of other tests have left: user ids begin anew with each daemon, and theirs would be taken for ours
    lab("exec", 1, "sh", "-c", "rm -rf /var/lib/agentfarm/units/*/")
    for words in (("ip", "address", "add", f"{FAR}/32", "dev", "lo"),):
        lab("exec", 2, *words)
    for words in (
        ("ip", "route", "add", FAR, "via", other), ("ip", "address", "add", "169.254.169.254/32", "dev", "lo"),
        ("sh", "-c", f"grep -q far.example /etc/hosts || echo {FAR} far.example >> /etc/hosts"),
        ("nft", "add", "table", "inet", "others"), ("systemd-run", "--quiet", "--unit=service-of-the-machine", PYTHON, "-c", SERVICE),
    ):  # fmt: skip
        lab("exec", 1, *words)
    await daemon.client.set_settings({"servers": {"egress": ["far.example:22", "169.254.0.0/16:*"]}})
    victim = await begin(daemon, "af-victim", "agent-victim", VICTIM)
    port = int((await said(daemon, "af-victim", "port")).split()[1])
    home = "/var/lib/agentfarm/workspaces/victim"
    where = {
        "pid": victim["pid"], "listen": 9100, "there": ["the hub", "a listed place"],
        "files": [home, f"{home}/notes.txt", "/run/agentfarm/af-victim", "/run/agentfarm-env", "/run/agentfarm-env/ended", "/var/lib/agentfarm/units",
                  "/root/.ssh/authorized_keys", "/etc/shadow", "/etc/ssh/ssh_host_ed25519_key", "/opt/agentfarm/helper.pyz"],
        "sockets": ["/run/agentfarm/af-victim/server.sock", "/run/dbus/system_bus_socket", "/run/systemd/private"],
        "ports": {
            "the hub": ("127.0.0.1", 0), "a listed place": ("far.example", 22), "another agent": ("127.0.0.1", port), "sshd": ("127.0.0.1", 22),
            "a service of the machine": ("127.0.0.1", 8900), "the same by the machine's address": (lab.address(1), 8900),
            "metadata": ("169.254.169.254", 8900), "the LAN": (other, 22), "the hub machine": private.getsockname()[:2],
        },
        "commands": [
            ["systemd-run", "--quiet", "/bin/sleep", "7777"], ["systemd-run", "--user", "/bin/sleep", "7777"], ["loginctl", "enable-linger"],
            ["sudo", "-n", "true"], ["su", "-c", "true"], ["mount", "-t", "tmpfs", "x", "/tmp"], ["/usr/sbin/nft", "flush", "ruleset"],
        ],
    }  # fmt: skip
    back = f"http://127.0.0.1:{hub.getsockname()[1]}/hub/api"
    # the way back keeps its number where it is free there, which the server learns from its own environment
    code = HOSTILE.replace(
        "SECONDS = 3\n",
        'SECONDS = 3\nWHERE["ports"]["the hub"][1] = int(os.environ["JUPYTERHUB_API_URL"].split(":")[2].split("/")[0])\n',
    )
    hostile = await begin(
        daemon, "af-hostile", "agent-hostile", code, env={"JUPYTERHUB_API_URL": back, "WHERE": json.dumps(where)}, limits={"memory": 128 << 20, "tasks": 40, "cpu": 1}
    )  # fmt: skip
    found = json.loads(await said(daemon, "af-hostile", '"eats"'))
    allowed = {
        name: found.pop(name)
        for name in (
            "the hub",
            "a listed place",
            "own loopback",
            "own loopback 6",
            "strangers",
            "eats",
            "outlive",
            "forks",
        )
    }
    assert allowed == {
        "the hub": "reached", "a listed place": "reached", "own loopback": "own", "own loopback 6": "own", "strangers": "0", "eats": "killed -9",
        "outlive": "left", "forks": "refused 11",
    }, allowed  # fmt: skip
    assert len(found) > 35 and not [one for one in found.items() if one[1] in ("reached", "None")], found
    # a person's server, around which there is no wall, shows that all of that was there to be reached
    await daemon.client.set_settings({"people": {"pin": None}})
    free = (
        HOSTILE[: HOSTILE.index('attempt("datagram"')].replace('WHERE["files"]', "[]")
        + 'print(json.dumps(CAME), "up", sep="\\n", flush=True)\ntime.sleep(600)\n'
    )
    there = {**where, "there": [what for what in where["ports"] if what != "the hub"]}
    await begin(daemon, "af-person", "ann", free, env={"WHERE": json.dumps(there)})
    reached = json.loads(await said(daemon, "af-person", '"strangers"'))
    assert {reached[what] for what in where["ports"] if what != "the hub"} == {"reached"}, reached
    # it listens where it likes; nobody else reaches it, also not at the tick store's port
    with pytest.raises(OSError):
        await asyncio.to_thread(socket.create_connection, (lab.address(1), 9100), 3)
    lab("exec", 1, "touch", f"{home}/ask")
    assert "not squatted" in await said(daemon, "af-victim", "squatted")
    # the memory of one process was taken, not the server's or the machine's
    shown = await daemon.client.show("af-hostile")
    assert (shown["state"], shown["pid"]) == ("running", hostile["pid"]) and shown["oom_kills"] >= 1
    assert (await daemon.client.show("af-victim"))["pid"] == victim["pid"]
    # nothing of it outlives its end
    assert "sleep 7777" in lab("exec", 1, "ps", "-eo", "args")
    assert (await daemon.client.stop("af-hostile"))["empty"]
    assert "sleep 7777" not in lab("exec", 1, "ps", "-eo", "args")
    assert not lab(
        "exec",
        1,
        "sh",
        "-c",
        "ls /proc | grep -x '[0-9]*' | xargs -I@ stat -c %u /proc/@ 2>/dev/null | grep -x "
        + str(hostile["uid"])
        + "; true",
    )
    await flushed(daemon, lab, hostile["uid"], victim["uid"])


async def flushed(daemon: Daemon, lab: Lab, ended: int, running: int) -> None:
    """Hold that other tables are left alone, that a user whose unit has ended reaches nothing, and that flushed rules come back."""
    rules = lab("exec", 1, "nft", "list", "ruleset")
    assert "table inet others" in rules and f"chain user_{running}" in rules and f"chain user_{ended}" not in rules
    assert f"{ended} : goto refused" in rules.replace(f'"agentfarm-{ended}"', str(ended)), rules
    lab("exec", 1, "nft", "flush", "ruleset")
    daemon.kill()
    await daemon.start()
    await daemon.reachable("micro1")  # the walls are set before it counts as reachable
    assert f"chain user_{running}" in lab("exec", 1, "nft", "list", "ruleset")


async def test_what_the_model_wrote_can_still_be_walled_in_and_kernels_work(
    daemon: Daemon, lab: Lab, micro1: str
) -> None:
    code = "from agentfarm_sdk.tools.python import refusal\nprint('refusal', repr(refusal()), flush=True)\nprint('up', flush=True)"
    await daemon.client.start(
        "af-walls", user="agent-w", server="", args=["/opt/agentfarm/venv/bin/python", "-c", code], env={}
    )
    assert await said(daemon, "af-walls", "refusal") == "refusal ''"
