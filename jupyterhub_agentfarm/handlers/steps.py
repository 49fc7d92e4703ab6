"""A run step by step: what each cost and how long it took; the request behind a reply, as it was really sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from sqlalchemy.engine import Connection

from agentfarm_sdk import compaction, parts
from agentfarm_sdk.fold import Fold
from agentfarm_sdk.protocol import Definition, Event, moment, roll

from ..errors import NotFound
from ..gateway.answers import repairing
from ..store import blobs, definitions, ledger, threads
from .routes import Call, Place, Route
from .runs import reach_run

SUMMARY = ".summary"  # ends the ids of requests for one


class StepsPage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`after`: the last step that is known; -1: from the first on."""

    after: Place = -1
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 200


class CallView(msgspec.Struct, kw_only=True):
    """`seconds`: from the first start to the outcome, as the ledger saw it."""

    call: str
    tool: str
    state: str
    effect: str
    attempts: int
    started_at: str | None = None
    ended_at: str | None = None
    seconds: float | None = None


class StepView(msgspec.Struct, kw_only=True):
    """One reply of the model and its calls. `seq`: of the reply; `asked_seq`: of its request (requests/{seq} shows it).

    `attempts` at the request; `attested` false: the worker reported the reply. cost in USD, null: no price.
    """

    step: int
    seq: int
    request: str
    asked_seq: int | None
    model: str
    upstream: str
    provider: str
    asked_at: str | None
    replied_at: str
    seconds: float | None
    attempts: int
    input: int
    output: int
    estimated: bool
    cost: float | None
    finish: str
    attested: bool
    summary: bool = False  # a summary of older messages: no step of its own
    calls: list[CallView] = []


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    steps: int
    input: int
    output: int
    cost: float
    model_seconds: float
    tool_seconds: float


class Steps(msgspec.Struct, frozen=True):
    items: list[StepView]
    next: int | None
    totals: Totals


def steps_of(events: Sequence[Event]) -> list[StepView]:
    """Return the replies of a run with their calls. Pure."""
    found: list[StepView] = []
    fold = Fold(history=lambda _run, _seq: [])
    asked: list[Event] = []  # at the request that is under way
    started: dict[str, str] = {}
    ended: dict[str, str] = {}
    for event in events:
        fold.apply(event)
        if event.kind == "model.requested":
            asked.append(event)
        elif event.kind in ("model.replied", "model.reported"):
            body = event.data()
            found.append(_step(event, body, asked, fold.steps - 1))
            asked = []
        elif event.kind == "tool.started" and event.call:
            started.setdefault(event.call, event.at)
        if event.call and (call := fold.calls.get(event.call)) and not call.open:
            ended.setdefault(event.call, event.at)
    by_step = {one.step: one for one in found if not one.summary}
    for call in fold.calls.values():
        since, until = moment(started.get(call.call)), moment(ended.get(call.call))
        by_step[call.step].calls.append(
            CallView(
                call=call.call, tool=call.tool, state=call.state, effect=call.effect, attempts=call.attempts, started_at=started.get(call.call),
                ended_at=ended.get(call.call), seconds=None if since is None or until is None else until - since,
            )
        )  # fmt: skip
    return found


def _step(event: Event, body: Mapping[str, Any], asked: Sequence[Event], step: int) -> StepView:
    usage, by = body.get("usage") or {}, body.get("provenance") or {}
    first = asked[0] if asked else None
    since, until = moment(first.at) if first else None, moment(event.at)
    summary = body.get("purpose") == "summary"
    return StepView(
        step=step + 1 if summary else step, seq=event.seq, request=str(body.get("request", "")), asked_seq=asked[-1].seq if asked else None,
        model=str(by.get("model", "")), upstream=str(by.get("upstream", "")), provider=str(by.get("provider", "")),
        asked_at=first.at if first else None, replied_at=event.at, seconds=None if since is None or until is None else until - since,
        attempts=len(asked), input=int(usage.get("input", 0)), output=int(usage.get("output", 0)), estimated=bool(usage.get("estimated")),
        cost=body.get("cost"), finish=str(body.get("finish", "")), attested=event.kind == "model.replied", summary=summary, calls=[],
    )  # fmt: skip


async def steps(call: Call) -> Steps:
    query: StepsPage = call.query

    def read(connection: Connection) -> list[StepView]:
        run = reach_run(connection, call.asker, call.path["run"])
        return steps_of(ledger.read_events(connection, run.run_id))

    found = await call.read(read)
    calls = [one for step in found for one in step.calls]
    totals = Totals(
        steps=sum(1 for one in found if not one.summary), input=sum(one.input for one in found), output=sum(one.output for one in found),
        cost=sum(one.cost or 0.0 for one in found), model_seconds=sum(one.seconds or 0.0 for one in found),
        tool_seconds=sum(one.seconds or 0.0 for one in calls),
    )  # fmt: skip
    behind = [one for one in found if one.step > query.after]
    items = behind[: query.limit]
    while (
        len(items) < len(behind) and items[-1].step == behind[len(items)].step
    ):  # a summary and the step that it was made for
        items.append(behind[len(items)])
    return Steps(items, items[-1].step if len(items) < len(behind) else None, totals)


