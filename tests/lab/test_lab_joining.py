"""A bare machine becomes a microserver by one command, gets new releases by one, and is let go by one: over ssh as an operator signs in,
without a network there. (AGENTFARM_FAULTS=release: also releases that differ in more than their helper.)

The real command line, service, daemon and machine; the machine is host 2 of the lab, as bare as it can be, made anew behind the tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from labkit import SLOWNESS, Daemon, Lab, until

from jupyterhub_agentfarm.errors import StartError
from jupyterhub_agentfarm.fleet.bootstrap.environment import kind_of, prepared
from jupyterhub_agentfarm.fleet.bootstrap.login import fingerprint
from jupyterhub_agentfarm.fleet.zipped import helper_version
from jupyterhub_agentfarm.records import unit_name

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from servicekit import Service, service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HOST = 2
# What an agent's server and its kernels import; then it listens, so that it is there to be found.
SERVER = """
import os, socket, sys
import ipykernel, jupyterhub.singleuser, jupyterlab, agentfarm_sdk.worker, jupyterhub_agentfarm.labserver
assert os.path.exists(os.environ["JUPYTER_CONFIG_PATH"] + "/jupyter_server_config.py")
listening = socket.socket(socket.AF_UNIX)
listening.bind(os.environ["RUNTIME_DIRECTORY"] + "/server.sock")
listening.listen()
print("up", sys.prefix, flush=True)
while True:
    listening.accept()
