"""A whole farm for the tests: started by its own command, spoken to from outside, its processes killed by number."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import sqlalchemy as sa
import websockets
from ledgercheck import engine_url

from agentfarm_sdk.protocol import ENDED
from jupyterhub_agentfarm.store.tables import runs

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


# deadlines are for a machine of one's own; tests share two cores with other tests and their farms
PATIENCE = 4.0 * float(os.environ.get("AGENTFARM_SLOWNESS", "1"))


def until(look: Callable[[], T | None], seconds: float, what: str, every: float = 0.1) -> T:
    """Return the first true answer of `look`; raises AssertionError with its last answer when time is up."""
    end, last = time.monotonic() + PATIENCE * seconds, None
    while time.monotonic() < end:
        if last := look():
            return last
        time.sleep(every)
    raise AssertionError(f"not within {PATIENCE * seconds:.0f} s: {what} (last: {last!r})")


LIBC = ctypes.CDLL(None)


def end_with_us() -> None:
    """Run in a child before it becomes its program: when the tests are killed, it is asked to end (PR_SET_PDEATHSIG)."""
    LIBC.prctl(1, signal.SIGTERM, 0, 0, 0)


class Counter:
    """The outside world, in a process of its own: what really reached it, and how often."""

    def __init__(self, directory: Path) -> None:
        self.file, self.directory = directory / "effects.jsonl", directory
        self.file.touch()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub_agentfarm.chaos.world", str(self.file)],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=end_with_us,
        )
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def requests(self, name: str) -> list[dict[str, Any]]:
        """Return every request that reached it under this name, as they stand on disk."""
        lines = [json.loads(line) for line in self.file.read_text().splitlines()]
        return [line for line in lines if line["name"] == name]

    def effects(self, name: str) -> int:
        """Return how often something happened: a key that came before happens once."""
        return sum(bool(one["new"]) for one in self.requests(name))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)


@dataclass
class Person:
    """Somebody at the farm: a personal token of the Hub, as one makes it on the Hub's token page."""

    farm: Farm
    name: str
    password: str
    token: str

    def api(self) -> httpx.Client:
        """Speak to the service's own listener in this person's name."""
        return httpx.Client(
            base_url=f"{self.farm.ready['service_url']}/api/v1", headers=self.headers, timeout=30 * PATIENCE
        )

    def hub(self) -> httpx.Client:
        return httpx.Client(base_url=f"{self.farm.ready['hub_url']}api", headers=self.headers, timeout=30 * PATIENCE)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"token {self.token}"}

    def submit(self, target: str, input: str, **options: Any) -> dict[str, Any]:
        with self.api() as api:
            return dict(
                api.post("/tasks", json={"target": target, "input": input, **options}).raise_for_status().json()
            )

    def task(self, task_id: str) -> dict[str, Any]:
        with self.api() as api:
            return dict(api.get(f"/tasks/{task_id}").raise_for_status().json())

    def events(self, run_id: str) -> list[dict[str, Any]]:
        with self.api() as api:
            return list(api.get(f"/runs/{run_id}/events", params={"limit": 500}).raise_for_status().json()["items"])

    def settled(self, task_id: str, seconds: float = 90) -> dict[str, Any]:
        """Wait until the task has ended or waits for somebody; the service may be away meanwhile."""

        def look() -> dict[str, Any] | None:
            try:
                task = self.task(task_id)
            except httpx.HTTPError:
                return None
            ended = task["status"] in {"succeeded", "failed", "cancelled"}
            return task if ended or (task["status"] == "waiting" and task["waiting"] != "place") else None

        return until(look, seconds, f"{task_id} has ended or waits")

    def server(self, user: str, seconds: float = 60) -> Kernel:
        """Start a server of this person's, or one that is shared, and return the way to its kernels."""
        with self.hub() as hub:
            started = hub.post(f"/users/{user}/server", json={"user_options": {}})
            assert started.status_code in (201, 202, 400), started.text
            if user == self.name:
                until(
                    lambda: hub.get(f"/users/{user}").json()["servers"].get("", {}).get("ready"),
                    seconds,
                    f"{user}'s server",
                )
        return self.farm.kernels(user, self.token)


