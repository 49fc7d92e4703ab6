"""The row of benchmarks/fleet.py on rest: the fleet daemon, with many microservers on which nothing happens.

The daemon is the real one. The masters of its SSH connections, and the microservers behind them, are stand-ins (standins.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fakehub
import psutil

from jupyterhub_agentfarm.errors import FleetError
from jupyterhub_agentfarm.fleet.client import FleetClient

HERE = Path(__file__).parent
SETTLE = 5.0
REST_SECONDS = 60.0  # two looks of the reconciler
WATCHED_SECONDS = 30.0
EVERY = 10.0  # seconds between two questions of somebody who watches: as the service asks while a page is open


@contextmanager
def daemon(directory: Path, microservers: int) -> Iterator[tuple[psutil.Process, FleetClient]]:
    """Run a fleet daemon that knows so many microservers, and has a connection to each."""
    names = [f"micro{number}" for number in range(microservers)]
    (directory / "ssh").mkdir(mode=0o700)
    known = {name: {"state": "ready", "reason": "", "ssh": f"root@10.0.0.{at + 1}"} for at, name in enumerate(names)}
    (directory / "fleet.json").write_text(json.dumps({"units": {}, "uids": {}, "microservers": known}))
    (directory / "token").write_text("unused")
    masters = subprocess.Popen(
        [sys.executable, str(HERE / "standins.py"), str(directory / "ssh"), *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert masters.stdin and masters.stdout and masters.stdout.readline()
    env = {
        **os.environ, "AGENTFARM_STATE": str(directory), "JUPYTERHUB_API_URL": fakehub.start(), "AGENTFARM_FLEET_TOKEN_FILE": str(directory / "token"),
    }  # fmt: skip
    with (directory / "daemon.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "jupyterhub_agentfarm.fleet.daemon"], env=env, stderr=log)
    try:
        yield psutil.Process(process.pid), FleetClient(directory / "fleet.sock", timeout=60)
    finally:
        process.terminate()
        process.wait(20)
        masters.stdin.close()
        masters.wait(20)


def used(process: psutil.Process) -> float:
    """Return the seconds of processor time that a process has taken, with those of its children that have ended."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


async def share(process: psutil.Process, seconds: float, client: FleetClient | None = None) -> float:
    """Return which part of a core a process takes meanwhile, in percent; with a client somebody watches."""
    before, begin = used(process), time.monotonic()
    while (left := begin + seconds - time.monotonic()) > 0:
        if client is not None:
            await client.microservers()
        await asyncio.sleep(min(left, EVERY))
    return round((used(process) - before) / (time.monotonic() - begin) * 100, 2)


async def _measure(directory: Path, microservers: int) -> list[dict[str, Any]]:
    with daemon(directory, microservers) as (process, client):
        deadline = time.monotonic() + 60
        while True:
            try:
                answering = [one for one in await client.microservers() if not one["silent"] and one["name"] != "local"]
            except FleetError:
                answering = []
            if len(answering) == microservers:
                break
            if time.monotonic() > deadline:
                raise TimeoutError((directory / "daemon.log").read_text()[-2000:])
            await asyncio.sleep(0.2)
        await asyncio.sleep(SETTLE)
        rest = await share(process, REST_SECONDS)
        row = {"microservers": microservers, "RSS MB": round(process.memory_info().rss / 1e6, 1), "CPU %": rest}
        watched = await share(process, WATCHED_SECONDS, client)
        memory = round(process.memory_info().rss / 1e6, 1)
        return [
            {"what": "the daemon at rest", **row},
            {"what": "the same, watched", **row, "RSS MB": memory, "CPU %": watched},
        ]


def measure(directory: Path, microservers: int = 50) -> list[dict[str, Any]]:
    """Return what the daemon takes at rest, and while somebody looks at the list of microservers."""
    return asyncio.run(_measure(directory, microservers))
