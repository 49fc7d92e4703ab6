"""Batches: how far they are, their results as a stream, their end."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from sqlalchemy.engine import Connection

from ..errors import Conflict, NotFound
from ..records import Placeless
from ..store import batches, tasks
from ..store.db import Tx
from ..store.lists import NONE
from .asking import Asker, may
from .feed import ENDS, Sse, resume_from
from .routes import Call, Place, Route
from .tasks import Reason

CANCELLED_AT_ONCE = 50  # tasks in one transaction: others write in between


class BatchView(msgspec.Struct, frozen=True, kw_only=True):
    batch_id: str
    owner: str
    submitted_by: str
    key: str | None
    created_at: str
    tasks: int
    counts: dict[str, int]  # by status


class ResultView(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one task; `place` is its place in the batch, from 1."""

    place: int
    task_id: str
    key: str | None
    status: str
    run_id: str | None
    result: Any
    error: dict[str, Any] | None


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`order`: as they were submitted, or as they end. `after`: the id of the last one that was read."""

    order: Literal["input", "completion"] = "input"
    after: Place = 0


def reach_batch(connection: Connection, asker: Asker, batch_id: str, placeless: Placeless = NONE) -> dict[str, Any]:
    """Return the batch. Raises NotFound, also where it may not be seen."""
    found = batches.show(connection, batch_id, placeless)
    if not may(connection, asker, found, "view"):
        raise NotFound(f"there is no batch {batch_id}", hint="its id is in each of its tasks: agentfarm task show TASK")
    return found


async def show(call: Call) -> BatchView:
    placeless = call.parts.placeless()
    found = await call.read(lambda c: reach_batch(c, call.asker, call.path["batch"], placeless))
    return msgspec.convert(found, BatchView)


async def results(call: Call) -> None:
    """Stream what came of the tasks until all have ended; the `id` of each event resumes behind it."""
    batch_id, ordered = call.path["batch"], call.query.order == "input"
    await call.read(lambda c: reach_batch(c, call.asker, batch_id))
    last, over = resume_from(call.handler, call.query.after), False

    async def read() -> list[tuple[int, str, ResultView]]:
        nonlocal last, over
        found, over = await call.read(lambda c: batches.results(c, batch_id, last, ordered=ordered))
        numbered = [(int(one["place" if ordered else "batch_ended"]), one) for one in found]
        last = numbered[-1][0] if numbered else last
        return [(number, "task.ended", msgspec.convert(one, ResultView)) for number, one in numbered]

    with call.parts.feed.reader(ENDS) as wake:
        await Sse(call.handler).follow(wake, read, lambda: over)


async def cancel(call: Call) -> BatchView:
    """Cancel what has not ended, some tasks at a time."""
    batch_id, reason = call.path["batch"], call.body.reason or f"by {call.asker.hub_name}"

    def read(connection: Connection) -> list[str]:
        reach_batch(connection, call.asker, batch_id)
        return batches.unfinished(connection, batch_id)

    left = await call.read(read)
    while left:
        some, left = left[:CANCELLED_AT_ONCE], left[CANCELLED_AT_ONCE:]

        def write(tx: Tx, some: list[str] = some) -> None:
            for task_id in some:
                try:
                    tasks.cancel(tx, task_id, call.asker.by, reason)
                except Conflict:
                    continue  # it has just ended

        await call.write(write)
    call.parts.feed.wake(ENDS)  # tasks that had no run yet ended without an event
    return await show(call)


ROUTES = [
    Route("GET", "/batches/{batch}", show, "How far a batch is", answer=BatchView),
    Route("GET", "/batches/{batch}/results", results, "Stream its results, in order or as they come", query=Order, streams=True),
    Route("POST", "/batches/{batch}/cancel", cancel, "Stop all that has not ended", body=Reason, answer=BatchView, keeps=False),
]  # fmt: skip
