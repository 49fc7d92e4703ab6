"""Tasks: submitted (one or many), listed, shown, cancelled, paused, resumed, run again. Threads: their conversations."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import asdict
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import MAX_APPEND_BYTES, Mode, Simulate

from ..demands import Requirements, as_layer
from ..errors import Conflict, Forbidden, Invalid, NotFound
from ..records import Agent, Task
from ..store import agents, batches, forks, queue, tasks, threads
from ..store.db import Tx
from . import attachments, budgets, modes
from .asking import RANK, Asker, in_use, may, reach_agent, rights, visible
from .routes import Call, Empty, Page, Route
from .views import Listed, TaskView, ThreadView, page, task_view, thread_view

POOL = "pool:"
MAX_TASKS = 1000
MAX_AFTER = 1000
Priority = Annotated[int, msgspec.Meta(ge=-100, le=100)]
Text255 = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Another run where one has failed: `attempts` runs in all, `backoff` seconds before the second, doubled each time.

    `on`: types of errors; left out: unavailable, model-failed, worker-died, unplaceable. Never after a call with effect once.
    """

    attempts: Annotated[int, msgspec.Meta(ge=2, le=20)] = 3
    backoff: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 5.0
    on: Annotated[list[Annotated[str, msgspec.Meta(min_length=1, max_length=64)]], msgspec.Meta(max_length=20)] = []


class NewTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`target`: an agent, or `pool:<name>`. `version`: a number, or "draft"; left out: the published one.

    `mode` left out: live, and ask for a draft. `simulate`: what answers the calls of a run in that mode. `deadline`: a time in ISO 8601, or seconds from now. `thread` is
    another word for `thread_id`. `after`: tasks that must have succeeded before (`after_any_end`: or ended); with `results`
    theirs stand behind the input. `concurrency`: so many of the owner's runs with the same `concurrency_key` at once.
    """

    target: str = ""
    input: Any = None
    priority: Priority = 0
    mode: Mode | None = None
    simulate: Simulate | None = None
    key: Text255 | None = None
    thread_id: str | None = None
    thread: str | None = None
    version: int | Literal["draft"] | None = None
    variables: dict[str, str] = {}
    workspace: Literal["home", "none"] = "home"
    deadline: float | str | None = None
    requirements: Requirements = Requirements()
    after: Annotated[list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(max_length=MAX_AFTER)] = []
    after_any_end: bool = False
    results: bool = False
    retry: Retry | None = None
    concurrency_key: Text255 | None = None
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1


class NewTasks(NewTask, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One task, or many under `tasks`: all or none, as one batch. The same key of a `batch` adds to it."""

    batch: Text255 | None = None
    tasks: Annotated[list[NewTask], msgspec.Meta(max_length=MAX_TASKS)] = []


