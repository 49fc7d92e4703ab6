"""A farm whose agents work on microservers without a pause, and what is looked at while fault after fault strikes it.

`Rig` is the farm with all that stands around it, `Work` what the agents are given; walkkit.py walks through the faults.
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
from pathlib import Path
from random import Random
from typing import Any

import httpx
import msgspec
import psutil
from labkit import ALIVE, Lab

from agentfarm_sdk.errors import AgentFarmError
from agentfarm_sdk.protocol import ENDED
from agentfarm_sdk.tools.registry import pinned
from jupyterhub_agentfarm.chaos import hands, work
from jupyterhub_agentfarm.chaos.postgres import Postgres, programs
from jupyterhub_agentfarm.chaos.world import Requests
from jupyterhub_agentfarm.fleet.client import FleetClient
from jupyterhub_agentfarm.records import unit_name

sys.path.append(str(Path(__file__).parents[1] / "e2e"))
from farmkit import PATIENCE, Farm, clean_env, end_with_us, until

LEASE = 6.0
LONG_LEASE = 10.0  # where all is walked: TCP feels a short cut for longer than it is
STRICT_ALIVE = 2  # in place of ALIVE, where the machine is for this alone
RECONCILE = 5
GIVE_SECONDS = 2.0  # between two tasks of an agent
SORTS = ("effects", "effects", "effects", "approval", "child", "rest", "memory")
TOOLS = (hands.look, hands.store, hands.charge, hands.pay)
BUILT_IN = ("delegate", "wait_until", "ask_person", "remember")


class Rig:
    """The farm, with `agents` on `hosts` microservers, model and counting world; `two`: two services, on PostgreSQL.

    strict: the machine is for this alone, so that what is due by a time is held to it.
    """

    def __init__(self, lab: Lab, hosts: int, agents: int, two: bool, strict: bool) -> None:
        self.lab, self.hosts, self.strict = lab, range(1, hosts + 1), strict
        self.lease = LONG_LEASE if strict else LEASE
        self.patience = 2.0 if strict else PATIENCE
        self.agents = [f"w{number}" for number in range(agents)]
        self.place = Path(tempfile.mkdtemp(prefix="afl-", dir="/tmp"))
        self.effects = self.place / "effects.jsonl"
        self.effects.touch()
        self.missing = ""
        self.requests = Requests(self.effects)
        lab.need(hosts)
        self.model, port = self._child("model")
        self.world, self.world_port = self._child("world", str(self.effects), lab.env()["AFLAB_HUB"])
        self.world_url = f"http://{lab.env()['AFLAB_HUB']}:{self.world_port}"
        found = programs() if two else None
        self.postgres = Postgres(found) if found else None
        (self.place / "config.py").write_text(f"c.AgentFarm.lease_seconds = {self.lease}\n")
        state = self.place / "farm"
        database = self.postgres.create() if self.postgres else f"sqlite:///{state}/farm.sqlite"
        env = clean_env(
            HF_API_URL=f"http://127.0.0.1:{port}/v1", HUGGING_FACE_AUTH_TOKEN="none-needed", DB_CONNECTION_STRING=database,
            AGENTFARM_CONFIG=str(self.place / "config.py"), AGENTFARM_SSH_ALIVE_SECONDS=str(STRICT_ALIVE if strict else ALIVE), AGENTFARM_RECONCILE_SECONDS=str(RECONCILE),
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
            self.lab("exec", host, "sh", "-c", "rm -rf /var/lib/agentfarm")  # another farm's, of a test before
            self.register(host)
        asyncio.run(self.client.cordon("local", "its servers go elsewhere"))
        # what ails all hosts ails this machine: its pressure of memory is none of theirs
        asyncio.run(self.client.set_settings({"health": {"calm_seconds": 0, "memory_pressure": 0}}))
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
        self.lab.install(host, asyncio.run(self.client.joining())["public_key"])
        registration = {"ssh": f"root@{self.lab.address(host)}", "host_keys": [self.lab.host_key(host)]}
        asyncio.run(self.client.register(f"micro{host}", registration))

        def there() -> bool:
            micros = asyncio.run(self.client.microservers())
            return any(one["name"] == f"micro{host}" and not one["silent"] for one in micros)

        until(there, 60, f"micro{host} answers")

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

    # -- asking --------------------------------------------------------------------------------------------------

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
        """Say whether every part of the farm answers, and no microserver is away or ill; `missing` tells what is not."""
        try:
            with self.operator.hub() as hub:
                self.missing = "" if hub.get("/user").status_code == 200 else "the Hub"
            health = self.ask("GET", "/health")
            self.missing += "" if health["status"] == "ok" else f" {health}"
            ill = [micro for host in self.hosts if away(micro := self.micro(host)) or micro["health"]]
            self.missing += "".join(f" {micro}" for micro in ill)
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
        left = self._tokens([user["name"] for user in users])
        homes = {
            one["unit"]: one["microserver"] for one in asyncio.run(self.client.units()) if one["state"] == "running"
        }
        found, running = left, set[str]()
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

    def _tokens(self, users: list[str]) -> list[str]:
        """Return whose server has more than its one token at the Hub: one of a server that is gone is good for whoever finds it."""
        with self.operator.hub() as hub:
            kept = {
                user: hub.get(f"/users/{user}/tokens").raise_for_status().json()["api_tokens"]
                for user in users if user.startswith("agent-")
            }  # fmt: skip
        counts = {user: sum("Server at" in (one["note"] or "") for one in tokens) for user, tokens in kept.items()}
        return [f"{user} has {count} tokens of servers" for user, count in counts.items() if count > 1]


def away(one: dict[str, Any]) -> bool:
    """Say whether an operator sees that the microserver cannot be asked."""
    return one["state"] in ("lost", "silent") or bool(one.get("silent"))


def lost(one: dict[str, Any]) -> bool:
    """Say whether an operator sees that nothing is heard of it, nor of any run there."""
    return bool(one["state"] == "lost" and one["silent"])


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
        self.aimed: dict[
            str, str
        ] = {}  # agent -> its call with effect once, which is to be under way; "" until it is given
        self.pause = GIVE_SECONDS
        self.gate = rig.place / "gate-0"  # those calls are answered once it is there
        self.times: dict[str, list[float]] = {}  # task -> when it was given, and when it had ended (monotonic)

    def aim(self, agents: list[str]) -> None:
        """Give each of these, next, a call with effect once that the world has seen and does not answer until the gate is open."""
        self.aimed, self.pause = dict.fromkeys(agents, ""), 0.0
        self.gate = self.rig.place / f"gate-{self.given}"

    def hit(self) -> bool:
        """Say whether each of those calls has reached the world, and every agent is at work."""
        came = {one["name"] for one in self.rig.requests()}
        return set(self.aimed.values()) <= came and self.busy() == set(self.rig.agents)

    def busy(self) -> set[str]:
        return {self.of[one["task_id"]][0] for one in self.flying() if one["task_id"] in self.of}

    def flying(self) -> list[dict[str, Any]]:
        return [one for one in self.tasks.values() if one["status"] not in ENDED]

    def pump(self) -> bool:
        """Look at the tasks, decide, give new ones; False where the farm did not answer."""
        try:
            self._look()
            self._decide()
            busy = self.busy()
            for agent in self.rig.agents:
                if agent not in busy and time.monotonic() - self.turns.get(agent, (0, -9.0))[1] > self.pause:
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
                if task["status"] in ENDED and len(times := self.times.get(task["task_id"], [0.0] * 2)) < 2:
                    times.append(time.monotonic())
                if task["status"] == "succeeded" and task["task_id"] in self.of:
                    agent, number = self.of[task["task_id"]]
                    self.ended[agent] = max(number, self.ended.get(agent, 0))
            if not missing or page["next"] is None:
                return
            cursor = f"&cursor={page['next']}"

    def _give(self, agent: str) -> None:
        """Give a task; its key makes it harmless to ask again when the answer was lost."""
        aimed, homes = self.aimed.get(agent) == "", self.homes
        name = f"{self.begun}-{agent}{'-held' * aimed}-{self.given}"  # the same again has the same name
        beside = [one for one in self.rig.agents if one != agent and homes.get(one) == homes.get(agent)]
        sort = Random(f"{name} {self.seed}").choice(SORTS)
        if sort == "child" and not (agent in homes and beside):
            sort = "effects"  # nobody to delegate to who is struck by the same fault
        made = work.make(Random(name), sort, name, self.rig.world_url, beside[0] if beside else agent)
        given = self._held(name) if aimed else made.input
        task = self.rig.ask("POST", "/tasks", {"target": agent, "input": given, "key": f"faults-{name}"})
        if aimed:
            self.aimed[agent] = work.names(given)[0]
        self.given += 1
        self.times[task["task_id"]] = [time.monotonic()]
        self.turns[agent] = self.given, time.monotonic()
        self.tasks[task["task_id"]], self.of[task["task_id"]] = task, (agent, self.given)

    def _held(self, name: str) -> str:
        """Return a task whose first call waits in the world for the gate, its effect done."""
        where = f"{self.rig.world_url}/effect/charge-{name}"
        calls = [f"{where}-1?hold={self.gate}", f"{where}-2"]
        return json.dumps(
            {"trial": name, "steps": [[{"tool": "charge", "arguments": {"where": one}}] for one in calls]}
        )

    def took(self, agents: list[str], since: float, until: float) -> list[float]:
        """Return how long the tasks of these agents took that were given and had ended in that time: seconds."""
        whole = [
            (task, times)
            for task, times in self.times.items()
            if len(times) == 2 and since <= times[0] and times[1] <= until
        ]
        return sorted(end - begin for task, (begin, end) in whole if self.of[task][0] in agents)

    def _decide(self) -> None:
        """Answer what waits: approve or refuse; of a doubt say what the world knows."""
        for item in self.rig.ask("GET", "/inbox?limit=100")["items"]:
            happened = any(one["key"] == item["detail"].get("key") for one in self.rig.requests())
            with contextlib.suppress(httpx.HTTPStatusError):  # it was decided meanwhile, or its worker came back
                self.rig.ask("POST", f"/inbox/{item['inbox_id']}", work.wish(item, happened))
