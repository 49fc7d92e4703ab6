"""What the API answers: records as JSON, times in ISO 8601. These structs are also what /openapi.json shows."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from agentfarm_sdk.protocol import Definition, timestamp

from ..records import Agent, Run, Task, Version

T = typing.TypeVar("T")


class Listed(msgspec.Struct, typing.Generic[T], frozen=True):
    """A page of a list; `next` is the cursor of the following one."""

    items: list[T]
    next: str | int | None = None


class EditorView(msgspec.Struct, frozen=True):
    """In what the asker can open an agent's server; `url` of vscode is what to type into "Remote to JupyterHub"."""

    name: Literal["lab", "vscode", "code-server"]
    title: str
    url: str


class ServerState(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's server as the farm was last seen, a few seconds ago. `reasons`: why it is not up, `why`: why it is there."""

    ready: bool = False
    pending: str | None = None  # spawn, stop
    microserver: str | None = None
    reasons: str = ""
    why: str = ""


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    owner: str
    pool: str | None
    draft: Definition
    draft_rev: int
    published: int | None
    created_at: str
    retired_at: str | None
    rights: str
    user: str  # its name at the Hub
    editors: list[EditorView] = []  # of one agent, and in the list; for those who may open its server
    edited_by: str | None = None  # who wrote this revision of the draft
    edited_at: str | None = None
    server: ServerState | None = None  # in lists and where one agent is shown


class VersionView(msgspec.Struct, frozen=True, kw_only=True):
    agent: str
    number: int
    hash: str
    definition: Definition
    note: str
    created_at: str
    created_by: str


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    task_id: str
    owner: str
    submitted_by: str
    target: str
    agent: str | None
    thread_id: str | None
    input: Any
    priority: int
    mode: str
    key: str | None
    workspace: str
    deadline: str | None
    requirements: dict[str, Any]
    status: str
    waiting: str | None
    run_id: str | None
    result: Any
    error: dict[str, Any] | None
    created_at: str
    ended_at: str | None
    options: dict[str, Any] = {}  # after, after_any_end, results, retry, concurrency: where they were asked for
    concurrency_key: str | None = None
    parent_run: str | None = None  # of the run that delegated it, and by which call
    parent_call: str | None = None
    batch_id: str | None = None
    place: int | None = None  # in the batch, from 1
    note: str = ""  # why it does not move yet, where something is known


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    run_id: str
    task_id: str | None
    agent: str
    owner: str
    thread_id: str | None
    version: int | None
    definition_hash: str
    mode: str
    epoch: str
    bound: bool
    status: str
    waiting: str | None
    fence: int
    seq: int
    head: str
    worker: str | None
    lease_until: str | None
    cancel: str | None
    created_at: str
    ended_at: str | None


class ThreadView(msgspec.Struct, frozen=True, kw_only=True):
    thread_id: str
    agent: str
    owner: str
    title: str
    policy: str
    created_at: str


class InboxView(msgspec.Struct, frozen=True, kw_only=True):
    inbox_id: str
    run_id: str
    call: str
    kind: str
    agent: str
    owner: str
    detail: dict[str, Any]
    asked_at: str
    decided_at: str | None
    decision: str | None
    decided_by: str | None
    reason: str | None
    votes: list[dict[str, Any]] = []  # {by, at, reason, arguments?}, where several people must approve
    expires_at: str | None = None
    escalated_at: str | None = None  # since when operators, and the group, are shown it
    escalate_to: str | None = None
    worker: str | None = None  # of a call in doubt: "proven dead: …" or "only silent"
    may_decide: bool | None = None  # whether the asker may, at a farm page; told where one item is asked for


def when(seconds: float | None) -> str | None:
    return None if seconds is None else timestamp(seconds)


def _values(kind: type[Any], record: Any) -> dict[str, Any]:
    """Return the fields that a view takes from a record, times as text."""
    values: dict[str, Any] = {}
    for name in kind.__struct_fields__:
        if hasattr(record, name):
            value = getattr(record, name)
            timed = name.endswith("_at") or name in ("deadline", "lease_until")
            values[name] = when(value) if timed else value
    return values


def agent_view(agent: Agent, rights: str, editors: Sequence[EditorView] = ()) -> AgentView:
    named = {"rights": rights, "user": f"agent-{agent.name}", "editors": list(editors)}
    return AgentView(**{**_values(AgentView, agent), **named})


def version_view(version: Version) -> VersionView:
    return VersionView(**_values(VersionView, version))


def task_view(task: Task, note: str = "", placeless: str = "") -> TaskView:
    """placeless: why it waits for a place for its agent's server, "" where it does not; known to the scheduler alone."""
    waits = {"status": "waiting", "waiting": "place"} if placeless else {}  # as store/lists.py filters and counts it
    return TaskView(**{**_values(TaskView, task), **waits, "note": placeless or note})


def run_view(run: Run) -> RunView:
    return RunView(**_values(RunView, run))


def thread_view(row: dict[str, Any]) -> ThreadView:
    return ThreadView(**{str(name): value for name, value in row.items()})


def inbox_view(row: dict[str, Any]) -> InboxView:
    values = {str(name): value for name, value in row.items() if name in InboxView.__struct_fields__}
    if row["kind"] == "in_doubt":
        proof = row["detail"].get("proof")
        values["worker"] = f"proven dead: {proof}" if proof else "only silent"
    return InboxView(**values)


def page(items: list[T], limit: int, cursor: typing.Callable[[T], Any]) -> Listed[T]:
    """Return one page of a list that was read with one item more than `limit`."""
    return Listed(items[:limit], cursor(items[limit - 1]) if len(items) > limit else None)