# -- the request behind a reply ------------------------------------------------------------------------------------


class RequestView(msgspec.Struct, frozen=True, kw_only=True):
    """A model request. `matches`: whether the rebuilt messages have the digest that was recorded when they were sent;

    null: they cannot be rebuilt, `why` says so.
    """

    run_id: str
    seq: int
    request: str
    attempt: int
    model: str
    upstream: str
    at: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    tool_choice: str
    parameters: dict[str, Any]
    answer: dict[str, Any] | None
    digest: str
    matches: bool | None
    why: str


class Rebuilt(msgspec.Struct, frozen=True):
    messages: list[dict[str, Any]]
    why: str  # they are not all that was sent; "" where they should be


def digest_of(messages: Sequence[Mapping[str, Any]]) -> str:
    digest = ""
    for one in messages:
        digest = roll(digest, msgspec.json.encode(one))
    return digest


def rebuild(
    connection: Connection, definition: Definition, events: Sequence[Event], asked: Event, context: int | None
) -> Rebuilt:
    """Return the messages of a request from the events before it. context: tokens that the model can take."""
    body = asked.data()
    before = [event for event in events if event.seq <= min(int(body.get("upto", asked.seq - 1)), asked.seq - 1)]
    fold = Fold(history=lambda _run, _seq: threads.said_before(connection, before)).apply_all(before)
    if str(body.get("request", "")).endswith(SUMMARY):
        plan = None
        if context is not None:
            plan = compaction.plan(fold.messages, len(fold.messages) - fold.inherited, context, context)
        return (
            Rebuilt(plan.question, "")
            if plan
            else Rebuilt([], "how many tokens the model could take then is not known now")
        )
    named = {digest for one in fold.messages for digest in parts.blobs_of(one.get("content"))}
    kept = blobs.read(connection, named) if named else {}
    messages = [parts.shown(one, kept) for one in fold.messages]
    erased = any(event.erased and event.kind != "body.erased" for event in before)
    return Rebuilt(messages, "bodies of events before it were erased" if erased or named - kept.keys() else "")


async def request(call: Call) -> RequestView:
    """Show a model request as it was really sent: rebuilt from the ledger, and held against the recorded digest."""
    text = call.path["seq"]

    def look(connection: Connection) -> tuple[str, Definition, list[Event], Event]:
        run = reach_run(connection, call.asker, call.path["run"])
        events = (
            ledger.read_events(connection, run.run_id, limit=int(text)) if text.isdecimal() and len(text) < 10 else []
        )
        if not events or events[-1].kind != "model.requested" or events[-1].seq != int(text):
            raise NotFound(
                f"event {text} of run {run.run_id} is no model request",
                hint="GET /runs/{run}/steps names them: asked_seq",
            )
        return run.run_id, definitions.get(connection, run.definition_hash), events, events[-1]

    run_id, definition, events, asked = await call.read(look)
    body, spec = asked.data(), definition.model
    context = spec.context or await known_context(call, str(body.get("model", "")), spec.provider)
    rebuilt = await call.read(lambda c: rebuild(c, definition, events, asked, context))
    digest = str(body.get("digest", ""))
    same = digest_of(rebuilt.messages) == digest
    matches = True if same else None if rebuilt.why or asked.erased else False
    summary = str(body.get("request", "")).endswith(SUMMARY)
    tools = [] if summary or repairing(rebuilt.messages) else definition.tools
    return RequestView(
        run_id=run_id, seq=asked.seq, request=str(body.get("request", "")), attempt=int(body.get("attempt", 1)), model=str(body.get("model", "")),
        upstream=str(body.get("upstream", "")), at=asked.at, messages=rebuilt.messages,
        tools=[{"name": one.name, "description": one.description, "schema": one.schema} for one in tools], tool_choice=str(body.get("tool_choice", "")),
        parameters=body.get("parameters") or {}, answer=None if summary else definition.answer, digest=digest, matches=matches,
        why="" if same else rebuilt.why or "the worker sent messages of its own: of those the ledger holds the digest",
    )  # fmt: skip


async def known_context(call: Call, model: str, provider: str | None) -> int | None:
    """Return how many tokens the model can take, as the gateway knows it now."""
    upstreams = call.parts.models.upstreams
    try:
        route, name = upstreams.route(model)
    except NotFound:
        return None
    known: int | None = await route.upstream.context(name, provider)
    return known


ROUTES = [
    Route("GET", "/runs/{run}/steps", steps, "Its steps: tokens, cost, time, calls", who="reader", query=StepsPage, answer=Steps),
    Route("GET", "/runs/{run}/requests/{seq}", request, "A model request, as it was really sent", who="reader", answer=RequestView),
]  # fmt: skip
