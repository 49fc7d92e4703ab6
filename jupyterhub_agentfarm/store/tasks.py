"""Tasks: submitted once for each key, listed, cancelled, paused, run again. A task for an agent gets its run at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.fold import ERASED
from agentfarm_sdk.parts import blobs_of
from agentfarm_sdk.protocol import ENDED, Definition, NewEvent, Simulate, content_hash, new_event

from ..errors import Conflict, Invalid, NotFound
from ..records import Run, Task, new_id
from . import blobs, definitions, draining, forks, leases, ledger, links, threads, turns
from .db import Tx
from .tables import task_links, tasks

_COLUMNS = tuple(one.name for one in fields(Task))
_TASK = sa.select(*(tasks.c[name] for name in _COLUMNS))
_ONE = _TASK.where(tasks.c.task_id == sa.bindparam("task_id"))  # made once: to make one costs more than to execute it
_KEYED = _TASK.add_columns(tasks.c.key_digest).where(
    tasks.c.owner == sa.bindparam("owner"), tasks.c.key.in_(sa.bindparam("keys", expanding=True))
)
_KEYS = 500  # in one query
_NEW = (*(name for name in _COLUMNS if name not in ("result", "error", "ended_at")), "key_digest", "rank")
_INSERT = f"INSERT INTO tasks ({', '.join(_NEW)}) VALUES ({', '.join('?' * len(_NEW))})"
Keyed = dict[str, tuple[Task, str]]  # tasks by their key, with the digest of what was asked for
_JSON = ("input", "requirements", "result", "error", "options")


@dataclass(frozen=True)
class Submission:
    """What an owner asks for. `input`: text or any JSON; `variables` fill {{name}} in the prompt."""

    owner: str
    submitted_by: str
    target: str
    input: Any
    priority: int = 0
    mode: str = "live"
    mode_asked: str = ""  # what was asked for, where the mode is another one: what the same key is compared by
    key: str | None = None
    thread_id: str | None = None
    workspace: str = "home"
    deadline: float | None = None
    deadline_asked: float | str | None = None  # as it was given: seconds from now are the same each time
    requirements: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    begins: tuple[NewEvent, ...] = ()  # a fork's events, in place of prompt and input
    simulate: Simulate | None = None  # what answers the calls of a run in mode `simulate`
    after: Sequence[str] = ()  # it waits until these tasks have succeeded
    after_any_end: bool = False  # or have ended, however
    results: bool = False  # theirs stand behind its input
    retry: Mapping[str, Any] | None = None  # {"attempts", "backoff", "on"}
    concurrency_key: str | None = None
    concurrency: int = 1
    parent: tuple[str, str] | None = None  # run and call that delegated it
    batch_id: str | None = None
    place: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Return what is kept as it was asked for; only what differs from the defaults."""
        asked = {
            "after": list(self.after), "after_any_end": self.after_any_end, "results": self.results,
            "retry": dict(self.retry or {}), "concurrency": self.concurrency if self.concurrency != 1 else 0,
        }  # fmt: skip
        return {name: value for name, value in asked.items() if value}


@dataclass(frozen=True)
class Choice:
    """The agent that takes a task, and the definition it runs. `version` None = a draft."""

    agent: str
    definition: Definition
    version: int | None
    bound: bool = False

    @cached_property
    def hash(self) -> str:
        return content_hash(self.definition)


def keyed(connection: Connection, owner: str, keys: Sequence[str]) -> Keyed:
    """Return the owner's tasks of these keys."""
    found = Keyed()
    for place in range(0, len(keys), _KEYS):
        values = {"owner": owner, "keys": list(keys[place : place + _KEYS])}
        found |= {row.key: (_task(row[:-1]), row[-1]) for row in connection.execute(_KEYED, values)}
    return found


