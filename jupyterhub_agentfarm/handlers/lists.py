"""How tasks and runs are listed: narrowed, counted by status, page by page."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any

import msgspec
from sqlalchemy.engine import Connection

from ..errors import Invalid
from ..records import Placeless, Run, Task
from ..store import lists, tasks
from ..store.lists import NONE, Wanted
from ..store.tables import STATUSES
from .asking import visible
from .routes import Call, Page, Route
from .views import Listed, RunView, TaskView, page, run_view, task_view

Text200 = Annotated[str, msgspec.Meta(max_length=200)]


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`status`: one, or several with commas. `since`, `until`: ISO 8601, of when it was submitted. `text` stands in input or result.

    `parent`: the run that delegated it.
    """

    status: Text200 | None = None
    agent: Text200 | None = None
    owner: Text200 | None = None
    mode: Text200 | None = None
    since: Text200 | None = None
    until: Text200 | None = None
    text: Text200 | None = None
    thread: Text200 | None = None
    batch: Text200 | None = None
    parent: Text200 | None = None


class TasksPage(Filter, frozen=True, forbid_unknown_fields=True):
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 50
    cursor: str = ""


class RunsPage(Page, frozen=True, forbid_unknown_fields=True):
    """As of tasks; `task`: the runs of that one, retries too."""

    status: Text200 | None = None
    agent: Text200 | None = None
    owner: Text200 | None = None
    mode: Text200 | None = None
    since: Text200 | None = None
    until: Text200 | None = None
    thread: Text200 | None = None
    task: Text200 | None = None


class Counts(msgspec.Struct, frozen=True):
    """How many tasks there are of each status; those that there are none of are left out."""

    total: int
    counts: dict[str, int]


def wanted(query: Any, placeless: Placeless = NONE) -> Wanted:
    """Read what a list is narrowed to. placeless: of a list of tasks. Raises Invalid."""
    given = {
        name: getattr(query, name)
        for name in ("agent", "owner", "mode", "text", "thread", "batch", "parent", "task")
        if hasattr(query, name)
    }
    chosen = tuple(one.strip() for one in (query.status or "").split(",") if one.strip())
    if wrong := [one for one in chosen if one not in STATUSES[:-1]]:
        raise Invalid(f"there is no status {wrong[0]!r} - at `$.status`", hint=", ".join(STATUSES[:-1]))
    since, until = _time(query.since, "since"), _time(query.until, "until")
    return Wanted(status=chosen, since=since, until=until, placeless=placeless, **given)


def _time(text: str | None, name: str) -> float | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise Invalid(
            f"{text!r} is no time - at `$.{name}`", hint="e.g. 2026-11-21, or 2026-11-21T18:00:00Z"
        ) from error
    return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()


async def list_tasks(call: Call) -> Listed[TaskView]:
    query: TasksPage = call.query
    placeless = call.parts.placeless()
    narrowed = wanted(query, placeless)

    def read(connection: Connection) -> list[Task]:
        where = lists.tasks_where(narrowed, *visible(connection, call.asker))
        return tasks.listed(connection, *where, before=query.cursor or None, limit=query.limit + 1)

    found = page(await call.read(read), query.limit, lambda one: one.task_id)
    return Listed([task_view(one, placeless=placeless.why(one)) for one in found.items], found.next)


async def count(call: Call) -> Counts:
    narrowed = wanted(call.query, call.parts.placeless())
    found = await call.read(lambda c: lists.count_tasks(c, narrowed, *visible(c, call.asker)))
    return Counts(sum(found.values()), found)


async def list_runs(call: Call) -> Listed[RunView]:
    query: RunsPage = call.query
    narrowed = wanted(query)
    if query.cursor and (not query.cursor.isdecimal() or len(query.cursor) > 18):
        raise Invalid(f"cursor {query.cursor!r}", hint="take it from `next` of the page before")

    def read(connection: Connection) -> list[Run]:
        before = int(query.cursor) if query.cursor else None
        return lists.listed_runs(
            connection, narrowed, *visible(connection, call.asker), before=before, limit=query.limit + 1
        )

    found = page(await call.read(read), query.limit, lambda one: str(one.run_no))
    return Listed([run_view(one) for one in found.items], found.next)


ROUTES = [
    Route("GET", "/tasks", list_tasks, "List tasks, newest first", query=TasksPage, answer=Listed[TaskView]),
    Route("GET", "/tasks/counts", count, "How many tasks there are of each status", query=Filter, answer=Counts),
    Route("GET", "/runs", list_runs, "List runs, newest first", query=RunsPage, answer=Listed[RunView]),
]  # fmt: skip
