"""What a durable step costs: model reply, admission and outcome of one effectful call, through gateway and ledger.

    python benchmarks/ledger.py [--database sqlite] [--steps 100,400,4000] [--json FILE]

A real service with a real database runs in one process, an upstream that answers at once in it; a worker in another
process speaks to it over one WebSocket, as the SDK does. Beside it, in the same run: the disk's floor (8 kB and
fdatasync) and the bare driver (one row of the same payload, one commit). Times are milliseconds of a step as the worker
sees it: from asking the model until it asks again.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fakehub
import httpx
import msgspec
import psutil
from common import (
    PAYLOAD,
    Counted,
    Strace,
    count_postgres,
    count_sqlite,
    free_port,
    fsync_floor,
    late_over_early,
    machine,
    postgres,
    postgres_floor,
    postgres_syncs,
    spread,
    sqlite_floor,
    table,
    write_json,
)

from agentfarm_sdk.ledger import FarmLedger
from agentfarm_sdk.protocol import Definition, Limits, ModelAnswer, ModelRequest, ModelSpec, ToolSpec, new_event

WARM = 20  # steps that are made and not counted
TOOL = ToolSpec(
    name="note",
    schema={"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    source="kernel",
)
DEFINITION = Definition(
    prompt="Note what you see.",
    model=ModelSpec(name="instant"),
    tools=[TOOL],
    limits=Limits(steps=None, calls=None, tokens=None, seconds=None),
)


# --- the worker, a process of its own -------------------------------------------------------------------------------


def work(url: str, steps: int, runs: int, appends: bool) -> None:
    """Make so many runs of so many steps at once; print the milliseconds of each step as JSON, a list for each run.

    Waits for a line before it begins. appends: a step is one append alone, of the same payload, without a model request.
    """
    print(json.dumps(asyncio.run(_work(url, steps, runs, appends))))


async def _work(url: str, steps: int, runs: int, appends: bool) -> list[list[float]]:
    ledgers = [await _begun(url) for _ in range(runs)]
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    result = base64.b64encode(os.urandom(PAYLOAD)).decode()[:PAYLOAD]  # it can hardly be packed
    return await asyncio.gather(*((_appends if appends else _steps)(ledger, steps, result) for ledger in ledgers))


async def _begun(url: str) -> FarmLedger:
    body = {"name": "bench", "definition": msgspec.to_builtins(DEFINITION), "input": "go", "mode": "live"}
    headers = {"Authorization": f"token {fakehub.TOKEN}"}
    async with httpx.AsyncClient(base_url=f"{url}/api/v1", headers=headers, timeout=30) as http:
        answer = await http.post("/runs", json=body)
    assert answer.status_code == 201, answer.text
    bound = answer.json()
    ledger = FarmLedger(url, bound["run"], bound["fence"], bound["token"], renews=True)
    await ledger.open()
    return ledger


async def _appends(ledger: FarmLedger, steps: int, result: str) -> list[float]:
    taken = []
    for _ in range(steps + WARM):
        begin = time.perf_counter()
        await (await ledger.append([new_event("value.recorded", {"name": "x", "value": result})]))
        taken.append((time.perf_counter() - begin) * 1000)
    await ledger.close()
    return taken[WARM:]


async def _steps(ledger: FarmLedger, steps: int, result: str) -> list[float]:
    taken, begin = [], time.perf_counter()
    for step in range(steps + WARM):
        request = ModelRequest(run=ledger.run, fence=ledger.fence, request=f"r{step}", n=ledger.n)
        reply = msgspec.json.decode(await ledger.request("model", request), type=ModelAnswer)
        await ledger.append([new_event("tool.succeeded", {"result": result}, reply.calls[0].call)])
        now = time.perf_counter()
        taken.append((now - begin) * 1000)
        begin = now
    await (await ledger.append([new_event("run.succeeded", {"result": "done"})]))
    await ledger.drain()
    await ledger.close()
    return taken[WARM:]


# --- the service ----------------------------------------------------------------------------------------------------


@dataclass
class Service:
    """A running service, its database, and how its store is counted."""

    process: subprocess.Popen[bytes]
    url: str
    database: str

    def count(self) -> Counted:
        if self.database.startswith("sqlite"):
            return count_sqlite(Path(self.database.removeprefix("sqlite:///")), self.process.pid)
        return count_postgres(self.database)

    def commits(self) -> int:
        """Return how many transactions the service's writer has committed."""
        text = httpx.get(f"{self.url}/api/v1/metrics").raise_for_status().text
        lines = [line for line in text.splitlines() if line.startswith("agentfarm_ledger_commits_total")]
        return int(float(lines[0].split()[-1])) if lines else 0

    def work(
        self, steps: int, workers: int = 1, runs: int = 1, appends: bool = False
    ) -> tuple[list[list[float]], float]:
        """Let workers make `runs` runs of so many steps each, all at once; return the runs' times and the wall time in seconds."""
        command = [sys.executable, __file__, "work", self.url, str(steps), str(runs), "appends" if appends else ""]
        started = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(workers)
        ]
        for one in started:
            assert one.stdout and one.stdout.readline().strip() == "ready"
        begin = time.perf_counter()
        for one in started:
            assert one.stdin
            one.stdin.write("\n")
            one.stdin.flush()
        outputs = [one.communicate(timeout=600)[0] for one in started]
        if failed := [one.returncode for one in started if one.returncode]:
            raise RuntimeError(f"{len(failed)} workers failed; what they said stands above")
        return [taken for output in outputs for taken in json.loads(output)], time.perf_counter() - begin

    def seconds(self) -> float:
        """Return the processor time of the service so far."""
        used = psutil.Process(self.process.pid).cpu_times()
        return float(used.user + used.system)