@dataclass
class Farm:
    """One farm under its launcher. `ready` is what the launcher writes when everything answers."""

    state: Path
    env: dict[str, str]
    database: str = ""
    options: tuple[str, ...] = ()  # of `agentfarm up`
    launcher: subprocess.Popen[bytes] = field(init=False)
    people: dict[str, Person] = field(default_factory=dict)

    def start(self, seconds: float = 120) -> None:
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker = self.state / "ready.json"
        marker.unlink(missing_ok=True)
        self.log = self.state.parent / f"{self.state.name}.log"
        with self.log.open("ab") as out:
            self.launcher = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub_agentfarm.cli", "up", "--state", str(self.state), "--port", "0", *self.options],
                cwd=self.state, env=self.env, stdout=out, stderr=out, start_new_session=True,
                preexec_fn=end_with_us,
            )  # fmt: skip
        until(
            lambda: marker.exists() or self.launcher.poll() is not None, seconds, f"the farm is ready, see {self.log}"
        )
        assert self.launcher.poll() is None, self.log.read_text()[-4000:]

    @property
    def ready(self) -> dict[str, Any]:
        return dict(json.loads((self.state / "ready.json").read_text()))

    def stop(self) -> None:
        self.launcher.send_signal(signal.SIGINT)
        try:
            self.launcher.wait(60)
        except subprocess.TimeoutExpired:
            self.launcher.kill()
            self.launcher.wait(10)

    def leftovers(self) -> list[str]:
        """Return the command lines of processes that name this farm's directory."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("AGENTFARM_STATE") == str(self.state):
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found

    def told(self, lines: int = 40) -> str:
        """Return the ends of the farm's logs, for a failure whose cause only they tell."""
        logs = sorted((self.state / "logs").glob("*.log"))
        ends = {one.name: one.read_text(errors="replace").splitlines()[-lines:] for one in logs}
        return "\n".join(f"{name}: {line}" for name, end in ends.items() for line in end)

    def kill(self, name: str) -> None:
        """Kill -9 one of the launcher's processes, and wait until it is started anew and answers."""
        before = self.ready["pids"][name]
        kill(before)

        def again() -> bool:
            try:
                return bool(self.ready["pids"][name] != before)
            except (ValueError, KeyError, FileNotFoundError):
                return False

        until(again, 30, f"{name} is started again")

    def passwords(self) -> dict[str, Any]:
        return dict(json.loads((self.state / "secrets" / "passwords.json").read_text()))

    def person(self, name: str) -> Person:
        """Sign a person in by the Hub's form, as a browser does, and make a token of theirs; once for each."""
        if name in self.people:
            return self.people[name]
        passwords = self.passwords()
        password = passwords["admin"].get(name, passwords["people"])
        with httpx.Client(base_url=self.ready["hub_url"], timeout=30 * PATIENCE) as browser:
            browser.get("login")
            form = {"username": name, "password": password, "_xsrf": browser.cookies["_xsrf"]}
            signed_in = browser.post("login", data=form)
            assert signed_in.status_code == 302, signed_in.text
        auth = {"auth": {"username": name, "password": password}, "note": "a test"}
        answer = httpx.post(f"{self.ready['hub_url']}api/users/{name}/tokens", json=auth, timeout=30 * PATIENCE)
        assert answer.status_code == 201, answer.text
        made = self.people[name] = Person(self, name, password, answer.json()["token"])
        return made

    def cli(self, *arguments: str, seconds: float = 120, token: str = "") -> subprocess.CompletedProcess[str]:
        """Run `agentfarm …` as the person whose token it is; without one, as the launcher's client.json says."""
        client = json.loads((self.state / "client.json").read_text())
        env = self.env | {"AGENTFARM_URL": client["url"], "AGENTFARM_TOKEN": token or client["token"]}
        command = [sys.executable, "-m", "jupyterhub_agentfarm.cli", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE * seconds, check=False)

    def busy(self) -> list[str]:
        """Return the runs that a worker has, or that wait for one."""
        engine = sa.create_engine(engine_url(self.database))
        with engine.connect() as db:
            where = runs.c.status.in_(["queued", "assigned", "running", "cancelling"])
            found = list(db.execute(sa.select(runs.c.run_id).where(where)).scalars())
        engine.dispose()
        return found

    def kernels(self, user: str, token: str) -> Kernel:
        public = httpx.URL(self.ready["public_url"])
        return Kernel(f"http://127.0.0.1:{public.port}/user/{user}/", f"{user}.{public.host}:{public.port}", token)


class Held:
    """A run whose effect has just happened outside, and whose worker still waits for the answer."""

    def __init__(self, person: Person, agent: str, tool: str, counter: Counter) -> None:
        self.person, self.counter, self.name = person, counter, f"{tool}-{uuid.uuid4().hex[:8]}"
        self.gate = counter.directory / f"{self.name}.go"
        where = f"{counter.url}/effect/{self.name}?hold={self.gate}"
        self.task_id = person.submit(agent, json.dumps({"tool": tool, "arguments": {"where": where}}))["task_id"]

    def reached(self, times: int = 1, seconds: float = 60) -> None:
        def look() -> bool:
            task = self.person.task(self.task_id)
            assert task["status"] not in ENDED, (task, self.kinds())
            return len(self.counter.requests(self.name)) >= times

        until(look, seconds, f"{self.name} reached the outside world")

    def release(self) -> None:
        self.gate.touch()

    def settled(self, seconds: float = 120) -> dict[str, Any]:
        return self.person.settled(self.task_id, seconds)

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.person.events(self.person.task(self.task_id)["run_id"])]

    def worker(self) -> psutil.Process:
        """Find the process that waits for the counter's answer to this run."""
        agent = self.person.task(self.task_id)["agent"]
        for process in psutil.process_iter():
            try:
                here = any(c.raddr and c.raddr.port == self.counter.port for c in process.net_connections("tcp"))
                if here and process.pid != self.counter.process.pid and self.agent_of(process) == agent:
                    return process
            except psutil.Error:
                continue
        raise AssertionError(f"no worker of {agent} speaks to the counter")

    @staticmethod
    def agent_of(process: psutil.Process) -> str | None:
        for one in [process, *process.parents()]:
            try:
                if agent := one.environ().get("AGENTFARM_AGENT"):
                    return agent
            except psutil.Error:
                continue
        return None

    def server(self) -> psutil.Process:
        """Find the agent's Jupyter server: the topmost process with the agent's name in its environment."""
        worker = self.worker()
        return [one for one in [worker, *worker.parents()] if "singleuser" in " ".join(one.cmdline())][-1]