class Submitted(msgspec.Struct, frozen=True):
    items: list[TaskView]
    batch_id: str
    next: None = None


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class NewThread(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    agent: str
    title: Annotated[str, msgspec.Meta(max_length=500)] = ""
    policy: Literal["enqueue", "reject", "interrupt"] = "enqueue"


# -- submitting ----------------------------------------------------------------------------------------------------


async def submit(call: Call) -> TaskView | Submitted:
    body: NewTasks = call.body
    if body.tasks and (body.target or body.input is not None):
        raise Invalid("one task, or many under tasks: not both", hint='{"tasks": [{"target", "input"}, …]}')
    if body.batch and not body.tasks:
        raise Invalid("a batch has tasks - at `$.batch`", hint='{"batch": "…", "tasks": [{"target", "input"}, …]}')

    body = await _with_parts(call, body)
    for target, version in {(one.target, one.version) for one in body.tasks or [body]}:
        await budgets.can_be_kept(call, target, version)
    for one in body.tasks or [body]:
        await _can_do(call, one)

    def write(tx: Tx) -> TaskView | Submitted:
        if body.tasks:
            return _submit_many(tx, call, body)
        task, new = _submit(tx, call, body, Known(tx.connection, call.asker))
        call.status = 201 if new else 200
        return task_view(task)

    submitted = body.tasks or [body]
    call.parts.claims.expect({one.target for one in submitted})
    done = await call.commit(write)
    if any(one.target.startswith(POOL) or one.deadline is not None for one in submitted):
        call.parts.wake()  # a pool's task has no event that the scheduler would hear; a deadline may be near
    return done  # type: ignore[no-any-return]


async def _can_do(call: Call, new: NewTask) -> None:
    """Raise Invalid: the agent's server is not promised what the task needs. A pool's members are looked at when it is their turn."""
    if new.requirements == Requirements() or new.target.startswith(POOL):
        return
    lacking = await call.parts.resources.lacking(as_layer(new.requirements), [new.target])
    if why := lacking[new.target]:
        raise Invalid(
            f"agent {new.target} cannot do it: {why} - at `$.requirements`",
            hint=f"agentfarm agent resources {new.target}, or a pool whose members have it",
        )


async def _with_parts(call: Call, body: NewTasks) -> NewTasks:
    """Keep the images and files that come with the inputs."""

    async def kept(new: Any) -> Any:
        if not isinstance(new.input, list):
            return new
        definition = await attachments.definition_of(call, new.target, new.version, new.input)
        return msgspec.structs.replace(new, input=await attachments.taken(call, new.input, definition))

    many = [await kept(one) for one in body.tasks]
    whole: NewTasks = await kept(body)
    return msgspec.structs.replace(whole, tasks=many) if many else whole


class Known:
    """What the tasks of one request have in common, looked up once."""

    def __init__(self, connection: Connection, asker: Asker) -> None:
        self.connection, self.asker = connection, asker
        self.owner = owner_of(connection, asker)
        self.keyed: tasks.Keyed | None = None
        self._choices: dict[tuple[str, Any, bool], tasks.Choice | None] = {}

    def choice(self, new: NewTask) -> tasks.Choice | None:
        place = (new.target, new.version, bool(new.thread_id or new.thread))
        if place not in self._choices:
            self._choices[place] = choose(self.connection, self.asker, self.owner, new)
        return self._choices[place]


def _submit_many(tx: Tx, call: Call, body: NewTasks) -> Submitted:
    """Submit a batch's tasks, behind those that it has. Raises Conflict: a key was used outside of the batch."""
    known = Known(tx.connection, call.asker)
    for one in body.tasks:  # before anything is written: most of what can be wrong
        known.choice(one)
    keys = [one.key for one in body.tasks if one.key]
    known.keyed = tasks.keyed(tx.connection, known.owner, keys)
    before = None if body.batch else batches.of(tx.connection, known.owner, keys)
    batch_id = before or batches.begin(tx, owner=known.owner, submitted_by=call.asker.hub_name, key=body.batch)
    place, views = batches.last_place(tx.connection, batch_id), []
    for one in body.tasks:
        task, new = _submit(tx, call, one, known, batch=(batch_id, place + 1))
        place += new
        if body.batch and task.batch_id != batch_id:
            raise Conflict(f"key {one.key!r} was used outside of batch {body.batch!r}", hint="use new keys")
        views.append(task_view(task))
    return Submitted(views, batch_id)


def _submit(tx: Tx, call: Call, new: NewTask, known: Known, batch: tuple[str, int] | None = None) -> tuple[Task, bool]:
    if new.input is None:
        raise Invalid(
            "a task needs an input - at `$.input`", hint='e.g. {"target": "analyst", "input": "What is 17*23?"}'
        )
    attachments.check(known.connection, known.owner, new.input)
    thread = new.thread_id or new.thread
    owner, choice = known.owner, known.choice(new)
    if thread is not None:
        _check_thread(known.connection, thread, choice)
    if new.retry is not None and thread is not None:
        raise Invalid(
            "a message of a thread is not tried again by itself", hint="leave retry out: later ones wait for it"
        )
    for one in new.after:
        reach_task(known.connection, call.asker, one, "view")
    usual: Mode = "ask" if new.version == "draft" else "live"
    definition = choice.definition if choice else None
    mode, simulate = modes.settled(known.connection, call.asker, new.mode, new.simulate, usual, definition)
    asked = tasks.Submission(
        owner=owner, submitted_by=call.asker.hub_name, target=new.target, input=new.input, priority=new.priority, mode=mode, key=new.key,
        mode_asked="simulate" if new.simulate else new.mode or usual, thread_id=thread, workspace=new.workspace, deadline=_deadline(new.deadline, tx.now), deadline_asked=new.deadline,
        requirements=as_layer(new.requirements), variables=new.variables, after=new.after, after_any_end=new.after_any_end, results=new.results,
        retry=asdict(new.retry) if new.retry else None, concurrency_key=new.concurrency_key, concurrency=new.concurrency, simulate=simulate,
        batch_id=batch[0] if batch else None, place=batch[1] if batch else None,
    )  # fmt: skip
    return tasks.submit(tx, call.parts.db.epoch, asked, choice, known.keyed)


def owner_of(connection: Connection, asker: Asker) -> str:
    """Return whose tasks the asker's are: an agent works for its owner."""
    return agents.show(connection, asker.name).owner if asker.kind == "agent" else asker.name


def choose(connection: Connection, asker: Asker, owner: str, new: NewTask) -> tasks.Choice | None:
    """Return the agent and version that take the task; None for a pool's, which the scheduler gives to a member."""
    if new.target.startswith(POOL):
        pool = new.target.removeprefix(POOL)
        if new.version is not None or new.thread_id or new.thread:
            raise Invalid("a pool's task has neither version nor thread", hint="name one agent as the target")
        if not queue.members(connection, pool, owner):
            raise NotFound(
                f"there is no pool {pool} with a published agent of yours",
                hint="give an agent that pool, and publish it",
            )
        return None
    agent = reach_target(connection, asker, owner, new.target)
    if new.version == "draft":
        has = rights(connection, asker, agent)
        if has is None or RANK[has] < RANK["manage"]:
            raise Forbidden(f"the draft of {agent.name} is for those who manage it", hint="leave version out")
        return tasks.Choice(agent.name, agent.draft, None)
    number = new.version if isinstance(new.version, int) else agent.published
    if number is None:
        raise Conflict(
            f"agent {agent.name} is not published",
            hint=f'publish it: agentfarm agent publish {agent.name}; or "version": "draft"',
        )
    return tasks.Choice(agent.name, agents.version(connection, agent.name, number).definition, number)


def reach_target(connection: Connection, asker: Asker, owner: str, name: str) -> Agent:
    """Return the agent that is to do it. An agent may ask the agents of its own owner. Raises NotFound, Forbidden."""
    if asker.kind == "agent":
        agent = agents.show(connection, name)
        if agent.owner != owner:
            raise agents.no_agent(name)
        return in_use(agent)
    return in_use(reach_agent(connection, asker, name, "chat")[0])


def _check_thread(connection: Connection, thread: str, choice: tasks.Choice | None) -> None:
    found = threads.show(connection, thread)
    if choice is None or found["agent"] != choice.agent:
        raise Conflict(f"thread {thread} is with agent {found['agent']}", hint="send it there, or begin another thread")


def _deadline(given: float | str | None, now: float) -> float | None:
    if given is None or isinstance(given, float | int):
        if given is not None and given <= 0:
            raise Invalid(f"a deadline of {given:g} s from now - at `$.deadline`", hint="seconds, more than 0")
        return None if given is None else now + given
    try:
        at = datetime.fromisoformat(given.replace("Z", "+00:00"))
    except ValueError as error:
        raise Invalid(f"{given!r} is no time - at `$.deadline`", hint="e.g. 2026-11-21T18:00:00Z") from error
    return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()


# -- looking and acting --------------------------------------------------------------------------------------------


def reach_task(connection: Connection, asker: Asker, task_id: str, need: Literal["view", "chat"]) -> Task:
    """Return the task. Raises NotFound (also where it may not be seen), Forbidden."""
    task = tasks.show(connection, task_id)
    if not may(connection, asker, task, "view"):
        raise NotFound(f"there is no task {task_id}", hint="list them by: agentfarm task list")
    if not may(connection, asker, task, need):
        raise Forbidden(f"this needs the right {need} on agent {task.agent}", hint=f"ask {task.owner}")
    return task


async def show(call: Call) -> TaskView:
    task = await call.read(lambda c: reach_task(c, call.asker, call.path["task"], "view"))
    waits = task.status in ("queued", "assigned") and task.agent
    return task_view(task, call.parts.why(str(task.agent)) if waits else "", call.parts.placeless().why(task))


async def cancel(call: Call) -> TaskView:
    def write(tx: Tx) -> TaskView:
        task = reach_task(tx.connection, call.asker, call.path["task"], "chat")
        return task_view(tasks.cancel(tx, task.task_id, call.asker.by, call.body.reason or f"by {call.asker.hub_name}"))

    return await call.commit(write)  # type: ignore[no-any-return]


async def pause(call: Call) -> TaskView:
    def write(tx: Tx) -> TaskView:
        task = reach_task(tx.connection, call.asker, call.path["task"], "chat")
        return task_view(tasks.pause(tx, task.task_id, call.asker.by, call.body.reason))

    return await call.commit(write)  # type: ignore[no-any-return]


async def resume(call: Call) -> TaskView:
    def write(tx: Tx) -> TaskView:
        task = reach_task(tx.connection, call.asker, call.path["task"], "chat")
        return task_view(tasks.resume(tx, task.task_id, call.asker.by))

    return await call.commit(write)  # type: ignore[no-any-return]


class Again(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`confirm`: the effects of the old run are known, and may happen a second time."""

    confirm: bool = False


async def rerun(call: Call) -> TaskView:
    """Submit the same input anew, to the published version of today."""

    def write(tx: Tx) -> TaskView:
        task = reach_task(tx.connection, call.asker, call.path["task"], "chat")
        if task.run_id and not call.body.confirm and (done := forks.effects(tx.connection, task.run_id)):
            raise Conflict(
                f"run {task.run_id} has had effects that a second run may have again: {', '.join(one.tool for one in done)}",
                hint='look at them (effects); then send {"confirm": true}',
                effects=msgspec.to_builtins(done),
            )
        if not task.agent:
            raise Conflict(f"task {task.task_id} never had an agent", hint="submit it anew")
        owner = owner_of(tx.connection, call.asker)
        choice = choose(tx.connection, call.asker, owner, NewTask(target=task.agent))
        assert choice is not None
        mode = modes.not_livelier(tx.connection, call.asker, None, task.mode)  # type: ignore[arg-type]
        return task_view(tasks.rerun(tx, call.parts.db.epoch, task.task_id, call.asker.hub_name, choice, mode))

    return await call.commit(write)  # type: ignore[no-any-return]


# -- threads -------------------------------------------------------------------------------------------------------


async def new_thread(call: Call) -> ThreadView:
    def write(tx: Tx) -> ThreadView:
        owner = owner_of(tx.connection, call.asker)
        agent = reach_target(tx.connection, call.asker, owner, call.body.agent)
        return thread_view(threads.create(tx, **{**asdict(call.body), "agent": agent.name}, owner=owner))

    return await call.commit(write)  # type: ignore[no-any-return]


class ThreadsPage(Page, frozen=True, forbid_unknown_fields=True):
    """`agent`: the conversations with this one alone."""

    agent: str = ""


async def list_threads(call: Call) -> Listed[ThreadView]:
    query: ThreadsPage = call.query

    def read(connection: Connection) -> list[dict[str, Any]]:
        owners, names = visible(connection, call.asker)
        return threads.listed(
            connection, owners=owners, agents=names, only=query.agent, before=query.cursor or None, limit=query.limit + 1
        )  # fmt: skip

    found = page(await call.read(read), query.limit, lambda one: one["thread_id"])
    return Listed([thread_view(one) for one in found.items], found.next)


async def show_thread(call: Call) -> ThreadView:
    def read(connection: Connection) -> ThreadView:
        found = threads.show(connection, call.path["thread"])
        if not may(connection, call.asker, found, "view"):
            raise NotFound(f"there is no thread {call.path['thread']}", hint="list them at /threads")
        return thread_view(found)

    return await call.read(read)


ROUTES = [
    Route("POST", "/tasks", submit, "Submit a task, or many", body=NewTasks, answer=TaskView, also=Submitted, status=201, limit=MAX_APPEND_BYTES),
    Route("GET", "/tasks/{task}", show, "Show a task", answer=TaskView),
    Route("POST", "/tasks/{task}/cancel", cancel, "Stop it", body=Reason, answer=TaskView),
    Route("POST", "/tasks/{task}/pause", pause, "Let it wait", body=Reason, answer=TaskView),
    Route("POST", "/tasks/{task}/resume", resume, "Let it go on", body=Empty, answer=TaskView),
    Route("POST", "/tasks/{task}/rerun", rerun, "Submit its input anew", body=Again, answer=TaskView, status=201),
    Route("POST", "/threads", new_thread, "Begin a conversation", body=NewThread, answer=ThreadView, status=201),
    Route("GET", "/threads", list_threads, "List conversations, newest first", query=ThreadsPage, answer=Listed[ThreadView]),
    Route("GET", "/threads/{thread}", show_thread, "Show a conversation", answer=ThreadView),
]  # fmt: skip
