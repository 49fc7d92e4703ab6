"""The fleet daemon: owns the microservers, places and starts servers, makes and retires agents' hub users.

`python -m jupyterhub_agentfarm.fleet.daemon`, HTTP on a unix socket (0600). Servers outlive it: killed and started again, it
finds them by their helper.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tornado.httpserver
import tornado.netutil
import tornado.web

from ..errors import AgentFarmError, FleetError, Invalid, NotFound, StartError
from ..records import Demand
from .doors import application
from .findings import ahead
from .hubusers import HubUsers
from .kept import PATIENCE, UNITS_SECONDS
from .microserver import AnyMicroserver, LocalMicroserver, SshMicroserver
from .moving import Moving
from .placing import Placing
from .ports import FORWARDS, answers, forwards_of
from .reconciler import LOOK_SECONDS, Reconciler
from .remotes import Remotes
from .retired import Retired
from .settings import seconds_of
from .state import FleetState, workspace_of
from .turns import Turns
from .walling import Walling, usual_of
from .zipped import drop_others, helper_version

log = logging.getLogger("agentfarm.fleet")
LOCAL = "local"
NEEDED = ("AGENTFARM_STATE", "JUPYTERHUB_API_URL", "AGENTFARM_FLEET_TOKEN_FILE")
HEALTH_SECONDS = 30.0  # between looks at figures that nobody asks for
SELDOM_SECONDS = 3600.0  # how often disks are asked how they are, which touches them, and retired users are looked for


class Fleet:
    """All microservers and units. Starting or stopping a unit twice is harmless."""

    def __init__(self, directory: Path, forwards: range = FORWARDS) -> None:
        self.directory = directory
        self.state = FleetState(directory / "fleet.json", forwards)
        self.local = LocalMicroserver(LOCAL, directory)
        self.local.state = self.state.microservers.get(LOCAL, {}).get("state", "ready")
        self.microservers: dict[str, AnyMicroserver] = {LOCAL: self.local}
        self.remotes = Remotes(directory, self.state, self.microservers)
        self.placing = Placing(self.state, self.microservers, usual_of(os.environ.get("AGENTFARM_EGRESS", "")))
        self.walling = Walling(self.microservers)
        self.moving = Moving(self.state, self.microservers, self.placing, self)
        self.turns = Turns(self._is_up)
        self.retired = Retired(self.state, self.microservers, self.show)
        self._locks: dict[str, asyncio.Lock] = {}
        self._placed: dict[str, dict[str, Any]] = {}  # units that were placed and are not started yet
        self._stopped: dict[str, dict[str, Any]] = {}  # units that this daemon stopped, and how they ended

    def microserver(self, name: str) -> AnyMicroserver:
        """Return the microserver. Raises NotFound."""
        found = self.microservers.get(name)
        if found is None:
            raise NotFound(f"there is no microserver {name}", hint="there are: " + ", ".join(self.microservers))
        return found

    async def open_the_way(self) -> None:
        """As root: let servers' own users reach their workspaces, and nothing else of the state directory."""
        workspaces = self.directory / "workspaces"
        workspaces.mkdir(mode=0o711, exist_ok=True)
        if os.getuid() == 0:
            for entry in self.directory.iterdir():
                if entry.is_file() and entry.stat().st_mode & 0o077:
                    entry.chmod(0o600)
            self.directory.chmod(0o711)
            workspaces.chmod(0o711)
        facts = await self.local.facts()
        log.info("local microserver: %s", facts["isolation"])
        self.state.remember_users(workspaces)
        self.remotes.connect()
        await self.listed()  # a lost fleet.json must not hand out what running servers have

    async def place(self, unit: str, demand: Demand) -> dict[str, Any]:
        """Choose microserver and port for a unit; one that runs stays where it is. Raises NoMicroserverFits."""
        known = self.state.units.get(unit)
        asked = known and unit not in self._stopped  # who was stopped by us has ended
        shown, facts = await asyncio.gather(self.show(unit) if asked else _nothing(), self.placing.facts())
        if shown.get("state") == "running":
            return {**self.state.units[unit], "unit": unit, "state": "running", "reasons": {shown["microserver"]: None}}
        was = dict(self.state.units.get(unit, {}))
        placement = self.placing.choose(demand, facts)
        entry = {
            "microserver": placement.microserver,
            "ip": "127.0.0.1",
            "port": self._port(unit, placement.microserver, was),
        }
        self.state.units[unit] |= entry
        self.state.save()
        if was.get("microserver") != placement.microserver:
            await self.remotes.take_back(unit, was)
        told = {"unit": unit, "state": "placed", "reasons": placement.refusals, "why": placement.why}
        self._placed[unit] = {**entry, **told}
        return self._placed[unit]

    def _port(self, unit: str, there: str, was: Mapping[str, Any]) -> int:
        """Return the loopback port by which the unit will be reached: the one that it had there, where it can be kept."""
        if not isinstance(self.microservers[there], SshMicroserver):
            return self.state.port(unit)
        return int(was["port"] if was.get("microserver") == there and was.get("port") else self.state.forward())

    async def start(self, unit: str, asked: dict[str, Any], gone: asyncio.Event) -> dict[str, Any]:
        """Start a unit where it was placed (or place it); one that takes turns, at its turn, unless who asked is `gone` by then.

        Raises NoMicroserverFits, StartError, FleetError, Invalid.
        """
        placed = self._placed.get(unit)
        if placed and asked.get("turn"):
            facts = await self.microserver(placed["microserver"]).facts()
            await self.turns.take(unit, placed["microserver"], facts["cpus"], gone)
        try:
            return await self._start(unit, asked)
        except BaseException:
            self.turns.end(unit)
            raise

    async def _is_up(self, unit: str) -> bool:
        """Say whether the unit's server answers."""
        known = self.state.units.get(unit, {})
        return await answers(known["ip"], known["port"]) if known.get("port") else False

    async def _start(self, unit: str, asked: dict[str, Any]) -> dict[str, Any]:
        user, argv, env = str(asked.get("user", "")), asked.get("args"), asked.get("env", {})
        if not user or not isinstance(argv, list) or not argv or not isinstance(env, dict):
            raise Invalid("a server needs a user, args: [text, …] and env: {name: text}")
        async with self._locks.setdefault(unit, asyncio.Lock()), self.moving.held_back(user):
            demand = self.placing.demand(unit, asked.get("demand"), user)
            placed = self._placed.pop(unit, None)
            if placed is None or demand.home not in (
                "",
                placed["microserver"],
            ):  # its workspace was moved while it waited
                placed = await self.place(unit, demand)
            self._placed.pop(unit, None)
            micro = self.microserver(placed["microserver"])
            facts = await micro.facts()
            argv = [micro.program(str(argv[0])) if "/" not in str(argv[0]) else argv[0], *argv[1:]]
            self._stopped.pop(unit, None)
            whose = {"user": user, "server": str(asked.get("server", "")), "agent": asked.get("agent") or ""}
            self.state.units[unit] |= {**whose, "asked": asked.get("demand") or {}}
            for gone in ("unwanted", "retired"):
                self.state.units[unit].pop(gone, None)
            what = {
                "unit": unit, "argv": argv, "env": {**env, "USER": user, "LOGNAME": user, **self.placing.surroundings(unit, facts)}, "workspace": workspace_of(user),
                "uid": self.state.uid(user) if facts["own_users"] else None, "limits": _limits(demand, asked.get("limits")),
                "about": {**whose, "ip": placed["ip"], "port": placed["port"]},
                "egress": self.placing.egress(unit, asked.get("demand"), user),
            }  # fmt: skip
            if mine := self.placing.gpus(unit, facts):
                what["gpus"] = [one.get("minor", one["index"]) for one in mine]
            self.state.save()
            if isinstance(micro, SshMicroserver):
                answer = await self.remotes.start(micro, what)
            else:
                answer = await micro.ask("start", **what)
            self.placing.started(unit)
            self.state.save()
            return {**placed, **answer}

    async def show(self, unit: str) -> dict[str, Any]:
        """Return the unit's state; `unknown` where its microserver cannot be asked. Raises NotFound."""
        known = self.state.units.get(unit)
        if known is None:
            raise NotFound(f"there is no unit {unit}")
        if "given_up" in known:  # proves nothing: the Hub lets go of it, so that it can start elsewhere
            why = f"its microserver was given up as lost by {known['given_up']}"
            return {**known, "exit_code": -9, "state": "exited", "unit": unit, "reason": why}
        asked = time.time()
        try:
            state = await self.microserver(known["microserver"]).ask("show", unit=unit)
        except FleetError as error:
            return {**known, "unit": unit, "state": "unknown", "reason": error.detail}
        if state.get("state", "exited") == "exited":
            self.placing.ended(unit, asked)
        return {"exit_code": 0, "state": "exited", **known, "unit": unit, **state}

    async def stop(self, unit: str, now: bool) -> dict[str, Any]:
        """Stop a unit and all below it; one that cannot be reached is stopped when it can. Raises NotFound, FleetError."""
        known = self.state.units.get(unit)
        if known is None:
            raise NotFound(f"there is no unit {unit}")
        self.turns.end(unit)
        async with self._locks.setdefault(unit, asyncio.Lock()):
            if unit not in self._stopped:
                micro = self.microserver(known["microserver"])
                try:
                    self._stopped[unit] = await micro.ask("stop", unit=unit, now=now)
                except FleetError:
                    known["unwanted"] = True
                    self.state.save()
                    raise
                if isinstance(micro, SshMicroserver):
                    await self.remotes.unforward(micro, unit)
            state = self._stopped[unit]
            self.placing.release(unit)
        return {"exit_code": 0, "state": "exited", **known, "unit": unit, **state}

    async def take_back(self, unit: str) -> None:
        """Let go of the port by which a unit is reached, before it is to be elsewhere."""
        known = self.state.units[unit]
        await self.remotes.take_back(unit, known)
        known["port"] = 0

    async def end(self, unit: str, pid: int) -> None:
        """Stop a unit, or sweep what it left, if it is still the one with this server. Raises NotFound, FleetError."""
        async with self._locks.setdefault(unit, asyncio.Lock()):
            shown = await self.show(unit)
            if shown.get("pid") == pid:
                micro = self.microserver(shown["microserver"])
                await micro.ask("stop", unit=unit)
                if isinstance(micro, SshMicroserver):
                    await self.remotes.unforward(micro, unit)

    async def listed(self, fresh: float = 0.0, patience: float | None = None) -> list[dict[str, Any]]:
        """Return every unit with its state; those that a microserver runs and the daemon had forgotten are adopted.

        fresh, patience: seconds, as Kept.get takes them; a microserver that is slow is told as it was.
        """
        running: dict[str, dict[str, Any]] = {}
        asked = dict(self.microservers)
        lists = await asyncio.gather(*(self._list_of(micro, fresh, patience) for micro in asked.values()))
        for name, items in zip(asked, lists, strict=True):
            for item in items:
                about = item.get("about", {})
                known = self.state.units.get(item["unit"])
                if known is None and item.get("farm") == "":
                    continue  # nobody says whose it is: another farm's, perhaps
                if known is None:
                    self.state.units[item["unit"]] = {"ip": "127.0.0.1", "port": 0, **about, "microserver": name}
                    self.state.save()
                    log.warning("unit %s on %s (%s) was not known: adopted", item["unit"], name, item["state"])
                elif known["microserver"] != name:
                    continue  # what is left of it where it was before
                running[item["unit"]] = item
        since = time.time() - time.monotonic()
        times = {name: since + micro.units_asked_at for name, micro in asked.items()}
        self.placing.compare(running, times)
        return [
            {"state": "exited", **known, "unit": unit, **_without_about(running.get(unit, {})), **_too_early(known, running.get(unit, {}), times)}
            for unit, known in sorted(self.state.units.items())
        ]  # fmt: skip

    async def states(self, name: str) -> dict[str, str]:
        """Return the states of one microserver's units; what is not named has ended."""
        return {one["unit"]: one["state"] for one in await self._list_of(self.microserver(name), 0.0, None)}

    async def _list_of(self, micro: AnyMicroserver, fresh: float, patience: float | None) -> list[dict[str, Any]]:
        """Return the units of one microserver; those that are known there are `unknown` where it cannot be asked."""
        try:
            return await micro.units(fresh, patience)
        except FleetError as error:
            there = {unit: known for unit, known in self.state.units.items() if known["microserver"] == micro.name}
            states = {unit: "exited" if "given_up" in known else "unknown" for unit, known in there.items()}
            return [{"unit": unit, "state": state, "reason": error.detail} for unit, state in states.items()]

    async def listed_microservers(self) -> list[dict[str, Any]]:
        """Return each microserver: state and why, facts, and how many servers run there."""
        units, facts = await asyncio.gather(
            self.listed(UNITS_SECONDS, PATIENCE), self.placing.facts(PATIENCE, oldest=None)
        )
        running: dict[str, int] = {}
        for unit in units:
            if unit["state"] == "running":
                running[unit["microserver"]] = running.get(unit["microserver"], 0) + 1
        return [
            self.told(micro, facts, running.get(name, 0)) for name, micro in self.microservers.items() if name in facts
        ]

    def told(self, micro: AnyMicroserver, facts: Mapping[str, Any], servers: int) -> dict[str, Any]:
        """Return a microserver with its last facts. `silent`: why it cannot be asked now, "" where it can."""
        known = {**micro.last_facts(), **micro.disks, **self.placing.shown(micro.name, facts, servers)}
        known.pop("cpu_flags", None)  # many words that nobody reads
        known["drain"] = self.moving.progress(micro.name)
        known["isolation"] = "; ".join(filter(None, (known.get("isolation"), micro.unwalled)))
        known["seen_at"] = micro.told_at
        kept = self.state.microservers.get(micro.name, {})
        about: dict[str, Any] = {name: kept[name] for name in ("ssh", "login", "measured") if name in kept}
        if "ssh" in kept and "helper" in known:
            about["current"] = known["helper"] == helper_version()
        return {"ssh": "", **known, **about}

    async def register(self, name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Take a microserver in, or change how it is reached. Raises Invalid, StartError."""
        micro = await self.remotes.register(name, asked)
        return self.told(micro, await self.placing.facts(), 0)

    async def log(self, unit: str, lines: int, after: str, wait: float) -> dict[str, Any]:
        """Return {lines, cursor, microserver} of a unit's log. Raises NotFound, Invalid, FleetError."""
        known = self.state.units.get(unit)
        if known is None:
            raise NotFound(f"there is no unit {unit}")
        told = await self.microserver(known["microserver"]).log(unit, lines, after, wait)
        return {**told, "microserver": known["microserver"]}

    async def watch(self, seconds: float) -> None:
        """Look at all microservers' figures for ever, so that their health is judged also while nobody asks."""
        looked = -SELDOM_SECONDS
        while True:
            await self.placing.facts()
            if time.monotonic() - looked > SELDOM_SECONDS:
                looked = time.monotonic()
                await self.retired.forget()
                await asyncio.gather(*(_disks(micro) for micro in [*self.microservers.values()]))
            await asyncio.sleep(seconds)

    def notices(self, after: int) -> dict[str, Any]:
        """Return what happened behind that number, and who is silent. Asks nobody."""
        for name, micro in self.microservers.items():
            if micro.silent:
                self.placing.health.missed(name, micro.silent, micro.silent_since)
        silent = {name: one for name in self.microservers if (one := self.placing.health.silence(name))}
        return {"items": [one for one in self.state.notices if one["id"] > after], "silent": silent}

    async def examine(self, name: str) -> dict[str, Any]:
        """Repeat the checks of a microserver: {seen: as helper/probe.py finds it, offset: its clock's seconds ahead of ours}. Raises NotFound, FleetError, Invalid."""
        micro = self.remotes.microservers.get(name)
        if micro is None:
            raise NotFound(f"there is no microserver {name} that is reached over SSH")
        before = time.time()
        theirs = (await micro.ask("facts"))["time"]
        return {"offset": ahead(before, theirs, time.time()), "seen": await micro.ask("examine")}

    def mark(self, name: str, asked: dict[str, Any], **change: Any) -> dict[str, Any]:
        """Change what operators said of a microserver. Raises NotFound, Conflict."""
        micro = self.microserver(name)
        marked = self.placing.mark(name, asked.get("rev"), str(asked.get("by", "")), change)
        if "state" in change:  # a drain is ended by either verb
            self.moving.undrain(name, False)
        micro.state = marked.get("state", micro.state)
        return {"name": name, **marked}


def _limits(demand: Demand, hub: Any) -> dict[str, Any]:
    """Return what a unit may take at most: what it is promised; what the Hub's own settings name stands before it."""
    promised = {"memory": demand.memory, "cpu": demand.cpu, "tasks": demand.tasks}
    return {name: value for name, value in {**promised, **(hub or {})}.items() if value}


async def _nothing() -> dict[str, Any]:
    return {}


def _too_early(known: Mapping[str, Any], told: Mapping[str, Any], asked: Mapping[str, float]) -> dict[str, str]:
    """Return what is said of a unit that was started since its microserver was asked (epoch seconds), and of which it told no life. Pure."""
    began = float((known.get("promise") or {}).get("started") or 0.0)
    if told.get("state", "exited") != "exited" or not began or began < asked.get(known.get("microserver", ""), 0.0):
        return {}
    return {"state": "unknown", "reason": "its microserver has not answered since it was started"}


def _without_about(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != "about"}


async def _disks(micro: AnyMicroserver) -> None:
    try:
        await micro.look_at_disks()
    except AgentFarmError as error:
        log.info("microserver %s does not say how its disks are: %s", micro.name, error.detail)


def alone(path: Path) -> int:
    """Be the only daemon of this socket; return the lock's file descriptor, which is held for as long as the process lives.

    Raises StartError: there is another one, or the path is too long.
    """
    if len(str(path).encode()) > 107:
        raise StartError(f"{path} is too long for a unix socket (107 bytes)", hint="choose a shorter state directory")
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StartError(
            f"another fleet daemon uses {path.parent}", hint="one for each state directory: stop the other first"
        ) from None
    return lock


def listen(app: tornado.web.Application, path: Path) -> None:
    """Listen on the socket; one that a dead daemon left is removed."""
    path.unlink(missing_ok=True)
    server = tornado.httpserver.HTTPServer(app)
    server.add_socket(tornado.netutil.bind_unix_socket(str(path), mode=0o600))


async def run(directory: Path, api_url: str, token_file: Path) -> None:
    """Serve until SIGTERM or SIGINT. Raises StartError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    every = seconds_of("AGENTFARM_RECONCILE_SECONDS", LOOK_SECONDS)
    health = seconds_of("AGENTFARM_HEALTH_SECONDS", HEALTH_SECONDS)
    lock = alone(directory / "fleet.sock")  # before anything is read: who still has it may write yet
    forwards = forwards_of(os.environ.get("AGENTFARM_FORWARD_PORTS", f"{FORWARDS.start}-{FORWARDS.stop - 1}"))
    fleet, users = Fleet(directory, forwards), HubUsers(api_url, token_file)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await fleet.open_the_way()
    listen(application(fleet, users), directory / "fleet.sock")
    drop_others(directory / "helper")
    log.info("fleet daemon of %s is up", directory)
    looking = asyncio.create_task(Reconciler(fleet, users, every).run())
    waiting = asyncio.create_task(stopping.wait())
    watching = asyncio.create_task(fleet.remotes.watch())
    judging = asyncio.create_task(fleet.watch(health))
    walling = asyncio.create_task(fleet.walling.run())
    moving = asyncio.create_task(fleet.moving.run())
    await asyncio.wait([looking, watching, judging, walling, moving, waiting], return_when=asyncio.FIRST_COMPLETED)
    for task in (looking, watching, judging, walling, moving):
        task.cancel()
    await fleet.moving.stop()
    await fleet.remotes.let_go()
    await users.close()
    for task in (looking, watching, judging, walling, moving):
        if task.done() and not task.cancelled():
            task.result()  # a dead loop ends the daemon, loudly
    os.close(lock)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    os.umask(0o077)
    try:
        state, api_url, token_file = (os.environ[name] for name in NEEDED)
    except KeyError as error:
        print(f"{error.args[0]} is not set: start the daemon by agentfarm up", file=sys.stderr)
        return 2
    try:
        asyncio.run(run(Path(state).resolve(), api_url, Path(token_file)))
    except AgentFarmError as error:
        print(f"{error.detail}. {error.hint}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"the fleet daemon cannot start: {error}. Check disk and rights of the state directory", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
