"""The rows of benchmarks/fleet.py that need microservers: a whole farm whose agents' servers run on the lab's (tests/lab), as root.

by hand: `ssh` to the microserver with a port forwarded, and there the same program in the same environment, as root.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import websockets
from common import free_port, spread

from jupyterhub_agentfarm.fleet.client import FleetClient
from jupyterhub_agentfarm.records import unit_name
from jupyterhub_agentfarm.spawner import WHOLE_START

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "lab"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "e2e"))

from farmkit import Farm, Person, clean_env, until
from labkit import Lab, missing

Row = dict[str, Any]
STARTS = 5  # of each kind, one after the other, in turns; one more before, which warms the caches
MESSAGES = 400  # each way
MEMORY_OF_ONE = 300 << 20  # bytes: a server and its first kernel, with some to spare
LOOK = 0.1  # seconds between two looks whether it is up, both ways: a question to the Hub costs it 8 ms


def why_not() -> str:
    """Say why there is no lab here, or ""."""
    return missing()


class Running:
    """A farm without a model, whose servers run on so many microservers, and nowhere else."""

    def __init__(self, farm: Farm, lab: Lab, hosts: int) -> None:
        self.farm, self.lab = farm, lab
        self.fleet = FleetClient(farm.state / "fleet.sock", timeout=90)
        lab.need(hosts)
        key = asyncio.run(self.fleet.joining())["public_key"]
        for host in range(1, hosts + 1):
            lab.install(host, key)
            registration = {"ssh": f"root@{lab.address(host)}", "host_keys": [lab.host_key(host)]}
            added = asyncio.run(self.fleet.register(f"micro{host}", registration))
            if added["silent"]:
                raise RuntimeError(added["silent"])
        asyncio.run(self.fleet.cordon("local", "servers go elsewhere"))
        self.alice: Person = farm.person("alice")
        token = (farm.state / "secrets" / "hub-service.token").read_text().strip()
        self.hub = httpx.Client(
            base_url=f"{farm.ready['hub_url']}api", headers={"Authorization": f"token {token}"}, timeout=60
        )
        self.api = self.alice.api()

    def make(self, agent: str) -> None:
        draft = {"prompt": "Answer.", "model": {"name": "none"}}
        self.api.post("/agents", json={"name": agent, "draft": draft}).raise_for_status()

    def server(self, agent: str) -> dict[str, Any]:
        return dict(self.hub.get(f"/users/agent-{agent}").json().get("servers", {}).get("", {}))

    def begin(self, agent: str) -> None:
        self.api.post(f"/agents/{agent}/start", json={}).raise_for_status()

    def up(self, agent: str, seconds: float = 60) -> None:
        until(lambda: self.server(agent).get("ready"), seconds, f"{agent} is up", LOOK)

    def end(self, agent: str) -> None:
        self.api.post(f"/agents/{agent}/stop", json={}).raise_for_status()
        until(lambda: not self.server(agent), 60, f"{agent} is gone", LOOK)

    def unit(self, agent: str) -> dict[str, Any]:
        return asyncio.run(self.fleet.show(unit_name(f"agent-{agent}")))


@contextmanager
def farm(hosts: int) -> Iterator[Running]:
    """Run a farm on a lab of its own."""
    lab, place = Lab(), Path(tempfile.mkdtemp(prefix="afb-", dir="/tmp"))
    env = clean_env(HF_API_URL="http://127.0.0.1:9/v1", HUGGING_FACE_AUTH_TOKEN="none-needed")
    made = Farm(place / "farm", env, database=f"sqlite:///{place}/farm/farm.sqlite", options=("--no-demo",))
    try:
        made.start()
        try:
            yield Running(made, lab, hosts)
        finally:
            made.stop()
    finally:
        lab.down()
        shutil.rmtree(place, ignore_errors=True)


# --- how long a server takes to come up ---------------------------------------------------------------------------


class Hand:
    """Starts an agent's server as somebody would by hand: over ssh, what the farm starts there."""

    def __init__(self, running: Running, agent: str) -> None:
        self.lab, unit = running.lab, running.unit(agent)
        self.folder = f"/run/byhand-{unit['uid']}"
        process = Path("/proc") / self._outside(unit["unit"])
        self.argv = process.joinpath("cmdline").read_bytes().decode().split("\0")[:-1]
        environ = process.joinpath("environ").read_bytes().decode().split("\0")[:-1]
        self.env = dict(line.split("=", 1) for line in environ)
        made = running.hub.post(f"/users/agent-{agent}/tokens", json={"note": "by hand"}).raise_for_status().json()
        self.env["JUPYTERHUB_API_TOKEN"] = made["token"]
        there = f"/run/agentfarm/{unit['unit']}"
        self.argv = [word.replace(there, self.folder) for word in self.argv]
        self.env = {name: value.replace(there, self.folder) for name, value in self.env.items()}
        self.path = self.env["JUPYTERHUB_SERVICE_PREFIX"]
        self.env |= {
            "HOME": self.folder,
            "USER": "root",
            "LOGNAME": "root",
        }  # an agent's user is walled in without its unit

    def _outside(self, unit: str) -> str:
        """Return the process's number here: the lab's hosts are this machine's processes."""
        for one in psutil.process_iter(["cmdline"]):
            words = one.info["cmdline"] or []
            if any(f"/run/agentfarm/{unit}/server.sock" in word for word in words):
                return str(one.pid)
        raise RuntimeError(f"no process of {unit} was found")

    def ssh(self, *options: str) -> list[str]:
        known = f"UserKnownHostsFile={self.lab.folder / 'known_hosts'}"
        return [
            "ssh",
            "-F",
            "none",
            "-i",
            str(self.lab.folder / "key"),
            "-o",
            known,
            *options,
            f"root@{self.lab.address(1)}",
        ]

    def start(self) -> float:
        """Return the seconds until it answers; it is ended then."""
        port = free_port()
        words = " ".join(shell(f"{name}={value}") for name, value in self.env.items())
        script = f"rm -rf {self.folder}; install -d -m 700 {self.folder}; cd {self.folder}; exec env -i {words} {' '.join(map(shell, self.argv))}"
        begin = time.monotonic()
        with tempfile.TemporaryFile("w+") as said:
            forward = f"127.0.0.1:{port}:{self.folder}/server.sock"
            command = [*self.ssh("-L", forward, "-o", "ExitOnForwardFailure=yes"), "sh", "-s"]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said, text=True)
            assert process.stdin
            process.stdin.write(script)
            process.stdin.close()
            try:
                until(lambda: answers(port, self.path), 60, "the server started by hand answers", LOOK)
                return time.monotonic() - begin
            finally:
                self.lab("exec", 1, "sh", "-c", f"pkill -KILL -f sock=[/]{self.folder[1:]}/; true")
                process.wait(20)


