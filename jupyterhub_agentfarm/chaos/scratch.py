"""A farm to be maltreated: started by its own command in a directory made for it, with the world, model and wire around it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import psutil

from agentfarm_sdk.tools.registry import pinned

from ..errors import Invalid, StartError
from ..fleet.helper import processes
from . import hands, room
from .network import Wire
from .postgres import Postgres, programs
from .world import Requests

T = TypeVar("T")
MARKER = "scratch.json"  # in the directory of every farm that a trial made
AGENTS = ("chaos-a", "chaos-b")
BUILT_IN = ("delegate", "wait_until", "ask_person", "remember")
ROOM_MEGABYTES = 160
RESTART_SECONDS = 0.5  # a farm's own pauses grow where processes die all the time, as they do here
TOOLS = (hands.look, hands.store, hands.charge, hands.pay)
LIBC = ctypes.CDLL(None)
# Python of every process of the farm begins with this: the machine's clock, as far as a trial has moved it.
CLOCK = """
import os, time
_file, _real = os.path.join(os.path.dirname(os.path.abspath(__file__)), "offset"), time.time


def _time():
    try:
        with open(_file) as offset:
            return _real() + float(offset.read() or 0)
    except (OSError, ValueError):
        return _real()


time.time = _time
"""


def until(look: Callable[[], T | None], seconds: float, what: str, every: float = 0.1) -> T:
    """Return the first true answer of `look`. Raises TimeoutError: what did not come true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(every)
    raise TimeoutError(f"not within {seconds:.0f} s: {what}")


def end_with_us() -> None:
    """Run in a child before it becomes its program: it is asked to end when the trial is killed (PR_SET_PDEATHSIG)."""
    LIBC.prctl(1, signal.SIGTERM, 0, 0, 0)


def prepared(named: Path | None, force: bool) -> Path:
    """Return the directory of the farm to be maltreated. Raises Invalid: it is somebody's farm."""
    directory = named.absolute() if named else Path(tempfile.mkdtemp(prefix="afc-", dir="/tmp")) / "farm"
    if directory.exists() and any(directory.iterdir()) and not (directory / MARKER).exists() and not force:
        raise Invalid(
            f"{directory} is not a scratch farm: its runs would be disturbed for real",
            hint="name a directory that does not exist yet, or none; --force takes this one all the same",
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / MARKER).write_text('{"made_by": "agentfarm chaos"}\n')
    return directory