@contextlib.contextmanager
def service(directory: Path, database: str) -> Iterator[Service]:
    """Start the service on `database`, with the instant upstream."""
    state = Path(tempfile.mkdtemp(prefix="state", dir=directory))
    (state / "secrets").mkdir(mode=0o700)
    port = free_port()
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("AGENTFARM_", "JUPYTERHUB_", "HF_"))
    }
    env |= {
        "AGENTFARM_STATE": str(state),
        "AGENTFARM_SERVICE_PORT": str(port),
        "DB_CONNECTION_STRING": database,
        "JUPYTERHUB_API_URL": fakehub.start(),
        "JUPYTERHUB_API_TOKEN": "service",
        "JUPYTERHUB_SERVICE_NAME": "agentfarm",
        "JUPYTERHUB_SERVICE_PREFIX": "/services/agentfarm/",
        "JUPYTERHUB_CLIENT_ID": "service-agentfarm",
        "JUPYTERHUB_BASE_URL": "/",
        "JUPYTERHUB_PUBLIC_URL": f"http://127.0.0.1:{port}/services/agentfarm/",
        "JUPYTERHUB_PUBLIC_HUB_URL": "http://127.0.0.1:1/hub/",
    }
    with (directory / "service.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, __file__, "serve"], env=env, cwd=state, stdout=log, stderr=log)
    running = Service(process, f"http://127.0.0.1:{port}", database)
    try:
        until = time.monotonic() + 30
        while time.monotonic() < until and process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{running.url}/api/v1/health").status_code == 200:
                    break
            time.sleep(0.05)
        else:
            raise RuntimeError((directory / "service.log").read_text()[-3000:])
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def serve() -> None:
    """Be the service, with an upstream in the process that answers at once with one call."""
    from jupyterhub_agentfarm.app import AgentFarm
    from jupyterhub_agentfarm.gateway.asking import Ask, AskedCall, OnToken, Reply
    from jupyterhub_agentfarm.gateway.proxy import Route, Upstreams

    class Instant:
        name, max_in_flight = "instant", 64

        async def complete(self, ask: Ask, on_token: OnToken | None) -> Reply:
            return Reply("", [AskedCall("note", '{"text":"hello"}')], tokens_in=10, tokens_out=10, model="instant")

        async def models(self) -> list[dict[str, Any]]:
            return [{"id": "instant"}]

        def cost(self, reply: Reply) -> float:
            return 0.0

        async def price(self, model: str, provider: str | None) -> tuple[float, float]:
            return 0.0, 0.0

        async def inputs(self, model: str) -> frozenset[str]:
            return frozenset({"text"})

        async def context(self, model: str, provider: str | None) -> None:
            return None

        async def close(self) -> None: ...

    class Farm(AgentFarm):
        async def build_upstreams(self, directory: Path) -> Upstreams:
            return Upstreams([Route(Instant(), ("instant",))])

    farm = Farm()
    farm.initialize([])
    farm.start()


# --- the report -----------------------------------------------------------------------------------------------------


def measure(
    directory: Path, database: str, floor: dict[str, Any], steps: list[int], workers: int
) -> list[dict[str, Any]]:
    """Return a row for each number of steps of one run alone, and rows for many at once."""
    rows: list[dict[str, Any]] = []
    with service(directory, database) as running:
        for count in steps:
            before, commits, cpu = running.count(), running.commits(), running.seconds()
            [taken], _ = running.work(count)
            rows.append({
                "what": f"1 run, {count} steps", **spread(taken), "late/early": late_over_early(taken),
                "x driver": round(spread(taken)["p50"] / floor["p50"], 1), "cpu ms": round((running.seconds() - cpu) / (count + WARM) * 1000, 2),
                "commits": round((running.commits() - commits) / (count + WARM), 2), **running.count().since(before, count + WARM),
            })  # fmt: skip
        rows.append(together(running, f"{workers} kernels", 300, workers))
        with counted_syncs(running) as syncs:
            rows.append(together(running, "32 runs", 100, 8, 4))
        rows[-1]["syncs"] = round(syncs[0] / (32 * (100 + WARM)), 2) if syncs else None
        rows.append(together(running, "128 runs", 20, 8, 16))
        rows.append(together(running, "128 runs, one append a step", 100, 8, 16, appends=True))
    return [{"database": database.partition(":")[0], **row} for row in rows]


def together(
    running: Service, what: str, steps: int, workers: int, runs: int = 1, appends: bool = False
) -> dict[str, Any]:
    """Return the row of workers (processes) that each make `runs` runs, all at once."""
    commits, cpu = running.commits(), running.seconds()
    times, wall = running.work(steps, workers, runs, appends)
    taken = [one for of_run in times for one in of_run]
    made = len(taken) + WARM * len(times)
    return {
        "what": what, **spread(taken), "steps/s": round(made / wall), "cpu ms": round((running.seconds() - cpu) / made * 1000, 2),
        "commits": round((running.commits() - commits) / made, 2),
    }  # fmt: skip


@contextlib.contextmanager
def counted_syncs(running: Service) -> Iterator[list[int]]:
    """Count the syncs of the store while the block lasts: by strace on SQLite, as PostgreSQL counts them itself."""
    found: list[int] = []
    if running.database.startswith("sqlite"):
        with Strace(running.process.pid) as strace:
            yield found
        found += [strace.calls] if strace.calls is not None else []
    else:
        before = postgres_syncs(running.database)
        yield found
        found.append(postgres_syncs(running.database) - before)


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        return serve()
    if sys.argv[1:2] == ["work"]:
        return work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "appends")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--steps", default="100,400,4000", help="comma-separated; a run for each")
    parser.add_argument("--workers", type=int, default=8, help="at once, for the last row")
    parser.add_argument("--directory", help="on the disk to measure; default: the system's place for temporary files")
    parser.add_argument("--json", help="a file for the figures")
    asked = parser.parse_args()
    steps = [int(count) for count in asked.steps.split(",")]
    directory = Path(tempfile.mkdtemp(prefix="ledger-benchmark-", dir=asked.directory))
    directory.chmod(0o755)
    rows: list[dict[str, Any]] = []
    try:
        floors = {"fdatasync": spread(fsync_floor(directory)), "sqlite": spread(sqlite_floor(directory))}
        if asked.database != "postgresql":
            rows += measure(directory, f"sqlite:///{directory}/farm.sqlite", floors["sqlite"], steps, asked.workers)
        if asked.database != "sqlite":
            with postgres(directory) as url:
                floors["postgresql"] = spread(postgres_floor(url))
                rows += measure(directory, url, floors["postgresql"], steps, asked.workers)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(table([{"floor, ms": name, **figures} for name, figures in floors.items()]), end="\n\n")
    print(table(rows))
    write_json(asked.json, {"machine": machine(), "floors": floors, "rows": rows})


if __name__ == "__main__":
    main()