def submit(
    tx: Tx, epoch: str, asked: Submission, choice: Choice | None, known: Keyed | None = None
) -> tuple[Task, bool]:
    """Write the task, and its run where the agent is known (`choice`); return (task, whether it is new).

    `known`: what `keyed` found of the keys that are submitted together; the new task is added to it.

    Raises:
        Conflict: the key was used with another body; or the thread takes no second message.
        Invalid: a variable of the prompt has no value.
        NotFound: no such thread.
    """
    digest = _digest(asked)
    if asked.key is not None:
        known = keyed(tx.connection, asked.owner, [asked.key]) if known is None else known
        if asked.key in known:
            task, before = known[asked.key]
            if before != digest:
                raise Conflict(
                    f"key {asked.key!r} was used for another task ({task.task_id})",
                    hint="send the same body, or a new key",
                    task=task.task_id,
                )
            return task, False
    interrupts: list[str] = []
    if asked.thread_id is not None:
        interrupts = threads.admit(tx, asked.thread_id, asked.owner, choice.agent if choice else asked.target)
    if asked.after or asked.results:
        _check_after(tx.connection, asked)
    task_id = new_id("task")
    events = first_events(tx, asked, choice, task_id) if choice else None  # may raise: before anything is written
    requirements = {
        **asked.requirements,
        **({"variables": dict(asked.variables)} if asked.variables else {}),
        **_simulate(asked),
    }
    run_id = new_id("run") if choice else None
    values = dict(
        task_id=task_id, run_id=run_id, owner=asked.owner, submitted_by=asked.submitted_by, target=asked.target, agent=choice.agent if choice else None,
        thread_id=asked.thread_id, input=_json(asked.input), priority=asked.priority, mode=asked.mode, key=asked.key,
        key_digest=digest, workspace=asked.workspace, deadline=asked.deadline, requirements=_json(requirements),
        status="waiting" if asked.after else "queued", waiting="after" if asked.after else None, created_at=tx.now,
        rank=turns.rank(tx.now, asked.priority), options=_json(asked.options), concurrency_key=asked.concurrency_key,
        parent_run=asked.parent[0] if asked.parent else None, parent_call=asked.parent[1] if asked.parent else None,
        batch_id=asked.batch_id, place=asked.place,
    )  # fmt: skip
    tx.later(_INSERT, tuple(values[name] for name in _NEW))
    if choice and run_id and events:
        _begin(tx, epoch, task_id, run_id, asked, choice, events)
    for active in interrupts:
        leases.interrupt(tx, active, task_id)
    if asked.after:
        tx.execute(task_links.insert(), [{"task_id": task_id, "after_task": one} for one in dict.fromkeys(asked.after)])
        for one in asked.after:
            links.mark(tx, one)
        links.settle(tx, task_id)  # they may have ended
    task = show(tx.connection, task_id) if asked.after or interrupts else _task([values.get(name) for name in _COLUMNS])
    if known is not None and asked.key is not None:
        known[asked.key] = (task, digest)
    return task, True


def assign(tx: Tx, epoch: str, task: Task, choice: Choice) -> Run:
    """Give a pool's task to the member that was chosen: its run begins. Raises Conflict: it has a run already."""
    if task.run_id or show(tx.connection, task.task_id).run_id:
        raise Conflict(f"task {task.task_id} has a run already")
    asked = _asked(task)
    given = links.given(tx.connection, task.task_id, asked.input, task.options)
    events = first_events(tx, replace(asked, input=given, after=(), results=False), choice, task.task_id)
    run_id = new_id("run")
    tx.execute(tasks.update().where(tasks.c.task_id == task.task_id).values(agent=choice.agent, run_id=run_id))
    return _begin(tx, epoch, task.task_id, run_id, asked, choice, events, task.created_at)


def _begin(
    tx: Tx, epoch: str, task_id: str, run_id: str, asked: Submission, choice: Choice, events: list[NewEvent], since: float = 0.0
) -> Run:  # fmt: skip
    blobs.link(tx, run_id, blobs_of(asked.input))
    if asked.simulate and asked.simulate.recording:
        blobs.share(tx, asked.simulate.recording, run_id)
    others = {"retry": asked.retry, "batch_id": asked.batch_id, "parent_run": asked.parent}
    return ledger.create_run(
        tx, run_id=run_id, task_id=task_id, agent=choice.agent, owner=asked.owner, epoch=epoch, version=choice.version,
        definition_hash=definitions.put(tx, choice.definition, choice.hash), mode=asked.mode, thread_id=asked.thread_id, priority=asked.priority,
        bound=choice.bound, events=events, rank=turns.rank(since or tx.now, asked.priority), concurrency_key=asked.concurrency_key,
        concurrency=asked.concurrency, linked=any(others.values()) or bool(since and links.followed(tx.connection, task_id)),
    )  # fmt: skip


