"""The microservers that answer SSH: registered, connected, fenced when they return; what a server there is told, and how it is reached.

A server there listens on a unix socket, which the connection brings to a loopback port here. It reaches the Hub and the service by loopback
ports there that lead back over the same connection: nothing else is open between the machines. Called by the daemon.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agentfarm_sdk.waiting import within

from ..errors import Conflict, FleetError, Invalid, NotFound, StartError
from ..records import microserver_name
from .connection import Connection, Files, once_only, target
from .microserver import VENV_AT, AnyMicroserver, SshMicroserver
from .state import FleetState
from .zipped import helper_version

log = logging.getLogger("agentfarm.fleet")
HOST_KEY = re.compile(r"(ssh-ed25519|ecdsa-sha2-nistp(256|384|521)|ssh-rsa) [A-Za-z0-9+/=]{20,2000}")
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,62}")
# What servers ask, by the names that they know it under.
LED_BACK = ("JUPYTERHUB_API_URL", "JUPYTERHUB_ACTIVITY_URL", "AGENTFARM_URL")
# True of this machine only; the microserver's own stand in their place.
OF_HERE = {
    "PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "CONDA_ROOT",
    "CONDA_DEFAULT_ENV",
    "JUPYTER_CONFIG_PATH",
    "TMPDIR",
    "SHELL",
}
TRIES = 20  # ports
CONFIG_AT = "/opt/agentfarm/config"  # what servers are told there, a link into the package
FIRST_WAIT = 20.0  # for a microserver that is registered to answer


class Remotes:
    """All microservers but this machine. Registering or removing one twice is harmless."""

    def __init__(self, directory: Path, state: FleetState, farm: dict[str, AnyMicroserver]) -> None:
        alive = os.environ.get("AGENTFARM_SSH_ALIVE_SECONDS", "5")
        if not alive.isdigit() or not 1 <= int(alive) <= 300:
            raise StartError(f"AGENTFARM_SSH_ALIVE_SECONDS is {alive!r}", hint="a number of seconds from 1 to 300")
        self.files, self.state = Files(directory / "ssh", int(alive)), state
        self.farm = farm  # all of them, this machine too: what is registered here is put there
        self.microservers: dict[str, SshMicroserver] = {}
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()  # a connection is kept, or no more
        for name, known in state.microservers.items():
            if known.get("ssh"):
                self._make(name)

    def _make(self, name: str) -> SshMicroserver:
        known = self.state.microservers[name]

        async def on_up() -> None:
            await self._returned(made)

        made = SshMicroserver(
            name, Connection(name, target(known["ssh"]), self.files, on_up, lambda: self._hold_ports(name))
        )
        made.state, made.farm = known["state"], self.state.farm
        self.microservers[name] = self.farm[name] = made
        return made

    def _hold_ports(self, name: str) -> None:
        """Hold the ports of all servers that may run there."""
        for known in self.state.units.values():
            if known["microserver"] == name and known.get("port"):
                self.state.ports.hold(known["port"])

    def connect(self) -> None:
        """Keep a connection to each, from now on."""
        for name, micro in self.microservers.items():
            if name not in self._keeping:
                self._keeping[name] = asyncio.create_task(micro.connection.keep(), name=f"connection of {name}")
        self._changed.set()

    async def watch(self) -> None:
        """Wait until a keeper of a connection ends by a mistake of ours, and raise it."""
        while True:
            keeping = [*self._keeping.values()]
            self._changed.clear()
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait([changed, *keeping], return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            for task in keeping:
                if task.done() and not task.cancelled():
                    task.result()

    async def let_go(self) -> None:
        """Keep no connection any more; the masters stay, for the next daemon."""
        for task in self._keeping.values():
            task.cancel()
        await asyncio.gather(*self._keeping.values(), return_exceptions=True)
        self._keeping.clear()

    async def disconnect(self) -> None:
        """End all connections, when the whole farm is stopped. Those of a daemon that only starts anew are left to it."""
        await self.let_go()
        await asyncio.gather(
            *(micro.connection.close() for micro in self.microservers.values()), return_exceptions=True
        )

    # -- which there are -----------------------------------------------------------------------------------------

    def public_key(self) -> str:
        """Return the public part of the farm's own key for microservers; it is made where there is none. Raises StartError."""
        self.files.folder.mkdir(mode=0o700, exist_ok=True)
        if not self.files.key.exists():
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "agentfarm", "-f", str(self.files.key)]
            try:
                subprocess.run(words, check=True, capture_output=True, timeout=20)
            except (OSError, subprocess.SubprocessError) as error:
                raise StartError(
                    "the farm's SSH key cannot be made", hint="install OpenSSH's client: ssh-keygen"
                ) from error
        return self.files.key.with_name("key.pub").read_text().strip()

    def joining(self) -> dict[str, Any]:
        """Return what a machine needs that joins, and what is known of those that have joined. Raises StartError."""
        key = self.public_key()
        return {"public_key": key, "farm": self.state.farm, "helper": helper_version(), "microservers": self._joined()}

    def _joined(self) -> dict[str, dict[str, Any]]:
        known = {}
        for name, one in self.state.microservers.items():
            if one.get("ssh"):
                keys = self._keys_of(target(one["ssh"]).known_as)
                known[name] = {"ssh": one["ssh"], "login": one.get("login", ""), "host_keys": keys}
        return known

    async def register(self, name: str, asked: Mapping[str, Any]) -> SshMicroserver:
        """Take a microserver in, or change how one is reached; wait a moment for it to answer. Raises Invalid, Conflict, StartError.

        asked: {ssh: user@host:port, host_keys: ["ssh-ed25519 …"] as the operator has confirmed them, labels, taints: {name: reason},
        login: how operators sign in, measured: {what: figure}, by: who}
        """
        checked = _registration(name, asked)
        self.public_key()
        to = target(checked["ssh"])
        self.files.control(name)  # too long a path is said now
        once_only(name, to, checked["host_keys"], self._joined())
        keys = checked.pop("host_keys")
        changed = self._trust(to.known_as, keys)
        known = self.state.microservers.get(name, {"state": "ready", "reason": ""})
        self.state.microservers[name] = {**known, **checked}
        what = {"microserver": name, "ssh": checked["ssh"], "host_keys": keys}
        self.state.note("microserver.added", **what, by=str(asked.get("by", "")))
        self.state.save()
        if (
            not changed
            and known.get("ssh") == checked["ssh"]
            and name in self._keeping
            and not self.microservers[name].silent
        ):
            self.microservers[name].outdated()  # it may have another helper; the line and what goes over it stay
            return self.microservers[name]
        if name in self._keeping:
            await self._disconnect(name)
        made = self._make(name)
        self.connect()
        try:
            await within(made.connection.tried.wait(), FIRST_WAIT)
        except asyncio.TimeoutError:
            log.info("microserver %s has not answered yet", name)
        return made

    def _keys_of(self, known_as: str) -> list[str]:
        return [line.split(" ", 1)[1] for line in self._hosts() if line.split(" ", 1)[0] == known_as]

    def _hosts(self) -> list[str]:
        """Return the lines of the farm's known_hosts: host, space, key."""
        return self.files.known_hosts.read_text().splitlines() if self.files.known_hosts.exists() else []

    def _keep_hosts(self, lines: list[str]) -> None:
        """Write them at once: with half of them some microservers would be refused."""
        fresh = self.files.known_hosts.with_suffix(".new")
        with open(fresh, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as sink:
            sink.write("".join(f"{line}\n" for line in lines))
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(fresh, self.files.known_hosts)

    def _trust(self, known_as: str, host_keys: list[str]) -> bool:
        """Let these be the host's only keys; say whether they are others than before. No keys: those that are known stay."""
        if not host_keys:
            return False
        old = self._hosts()
        lines = [line for line in old if line.split(" ", 1)[0] != known_as] + [f"{known_as} {key}" for key in host_keys]
        self._keep_hosts(lines)
        return sorted(lines) != sorted(old)

    async def _disconnect(self, name: str) -> None:
        task = self._keeping.pop(name, None)
        if task is not None:
            self._changed.set()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.microservers[name].connection.close()

    async def remove(self, name: str, force: bool, by: str = "") -> None:
        """Forget a microserver. Raises NotFound; Conflict while servers run or may run there, unless forced."""
        micro = self.microservers.get(name)
        if micro is None:
            raise NotFound(f"there is no microserver {name} that could be removed")
        there = sorted(unit for unit, known in self.state.units.items() if known["microserver"] == name)
        if not force:
            try:
                there = [one["unit"] for one in (await micro.ask("list"))["items"] if one["state"] == "running"]
            except FleetError as error:
                if there:
                    raise Conflict(
                        f"{name} cannot be asked what runs there: {error.detail}",
                        hint="force, once it is gone for good",
                    ) from error
            if there:
                raise Conflict(
                    f"servers run on {name} ({len(there)}): {', '.join(there[:5])}",
                    hint="drain it, or stop them, first",
                )
        await self._disconnect(name)
        del self.microservers[name], self.farm[name]
        gone = self.state.microservers.pop(name)
        self._untrust(target(gone["ssh"]).known_as)
        for unit in [unit for unit, known in self.state.units.items() if known["microserver"] == name]:
            self.state.ports.let_go(self.state.units.pop(unit).get("port", 0))
        self.state.note("microserver.removed", microserver=name, forced=force, by=by)
        self.state.save()

    def _untrust(self, known_as: str) -> None:
        if all(target(one["ssh"]).known_as != known_as for one in self.state.microservers.values() if one.get("ssh")):
            self._keep_hosts([line for line in self._hosts() if line.split(" ", 1)[0] != known_as])

    # -- one that returns ----------------------------------------------------------------------------------------

    async def _returned(self, micro: SshMicroserver) -> None:
        """Before anything else is done with it: end what may not run there any more; then bring back ports. Raises FleetError."""
        micro.outdated()
        facts, known = await micro.look(), self.state.microservers[micro.name]
        if known.get("boot_id") not in (None, facts["boot_id"]):
            log.warning("microserver %s was restarted: what ran there has ended", micro.name)
        known |= {"boot_id": facts["boot_id"], "helper_version": facts["helper"]}
        self.state.save()
        running = await self._fenced(micro)
        if facts.get("walls") == "nft":
            await micro.ask("walls")
        back = known.get("back", {})
        if back:
            await micro.ask("release", ports=sorted(back.values()))
        for address, port in back.items():
            if not await self._lead_back(micro, address, port):
                log.warning("port %d of %s is taken there: its servers cannot reach %s", port, micro.name, address)
        for one in running:
            if self.state.units.get(one["unit"], {}).get("microserver") == micro.name:
                await self.forward(micro, one["unit"], one["socket"])
        still = {one["unit"] for one in (await micro.ask("list"))["items"] if one["state"] == "running"}
        # None is started before it counts as up, but one may have been stopped meanwhile, or have ended with its machine.
        for unit in [name for name, known in self.state.units.items() if known["microserver"] == micro.name]:
            if unit not in still:
                await self.unforward(micro, unit)

    async def _fenced(self, micro: SshMicroserver) -> list[dict[str, Any]]:
        """End what may not run there any more, forget what is left of it; return what runs there by right. Raises FleetError."""
        rightful = []
        for one in (await micro.ask("list"))["items"]:
            home, unit = self.state.units.get(one["unit"]), one["unit"]
            elsewhere = home is not None and home.get("microserver") not in (None, micro.name)
            if one["state"] == "running" and (elsewhere or (home or {}).get("unwanted")):
                log.warning(
                    "unit %s still runs on %s, where it is not wanted any more: it is stopped", unit, micro.name
                )
                await micro.ask("stop", unit=unit, now=True)
            elif one["state"] == "running":
                rightful.append(one)
            if elsewhere:
                await micro.ask("forget", unit=unit)
            elif home is not None and home.pop("unwanted", None):
                home.pop("given_up", None)
                self.state.save()
        return rightful

    async def forward(self, micro: SshMicroserver, unit: str, socket: str) -> int:
        """Bring the unit's socket to its loopback port here, or to another one where that is taken. Raises FleetError, StartError."""
        entry = self.state.units[unit]
        for _ in range(TRIES):
            self.state.ports.hold(entry["port"])
            if entry["port"] and await micro.connection.forward(entry["port"], socket):
                return int(entry["port"])
            if entry["port"]:
                log.warning("port %d for %s is taken by another program: it gets another one", entry["port"], unit)
                self.state.ports.let_go(entry["port"])
            entry["port"] = self.state.forward()
            self.state.save()
        raise StartError(
            f"{TRIES} loopback ports for {unit} are taken by other programs", hint="set AGENTFARM_FORWARD_PORTS"
        )

    async def unforward(self, micro: SshMicroserver, unit: str) -> None:
        """Take the unit's port back. One that is not there is harmless."""
        if port := self.state.units[unit]["port"]:
            await micro.connection.cancel(port, socket_of(unit))
            self.state.ports.let_go(port)

    async def take_back(self, unit: str, was: Mapping[str, Any]) -> None:
        """Take back the port of a unit that is elsewhere from now on. was: as it was known; one that crashed may have left a way there."""
        micro, port = self.microservers.get(was.get("microserver", "")), was.get("port")
        if micro is None or not port:
            return
        try:
            await micro.connection.cancel(port, socket_of(unit))
        except FleetError as error:  # the way has ended with its line
            log.info("port %d of %s: %s", port, unit, error.detail)
        self.state.ports.let_go(port)

    # -- servers -----------------------------------------------------------------------------

    async def start(self, micro: SshMicroserver, what: Mapping[str, Any]) -> dict[str, Any]:
        """Start a unit there and bring its socket here. what: a start request as the helper takes it, true of this machine. Raises as `ask`."""
        if micro.silent:
            raise FleetError(
                f"{micro.name} cannot be asked: {micro.silent}", hint="see its power and network", retry_after=2
            )
        unit, argv = what["unit"], list(what["argv"])
        if Path(argv[0]).name == "jupyterhub-singleuser":
            argv += [f"--ServerApp.sock={socket_of(unit)}", "--ServerApp.sock_mode=0600"]
        answer = await micro.ask(
            "start", **{**what, "argv": argv, "env": await self.environment(micro, unit, what["env"])}
        )
        return {**answer, "port": await self.forward(micro, unit, answer["socket"])}

    async def environment(self, micro: SshMicroserver, unit: str, env: Mapping[str, str]) -> dict[str, str]:
        """Return the server's environment as it must be there. Raises FleetError."""
        told = {name: value for name, value in env.items() if name not in OF_HERE}
        told["PATH"] = f"{VENV_AT}/bin:/usr/local/bin:/usr/bin:/bin"
        told["JUPYTER_CONFIG_PATH"] = CONFIG_AT
        # In memory, its own, with short names for sockets.
        told["JUPYTER_RUNTIME_DIR"] = f"/run/agentfarm/{unit}/jupyter"
        if "JUPYTERHUB_SERVICE_URL" in told:  # the server takes a socket only where the port has its default
            told["JUPYTERHUB_SERVICE_URL"] = f"http://127.0.0.1:8888{urlsplit(told['JUPYTERHUB_SERVICE_URL']).path}"
        for name in LED_BACK:
            url = urlsplit(told.get(name, ""))
            if url.scheme == "http" and url.hostname:  # by TLS a server goes its own way: the name must fit
                port = await self._way_back(micro, f"{url.hostname}:{url.port or 80}")
                told[name] = url._replace(netloc=f"127.0.0.1:{port}").geturl()
        return told

    async def _way_back(self, micro: SshMicroserver, address: str) -> int:
        """Return the port there that leads to this address here: the one it had, else the same number, else another."""
        back = self.state.microservers[micro.name].setdefault("back", {})
        if address in back:
            return int(back[address])
        same = int(address.rpartition(":")[2])
        others = [port for port in self.state.forwards if port not in back.values()][:TRIES]
        for port in [same, *others] if same >= 1024 and same not in back.values() else others:
            if await self._lead_back(micro, address, port):
                back[address] = port
                self.state.save()
                return port
        raise FleetError(
            f"no port of {micro.name} can lead back to {address}", hint="its sshd must allow port forwarding"
        )

    async def _lead_back(self, micro: SshMicroserver, address: str, port: int) -> bool:
        host, _, number = address.rpartition(":")
        return await micro.connection.lead_back(port, host, int(number))


def socket_of(unit: str) -> str:
    """Return where a unit of a microserver listens; as its helper makes it."""
    return f"/run/agentfarm/{unit}/server.sock"


def _registration(name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a registration says, each field of the type that it must have. Raises Invalid."""
    microserver_name(name)
    ssh, keys, labels, taints = (
        asked.get("ssh", ""),
        asked.get("host_keys", []),
        asked.get("labels", {}),
        asked.get("taints", {}),
    )
    if not isinstance(ssh, str):
        raise Invalid("ssh must be a text", hint="user@host or user@host:port")
    target(ssh)
    if not isinstance(keys, list) or not all(isinstance(key, str) and HOST_KEY.fullmatch(key) for key in keys):
        raise Invalid(
            "host_keys must be a list of SSH public keys", hint="as ssh-keyscan prints them, without the host"
        )
    if not isinstance(labels, dict) or not all(LABEL.fullmatch(k) and isinstance(v, str) for k, v in labels.items()):
        raise Invalid("labels must be an object of texts")
    if not isinstance(taints, dict) or not all(LABEL.fullmatch(k) and isinstance(v, str) for k, v in taints.items()):
        raise Invalid("taints must be an object of texts: name and reason")
    found: dict[str, Any] = {"ssh": ssh, "host_keys": keys, **_told_of(asked)}
    if "taints" in asked:
        found["taints"] = {taint: {"reason": why} for taint, why in taints.items()}
    return found | ({"labels": labels} if "labels" in asked else {})


def _told_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what else the operator's command line tells of a machine, where it does. Raises Invalid."""
    found: dict[str, Any] = {}
    if login := asked.get("login"):
        found["login"] = str(target(str(login)))
    if measured := asked.get("measured"):
        numbers = isinstance(measured, dict) and all(type(value) in (int, float) for value in measured.values())
        if not numbers or not all(LABEL.fullmatch(name) for name in measured):
            raise Invalid("measured must be an object of numbers")
        found["measured"] = measured
    return found
