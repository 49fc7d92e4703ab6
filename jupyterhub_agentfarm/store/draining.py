"""Runs of agents whose microserver is drained: put aside at their next step boundary, queued again once their worker has let go.

Putting aside is a pause by the service that names the drain: what a person paused stays paused.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import ENDED, new_event

from ..records import Run
from . import leases, ledger
from .db import Tx
from .tables import runs

PAGE = 200  # events looked at in one go


@dataclass(frozen=True)
class Held:
    """A run that a worker holds. aside: it was asked to stop at its next step boundary, or ends anyway."""

    run_id: str
    agent: str
    aside: bool


def held(connection: Connection, agents: Collection[str]) -> list[Held]:
    """Return the runs of these agents that workers hold, but for those of people's own kernels."""
    if not agents:
        return []
    rows = connection.execute(
        sa.select(runs.c.run_id, runs.c.agent, runs.c.status, runs.c.waiting)
        .where(runs.c.agent.in_(sorted(agents)), runs.c.lease_until.is_not(None), runs.c.bound.is_(False))
        .order_by(runs.c.run_no)
    )
    return [
        Held(run_id, agent, status == "cancelling" or waiting == "paused") for run_id, agent, status, waiting in rows
    ]


def put_aside(tx: Tx, run_id: str, microserver: str, reason: str) -> None:
    """Let a run rest at its next step boundary. Harmless where it rests, ends or is nobody's by now."""
    run = ledger.held(tx, run_id)
    if run.lease_until is not None and run.status == "running":
        body = {"reason": reason, "drain": microserver}
        ledger.record(tx, run_id, "service", [new_event("run.paused", body)])


def resting(connection: Connection) -> list[tuple[Run, str]]:
    """Return the runs that a drain put aside and that nobody has taken up, each with the microserver that was drained."""
    paused = ledger.select_runs(connection, runs.c.status == "waiting", runs.c.waiting == "paused")
    found = [(run, drain_of(connection, run)) for run in paused]
    return [(run, drain) for run, drain in found if drain]


def drain_of(connection: Connection, run: Run) -> str:
    """Return which microserver's drain has paused a run; "" where a person did."""
    last = run.seq
    while last > 0:
        first = max(0, last - PAGE)
        for event in reversed(ledger.read_events(connection, run.run_id, first, last - first)):
            if event.kind in ("run.resumed", "run.created"):
                return ""
            if event.kind == "run.paused" and (
                event.by != "service" or event.data()
            ):  # one without words repeats another
                return str(event.data().get("drain", "")) if event.by == "service" else ""
        last = first
    return ""


def take_up(tx: Tx, run_id: str) -> None:
    """Let a run that a drain put aside go on; harmless where a person paused it meanwhile, or it has ended."""
    run = ledger.held(tx, run_id)
    if run.status not in ENDED and run.waiting == "paused" and drain_of(tx.connection, run):
        leases.go_on(tx, run_id, "service", [new_event("run.resumed", {})], "its agent moves")