def first_events(tx: Tx, asked: Submission, choice: Choice, task_id: str) -> list[NewEvent]:
    """Return run.created and, outside a thread, the rendered prompt and the input. Raises Invalid: a variable has no value."""
    opening = asked.begins or threads.opening(choice.definition, asked.input, asked.variables, None)
    created = {
        "task": task_id, "agent": choice.agent, "version": choice.version, "definition": choice.hash,
        "mode": asked.mode, "thread": asked.thread_id, "parent": asked.parent[0] if asked.parent else None, "owner": asked.owner, "bound": choice.bound,
        **_simulate(asked),
    }  # fmt: skip
    # In a thread the messages before it may still be on their way: they are added when it is claimed. So too the results of
    # tasks before it, when those have ended.
    waits = [new_event("run.parked", {"reason": "after", "after": list(asked.after)})] if asked.after else []
    return [new_event("run.created", created), *([] if asked.thread_id or asked.results else opening), *waits]


def cancel(tx: Tx, task_id: str, by: str, reason: str) -> Task:
    """Cancel a task; again is harmless. Raises Conflict: it has ended otherwise."""
    task = show(tx.connection, task_id)
    if task.status == "cancelled":
        return task
    if task.run_id:
        leases.cancel(tx, task.run_id, by, reason)
    elif task.status not in ENDED:
        tx.execute(
            tasks.update()
            .where(tasks.c.task_id == task_id)
            .values(
                status="cancelled", waiting=None, ended_at=tx.now, error=_json({"type": "cancelled", "message": reason})
            )
        )
        links.over(tx, task_id)
    return show(tx.connection, task_id)


def pause(tx: Tx, task_id: str, by: str, reason: str) -> Task:
    """Pause: a queued run waits, a running one parks after its step. Raises Conflict: it ends, has ended or no run yet."""
    run = _run_of(tx, task_id)
    if run.cancel:
        raise Conflict(f"task {task_id} is being cancelled", hint="there is nothing left to pause")
    if run.waiting != "paused" or draining.drain_of(tx.connection, run):  # a drain would let it go on by itself
        ledger.record(tx, run.run_id, by, [new_event("run.paused", {"reason": reason})])
    return show(tx.connection, task_id)


def resume(tx: Tx, task_id: str, by: str) -> Task:
    """Let a paused or restored task go on, or wait for what else it waits for. Raises Conflict: it is neither."""
    run = _run_of(tx, task_id)
    if run.waiting not in ("paused", "restored"):
        raise Conflict(
            f"task {task_id} is not paused",
            hint=f"it is {run.status}" + (f", waiting for {run.waiting}" if run.waiting else ""),
        )
    events = [new_event("run.resumed", {})]
    if links.unreleased(tx.connection, run):
        events.append(new_event("run.parked", {"reason": "after"}))
    leases.go_on(tx, run.run_id, by, events, "resumed")
    links.settle(tx, task_id)
    return show(tx.connection, task_id)


def rerun(tx: Tx, epoch: str, task_id: str, by: str, choice: Choice, mode: str = "") -> Task:
    """Submit the same input anew, as a task of its own; `mode`: another one than before. Raises Conflict: it has not ended."""
    task = show(tx.connection, task_id)
    if task.status not in ENDED:
        raise Conflict(f"task {task_id} has not ended", hint="cancel it first")
    if task.input == ERASED:
        raise Conflict(f"what task {task_id} asked for was erased", hint="submit it anew")
    alone = replace(
        _asked(task),
        submitted_by=by,
        mode=mode or task.mode,
        key=None,
        after=(),
        results=False,
        parent=None,
        batch_id=None,
        place=None,
        begins=forks.begins(tx.connection, task.run_id),
    )
    return submit(tx, epoch, alone, choice)[0]


def show(connection: Connection, task_id: str) -> Task:
    """Return the task. Raises NotFound."""
    row = connection.execute(_ONE, {"task_id": task_id}).one_or_none()
    if row is None:
        raise NotFound(f"there is no task {task_id}", hint="list them by: agentfarm task list")
    return _task(row)


