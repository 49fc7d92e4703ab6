"""Children: tasks that a run delegates, submitted in the transaction of `child.submitted`, so each exactly once.

The call rests until `child.finished`. What cannot be submitted is told to the model at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.parts import blobs_of
from agentfarm_sdk.protocol import ENDED, Event, Simulate, new_event

from ..errors import Conflict, Forbidden, NotFound, UserError
from ..records import Run
from . import agents, blobs, leases, ledger, queue, tasks
from .db import Tx
from .tables import runs
from .tables import tasks as task_rows

MAX_DEPTH = 8
POOL = "pool:"


def follow(tx: Tx, run: Run, events: Iterable[Event]) -> None:
    """Submit the child of each `child.submitted` that the run's worker has just recorded."""
    for event in events:
        if event.kind != "child.submitted" or not event.by.startswith("worker:"):
            continue
        try:
            _submit(tx, run, event)
        except UserError as error:
            told = {"status": "refused", "error": {"type": error.type, "message": error.detail}}
            _tell(tx, run.run_id, event.call, {"task": None, **told})
        else:
            ledger.link(tx, ledger.held(tx, run.run_id))


def _submit(tx: Tx, run: Run, event: Event) -> None:
    body = event.data()
    target, line = str(body.get("target", "")), ancestors(tx.connection, run.run_id)
    if len(line) >= MAX_DEPTH:
        raise Forbidden(f"tasks are delegated {MAX_DEPTH} deep at most, and this one is: do it yourself")
    choice = _choice(tx.connection, run.owner, target, line)
    if named := blobs_of(body["input"]):
        blobs.check_known(tx.connection, run, named)
    parent = tx.connection.execute(sa.select(task_rows).where(task_rows.c.task_id == run.task_id)).mappings().one()
    seconds = body.get("deadline")
    ends = [at for at in (parent["deadline"], tx.now + float(seconds) if seconds else None) if at is not None]
    created = ledger.read_events(tx.connection, run.run_id, limit=1)[0].data()
    given = {**created["simulate"], "recording": None} if created.get("simulate") else None
    asked = tasks.Submission(
        owner=run.owner, submitted_by=f"agent-{run.agent}" if not run.bound else run.owner, target=target, input=body["input"],
        priority=parent["priority"], mode=run.mode, deadline=min(ends, default=None), variables=body.get("variables") or {},
        parent=(run.run_id, str(event.call)), simulate=msgspec.convert(given, Simulate) if given else None,
    )  # fmt: skip
    tasks.submit(tx, run.epoch, asked, choice)


def _choice(connection: Connection, owner: str, target: str, line: list[str]) -> tasks.Choice | None:
    """Return who takes it. Raises NotFound, Conflict, Forbidden: a circle; the run's owner alone counts, not the agent's."""
    if target.startswith(POOL):
        members = queue.members(connection, target.removeprefix(POOL), owner)
        if not members:
            raise NotFound(f"there is no pool {target.removeprefix(POOL)} that {owner} may use")
        if not set(members) - set(line):
            raise Forbidden(f"every agent of {target} waits for this one: that would be a circle")
        return None
    if agents.reachable(connection, owner).get(target) not in ("owner", "manage", "chat"):
        raise NotFound(f"there is no agent {target} that {owner} may use")
    agent = agents.show(connection, target)
    if agent.retired_at is not None or agent.published is None:
        raise Conflict(f"agent {target} is not published, or retired")
    if target in line:
        raise Forbidden(f"agent {target} waits for this one, or is this one: that would be a circle")
    return tasks.Choice(target, agents.version(connection, target, agent.published).definition, agent.published)


def ancestors(connection: Connection, run_id: str | None) -> list[str]:
    """Return the agents of a run, of the run that delegated its task, and so on."""
    found = list[str]()
    while run_id and len(found) <= MAX_DEPTH:
        step = (
            sa.select(runs.c.agent, task_rows.c.parent_run)
            .join(task_rows, task_rows.c.task_id == runs.c.task_id, isouter=True)
            .where(runs.c.run_id == run_id)
        )
        agent, run_id = connection.execute(step).one()
        found.append(agent)
    return found


def finished(tx: Tx, task: Mapping[str, Any]) -> None:
    """Tell the run that delegated a task what came of it; the call's result is the child's. It goes on where it can."""
    parent = ledger.held(tx, task["parent_run"])
    if parent.status in ENDED:
        return
    body = {"task": task["task_id"], "run": task["run_id"], "status": task["status"]}
    if task["status"] == "succeeded":
        body["result"] = msgspec.json.decode(task["result"])
        if isinstance(body["result"], dict) and "$blob" in body["result"]:
            blobs.share(tx, task["run_id"], parent.run_id)
    else:
        body["error"] = msgspec.json.decode(task["error"] or "{}")
    _tell(tx, parent.run_id, task["parent_call"], body)


def _tell(tx: Tx, run_id: str, call: str | None, body: Mapping[str, Any]) -> None:
    leases.go_on(tx, run_id, "service", [new_event("child.finished", body, call)], "a child has ended")


def stop(tx: Tx, run: Run) -> None:
    """Cancel the unfinished children of a run that has ended."""
    mine = sa.select(task_rows.c.task_id).where(
        task_rows.c.parent_run == run.run_id, task_rows.c.status.not_in([*ENDED, "cancelling"])
    )
    for task_id in tx.connection.execute(mine).scalars().all():
        tasks.cancel(tx, task_id, "service", f"the run that delegated it has {run.status}")