class Scratch:
    """The farm and what stands around it. `lease`: seconds."""

    def __init__(self, directory: Path, database: str, lease: float, standby: bool = False) -> None:
        self.directory, self.lease, self.standby = directory, lease, standby
        self.effects = directory / "effects.jsonl"
        self.offset = directory / "clock" / "offset"
        self.postgres: Postgres | None = None
        self.launcher: subprocess.Popen[bytes] | None = None
        self.aimed, self.aimed_run = "", ""  # the agent whose processes are struck, and its run; none: whichever
        self.requests = Requests(self.effects)
        self.notebook: subprocess.Popen[bytes] | None = None
        self.room: Path | None = None  # a small disk with the database on it, where one could be made
        self._token = ""
        if database == "postgresql":
            if (found := programs()) is None:
                raise StartError("there is no PostgreSQL server here", hint="install the package postgresql")
            self.postgres = Postgres(found, ROOM_MEGABYTES)
            self.room = self.postgres.folder if self.postgres.small else None
            self.database = self.postgres.create()
        else:
            place = directory / "room"
            self.room = place if room.mounted(place, ROOM_MEGABYTES) else None
            self.database = f"sqlite:///{self.room or directory}/farm.sqlite"

    # -- starting and stopping -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything. Raises StartError, TimeoutError."""
        self.effects.touch()
        if self.room and not self.postgres:
            _move_database(self.directory, self.room)
        self.offset.parent.mkdir(exist_ok=True)
        (self.offset.parent / "sitecustomize.py").write_text(CLOCK)
        self.world, self.world_port = _child("world", str(self.effects))
        self.model, self.model_port = _child("model")
        self.wire = Wire(lambda: self.port("service"))
        (self.directory / "config.py").write_text(f"c.AgentFarm.lease_seconds = {self.lease}\n")
        self.launch()
        self.client = httpx.Client(timeout=8)
        self._token = self._sign_in("chaos")
        for name in AGENTS:
            self._make_agent(name)

    def launch(self) -> None:
        """Start the farm itself, as a person would. Raises TimeoutError."""
        (self.directory / "ready.json").unlink(missing_ok=True)
        drop = ("AGENTFARM_", "JUPYTERHUB_", "HF_", "HUGGING_FACE", "DB_CONNECTION", "QUESTDB", "CONFIGPROXY")
        env = {name: value for name, value in os.environ.items() if not name.startswith(drop)} | {
            "DB_CONNECTION_STRING": self.database, "HF_API_URL": f"http://127.0.0.1:{self.model_port}/v1", "HUGGING_FACE_AUTH_TOKEN": "none-needed",
            "AGENTFARM_RESTART_SECONDS": str(RESTART_SECONDS), "AGENTFARM_CONFIG": str(self.directory / "config.py"), "AGENTFARM_SERVICE_URL": f"http://127.0.0.1:{self.wire.port}",
            "AGENTFARM_EGRESS": f"127.0.0.1:{self.world_port}",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(self.offset.parent), os.environ.get("PYTHONPATH", "")))),
        }  # fmt: skip
        command = [sys.executable, "-m", "jupyterhub_agentfarm.cli", "up", "--state", str(self.directory), "--no-demo", "--port", "0", *(["--standby"] if self.standby else [])]  # fmt: skip
        with (self.directory / "launcher.log").open("ab") as log:
            launcher = self.launcher = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, start_new_session=True, preexec_fn=end_with_us
            )
        until(lambda: self.ready or launcher.poll() is not None, 120, "the farm is up")
        if launcher.poll() is not None:
            raise StartError("the scratch farm does not start", hint=f"see {self.directory}/launcher.log")

    def stop(self) -> None:
        """Stop all that was started; once more is harmless."""
        if self.launcher and self.launcher.poll() is None:
            self.launcher.send_signal(signal.SIGINT)
            try:
                self.launcher.wait(60)
            except subprocess.TimeoutExpired:
                self.launcher.kill()
                self.launcher.wait(10)
        for one in (getattr(self, "world", None), getattr(self, "model", None), self.notebook):
            if one:
                one.kill()
                one.wait(10)
        if hasattr(self, "wire"):
            self.wire.close()
        if self.room and not self.postgres:  # it would be gone with the room
            _move_database(self.room, self.directory)
            room.unmount(self.room)
            self.room = None
        if self.postgres:
            self.postgres.remove()
            self.postgres = None

    def drive_notebook(self, given: str) -> None:
        """Let a notebook's kernel drive a run of its own: a process that is not the farm's."""
        env = {**os.environ, "AGENTFARM_URL": f"http://127.0.0.1:{self.wire.port}", "AGENTFARM_TOKEN": self._token}
        with (self.directory / "notebook.log").open("ab") as log:
            self.notebook = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub_agentfarm.chaos.notebook", given], env=env, stdout=log, stderr=log,
                cwd=self.directory, preexec_fn=end_with_us,
            )  # fmt: skip

    def model_again(self) -> None:
        self.model, _ = _child("model", str(self.model_port))

    # -- what there is -------------------------------------------------------------------------------------------

    @property
    def ready(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.directory / "ready.json").read_text()))
        except (OSError, ValueError):
            return {}

    def port(self, name: str) -> int:
        return int(json.loads((self.directory / "ports.json").read_text())[name])

    def process(self, name: str) -> psutil.Process:
        """Return one of the launcher's processes; of two services the one that leads. Raises psutil.NoSuchProcess."""
        pid = self.ready.get("pids", {}).get(name)
        if self.standby and name == "service":
            with contextlib.suppress(OSError, ValueError, KeyError):
                pid = json.loads((self.directory / "leading.json").read_text())["pid"]
        if not pid:
            raise psutil.NoSuchProcess(0)
        return psutil.Process(int(pid))

    def aim(self, agent: str = "", run: str = "") -> None:
        """Strike at what belongs to that agent, and at the kernel that drives that run; nothing named: whichever."""
        self.aimed, self.aimed_run = agent if agent in AGENTS else "", run

    def servers(self) -> list[psutil.Process]:
        """Return the agents' servers that run: of the one that is aimed at, where it has one."""
        running = []
        for unit in (self.directory / "units").glob("*/unit.json"):
            try:
                told = json.loads(unit.read_text())
                if processes.alive(told["pid"], told["start"]):
                    running.append((told.get("about", {}).get("agent"), psutil.Process(int(told["pid"]))))
            except (psutil.Error, OSError, ValueError, KeyError):
                continue
        return [one for agent, one in running if agent == self.aimed] or [one for _, one in running]

    def kernels(self) -> list[psutil.Process]:
        """Return the agents' kernels that run."""
        below = [child for server in self.servers() for child in children(server)]
        return [one for one in below if alive(one) and "ipykernel_launcher" in " ".join(cmdline(one))]

    def drivers(self) -> list[psutil.Process]:
        """Return the kernel that the run which is aimed at was given to last; where none drives it, all."""
        found, handed = self.kernels(), re.compile(rf"run {self.aimed_run}, fence (\d+) .*\(pid (\d+)\)")
        logs = [unit.read_text(errors="replace") for unit in (self.directory / "units").glob("*/log")]
        told = sorted((int(fence), int(pid)) for log in logs for fence, pid in handed.findall(log) if self.aimed_run)
        return [one for one in found if told and one.pid == told[-1][1]] or found

    # -- asking --------------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the API in the trial's own name. Raises httpx.HTTPError: it is away, or refuses."""
        url = f"http://127.0.0.1:{self.port('service')}/api/v1{path}"
        answer = self.client.request(method, url, json=body, headers={"Authorization": f"token {self._token}"})
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def asked_until(self, method: str, path: str, body: Any = None, seconds: float = 60) -> Any:
        """Ask until it is answered. Raises TimeoutError with what came last."""
        came: list[str] = []

        def look() -> Any:
            try:
                return (self.ask(method, path, body),)
            except httpx.HTTPStatusError as error:
                came.append(error.response.text[:300])
            except httpx.HTTPError as error:
                came.append(str(error))
            return None

        try:
            return until(look, seconds, f"{method} {path}")[0]
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {came[-1:]}") from None

    def answers(self) -> bool:
        """Say whether every part of the farm answers."""
        try:
            self.ask("GET", "/health")
            self.ask("GET", "/microservers")
            token = {"Authorization": f"token {self._token}"}
            hub = self.client.get(f"http://127.0.0.1:{self.port('hub')}/hub/api/user", headers=token)
            through = self.client.get(f"http://127.0.0.1:{self.port('public')}/services/agentfarm/api/v1/health")
        except (httpx.HTTPError, OSError, ValueError):
            return False
        return hub.status_code == through.status_code == 200

    def _sign_in(self, name: str) -> str:
        """Sign a person in by the Hub's form, and make a token of theirs: only a person may decide."""
        password = json.loads((self.directory / "secrets" / "passwords.json").read_text())["people"]
        hub = f"http://127.0.0.1:{self.port('hub')}/hub/"
        with httpx.Client(base_url=hub, timeout=30) as browser:
            browser.get("login")
            form = {"username": name, "password": password, "_xsrf": browser.cookies["_xsrf"]}
            if browser.post("login", data=form).status_code != 302:
                raise StartError("the Hub of the scratch farm refuses the trial's person")
        auth = {"auth": {"username": name, "password": password}, "note": "a trial"}
        return str(
            httpx.post(f"{hub}api/users/{name}/tokens", json=auth, timeout=30).raise_for_status().json()["token"]
        )

    def _make_agent(self, name: str) -> None:
        specs = [pinned(one) for one in TOOLS]
        tools = [*(msgspec.to_builtins(spec) for spec, _ in specs), *({"name": one} for one in BUILT_IN)]
        draft = {"prompt": "Do what you are told.", "model": {"name": "scripted"}, "tools": tools}
        files = {"hands.py": specs[0][1].decode()}
        try:
            self.ask("POST", "/agents", {"name": name, "draft": draft, "files": files})
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 409:  # of an earlier trial in the same directory
                raise StartError(f"agent {name} cannot be made: {error.response.text[:300]}") from error
        self.ask("POST", f"/agents/{name}/publish", {})


def _move_database(source: Path, target: Path) -> None:
    for file in source.glob("farm.sqlite*"):
        shutil.move(file, target / file.name)


def _child(name: str, *arguments: str) -> tuple[subprocess.Popen[str], int]:
    """Start the world or the model; return its process and port."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"jupyterhub_agentfarm.chaos.{name}", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=end_with_us,
    )
    assert process.stdout
    return process, int(process.stdout.readline() or 0)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
