"""The row of a task, held against the events of its run: what was asked, by whom, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.audit import Link
from agentfarm_sdk.fold import ERASED
from agentfarm_sdk.protocol import ENDED, Event, read_event

from ..records import Run
from .tables import tasks

_SAME = {"owner": "owner", "agent": "agent", "mode": "mode", "thread_id": "thread"}  # in the row, and in run.created
_ENDS = frozenset(f"run.{end}" for end in ENDED)


def flaw(connection: Connection, run: Run, links: Sequence[Link]) -> tuple[int, str] | None:
    """Return the event that the task's row tells something else than, and what; None where they agree.

    A task that was tried again goes by its latest run; a body that was erased says nothing.
    """
    row = connection.execute(sa.select(tasks).where(tasks.c.task_id == run.task_id)).mappings().one_or_none()
    if row is None or row["run_id"] != run.run_id or not links:
        return None
    created = read_event(links[0].header, links[0].body)
    for column, name in _SAME.items():
        if created.data().get(name, row[column]) != row[column]:
            return (
                1,
                f"its task says {column} {row[column]}, this event {created.data()[name]}: one of the two was changed",
            )
    if (row["status"] in ENDED or run.status in ENDED) and row["status"] != run.status:
        return len(links), f"its task says {row['status']}, the run {run.status}: one of the two was changed"
    events = [read_event(link.header, link.body) for link in links]
    return _input(row, events) or _end(row, events)


def _input(row: Any, events: list[Event]) -> tuple[int, str] | None:
    """Hold what was asked against the message that the model was shown; where it is text that stands there as it is."""
    asked = msgspec.json.decode(row["input"])
    begins = [event for event in events if event.kind in ("message.added", "run.forked")][:2]
    told = next((e for e in begins if e.kind == "message.added" and e.data().get("role") == "user"), None)
    as_it_is = isinstance(asked, str) and asked != ERASED and row["thread_id"] is None
    if not as_it_is or told is None or any(event.kind == "run.forked" for event in begins):
        return None
    if msgspec.json.decode(row["options"]).get("results"):  # those of other tasks stand behind it
        same = str(told.data().get("content")).startswith(asked)
    else:
        same = told.data().get("content") == asked
    return None if same else (told.seq, "its task says another input than this event: one of the two was changed")


def _end(row: Any, events: list[Event]) -> tuple[int, str] | None:
    end = next((event for event in events if event.kind in _ENDS), None)
    if end is None or end.erased:
        return None
    said = end.data()
    result = msgspec.json.decode(row["result"]) if row["result"] else None
    error = msgspec.json.decode(row["error"]) if row["error"] else None
    wanted = said.get("error")
    if end.kind == "run.cancelled":
        wanted = {"type": "cancelled", "message": str(said.get("reason") or "it was cancelled")}
    if end.kind == "run.succeeded" and result != said.get("result"):
        return end.seq, "its task says another result than this event: one of the two was changed"
    if end.kind != "run.succeeded" and error != wanted:
        return end.seq, "its task says another error than this event: one of the two was changed"
    return None
