"""Real microservers for tests: `lab("cut", 1)` is `hosts cut 1` (README.md has the verbs). And a fleet daemon that knows them.

The root tree is built once and kept in a cache (AGENTFARM_LAB_CACHE, else ~/.cache/agentfarm/lab); each process of tests has hosts and a
network of its own. Fixtures are in conftest.py.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from jupyterhub_agentfarm.errors import FleetError, NoMicroserverFits
from jupyterhub_agentfarm.fleet.client import FleetClient
from jupyterhub_agentfarm.fleet.zipped import helper_file

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FARM = "0123456789ab"  # hosts are lent from test to test: what one leaves there must not be another farm's for the next
HELPER = "/opt/agentfarm/helper.pyz"
COMMAND = f"/usr/bin/python3 -I {HELPER}"
VIRTUAL = os.environ.get("AGENTFARM_LAB") == "vm"  # machines with a kernel of their own
SLOWNESS = float(os.environ.get("AGENTFARM_SLOWNESS", "1"))  # conftest.py sets it for those
# deadlines are for a machine of one's own; tests share two cores with other tests and their farms
PATIENCE = 2.0 * SLOWNESS
# Seconds between two questions of SSH, of which three stay unanswered before a connection ends: that outlasts what a busy machine takes
# to answer. A test that waits for the silence of a microserver has them come each second (`alert`), and takes a false alarm.
ALIVE = int(4 * SLOWNESS)
alert = pytest.mark.parametrize("daemon", [1], indirect=True, ids=["alert"])
AWAY = ("it is silent", "cannot be asked", "does not answer")  # what is said of one that is not reached at the moment


class Lab:
    """Some hosts with names, addresses and a folder of their own."""

    def __init__(self) -> None:
        self.hosts = 0
        self.hurt: dict[int, str] = {}
        self.off: set[int] = set()
        number = os.getpid() % 20_000
        self.folder = Path(tempfile.mkdtemp(prefix="aflab-", dir="/var/tmp"))
        cache = os.environ.get("AGENTFARM_LAB_CACHE") or str(Path.home() / ".cache" / "agentfarm" / "lab")
        packages = sysconfig.get_paths()["purelib"]
        self.environ = {
            **os.environ, "AFLAB_NAME": f"a{number:x}", "AFLAB_NET": f"10.{100 + number % 100}.{number // 100}", "AFLAB_DIR": str(self.folder),
            **({"AFLAB_DISK": "1G"} if os.environ.get("AGENTFARM_FAULTS", "release") != "release" else {}),  # one can be full
            "AFLAB_TREES": cache, "AFLAB_HOOK": str(HERE / "hook"),
            "AFLAB_KIND": "vm" if VIRTUAL else "container", "AFLAB_BIND": f"{packages}:/opt/agentfarm/lab/packages {self._code()}",
        }  # fmt: skip

    def _code(self) -> str:
        """Return what hosts see of the checkout: containers the folder itself, virtual machines images of what servers run."""
        there = "/opt/agentfarm/lab/checkout"
        folders = ("agentfarm_sdk", "jupyterhub_agentfarm")
        return " ".join(f"{ROOT / one}:{there}/{one}" for one in folders) if VIRTUAL else f"{ROOT}:{there}"

    def need(self, hosts: int) -> None:
        """Have so many hosts; those that run stay as they are."""
        if hosts > self.hosts:
            self("up", hosts)
            self.hosts = hosts

    def mend(self) -> None:
        """Undo what was done to power and lines."""
        hurt, self.hurt = self.hurt, {}
        for host, verb in sorted(hurt.items()):
            self("thaw" if verb == "freeze" else "heal", host)
        if self.off:
            self.off.clear()
            self("up", self.hosts)

    def __call__(self, verb: str, *words: object) -> str:
        if verb in ("cut", "loss", "slow", "rate", "freeze"):
            self.hurt[int(str(words[0]))] = verb
        elif verb in ("kill", "stop"):
            self.off.add(int(str(words[0])))
        done = subprocess.run(
            [HERE / "hosts", verb, *map(str, words)], text=True, capture_output=True, env=self.environ, timeout=240 * SLOWNESS, check=False
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"hosts {verb} {words}: {done.stdout[-1000:]} {done.stderr[-2000:]}")
        return done.stdout

    def env(self) -> dict[str, str]:
        return dict(word.split("=", 1) for word in shlex.split(self("env")))

    def inside(self, host: int, path: str) -> Path:
        """Return where a file of a host is, seen from outside."""
        return self.folder / "hosts" / str(host) / "root" / path.lstrip("/")

    def address(self, host: int) -> str:
        return self("addr", host).strip()

    def host_key(self, host: int) -> str:
        lines = (self.folder / "known_hosts").read_text().splitlines()
        return next(line for line in lines if line.startswith(self.address(host) + " ")).split(" ", 1)[1]

    def install(self, host: int, public_key: str) -> None:
        """Put the farm's helper and key on a host, as `microserver add` does."""
        helper = self.inside(host, HELPER)
        helper.parent.mkdir(exist_ok=True)
        helper.write_bytes(helper_file())
        helper.chmod(0o644)
        keys = self.inside(host, "root/.ssh/authorized_keys")
        line = f'restrict,port-forwarding,command="{COMMAND}" {public_key}\n'
        if line not in keys.read_text():
            with open(keys, "a") as sink:
                sink.write(line)

    def own(self, host: int, home: str) -> None:
        """Let all in a workspace belong to its user, links too (which a mount over sftp would follow)."""
        self("exec", host, "sh", "-c", f'chown -hR "$(stat -c %u:%g {home})" {home}')

    def down(self) -> None:
        self("down")
        shutil.rmtree(self.folder, ignore_errors=True)