"""


def skip_without_packages(lab: Lab) -> None:
    """The host's Python is not always the checkout's: a few packages may have to be fetched for it, once."""
    asked = "import os, platform, sys; print(*sys.version_info[:3], platform.machine(), os.confstr('CS_GNU_LIBC_VERSION').replace(' ', '-'))"
    *version, arch, libc = lab("exec", HOST, "python3", "-c", asked).split()
    try:
        prepared(kind_of([int(part) for part in version], arch, libc), lambda _: None)
    except StartError as error:
        if "could not be fetched" in error.detail and "HASHES" not in error.detail:
            pytest.skip(f"{error.detail}. {error.hint}")
        raise


@pytest.fixture(scope="module")
def bare(booted: Lab) -> Iterator[Lab]:
    """A machine on which the farm has never been."""
    booted.need(HOST)
    skip_without_packages(booted)
    booted("exec", HOST, "sh", "-c", "rm -rf /opt/agentfarm/venv /opt/agentfarm/config /opt/agentfarm/helper.pyz")
    booted(
        "exec",
        HOST,
        "sh",
        "-c",
        "useradd -m -s /bin/bash admin && echo admin:a-password | chpasswd && usermod -aG sudo admin",
    )
    booted("exec", HOST, "sh", "-c", "cp -r /root/.ssh /home/admin/.ssh && chown -R admin: /home/admin/.ssh")
    yield booted
    booted("stop", HOST)
    booted("wipe", HOST)
    booted("start", HOST)
    booted.off.discard(HOST)


@dataclass
class Operator:
    """Somebody at a shell, with the command line and a key of their own."""

    lab: Lab
    daemon: Daemon
    farm: Service
    env: dict[str, str]
    release: str | None = None  # where the command line's code is

    def _words(self, verb: str, *words: str) -> list[str]:
        key = str(self.lab.folder / "key")
        return [sys.executable, "-m", "jupyterhub_agentfarm.cli", "microserver", verb, "micro2", *words, "--key", key]

    async def begin(self, verb: str, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._words(verb, *words), env=self.env, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True, cwd=self.release,
        )  # fmt: skip

    async def run(self, verb: str, *words: str, typed: str = "") -> tuple[int, str, str]:
        """Run a verb on micro2; return exit code, answer, and what was told on the way."""
        process = await self.begin(verb, *words)
        out, told = await asyncio.wait_for(process.communicate(typed.encode()), 500 * SLOWNESS)
        return process.returncode or 0, out.decode(), told.decode()

    @property
    def ssh(self) -> str:
        return f"root@{self.lab.address(HOST)}"

    @property
    def seen(self) -> str:
        """The fingerprint, as the operator reads it at the machine itself."""
        return fingerprint(self.lab.host_key(HOST))


@pytest.fixture
async def operator(
    bare: Lab, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    # each test's farm finds the machine without another's
    inside(bare, "rm -rf /var/lib/agentfarm; sed -i /helper.pyz/d /root/.ssh/authorized_keys")
    async with service(tmp_path, f"sqlite:///{tmp_path}/farm.sqlite", monkeypatch, lease=600) as running:
        await running.agent()  # while no real daemon is asked, which would tell a Hub of it
        running.parts.fleet = running.parts.surroundings.fleet = daemon.client  # type: ignore[assignment]
        env = {**os.environ, "AGENTFARM_URL": running.url, "AGENTFARM_TOKEN": "operator", "TMPDIR": str(daemon.state)}
        yield Operator(bare, daemon, running, env)


def inside(lab: Lab, words: str) -> str:
    return lab("exec", HOST, "sh", "-c", words)


def python_of(lab: Lab) -> str:
    """Return the Python that new servers are started by: at its real path, so that they keep their release."""
    return inside(lab, "head -1 /opt/agentfarm/venv/bin/jupyterhub-singleuser").strip().removeprefix("#!")


async def told_of(process: asyncio.subprocess.Process, text: str) -> None:
    """Wait until a command line tells of something on its way."""
    assert process.stderr
    before = b""
    while text.encode() not in (line := await asyncio.wait_for(process.stderr.readline(), 400 * SLOWNESS)):
        assert line, f"it ended before that: {before.decode()}"
        before += line


async def test_one_command_makes_a_bare_machine_ready_broken_off_or_twice(operator: Operator) -> None:
    lab, daemon = operator.lab, operator.daemon
    # somebody else's key, and none that was confirmed: nothing is done
    code, _, told = await operator.run("add", "--ssh", operator.ssh, "--host-key", "SHA256:" + "A" * 43)
    assert code == 2 and "its host key is not SHA256:AAAA" in told and operator.seen in told
    code, _, told = await operator.run("add", "--ssh", operator.ssh)
    assert code == 2 and "there is no terminal to ask at" in told and operator.seen in told
    assert "agentfarm" not in inside(lab, "cat /root/.ssh/authorized_keys; ls /opt/agentfarm").replace("agentfarm-", "")
    # killed while the programs are under way
    first = await operator.begin("add", "--ssh", operator.ssh, "--host-key", operator.seen)
    await told_of(first, "sending the servers' programs")
    os.killpg(first.pid, signal.SIGKILL)
    await first.wait()
    assert [one["name"] for one in await daemon.client.microservers()] == ["local"]
    # the same command goes on
    code, out, told = await operator.run("add", "--ssh", operator.ssh, "--host-key", operator.seen, "--label", "zone=b")
    assert code == 0 and "micro2 is ready" in out, told
    assert "systemd" in told and "cpu" in told and "sending the servers' programs" in told
    one = await daemon.micro("micro2")
    assert (one["silent"], one["labels"]["zone"], one["current"]) == ("", "b", True)
    assert one["measured"]["disk_write"] > 0 and one["measured"]["cpu"] > 0
    # a unit runs there, from the programs that were sent
    await daemon.client.cordon("local", "the test is about another one")
    await daemon.client.start("af-a", user="agent-a", server="", args=[python_of(lab), "-c", SERVER], env={})

    async def is_up() -> Any:
        lines = await daemon.client.logs("af-a")
        return next((line for line in lines if line.startswith("up ")), None)

    prefix = str(await until(is_up, 60, "the server's imports")).split()[1]
    assert (
        prefix.startswith("/opt/agentfarm/venvs/") and prefix == inside(lab, "readlink -f /opt/agentfarm/venv").strip()
    )
    # twice is harmless: what runs runs on, nothing is sent again, one line for the key
    code, out, told = await operator.run("add", "--ssh", operator.ssh, "--yes")
    assert code == 0 and "micro2 is ready, as before" in out and "sending the servers' programs" not in told, told
    assert inside(lab, "grep -c agentfarm/helper.pyz /root/.ssh/authorized_keys").strip() == "1"
    assert (await daemon.client.show("af-a"))["state"] == "running"
    assert (await daemon.micro("micro2"))["labels"]["zone"] == "b"
    await doctor_passes(operator)


async def doctor_passes(operator: Operator) -> None:
    words = [
        sys.executable,
        "-m",
        "jupyterhub_agentfarm.cli",
        "doctor",
        "--json",
        "--state",
        str(operator.daemon.state),
    ]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE, env=operator.env)
    out, _ = await asyncio.wait_for(process.communicate(), 120 * SLOWNESS)
    found = [one for one in json.loads(out) if one["check"].startswith("micro2")]
    assert found and not [one for one in found if one["state"] == "fail"], found


# Where a Python reads it as it starts, it cannot run one helper: that of this release.
REFUSING = (
    'import hashlib, os, sys; sys.orig_argv[-1].endswith("helper.pyz")'
    ' and hashlib.sha256(open(sys.orig_argv[-1], "rb").read()).hexdigest() == "{}" and os._exit(1)'
)
FORMER = "a" * 12


def with_a_former_release(lab: Lab) -> None:
    """Let a machine be one of another release: the same programs under another id, another helper."""
    made = Path(inside(lab, "readlink -f /opt/agentfarm/venv").strip()).name
    inside(
        lab,
        f"cd /opt/agentfarm; cp -al venvs/{made} venvs/{FORMER}; grep -lI {made} venvs/{FORMER}/bin/* | xargs sed -i s/{made}/{FORMER}/;"
        f" ln -sfn venvs/{FORMER} venv; echo >> helper.pyz",
    )


async def test_an_upgrade_is_undone_where_it_fails_goes_on_where_it_was_broken_off_and_waits_for_runs(
    operator: Operator,
) -> None:
    lab, daemon, farm = operator.lab, operator.daemon, operator.farm
    code, _, told = await operator.run("add", "--ssh", operator.ssh, "--host-key", operator.seen)
    assert code == 0, told
    current = inside(lab, "readlink -f /opt/agentfarm/venv; cat /opt/agentfarm/helper.pyz | sha256sum")
    with_a_former_release(lab)
    former = inside(lab, "readlink -f /opt/agentfarm/venv; cat /opt/agentfarm/helper.pyz | sha256sum")
    await daemon.client.cordon("local", "the test is about another one")
    unit, server = unit_name("agent-analyst"), "users/agent-analyst/server"
    await daemon.client.start(unit, user="agent-analyst", server="", args=[python_of(lab), "-c", SERVER], env={})
    farm.hub.running.add("agent-analyst")
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    claim = await farm.claim()
    assert claim

    def restarts() -> list[str]:
        """Return what the Hub was asked for from the first stop on; before that it was asked for the server that the task needs."""
        asked = [method for method, path, _ in farm.hub.asked if path == server]
        return asked[asked.index("DELETE") :] if "DELETE" in asked else []

    # its new helper does not run there: all is as it was
    line = "/usr/lib/python3/dist-packages/refusing.pth"
    inside(lab, f"mkdir -p {Path(line).parent}; echo {shlex.quote(REFUSING.format(helper_version()))} > {line}")
    code, _, told = await operator.run("upgrade")
    assert code == 1 and "does not reach its new helper" in told and "it is as it was" in told, told
    assert inside(lab, "readlink -f /opt/agentfarm/venv; cat /opt/agentfarm/helper.pyz | sha256sum") == former
    await daemon.reachable("micro2")
    # it does: broken off while it waits for the run on a server; the helper is the new one, that server is left alone
    inside(lab, f"rm {line}")
    first = await operator.begin("upgrade")
    await told_of(first, "waiting for runs of: analyst")
    os.killpg(first.pid, signal.SIGKILL)
    await first.wait()
    assert inside(lab, "readlink -f /opt/agentfarm/venv; cat /opt/agentfarm/helper.pyz | sha256sum") == current
    assert (await daemon.reachable("micro2"))["current"] and (await daemon.client.show(unit))["state"] == "running"
    # the same command goes on, and starts the server anew when the run has ended
    again = await operator.begin("upgrade")
    await told_of(again, "waiting for runs of: analyst")
    assert restarts() == []
    end = {"fence": claim["fence"], "n": 1, "events": [{"kind": "run.succeeded", "body": {"result": 1}}]}
    await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/events", end)
    out, _ = await asyncio.wait_for(again.communicate(), 120 * SLOWNESS)
    assert again.returncode == 0 and "servers started anew: analyst" in out.decode()
    assert restarts() == ["DELETE", "POST"]
    # an environment goes once nothing runs from it
    assert FORMER in inside(lab, "ls /opt/agentfarm/venvs")
    await daemon.client.stop(unit)
    code, out_again, told = await operator.run("upgrade")
    assert code == 0 and "had this release already" in out_again and restarts() == ["DELETE", "POST"], told
    assert FORMER not in inside(lab, "ls /opt/agentfarm/venvs")


async def test_a_machine_with_another_host_key_is_refused_until_the_operator_confirms_it_and_sudo_will_do(
    operator: Operator,
) -> None:
    lab, daemon = operator.lab, operator.daemon
    login = operator.ssh.replace("root@", "admin@")
    told_by_hand = await operator.run("add", "--ssh", login, "--host-key", operator.seen, typed="wrong\n")
    assert told_by_hand[0] == 1 and "does not let admin become root" in told_by_hand[2]
    code, out, told = await operator.run("add", "--ssh", login, "--host-key", operator.seen, typed="a-password\n")
    assert code == 0 and "micro2 is ready" in out, told
    assert (await daemon.micro("micro2"))["login"] == login
    await asyncio.to_thread(lab, "rekey", HOST)
    code, _, told = await operator.run("add", "--yes")
    assert code == 2 and "not the one that the farm knows" in told and operator.seen in told
    code, out, told = await operator.run("add", "--host-key", operator.seen, typed="a-password\n")
    assert code == 0 and not (await daemon.micro("micro2"))["silent"], told


async def test_a_machine_that_is_removed_keeps_nothing_of_the_farm(operator: Operator) -> None:
    lab, daemon = operator.lab, operator.daemon
    code, _, told = await operator.run("add", "--ssh", operator.ssh, "--host-key", operator.seen)
    assert code == 0, told
    await daemon.client.cordon("local", "the test is about another one")
    await daemon.client.start("af-a", user="agent-a", server="", args=[python_of(lab), "-c", SERVER], env={})
    code, _, told = await operator.run("remove")
    assert code == 2 and "workspaces live on micro2: agent-a" in told, told
    code, _, told = await operator.run("remove", "--delete-workspaces")
    assert code == 2 and "servers run on micro2" in told, told
    assert (await daemon.client.show("af-a"))["state"] == "running"
    await daemon.client.stop("af-a")
    code, _, told = await operator.run("remove")
    assert code == 2 and "workspaces live on micro2: agent-a" in told, told
    code, out, told = await operator.run("remove", "--force")
    assert code == 0 and "/var/lib/agentfarm/workspaces: a" in out, told
    assert [one["name"] for one in await daemon.client.microservers()] == ["local"]
    left = inside(
        lab, "ls -A /opt/agentfarm; ls -A /var/lib/agentfarm; ls -d /run/agentfarm* 2>/dev/null; true"
    ).split()
    assert left == ["lab", "workspaces"], left
    assert "agentfarm" not in inside(
        lab,
        "cat /root/.ssh/authorized_keys /etc/passwd /etc/group; systemctl list-units --all --plain --no-legend 'agentfarm*'",
    )
    # again, for what was left
    code, out, told = await operator.run(
        "remove", "--ssh", operator.ssh, "--host-key", operator.seen, "--delete-workspaces"
    )
    assert code == 0 and "workspaces" not in out and not inside(lab, "ls -d /var/lib/agentfarm 2>/dev/null; true"), (
        out + told
    )


def release(place: Path, name: str, *changes: tuple[str, str]) -> str:
    """Make another release of this checkout: a line behind files of it. Returns where it is."""
    root = Path(__file__).parents[2]
    for folder in ("agentfarm_sdk", "jupyterhub_agentfarm"):
        shutil.copytree(
            root / folder, place / name / folder, ignore=shutil.ignore_patterns("__pycache__", "build", "labextension")
        )
    for folder in ("requirements", "scripts"):
        shutil.copytree(root / folder, place / name / folder, ignore=shutil.ignore_patterns("code-server"))
    for file, line in changes:
        with open(place / name / file, "a") as sink:
            sink.write(f"\n{line}\n")
    return str(place / name)


@pytest.mark.skipif(
    os.environ.get("AGENTFARM_FAULTS") != "release",
    reason="some minutes: two more releases are packed (AGENTFARM_FAULTS=release)",
)
async def test_a_new_release_goes_beside_the_old_one_under_servers_that_run_and_one_that_is_broken_is_undone(
    operator: Operator, tmp_path: Path
) -> None:
    lab, daemon = operator.lab, operator.daemon
    code, _, told = await operator.run("add", "--ssh", operator.ssh, "--host-key", operator.seen)
    assert code == 0, told
    await daemon.client.cordon("local", "the test is about another one")
    await daemon.client.start("af-a", user="agent-a", server="", args=[python_of(lab), "-c", SERVER], env={})

    async def prefix(unit: str) -> str:
        async def is_up() -> Any:
            lines = await daemon.client.logs(unit)
            return next((line for line in lines if line.startswith("up ")), None)

        return str(await until(is_up, 90, "the server's imports")).split()[1]

    async def farm_of(where: str) -> None:
        daemon.environ["PYTHONPATH"] = operator.env["PYTHONPATH"] = where
        daemon.environ["PYTHONSAFEPATH"] = "1"  # not what the tests stand in
        operator.release = where
        daemon.kill()
        await daemon.start()
        await daemon.reachable("micro2")

    old = await prefix("af-a")
    helper = "jupyterhub_agentfarm/fleet/helper/serve.py"
    await farm_of(release(tmp_path, "next", (helper, "# the next release")))
    assert (await daemon.micro("micro2"))["current"] is False
    code, out, told = await operator.run("upgrade")
    assert code == 0 and "micro2 is upgraded" in out, told
    one = await daemon.micro("micro2")
    assert (one["current"], one["silent"]) == (True, "")
    assert (await daemon.client.show("af-a"))["state"] == "running"  # by what it was started with
    await daemon.client.start("af-b", user="agent-b", server="", args=[python_of(lab), "-c", SERVER], env={})
    new = await prefix("af-b")
    assert new != old and {Path(old).name, Path(new).name} <= set(inside(lab, "ls /opt/agentfarm/venvs").split())
    # one whose helper ends there without an answer
    systemd = "jupyterhub_agentfarm/fleet/helper/systemdunits.py"
    await farm_of(release(tmp_path, "broken", (systemd, 'def operations(): raise SystemExit("broken")')))
    code, _, told = await operator.run("upgrade", "micro2")
    assert code == 1 and "it is as it was" in told, told
    assert inside(lab, "readlink -f /opt/agentfarm/venv").strip() == new
    await daemon.reachable("micro2")
    assert [(await daemon.client.show(unit))["state"] for unit in ("af-a", "af-b")] == ["running"] * 2
