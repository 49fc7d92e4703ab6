"""A farm whose agents work on microservers without a pause, and what is looked at while fault after fault strikes it.

`Rig` is the farm with all that stands around it, `Work` what the agents are given,
`Walk` the walk through the faults, each judged by itself: by the record and by what reached the outside world, as `agentfarm chaos` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import msgspec
import psutil
from labkit import Lab
from wirekit import Wires

from agentfarm_sdk.errors import AgentFarmError
from agentfarm_sdk.protocol import ENDED
from agentfarm_sdk.tools.registry import pinned
from jupyterhub_agentfarm.chaos import checks, hands, work
from jupyterhub_agentfarm.chaos.judge import Judge
from jupyterhub_agentfarm.chaos.postgres import Postgres, programs
from jupyterhub_agentfarm.fleet.client import FleetClient
from jupyterhub_agentfarm.records import unit_name

sys.path.append(str(Path(__file__).parents[1] / "e2e"))
from farmkit import PATIENCE, Farm, clean_env, end_with_us, until

LEASE = 6.0
ALIVE = 2  # seconds between two questions of SSH, of which three may stay unanswered
RECONCILE = 5
GIVE_SECONDS = 2.0  # between two tasks of an agent
SORTS = ("effects", "effects", "effects", "approval", "child", "rest", "memory")
TOOLS = (hands.look, hands.store, hands.charge, hands.pay)
BUILT_IN = ("delegate", "wait_until", "ask_person", "remember")
GIVEN_UP = frozenset({"given-up"})  # what a run of ours may fail of: we have said so


class NotHeld(Exception):
    """Something did not come true in its time."""


class Rig:
    """The farm, with `agents` on `hosts` microservers, model and counting world; `two`: two services, on PostgreSQL, where there is one."""

    def __init__(self, lab: Lab, hosts: int, agents: int, two: bool) -> None:
        self.lab, self.hosts = lab, range(1, hosts + 1)
        self.agents = [f"w{number}" for number in range(agents)]
        self.place = Path(tempfile.mkdtemp(prefix="afl-", dir="/tmp"))
        self.effects = self.place / "effects.jsonl"
        self.effects.touch()
        self.missing = ""
        self._read, self._requests = 0, list[dict[str, Any]]()
        lab.need(hosts)
        self.model, port = self._child("model")
        self.world, self.world_port = self._child("world", str(self.effects), lab.env()["AFLAB_HUB"])
        self.world_url = f"http://{lab.env()['AFLAB_HUB']}:{self.world_port}"
        found = programs() if two else None
        self.postgres = Postgres(found) if found else None
        (self.place / "config.py").write_text(f"c.AgentFarm.lease_seconds = {LEASE}\n")
        state = self.place / "farm"
        database = self.postgres.create() if self.postgres else f"sqlite:///{state}/farm.sqlite"
        env = clean_env(
            HF_API_URL=f"http://127.0.0.1:{port}/v1", HUGGING_FACE_AUTH_TOKEN="none-needed", DB_CONNECTION_STRING=database,
            AGENTFARM_CONFIG=str(self.place / "config.py"), AGENTFARM_SSH_ALIVE_SECONDS=str(ALIVE), AGENTFARM_RECONCILE_SECONDS=str(RECONCILE),
            AGENTFARM_RESTART_SECONDS="0.5",
        )  # fmt: skip
        options = ("--no-demo", *(["--standby"] if self.postgres else []))
        self.farm = Farm(state, env, database=database, options=options)
        self.client = FleetClient(state / "fleet.sock", timeout=90)

    def _child(self, name: str, *arguments: str) -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, "-m", f"jupyterhub_agentfarm.chaos.{name}", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=end_with_us)
        assert process.stdout
        return process, int(process.stdout.readline())

    def start(self) -> None:
        """Start the farm, take the microservers in, make the agents. The agents' servers start with their first tasks."""
        self.farm.start()
        for host in self.hosts:
            self.register(host)
        asyncio.run(self.client.cordon("local", "its servers go elsewhere"))
        self.alice = self.farm.person("alice")
        self.operator = self.farm.person(next(iter(self.farm.passwords()["admin"])))
        self.api = self.alice.api()
        specs = [pinned(one) for one in TOOLS]
        tools = [*(msgspec.to_builtins(spec) for spec, _ in specs), *({"name": one} for one in BUILT_IN)]
        draft = {"prompt": "Do what you are told.", "model": {"name": "scripted"}, "tools": tools}
        for number, agent in enumerate(self.agents):
            body = {"name": agent, "draft": draft, "files": {"hands.py": specs[0][1].decode()}}
            self.ask("POST", "/agents", body)
            self.ask("POST", f"/agents/{agent}/publish", {})
            with (
                self.operator.api() as api
            ):  # all hosts have one load, as it was when they were asked last: that spreads nothing
                world = self.world_url.removeprefix("http://")  # the walls let an agent go where its list says alone
                own = {"pin": f"micro{self.hosts[number % len(self.hosts)]}", "egress": [world]}
                api.put(f"/agents/{agent}/resources", json=own).raise_for_status()

    def register(self, host: int) -> None:
        """Take a microserver in as `microserver add` does, or give the farm its new key."""
        self.lab.install(host, asyncio.run(self.client.ssh_key()))
        registration = {"ssh": f"root@{self.lab.address(host)}", "host_keys": [self.lab.host_key(host)]}
        added = asyncio.run(self.client.register(f"micro{host}", registration))
        assert not added["silent"], added

    def stop(self) -> None:
        """Stop everything that was started; nothing of it may be left."""
        self.lab.mend()
        if hasattr(self.farm, "launcher"):
            with contextlib.suppress(AgentFarmError):
                for unit in asyncio.run(self.client.units()):
                    asyncio.run(self.client.stop(unit["unit"], now=True))
            self.farm.stop()
        for process in (self.model, self.world):
            process.kill()
            process.wait(10)
        if self.postgres:
            self.postgres.remove()
        left = [
            one for one in psutil.process_iter(["cmdline"]) if str(self.place) in " ".join(one.info["cmdline"] or [])
        ]
        assert not left, left
        if not self.farm.leftovers():
            shutil.rmtree(self.place, ignore_errors=True)

    # -- asking; the first two are what a Judge asks -------------------------------------------------------------

    def requests(self) -> list[dict[str, Any]]:
        """Return everything that reached the world: {name, key, new}."""
        with self.effects.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
        if whole:
            self._read += len(whole) + 1
            self._requests += [json.loads(line) for line in whole.splitlines()]
        return self._requests

    def asked_until(self, method: str, path: str, body: Any = None) -> Any:
        def look() -> Any:
            try:
                return (self.ask(method, path, body),)
            except httpx.HTTPError:
                return None

        return until(look, 60, f"{method} {path}")[0]

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the API in alice's name. Raises httpx.HTTPError."""
        answer = self.api.request(method, path, json=body)
        if answer.is_error:
            raise httpx.HTTPStatusError(f"{answer.status_code}: {answer.text}", request=answer.request, response=answer)
        return answer.json() if answer.content else None

    def leader(self) -> str:
        """Return which of two services leads, as the launcher names it."""
        pid = json.loads((self.farm.state / "leading.json").read_text())["pid"]
        return next(name for name, one in self.farm.ready["pids"].items() if one == pid)

    def micro(self, host: int) -> dict[str, Any]:
        """Return what an operator sees of a microserver."""
        return next(one for one in self.ask("GET", "/microservers")["items"] if one["name"] == f"micro{host}")

    def answers(self) -> bool:
        """Say whether every part of the farm answers, and no microserver is away; `missing` tells what is not."""
        try:
            with self.operator.hub() as hub:
                self.missing = "" if hub.get("/user").status_code == 200 else "the Hub"
            health = self.ask("GET", "/health")
            self.missing += "" if health["status"] == "ok" else f" {health}"
            self.missing += "".join(f" {micro}" for host in self.hosts if away(micro := self.micro(host)))
        except httpx.HTTPError as error:
            self.missing = f"{type(error).__name__}: {error}"
        return not self.missing

    def homes(self) -> dict[str, str]:
        """Return on which microserver each agent's server is."""
        return {one["agent"]: one["microserver"] for one in asyncio.run(self.client.units()) if one.get("agent")}

    def pids(self) -> dict[str, int]:
        """Return the process of each agent's server that runs."""
        units = asyncio.run(self.client.units())
        return {one["agent"]: one["pid"] for one in units if one.get("agent") and one["state"] == "running"}

    def disorder(self) -> list[str]:
        """Compare the Hub's servers, the daemon's units and what really runs on the hosts: what is there without the others."""
        with self.operator.hub() as hub:
            users = hub.get("/users", params={"state": "active", "limit": 200}).raise_for_status().json()
        known = {unit_name(user["name"], server) for user in users for server in user.get("servers", {})}
        homes = {
            one["unit"]: one["microserver"] for one in asyncio.run(self.client.units()) if one["state"] == "running"
        }
        found, running = list[str](), set[str]()
        for host in self.hosts:
            lines = self.lab("exec", host, "systemctl", "list-units", "--plain", "--no-legend", "agentfarm-*.service")
            units = {line.split()[0].removeprefix("agentfarm-").removesuffix(".service") for line in lines.splitlines()}
            count = self.lab("exec", host, "bash", "-c", "pgrep -cf 'bin/jupyterhub-singleuse[r]'; true")
            if int(count) != len(units):
                found.append(f"micro{host}: {int(count)} servers run in {len(units)} units")
            found += [
                f"{unit} runs on micro{host}, the farm has it on {homes.get(unit)}"
                for unit in units
                if homes.get(unit) != f"micro{host}"
            ]
            running |= units
        found += [f"{unit} runs, and the Hub does not know it" for unit in running - known]
        return found + [f"the Hub has {unit}, which does not run" for unit in known - running]