def missing() -> str:
    """Say why there can be no lab here, or ""."""
    if os.geteuid() != 0:
        return "the lab of microservers needs root"
    if sys.version_info[:2] != _of_the_machine():
        return "the lab's hosts have this machine's own Python, and the checkout's packages are for another version"
    return ""


def _of_the_machine() -> tuple[int, int]:
    asked = "import sys; print(*sys.version_info[:2])"
    try:
        said = subprocess.run(
            ["/usr/bin/python3", "-c", asked], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return sys.version_info[:2]  # the tree's may still fit
    major, minor = map(int, said.split())
    return major, minor


async def until(true: Callable[[], Awaitable[Any]], seconds: float = 30.0, what: str = "it") -> Any:
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + PATIENCE * seconds
    while not (found := await true()):
        assert time.monotonic() < deadline, f"{what} did not come true in {PATIENCE * seconds:.0f} s"
        await asyncio.sleep(0.05)
    return found


class Daemon:
    """A fleet daemon; `hub`: the address of a Hub's API, where there is one. All are of one `farm`, unless another is named."""

    def __init__(self, hub: str = "http://127.0.0.1:1/hub/api", farm: str = FARM, alive: int = ALIVE) -> None:
        self.state, self.farm = Path(tempfile.mkdtemp(prefix="afl-", dir="/tmp")), farm
        self.state.joinpath("farm.id").write_text(farm)
        self.state.joinpath("token").write_text("t")
        self.client = FleetClient(self.state / "fleet.sock", timeout=90 * SLOWNESS)
        self.environ = {
            **os.environ, "AGENTFARM_STATE": str(self.state), "JUPYTERHUB_API_URL": hub, "AGENTFARM_FLEET_TOKEN_FILE": str(self.state / "token"), "AGENTFARM_SSH_ALIVE_SECONDS": str(alive),
        }  # fmt: skip
        self.log = self.state / "daemon.log"

    def _run(self) -> None:
        with open(self.log, "ab") as sink:
            words = [sys.executable, "-m", "jupyterhub_agentfarm.fleet.daemon"]
            self.process = subprocess.Popen(words, env=self.environ, stderr=sink)

    async def start(self) -> None:
        self._run()

        async def answers() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                await self.client.microservers()
            except FleetError:
                return False
            return True

        await until(answers, what="the daemon's answer")

    async def add(self, lab: Lab, host: int) -> dict[str, Any]:
        """Install on a host (with those before it) and register it as micro<host>."""
        lab.need(host)
        lab.install(host, (await self.client.joining())["public_key"])
        registration = {"ssh": f"root@{lab.address(host)}", "host_keys": [lab.host_key(host)]}
        await self.client.register(f"micro{host}", registration)
        return await self.reachable(f"micro{host}")

    async def micro(self, name: str) -> dict[str, Any]:
        return next(one for one in await self.client.microservers() if one["name"] == name)

    async def reachable(self, name: str, seconds: float = 60.0) -> dict[str, Any]:
        async def there() -> Any:
            one = await self.micro(name)
            return one if not one["silent"] else None

        return dict(await until(there, seconds, f"{name} reachable"))

    async def patiently(self, ask: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Ask again while a microserver is not reached at the moment. Raises what else the question raises."""

        async def asked() -> Any:
            try:
                told = await ask()
            except (FleetError, NoMicroserverFits) as error:
                if not any(word in error.detail for word in AWAY):
                    raise
                return None
            return None if told.get("state") == "unknown" else told

        return dict(await until(asked, 60, "the microserver's answer"))

    async def shown(self, unit: str) -> dict[str, Any]:
        """Return a unit, as soon as its microserver is reached."""
        return await self.patiently(lambda: self.client.show(unit))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    async def stop(self) -> None:
        for unit in await self.client.units():
            if unit["state"] == "running":
                await self.client.stop(unit["unit"], now=True)
        for one in await self.client.microservers():
            if one["name"] != "local":
                await self.client.remove(one["name"], force=True)
        self.process.terminate()
        self.process.wait(60)
        shutil.rmtree(self.state, ignore_errors=True)


def skip_without_lab() -> None:
    if why := missing():
        pytest.skip(why)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
