"""What a whole farm takes: how soon a task reaches the model, how soon a blocked tool is stopped, what the service is at rest.

    python benchmarks/farm.py [--database sqlite] [--tasks 200] [--json FILE]

`agentfarm up` in a directory of its own: real Hub, proxy, service, supervisor and warm kernel. Only the model is a stand-in:
a server in a process of its own that notes when a request reaches it (all clocks are the machine's CLOCK_MONOTONIC).

submit → model: from the moment before `POST /tasks` until its model request has come in, on an agent that is warm and idle.
created, leased, requested: the transactions of those events begin, from the same moment on (the first two are one).
cancel: from `POST …/cancel` until the task has ended, while its tool blocks its thread for ever; `grace` is what it is given.
at rest: memory and processor time of the service, over 20 s in which nobody asks for anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hands
import httpx
import msgspec
import psutil
from common import fsync_floor, machine, postgres, postgres_floor, spread, sqlite_floor, table, write_json

from agentfarm_sdk.protocol import CANCEL_GRACE_SECONDS, moment
from agentfarm_sdk.tools.registry import pinned

UP_SECONDS, END_SECONDS, REST_SECONDS = 120.0, 60.0, 20.0
WARM = 10  # tasks that are made and not counted
SETTLE = 5.0  # seconds after the first task, in which the server starts the kernel that is to be its spare from then on
PAUSE = 0.05  # seconds between two tasks: the agent is idle
Row = dict[str, Any]


# --- the model ------------------------------------------------------------------------------------------------------


class Model(BaseHTTPRequestHandler):
    """Prints when each request has come in. One whose input is "block" asks for the tool, any other is answered."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print(time.monotonic(), flush=True)
        message: dict[str, Any] = {"role": "assistant", "content": "done"}
        if asked["messages"][-1]["content"] == "block":
            call = {"index": 0, "id": "x", "type": "function", "function": {"name": "block", "arguments": "{}"}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "finish_reason": "tool_calls" if "tool_calls" in message else "stop"}
        whole = {"id": "s", "model": "stand-in", "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
        if not asked.get("stream"):
            return self.answer("application/json", json.dumps({**whole, "choices": [{**choice, "message": message}]}))
        chunk = json.dumps({**whole, "choices": [{**choice, "delta": message}]})
        return self.answer("text/event-stream", f"data: {chunk}\n\ndata: [DONE]\n\n")

    def do_GET(self) -> None:
        self.answer("application/json", json.dumps({"data": [{"id": "stand-in", "object": "model"}]}))

    def answer(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


# --- the farm -------------------------------------------------------------------------------------------------------


def until(look: Callable[[], Any], seconds: float, what: str, every: float = 0.05) -> Any:
    """Return the first true answer of `look`. Raises TimeoutError: what did not come true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(every)
    raise TimeoutError(f"not within {seconds:.0f} s: {what}")


class Farm:
    """A running farm, its API in the command line's name, and the model's stream of moments."""

    def __init__(self, state: Path, model: subprocess.Popen[str]) -> None:
        self.state, self.model = state, model
        client = json.loads((state / "client.json").read_text())
        headers = {"Authorization": f"token {client['token']}"}
        self.http = httpx.Client(base_url=f"{self.ready['service_url']}/api/v1", headers=headers, timeout=30)

    @property
    def ready(self) -> dict[str, Any]:
        return dict(json.loads((self.state / "ready.json").read_text()))

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.http.request(method, path, json=body)
        if answer.is_error:
            raise RuntimeError(f"{method} {path}: {answer.text[:500]}")
        return answer.json()

    def asked_at(self) -> float:
        """Return when the next model request came in (CLOCK_MONOTONIC)."""
        assert self.model.stdout
        return float(self.model.stdout.readline())

    def ended(self, task: str, every: float = 0.005) -> Any:
        def look() -> Any:
            found = self.ask("GET", f"/tasks/{task}")
            return found if found["status"] in ("succeeded", "failed", "cancelled") else None

        return until(look, END_SECONDS, f"{task} ends", every)


@contextlib.contextmanager
def farm(directory: Path, database: str) -> Iterator[Farm]:
    """Start a farm on `database`, with an agent `bench` that has the blocking tool; stop all of it."""
    state = directory / "state"
    model = subprocess.Popen([sys.executable, __file__, "model"], stdout=subprocess.PIPE, text=True)
    assert model.stdout
    drop = ("AGENTFARM_", "JUPYTERHUB_", "HF_", "HUGGING_FACE", "DB_CONNECTION", "CONFIGPROXY")
    env = {name: value for name, value in os.environ.items() if not name.startswith(drop)} | {
        "DB_CONNECTION_STRING": database or f"sqlite:///{state}/farm.sqlite", "HUGGING_FACE_AUTH_TOKEN": "none-needed",
        "HF_API_URL": f"http://127.0.0.1:{int(model.stdout.readline())}/v1",
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "jupyterhub_agentfarm.cli",
        "up",
        "--state",
        str(state),
        "--no-demo",
        "--port",
        "0",
    ]
    with (directory / "launcher.log").open("ab") as log:
        launcher = subprocess.Popen(command, env=env, cwd=directory, stdout=log, stderr=log, start_new_session=True)
    try:
        up = until(lambda: (state / "ready.json").exists() or launcher.poll() is not None, UP_SECONDS, "the farm is up")
        if not up or launcher.poll() is not None:
            raise RuntimeError((directory / "launcher.log").read_text()[-3000:])
        running = Farm(state, model)
        spec, source = pinned(hands.block)
        draft = {"prompt": "Answer.", "model": {"name": "stand-in"}, "tools": [msgspec.to_builtins(spec)]}
        running.ask("POST", "/agents", {"name": "bench", "draft": draft, "files": {"hands.py": source.decode()}})
        running.ask("POST", "/agents/bench/publish", {})
        yield running
    finally:
        launcher.send_signal(signal.SIGINT)
        try:
            launcher.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(launcher.pid, signal.SIGKILL)
        model.kill()
        model.wait(10)


# --- what is measured -----------------------------------------------------------------------------------------------


def dispatch(running: Farm, count: int) -> Row:
    """Submit one task after the other to an agent that is warm and idle."""
    taken: list[float] = []
    phases: dict[str, list[float]] = {"run.created": [], "run.leased": [], "model.requested": []}
    for _ in range(count + WARM):
        began, begin = time.time(), time.monotonic()
        task = running.ask("POST", "/tasks", {"target": "bench", "input": "go"})["task_id"]
        taken.append((running.asked_at() - begin) * 1000)
        done = running.ended(task)
        assert done["status"] == "succeeded", done
        for event in running.ask("GET", f"/runs/{done['run_id']}/events")["items"]:
            if event["kind"] in phases:
                phases[event["kind"]].append(((moment(event["at"]) or 0.0) - began) * 1000)
        time.sleep(PAUSE)
    return {"what": "submit → model, ms", **spread(taken[WARM:])} | {
        f"{kind.split('.')[1]} p50": spread(found[WARM:])["p50"] for kind, found in phases.items()
    }


def cancelled(running: Farm, times: int) -> Row:
    """Cancel tasks whose tool blocks."""
    taken = []
    for _ in range(times):
        task = running.ask("POST", "/tasks", {"target": "bench", "input": "block"})
        running.asked_at()

        def started(run: str = task["run_id"]) -> bool:
            return any(one["kind"] == "tool.started" for one in running.ask("GET", f"/runs/{run}/events")["items"])

        until(started, END_SECONDS, "the tool is started")
        time.sleep(0.5)  # it has begun to block by now
        begin = time.monotonic()
        running.ask("POST", f"/tasks/{task['task_id']}/cancel", {})
        assert running.ended(task["task_id"], 0.02)["status"] == "cancelled"
        taken.append((time.monotonic() - begin) * 1000)
    return {"what": "cancel of a blocked tool, ms", **spread(taken), "grace": CANCEL_GRACE_SECONDS * 1000}


def rest(running: Farm) -> Row:
    """Look at the service while nothing is asked."""
    service = psutil.Process(running.ready["pids"]["service"])
    time.sleep(2)
    before = service.cpu_times()
    time.sleep(REST_SECONDS)
    after = service.cpu_times()
    used = (after.user + after.system - before.user - before.system) / REST_SECONDS
    memory = service.memory_info().rss / 1e6
    return {"what": "the service at rest", "RSS MB": round(memory, 1), "CPU %": round(used * 100, 2)}


def measure(directory: Path, database: str, tasks: int) -> list[Row]:
    directory.mkdir()
    name = "postgresql" if database else "sqlite"
    with farm(directory, database) as running:
        first = running.ask("POST", "/tasks", {"target": "bench", "input": "go"})["task_id"]  # its server starts
        running.asked_at()
        running.ended(first)
        time.sleep(SETTLE)
        rows = [dispatch(running, tasks), rest(running), cancelled(running, 3)]
    return [{"database": name, **row} for row in rows]


def main() -> None:
    if sys.argv[1:] == ["model"]:
        return serve()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--json", help="a file for the figures")
    asked = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="farm-benchmark-"))
    directory.chmod(0o755)
    floors = {"fdatasync": spread(fsync_floor(directory)), "sqlite": spread(sqlite_floor(directory))}
    rows: list[Row] = []
    try:
        if asked.database != "postgresql":
            rows += measure(directory / "sqlite", "", asked.tasks)
        if asked.database != "sqlite":
            with postgres(directory) as url:
                floors["postgresql"] = spread(postgres_floor(url))
                rows += measure(directory / "postgresql", url, asked.tasks)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(table([{"floor, ms": name, **figures} for name, figures in floors.items()]), end="\n\n")
    print(table(rows))
    write_json(asked.json, {"machine": machine(), "floors": floors, "rows": rows})


if __name__ == "__main__":
    main()
