"""What was done, done again: forks at a step, recorded replies, and what a run has had of effects."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from sqlalchemy.engine import Connection

from agentfarm_sdk.fold import Fold
from agentfarm_sdk.prompts import render
from agentfarm_sdk.protocol import Mode, Simulate

from ..errors import Conflict
from ..records import Run
from ..store import definitions, forks, ledger, tasks
from ..store.db import Tx
from ..store.tables import FARM_RUN
from . import attachments, modes
from .asking import Asker
from .routes import Call, Route
from .runs import NOTEBOOK, reach_run
from .tasks import NewTask, choose, owner_of, reach_target
from .views import Listed, TaskView, task_view


class NewFork(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`step`: before which reply of the model (from 0). `prompt` stands in place of the run's own; `input` is asked next.

    `mode` left out: ask. A simulated fork gets what the run itself recorded, unless `simulate` says otherwise.
    """

    step: Annotated[int, msgspec.Meta(ge=0)] = 0
    prompt: str | None = None
    input: Any = None
    mode: Mode | None = None
    simulate: Simulate | None = None
    version: int | Literal["draft"] | None = None  # left out: the definition that the run had
    variables: dict[str, str] = {}


class ReplyView(msgspec.Struct, frozen=True):
    """A recorded reply of the model; `step`: which one it is, where a fork can begin (of a summary: the one it was made for)."""

    step: int
    seq: int
    request: str
    message: dict[str, Any] | None  # null: erased
    usage: dict[str, Any]


async def fork(call: Call) -> TaskView:
    """Begin a new run with the messages of this one up to a step."""
    wish: NewFork = call.body
    if wish.input is not None:
        wish = msgspec.structs.replace(wish, input=await attachments.taken(call, wish.input, None))

    def write(tx: Tx) -> TaskView:
        run = reach_run(tx.connection, call.asker, call.path["run"])
        if run.run_id == FARM_RUN or run.agent.startswith(NOTEBOOK):
            raise Conflict(
                f"run {run.run_id} is of no agent of the farm", hint="fork it in its notebook: run.fork(step)"
            )
        found = forks.origin(tx.connection, run.run_id, wish.step, again=wish.input is not None)
        owner = owner_of(tx.connection, call.asker)
        choice = _chosen(tx.connection, call.asker, owner, run, wish.version)
        prompt = wish.prompt
        if prompt is None and wish.version is not None:
            prompt = choice.definition.prompt
        if prompt is not None:
            prompt = render(prompt, choice.definition.variables, wish.variables, wish.input)
        given = wish.simulate or (Simulate(recording=run.run_id) if wish.mode == "simulate" else None)
        mode, simulate = modes.settled(tx.connection, call.asker, wish.mode, given, "ask", choice.definition)
        old = tasks.show(tx.connection, run.task_id)
        asked = tasks.Submission(
            owner=owner, submitted_by=call.asker.hub_name, target=run.agent, input=old.input if wish.input is None else wish.input, mode=mode, simulate=simulate,
            workspace=old.workspace, variables=wish.variables, begins=tuple(forks.opening(found, prompt, wish.input)),
        )  # fmt: skip
        return task_view(tasks.submit(tx, call.parts.db.epoch, asked, choice)[0])

    return await call.commit(write)  # type: ignore[no-any-return]


def _chosen(connection: Connection, asker: Asker, owner: str, run: Run, version: int | str | None) -> tasks.Choice:
    """Return the definition that a fork runs: the run's own, or the version that is named."""
    if version is None:
        reach_target(connection, asker, owner, run.agent)
        return tasks.Choice(run.agent, definitions.get(connection, run.definition_hash), run.version)
    choice = choose(connection, asker, owner, NewTask(target=run.agent, version=version))  # type: ignore[arg-type]
    assert choice is not None  # an agent is named, no pool
    return choice


async def replies(call: Call) -> Listed[ReplyView]:
    def read(connection: Connection) -> list[ReplyView]:
        run = reach_run(connection, call.asker, call.path["run"])
        fold, found = Fold(history=lambda _run, _seq: []), list[ReplyView]()
        for event in ledger.read_events(connection, run.run_id):
            step = fold.steps  # of a summary: the step that it was made for
            fold.apply(event)
            if event.kind in ("model.replied", "model.reported"):
                body = event.data()
                found.append(
                    ReplyView(
                        step, event.seq, str(body.get("request", "")), body.get("message"), body.get("usage") or {}
                    )
                )
        return found

    return Listed(await call.read(read))


async def effects(call: Call) -> Listed[forks.Effect]:
    def read(connection: Connection) -> list[forks.Effect]:
        return forks.effects(connection, reach_run(connection, call.asker, call.path["run"]).run_id)

    return Listed(await call.read(read))


ROUTES = [
    Route("POST", "/runs/{run}/fork", fork, "Begin a new run at one of its steps", body=NewFork, answer=TaskView, status=201),
    Route("GET", "/runs/{run}/replay", replies, "The model's replies, as recorded", who="reader", answer=Listed[ReplyView]),
    Route("GET", "/runs/{run}/effects", effects, "What it did in the world, or may have", who="reader", answer=Listed[forks.Effect]),
]  # fmt: skip