def kill(pid: int) -> None:
    """End a process as a power cut would, and wait until it is gone (or is a zombie of somebody else's)."""
    process = psutil.Process(pid)
    process.send_signal(signal.SIGKILL)
    until(lambda: not psutil.pid_exists(pid) or process.status() == psutil.STATUS_ZOMBIE, 10, f"process {pid} is gone")


class Kernel:
    """A kernel of somebody's server, driven as a notebook drives it: REST and WebSocket through the proxy."""

    def __init__(self, base: str, host: str, token: str) -> None:
        self.base, self.host, self.token = base, host, token

    def leads(self) -> bool:
        """Say whether the proxy leads to the server by now.

        An agent may have done a task before the Hub has seen that its server is up and told the proxy: until then the Hub itself
        answers there, a POST by 403 (it takes no token at a path that is not its own) and a GET by sending one elsewhere.
        """
        headers = {"Authorization": f"token {self.token}", "Host": self.host}
        try:
            return httpx.get(f"{self.base}api/kernels", headers=headers, timeout=30 * PATIENCE).status_code == 200
        except httpx.RemoteProtocolError:
            return False

    def run(self, code: str, seconds: float = 60) -> str:
        """Execute in a new kernel; return what it printed. Raises AssertionError with the traceback."""
        until(self.leads, seconds, f"the proxy leads to {self.base}")
        return asyncio.run(asyncio.wait_for(self._run(code), PATIENCE * seconds))

    async def _run(self, code: str) -> str:
        headers = {"Authorization": f"token {self.token}", "Host": self.host}
        async with httpx.AsyncClient(base_url=self.base, headers=headers, timeout=30 * PATIENCE) as http:
            kernel = (await http.post("api/kernels", json={"name": "python3"})).raise_for_status().json()["id"]
            try:
                return await self._execute(kernel, code, headers)
            finally:
                await http.delete(f"api/kernels/{kernel}")

    async def _execute(self, kernel: str, code: str, headers: dict[str, str]) -> str:
        where = httpx.URL(self.base)
        url = f"ws://{self.host}{where.path}api/kernels/{kernel}/channels?session_id={uuid.uuid4().hex}"
        message = {
            "header": {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "session": "", "version": "5.3"},
            "parent_header": {}, "metadata": {}, "channel": "shell", "buffers": [],
            "content": {"code": code, "silent": False, "store_history": False, "allow_stdin": False, "user_expressions": {}},
        }  # fmt: skip
        printed: list[str] = []
        async with websockets.connect(
            url,
            host=where.host,
            port=where.port,
            additional_headers={"Authorization": headers["Authorization"]},
            max_size=None,
        ) as ws:
            await ws.send(json.dumps(message))
            async for frame in ws:
                got = json.loads(frame)
                if got.get("parent_header", {}).get("msg_id") != message["header"]["msg_id"]:
                    continue
                kind, content = got["header"]["msg_type"], got["content"]
                if kind == "stream":
                    printed.append(content["text"])
                elif kind in {"execute_result", "display_data"}:
                    printed.append(content["data"].get("text/plain", "") + "\n")
                elif kind == "error":
                    raise AssertionError("\n".join(content["traceback"]) + "\n" + "".join(printed))
                elif kind == "execute_reply":
                    assert content["status"] == "ok", content
                elif kind == "status" and content["execution_state"] == "idle":
                    return "".join(printed)
        raise AssertionError("the kernel's WebSocket was closed")


def clean_env(**more: str) -> dict[str, str]:
    """Return this process's environment without what would configure a farm, a hub or a model."""
    drop = ("AGENTFARM_", "JUPYTERHUB_", "HF_", "HUGGING_FACE", "DB_CONNECTION", "QUESTDB", "CONFIGPROXY")
    ours = "AGENTFARM_FORWARD_PORTS"  # of this process of tests
    kept = {name: value for name, value in os.environ.items() if name == ours or not name.startswith(drop)}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    kept["AGENTFARM_EGRESS"] = "127.0.0.0/8:*"  # the outside world of the tests is on this machine
    return kept | more
