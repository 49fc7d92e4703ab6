"""What the queue costs: tasks through submit, claim and finish, in the store; and how soon a finished run is read again.

    python benchmarks/tasks.py [--database sqlite] [--tasks 2000] [--json FILE]

In one process, without HTTP: what the ledger itself can do. `one by one`: the next claim when the last task has ended;
`16 at once`: as many workers. `resume`: reading and folding a run of so many steps, as a worker's `open` does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from common import fsync_floor, machine, postgres, postgres_floor, spread, sqlite_floor, table, write_json

from agentfarm_sdk.protocol import Definition, new_event
from jupyterhub_agentfarm.gateway.live import load
from jupyterhub_agentfarm.store import leases, ledger, tasks
from jupyterhub_agentfarm.store.db import Database

DEFINITION = Definition(prompt="Do it.")
END = new_event("run.succeeded", {"result": "done"})


async def submit(db: Database, agent: str) -> None:
    asked = tasks.Submission(owner="bench", submitted_by="bench", target=agent, input="go")
    await db.write(lambda tx: tasks.submit(tx, db.epoch, asked, tasks.Choice(agent, DEFINITION, 1)))


async def work(db: Database, agent: str, name: str, count: list[int]) -> None:
    """Claim and finish the agent's tasks until `count` is used up."""
    while count[0] > 0:
        count[0] -= 1
        claim = f"{name}-{count[0]}"
        run = await db.write(lambda tx, claim=claim: leases.claim(tx, agent, name, claim, 30.0))  # type: ignore[misc]
        if run is not None:
            await db.write(lambda tx, run=run: ledger.append(tx, run.run_id, run.fence, 1, [END]))  # type: ignore[misc]


async def queue(url: str, count: int) -> list[dict[str, Any]]:
    db = Database.open(url)
    rows = []

    async def timed(what: str, work: Callable[[], Awaitable[Any]]) -> None:
        commits, begin = db.commits, time.perf_counter()
        await work()
        took = time.perf_counter() - begin
        rows.append({"database": url.partition(":")[0], "what": what, "tasks/s": round(count / took), "ms": round(took / count * 1000, 3),
                     "commits": round((db.commits - commits) / count, 2)})  # fmt: skip

    async def one_by_one() -> None:
        for _ in range(count):
            await submit(db, "one")

    async def at_once() -> None:
        for begin in range(0, count, 100):
            await asyncio.gather(*(submit(db, "many") for _ in range(min(100, count - begin))))

    await timed("submit, one by one", one_by_one)
    await timed("submit, 100 at once", at_once)
    await timed("claim and finish, one by one", lambda: work(db, "one", "w", [count]))
    left = [count]
    await timed(
        "claim and finish, 16 at once", lambda: asyncio.gather(*(work(db, "many", f"w{n}", left) for n in range(16)))
    )
    await db.close()
    return rows


async def resume(url: str, steps: int) -> dict[str, Any]:
    """Make a run of so many steps; read and fold it as `open` does."""
    db = Database.open(url)
    await submit(db, "long")
    run = await db.write(lambda tx: leases.claim(tx, "long", "w", "c", 30.0))
    assert run is not None
    events = []
    for step in range(steps):
        call = {"id": f"c{step}-0", "type": "function", "function": {"name": "note", "arguments": '{"text":"hello"}'}}
        said = {"request": f"r{step}", "message": {"role": "assistant", "content": "", "tool_calls": [call]}}
        started = {"tool": "note", "key": "k" * 64, "effect": "once", "attempt": 1, "timeout": 60, "fence": run.fence}
        events += [new_event("model.replied", said), new_event("tool.started", started, call["id"]),
                   new_event("tool.succeeded", {"result": "x" * 1280}, call["id"])]  # fmt: skip
    await db.write(lambda tx: ledger.record(tx, run.run_id, "gateway", events, fence=run.fence))
    taken = []
    for _ in range(20):
        begin = time.perf_counter()
        await db.read(lambda c: load(c, run.run_id, to_admit=True))
        taken.append((time.perf_counter() - begin) * 1000)
    await db.close()
    return {"database": url.partition(":")[0], "what": f"resume of {steps} steps", **spread(taken)}


def measure(url: str, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return asyncio.run(queue(url, count)), [asyncio.run(resume(url, steps)) for steps in (100, 400, 4000)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--json", help="a file for the figures")
    asked = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="tasks-benchmark-"))
    directory.chmod(0o755)
    floors = {"fdatasync": spread(fsync_floor(directory)), "sqlite": spread(sqlite_floor(directory))}
    found = []
    try:
        if asked.database != "postgresql":
            found.append(measure(f"sqlite:///{directory}/farm.sqlite", asked.tasks))
        if asked.database != "sqlite":
            with contextlib.ExitStack() as stack:
                url = stack.enter_context(postgres(directory))
                floors["postgresql"] = spread(postgres_floor(url))
                found.append(measure(url, asked.tasks))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    queues, resumes = [row for one in found for row in one[0]], [row for one in found for row in one[1]]
    print(table([{"floor, ms": name, **figures} for name, figures in floors.items()]), end="\n\n")
    print(table(queues), end="\n\n")
    print(table(resumes))
    write_json(asked.json, {"machine": machine(), "floors": floors, "queue": queues, "resume": resumes})


if __name__ == "__main__":
    main()
