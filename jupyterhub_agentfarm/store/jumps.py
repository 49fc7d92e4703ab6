"""What becomes of a farm's durations when its clock is moved: they stay as long as they were, and the record says so.

Moments that somebody named (a deadline, the time that a call waits for) stay moments.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from agentfarm_sdk.protocol import new_event

from . import ledger
from .db import Tx
from .tables import FARM_RUN, inbox, runs


def jumped(tx: Tx, seconds: float) -> None:
    """Move the clock on by `seconds` (or back, below 0), record it in each run at work, and move what was reckoned from it.

    That is: leases, the pause before a next attempt, how long a person has to answer.
    """
    event = new_event("clock.jumped", {"seconds": round(seconds, 6)})
    at_work = sa.or_(runs.c.lease_until.is_not(None), runs.c.status.in_(("queued", "assigned")))
    for run in ledger.select_runs(tx.connection, runs.c.ended_at.is_(None), runs.c.fence > 0, at_work):
        run = ledger.held(tx, run.run_id)
        changes: dict[str, Any] = {}
        if run.lease_until is not None:
            changes["lease_until"] = run.lease_until + seconds
        ledger.record(tx, run.run_id, "service", [event], changes=changes)
    ledger.record(tx, FARM_RUN, "service", [event])
    waiting = sa.and_(runs.c.ended_at.is_(None), runs.c.not_before.is_not(None))
    tx.execute(runs.update().where(waiting).values(not_before=runs.c.not_before + seconds))
    undecided = sa.and_(inbox.c.decided_at.is_(None), inbox.c.due_at.is_not(None))
    later = {"due_at": inbox.c.due_at + seconds, "expires_at": inbox.c.expires_at + seconds}
    tx.execute(inbox.update().where(undecided).values(later))
    tx.move(seconds)
