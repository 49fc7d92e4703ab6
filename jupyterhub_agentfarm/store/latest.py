"""How a run stands: its open calls and what it waits for, from its row and the events of its latest step alone.

However long a run is, a decision about it costs its step: the one writer has everybody's commits to make. The model is asked
only when no call of the step before is open, so whatever is open belongs to the latest reply.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.fold import Fold
from agentfarm_sdk.protocol import Event, read_event

from ..records import Run
from .tables import events, runs

FEW = 16  # events that are read first; four times as many each further time
REPLIES = frozenset({"model.replied", "model.reported"})
_BACK = (
    sa.select(events.c.header, events.c.body, runs.c.interrupted)
    .join(runs, runs.c.run_no == events.c.run_no)
    .where(runs.c.run_no == sa.bindparam("run_no"), events.c.seq < sa.bindparam("before"))
    .order_by(events.c.seq.desc())
    .limit(sa.bindparam("few"))
)


def step(connection: Connection, run: Run) -> list[Event]:
    """Return a run's events from its latest step's reply on; from farther back where it was interrupted before."""
    found, few, wanted = list[Event](), FEW, {"reply", "interruption"}
    while wanted and (before := found[-1].seq if found else run.seq + 1) > 1:
        rows = connection.execute(_BACK, {"run_no": run.run_no, "before": before, "few": few}).all()
        if not rows:
            break
        for header, body, interrupted in rows:
            if not interrupted:
                wanted.discard("interruption")
            found.append(read_event(header, body))
            wanted.discard(_brings(found[-1]))
            if not wanted:
                break
        few *= 4
    return found[::-1]


def _brings(event: Event) -> str:
    if event.kind == "run.interrupted":
        return "interruption"
    begins = event.kind in REPLIES and event.data().get("purpose") != "summary"  # a summary begins no step
    return "reply" if begins else ""


def fold(run: Run, since: Sequence[Event]) -> Fold:
    """Return how a run stands whose latest events these are. Its messages, counters and older calls are not in it. Pure."""
    leases = sum(event.kind == "run.leased" for event in since)
    found = Fold(history=lambda _run, _seq: [], seq=run.seq - len(since), fence=run.fence - leases).apply_all(since)
    found.status = "queued" if run.status == "assigned" else run.status
    found.waiting, found.cancel, found.held = run.waiting, run.cancel, run.lease_until is not None
    return found


def of(connection: Connection, run: Run) -> Fold:
    return fold(run, step(connection, run))