def listed(connection: Connection, *where: Any, before: str | None = None, limit: int = 50) -> list[Task]:
    """Return the tasks that the conditions on `tables.tasks` select (lists.py), newest first."""
    statement = _TASK.where(*where).order_by(tasks.c.task_id.desc()).limit(limit)
    if before:
        statement = statement.where(tasks.c.task_id < before)
    return [_task(row) for row in connection.execute(statement)]


def select_tasks(connection: Connection, *where: Any, order: tuple[Any, ...], limit: int) -> list[Task]:
    """Return the tasks that the conditions on `tables.tasks` select."""
    return [_task(row) for row in connection.execute(_TASK.where(*where).order_by(*order).limit(limit))]


def fail(tx: Tx, task: Task, error_type: str, message: str) -> None:
    """End a task that could not be carried out, with the reason; so too its run.

    Where a call of it may have taken effect and nobody can ask the tool's probe now, the run waits for a person instead.
    """
    if task.run_id and (left := leases.not_probed(tx, task.run_id, message)):
        ledger.record(tx, task.run_id, "service", left)
    else:
        links.end_task(tx, task.task_id, task.run_id, {"type": error_type, "message": message})


def _run_of(tx: Tx, task_id: str) -> Run:
    task = show(tx.connection, task_id)
    if not task.run_id or task.status in ENDED:
        raise Conflict(
            f"task {task_id} is {task.status}", hint="only a task whose run has begun and not ended can be paused"
        )
    return ledger.held(tx, task.run_id)


def _asked(task: Task) -> Submission:
    requirements = dict(task.requirements)
    variables = requirements.pop("variables", {})
    given = requirements.pop("simulate", None)
    options = dict(task.options)
    parent = (task.parent_run, str(task.parent_call)) if task.parent_run else None
    return Submission(
        owner=task.owner, submitted_by=task.submitted_by, target=task.target, input=task.input, priority=task.priority, mode=task.mode,
        key=task.key, thread_id=task.thread_id, workspace=task.workspace, deadline=task.deadline, requirements=requirements, variables=variables,
        concurrency_key=task.concurrency_key, parent=parent, batch_id=task.batch_id, place=task.place, **options,
        simulate=msgspec.convert(given, Simulate) if given else None,
    )  # fmt: skip


def _check_after(connection: Connection, asked: Submission) -> None:
    """Raises NotFound: one of the tasks that it is to come after is none of its owner's; Invalid: it cannot wait for them."""
    if not asked.after:
        if asked.results:
            raise Invalid("there are no results to hand on", hint="name the tasks in after")
        return
    if asked.results and asked.thread_id:
        raise Invalid("a message of a thread gets no results of other tasks", hint="leave thread or results out")
    known = connection.execute(
        sa.select(tasks.c.task_id).where(tasks.c.task_id.in_(list(asked.after)), tasks.c.owner == asked.owner)
    )
    if missing := set(asked.after) - set(known.scalars()):
        raise NotFound(
            f"there is no task {', '.join(sorted(missing))} to come after", hint="list them by: agentfarm task list"
        )


def _digest(asked: Submission) -> str:
    """Return what tells a task from another one under the same key: all that the asker chose."""
    more = {**asked.options, **({"concurrency_key": asked.concurrency_key} if asked.concurrency_key else {})}
    return content_hash(
        {
            **more,
            "target": asked.target,
            "input": asked.input,
            "priority": asked.priority,
            "mode": asked.mode_asked or asked.mode,
            "thread": asked.thread_id,
            "workspace": asked.workspace,
            "deadline": asked.deadline if asked.deadline_asked is None else asked.deadline_asked,
            "requirements": dict(asked.requirements),
            "variables": dict(asked.variables),
            **_simulate(asked),
        }
    )


def _simulate(asked: Submission) -> dict[str, Any]:
    return {"simulate": msgspec.to_builtins(asked.simulate)} if asked.simulate else {}


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _task(row: Any) -> Task:
    values = dict(zip(_COLUMNS, row, strict=True))
    for name in _JSON:
        values[name] = None if values[name] is None else msgspec.json.decode(values[name])
    return Task(**values)