def shell(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def answers(port: int, path: str) -> bool:
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        asking.request("GET", f"{path}api")
        return asking.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asking.close()


def starts(running: Running) -> list[Row]:
    """Start one server by the farm and by hand, in turns."""
    running.begin("one")
    running.up("one")
    hand = Hand(running, "one")
    running.end("one")
    by_farm, by_hand = [], []
    for _ in range(STARTS + 1):
        by_hand.append(hand.start() * 1000)
        begin = time.monotonic()
        running.begin("one")
        running.up("one")
        by_farm.append((time.monotonic() - begin) * 1000)
        running.end("one")
    farm_row, hand_row = spread(by_farm[1:]), spread(by_hand[1:])
    ratio = round(farm_row["p50"] / hand_row["p50"], 2)
    return [
        {"what": "a server started by hand over ssh, ms", **hand_row},
        {"what": "by Hub, spawner and daemon, ms", **farm_row, "x by hand": ratio},
    ]


# --- messages of kernels --------------------------------------------------------------------------------------------


def messages(running: Running) -> list[Row]:
    """Ask a kernel by the daemon's forward, by a plain `ssh -L`, and through the Hub's proxy, in turns."""
    running.begin("one")
    running.up("one")
    unit = running.unit("one")
    kernels = running.farm.kernels("agent-one", running.alice.token)
    headers = {"Authorization": f"token {running.alice.token}"}
    direct = f"http://127.0.0.1:{unit['port']}/user/agent-one/"
    until(lambda: httpx.get(f"{direct}api/kernels", headers=headers, timeout=30).status_code == 200, 30, "she may")
    kernel = httpx.post(f"{direct}api/kernels", headers=headers, json={"name": "python3"}, timeout=60).json()["id"]
    port, hand = free_port(), Hand(running, "one")
    plain = subprocess.Popen([*hand.ssh("-N", "-L", f"127.0.0.1:{port}:{unit['socket']}")])
    try:
        until(lambda: answers(port, "/user/agent-one/"), 30, "the plain forward leads there")
        ways = {
            "by the daemon's forward": (unit["port"], f"127.0.0.1:{unit['port']}"),
            "by ssh -L": (port, f"127.0.0.1:{port}"),
            "through the Hub's proxy": (httpx.URL(kernels.base).port, kernels.host),
        }
        taken = asyncio.run(_round_trips(ways, f"/user/agent-one/api/kernels/{kernel}/channels", headers))
    finally:
        plain.terminate()
        plain.wait(20)
    floor = spread(taken["by ssh -L"])["p50"]
    return [
        {"what": f"kernel message there and back {way}, ms", **spread(took), "more than ssh -L": round(spread(took)["p50"] - floor, 3)}
        for way, took in taken.items()
    ]  # fmt: skip


async def _round_trips(ways: dict[str, tuple[int, str]], path: str, headers: dict[str, str]) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {way: [] for way in ways}
    opened = {
        way: await websockets.connect(f"ws://{host}{path}?session_id={uuid.uuid4().hex}", host="127.0.0.1", port=port, additional_headers=headers, max_size=None)
        for way, (port, host) in ways.items()
    }  # fmt: skip
    for number in range(MESSAGES + 20):
        for way, ws in opened.items():
            begin = time.perf_counter()
            await _ask(ws)
            if number >= 20:
                taken[way].append((time.perf_counter() - begin) * 1000)
    for ws in opened.values():
        await ws.close()
    return taken


async def _ask(ws: Any) -> None:
    """Ask a kernel what it is, and wait for the answer."""
    number = uuid.uuid4().hex
    header = {"msg_id": number, "msg_type": "kernel_info_request", "username": "", "session": "", "version": "5.3"}
    message = {"header": header, "parent_header": {}, "metadata": {}, "channel": "shell", "buffers": [], "content": {}}
    await ws.send(json.dumps(message))
    async for frame in ws:
        got = json.loads(frame)
        if got["parent_header"].get("msg_id") == number and got["header"]["msg_type"] == "kernel_info_reply":
            return


# --- many at once ---------------------------------------------------------------------------------------------------


def together(running: Running, servers: int = 30) -> list[Row]:
    """Start many servers in the same moment; count those that fail: refused, given up by the Hub, or not up in its whole time for a start."""
    free = psutil.virtual_memory().available
    if free < servers * MEMORY_OF_ONE:
        return [{"what": f"{servers} servers together", "skipped": f"{free >> 20} MiB are free"}]
    agents = [f"many{number}" for number in range(servers)]
    for agent in agents:
        running.make(agent)
    begin = time.monotonic()

    def refused(agent: str) -> str:
        try:
            running.begin(agent)
        except httpx.HTTPStatusError as error:
            return f"{agent}: {error.response.text}"
        return ""

    def those(state: str) -> set[str]:
        found = running.hub.get("/users", params={"state": state, "limit": 200}).raise_for_status().json()
        return {one["name"].removeprefix("agent-") for one in found} & {*agents}

    with ThreadPoolExecutor(servers) as pool:
        said = [why for why in pool.map(refused, agents) if why]
    up: dict[str, float] = {}
    while len(up) < servers and time.monotonic() < begin + WHOLE_START:
        time.sleep(0.5)
        up |= {name: (time.monotonic() - begin) * 1000 for name in those("ready") - {*up}}
        if {*agents} - {*up} <= those("inactive"):  # the Hub has given up the rest
            break
    failed = [agent for agent in agents if agent not in up]
    where = [one["microserver"] for one in asyncio.run(running.fleet.units()) if one["state"] == "running"]
    counts = " ".join(f"{name} {where.count(name)}" for name in sorted(set(where)))
    used = (free - psutil.virtual_memory().available) >> 20
    row = {
        "what": f"{servers} servers together on 3 microservers, ms",
        **spread([*up.values()] or [0.0]),
        "failed": len(failed),
    }
    return [{**row, "up": counts, "MiB": used, **({"why": "; ".join(said or failed)[:500]} if failed else {})}]


PARTS: dict[str, Callable[[Running], list[Row]]] = {"starts": starts, "messages": messages, "together": together}


def measure(parts: list[str]) -> list[Row]:
    """Return the rows of these parts, on one farm, one after the other."""
    rows: list[Row] = []
    with farm(3 if "together" in parts else 1) as running:
        running.make("one")
        for part in parts:
            rows += PARTS[part](running)
    return rows