def away(one: dict[str, Any]) -> bool:
    """Say whether an operator sees that the microserver cannot be asked."""
    return one["state"] in ("lost", "silent") or bool(one.get("silent"))


class Work:
    """Gives each agent task after task, and decides what waits for a person."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig, self.seed, self.begun = rig, seed, f"f{seed}"
        self.tasks: dict[str, dict[str, Any]] = {}  # by id, as last seen; with those that agents have delegated
        self.turns: dict[str, tuple[int, float]] = {}  # agent -> number and time of its last task
        self.of: dict[str, tuple[str, int]] = {}  # task -> agent and number
        self.ended: dict[str, int] = {}  # agent -> the newest of its tasks that has succeeded
        self.given = 0
        self.homes: dict[str, str] = {}  # where the agents' servers are, once they are there

    def flying(self) -> list[dict[str, Any]]:
        return [one for one in self.tasks.values() if one["status"] not in ENDED]

    def pump(self) -> bool:
        """Look at the tasks, decide, give new ones; False where the farm did not answer."""
        try:
            self._look()
            self._decide()
            busy = {self.of[one["task_id"]][0] for one in self.flying() if one["task_id"] in self.of}
            for agent in self.rig.agents:
                if agent not in busy and time.monotonic() - self.turns.get(agent, (0, -9.0))[1] > GIVE_SECONDS:
                    self._give(agent)
        except (httpx.HTTPError, OSError):
            return False
        return True

    def _look(self) -> None:
        missing, cursor = {one["task_id"] for one in self.flying()}, ""
        while True:
            page = self.rig.ask("GET", f"/tasks?limit=100{cursor}")
            for task in page["items"]:
                self.tasks[task["task_id"]] = task
                missing.discard(task["task_id"])
                if task["status"] == "succeeded" and task["task_id"] in self.of:
                    agent, number = self.of[task["task_id"]]
                    self.ended[agent] = max(number, self.ended.get(agent, 0))
            if not missing or page["next"] is None:
                return
            cursor = f"&cursor={page['next']}"

    def _give(self, agent: str) -> None:
        """Give a task; its key makes it harmless to ask again when the answer was lost."""
        name, homes = f"{self.begun}-{self.given}", self.homes
        beside = [one for one in self.rig.agents if one != agent and homes.get(one) == homes.get(agent)]
        sort = Random(f"{name} {self.seed}").choice(SORTS)
        if sort == "child" and not (agent in homes and beside):
            sort = "effects"  # nobody to delegate to who is struck by the same fault
        made = work.make(Random(name), sort, name, self.rig.world_url, beside[0] if beside else agent)
        task = self.rig.ask("POST", "/tasks", {"target": agent, "input": made.input, "key": f"faults-{name}"})
        self.given += 1
        self.turns[agent] = self.given, time.monotonic()
        self.tasks[task["task_id"]], self.of[task["task_id"]] = task, (agent, self.given)

    def _decide(self) -> None:
        """Answer what waits: approve or refuse; of a doubt say what the world knows."""
        for item in self.rig.ask("GET", "/inbox?limit=100")["items"]:
            happened = any(one["key"] == item["detail"].get("key") for one in self.rig.requests())
            with contextlib.suppress(httpx.HTTPStatusError):  # it was decided meanwhile, or its worker came back
                self.rig.ask("POST", f"/inbox/{item['inbox_id']}", work.wish(item, happened))


@dataclass(frozen=True)
class Fault:
    """What is done. strike: does it, and returns what heals it. hosts: whose servers it concerns.

    seen: what an operator must be shown of these while it stands. leases: for how many it stands, at least; seconds: besides.
    """

    name: str
    strike: Callable[[Rig], Callable[[], None]]
    hosts: tuple[int, ...] = ()
    seen: Callable[[dict[str, Any]], bool] | None = None
    leases: float = 0.0
    seconds: float = 0.0
    works: bool = False  # agents there go on while it stands
    ends: bool = False  # servers there


@dataclass
class Line:
    """What came of a fault: after how many seconds it was seen, how many tasks were in flight, what was not held."""

    fault: str
    tasks: int = 0
    runs: int = 0
    seen: float | None = None
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        seen = "" if self.seen is None else f"seen after {self.seen:.0f} s, "
        held = "held" if not self.broken else "BROKEN: " + "; ".join(self.broken)
        return f"{self.fault:<12} {self.tasks} in flight, {self.runs} runs judged, {seen}{self.seconds:.0f} s: {held}"


class Walk:
    """Walks through faults, one after the other, on one farm."""

    def __init__(self, rig: Rig, seed: int = 1) -> None:
        self.rig, self.work, self.wires, self.judge = (
            rig,
            Work(rig, seed),
            Wires(rig.farm, rig.alice, rig.homes),
            Judge(rig),
        )  # type: ignore[arg-type]
        self.judged: set[str] = set()

    def begin(self) -> None:
        """Let each agent do a first task, so that its server is there; listen to a kernel on each microserver."""
        self.until(lambda: len(self.work.ended) == len(self.rig.agents), 180, "each agent has done a task")
        self.until(self.rig.requests, 60, "a call has reached the world: else nothing that is judged could be broken")
        self.work.homes = self.rig.homes()
        assert set(self.work.homes.values()) == {f"micro{host}" for host in self.rig.hosts}, self.work.homes

    def until(self, look: Callable[[], Any], seconds: float, what: str) -> float:
        """Let the work go on until something holds; return after how many seconds. Raises NotHeld."""
        began = time.monotonic()
        while True:
            self.work.pump()
            with contextlib.suppress(httpx.HTTPError):
                if look():
                    return time.monotonic() - began
            if time.monotonic() - began > PATIENCE * seconds:
                raise NotHeld(f"not within {PATIENCE * seconds:.0f} s: {what}")
            time.sleep(0.3)

    def walk(self, fault: Fault) -> Line:
        """Strike, look, heal, look, judge."""
        self.wires.mend()
        self.until(lambda: len(self.work.flying()) >= len(self.rig.agents), 60, "each agent is at work")
        struck = [one["task_id"] for one in self.work.flying()]
        line, began, pids = Line(fault.name, len(struck)), time.monotonic(), self.rig.pids()
        names = {f"micro{host}" for host in fault.hosts}
        others = [agent for agent in self.rig.agents if self.work.homes[agent] not in names]
        heal = fault.strike(self.rig)
        try:
            self._stand(fault, line, others)
        except NotHeld as error:
            line.broken.append(f"while it stood: {error}")
        finally:
            heal()
        try:
            self._return(struck)
        except NotHeld as error:
            line.broken.append(f"behind it: {error}")
        for agent in others if fault.ends else self.rig.agents:
            if (now := self.rig.pids().get(agent)) != pids.get(agent):
                line.broken.append(f"the server of {agent} was {pids.get(agent)}, and is {now}")
        self._wires(line, names)
        self._judge(line, struck)
        line.seconds = time.monotonic() - began
        return line

    def _stand(self, fault: Fault, line: Line, others: list[str]) -> None:
        """While it stands: an operator sees it, and the other agents finish what they are given."""
        if not fault.hosts:
            return
        since, agents = self.work.given, self.rig.agents if fault.works else others
        end = time.monotonic() + fault.leases * LEASE + fault.seconds
        if fault.seen:
            what = f"an operator sees what is with micro{fault.hosts[0]}"
            line.seen = self.until(lambda: all(fault.seen(self.rig.micro(host)) for host in fault.hosts), 30, what)  # type: ignore[misc]
        self.until(lambda: time.monotonic() > end, 60, "time passes")
        self.until(lambda: not self._behind(agents, since), 60, "the other agents finish their tasks")

    def _behind(self, agents: list[str], since: int) -> list[str]:
        """Return those of the agents that have not finished a task that was given since."""
        return [agent for agent in agents if self.work.ended.get(agent, 0) <= since]

    def _return(self, struck: list[str]) -> None:
        """Behind it: all parts answer, every task ends, each agent works again, and what runs is what the Hub knows."""
        try:
            self.until(self.rig.answers, 60, "every part answers, and no microserver is away")
        except NotHeld as error:
            raise NotHeld(f"{error}: {self.rig.missing}") from None
        since = self.work.given
        self.until(lambda: all(self.work.tasks[one]["status"] in ENDED for one in struck), 90, "the tasks have ended")
        behind: list[str] = []

        def all_work() -> bool:
            behind[:] = self._behind(self.rig.agents, since)
            return not behind

        try:
            self.until(all_work, 90, "each agent works again")
        except NotHeld as error:
            raise NotHeld(f"{error}: not {', '.join(behind)}") from None
        found: list[str] = []

        def in_order() -> bool:
            found[:] = self.rig.disorder()
            return not found

        try:
            self.until(in_order, 30, "")
        except NotHeld:
            raise NotHeld("; ".join(found)) from None

    def _wires(self, line: Line, struck: set[str]) -> None:
        """No WebSocket to a kernel elsewhere was cut, and something comes on it."""
        since = time.monotonic()
        for micro in self.wires.agents.keys() - struck:
            try:
                self.until(lambda micro=micro: micro in self.wires.cuts or self.wires.heard[micro] > since, 20, "")  # type: ignore[misc]
            except NotHeld:
                line.broken.append(f"nothing comes on the WebSocket to {micro} any more")
            if micro in self.wires.cuts:
                line.broken.append(f"the WebSocket to a kernel on {micro} was cut: {self.wires.cuts[micro]}")

    def _judge(self, line: Line, struck: list[str]) -> None:
        """Judge what was in flight, and every run that has ended since the fault before."""
        ended = [
            one for one in self.work.tasks.values() if one["status"] in ENDED and one["task_id"] not in self.judged
        ]
        for task_id in struck:
            line.broken += checks.unfinished(self.work.tasks[task_id])
        for task in ended:
            self.judged.add(task["task_id"])
            if task["run_id"]:
                line.runs += 1
                line.broken += self.judge.of_run(task["run_id"], GIVEN_UP)
        line.broken += self.judge.of_world(ended)

    def end(self) -> Line:
        """Give nothing more; judge what is left, and that nothing else reached the world."""
        line, began = Line("the end"), time.monotonic()
        self.wires.close()
        line.tasks = len(self.work.flying())
        end = time.monotonic() + PATIENCE * 60
        while self.work.flying() and time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError):
                self.work._look()
                self.work._decide()
            time.sleep(0.3)
        self._judge(line, [one["task_id"] for one in self.work.flying()])
        line.broken += self.judge.of_world(self.work.tasks.values(), self.work.begun)
        line.seconds = time.monotonic() - began
        return line
