"""Runs: shown, followed, verified; what their workers send (the same as over the WebSocket); notebooks' own runs."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from sqlalchemy.engine import Connection

from agentfarm_sdk.prompts import render
from agentfarm_sdk.protocol import (
    ENDED,
    MAX_APPEND_BYTES,
    MAX_BLOB_BYTES,
    AppendAnswer,
    AppendRequest,
    Claim,
    ClaimRequest,
    Definition,
    Event,
    HeartbeatAnswer,
    HeartbeatRequest,
    Mode,
    NewEvent,
    Opened,
    Simulate,
)

from .. import runtokens
from ..errors import Fenced, Forbidden, Invalid, NotFound
from ..records import Run, new_id
from ..store import blobs, forks, leases, ledger, tasks
from ..store.db import Tx
from ..store.tables import FARM_RUN
from . import attachments, drafts, modes
from .asking import Asker, may
from .feed import Sse, resume_from, wants_stream
from .routes import KIB, Call, Empty, Place, Route
from .tasks import owner_of
from .views import Listed, RunView, run_view

NOTEBOOK = "~"  # before the name of a notebook's agent: no agent of the farm has such a name


class EventsPage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: Place = 0
    limit: int = 200


class After(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: Place = 0


class Verified(msgspec.Struct, frozen=True):
    run_id: str
    ok: bool
    events: int
    head: str
    bad_seq: int | None
    why: str


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The outcome of a call that comes late. `fence`: under which the call was started."""

    fence: int
    event: NewEvent


class Seq(msgspec.Struct, frozen=True):
    seq: int
    head: str


class ForkOf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Begin with the messages of a run before reply number `step`; then the prompt of `definition` and `input`, where given."""

    run: str
    step: int
    prompt: bool = False  # the definition's prompt stands in place of the run's own


class BoundRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run driven by the kernel that asks: it never enters the queue."""

    definition: Definition
    input: Any
    name: str = "notebook"
    mode: Mode | None = None  # left out: ask
    simulate: Simulate | None = None
    variables: dict[str, str] = {}
    fork: ForkOf | None = None


class Bound(msgspec.Struct, frozen=True):
    run: str
    task: str
    fence: int
    token: str
    lease: float
    epoch: str


def reach_run(connection: Connection, asker: Asker, run_id: str) -> Run:
    """Return the run. Raises NotFound, also where it may not be seen."""
    run = ledger.read_run(connection, run_id)
    seen = asker.operator if run_id == FARM_RUN else may(connection, asker, run, "view")
    if not seen:
        raise NotFound(f"there is no run {run_id}", hint="list runs by: agentfarm task list")
    return run


async def _reach(call: Call) -> Run:
    return await call.read(lambda c: reach_run(c, call.asker, call.path["run"]))


def own_run(asker: Asker, run_id: str, fence: int | None = None) -> int:
    """Return the fence of a worker's own run token. Raises Forbidden (another run), Fenced."""
    claims = asker.claims
    if claims is None or claims.r != run_id:
        raise Forbidden(f"this token is not of run {run_id}", hint="send the run's own token")
    if fence is not None and fence != claims.f:
        raise Fenced(f"this token is of fence {claims.f}, not {fence}", hint="stop: claim the run anew")
    return claims.f


# -- readers -------------------------------------------------------------------------------------------------------


async def show(call: Call) -> RunView:
    return run_view(await _reach(call))


async def events(call: Call) -> None:
    """Give a page of the run's events; or, asked for text/event-stream, all and those to come until the run's end."""
    run = await _reach(call)
    query: EventsPage = call.query
    if wants_stream(call.handler):
        await _stream(call, run, resume_from(call.handler, query.after))
        return
    limit = min(max(1, query.limit), 1000)
    found = await call.read(lambda c: ledger.read_events(c, run.run_id, query.after, limit + 1))
    content = Listed(found[:limit], found[limit - 1].seq if len(found) > limit else None)
    call.handler.set_header("Content-Type", "application/json; charset=utf-8")
    call.handler.finish(msgspec.json.encode(content))


async def _stream(call: Call, run: Run, after: int) -> None:
    last, over = after, False

    async def read() -> list[tuple[int, str, Event]]:
        nonlocal last, over
        now, found = await call.read(  # what was shared may be so no more
            lambda c: (reach_run(c, call.asker, run.run_id), ledger.read_events(c, run.run_id, last, 200))
        )
        last = found[-1].seq if found else last
        over = now.status in ENDED and last >= now.seq
        return [(event.seq, event.kind, event) for event in found]

    with call.parts.feed.reader(run.run_id) as wake:
        await Sse(call.handler).follow(wake, read, lambda: over)


async def tokens(call: Call) -> None:
    """Stream the model's words as they come, for the eye only, until the run ends or the viewer goes."""
    run = await _reach(call)
    stream, wake = Sse(call.handler), asyncio.Event()
    await stream.comment("here")
    async with call.parts.models.watch(run.run_id) as queue:
        with call.parts.feed.reader(run.run_id) as committed:
            watchers = [
                asyncio.create_task(_forward(queue, stream)),
                asyncio.create_task(_until_ended(call, run, committed, wake)),
            ]
            try:
                while stream.open and not wake.is_set():
                    await stream.pause(wake)
            finally:
                for one in watchers:
                    one.cancel()
                await asyncio.gather(*watchers, return_exceptions=True)


async def _forward(queue: asyncio.Queue[dict[str, Any]], stream: Sse) -> None:
    while True:
        token = await queue.get()
        await stream.send({**token, "content": token.get("text", "")})


async def _until_ended(call: Call, run: Run, committed: asyncio.Event, ended: asyncio.Event) -> None:
    try:
        while (await call.read(lambda c: reach_run(c, call.asker, run.run_id))).status not in ENDED:
            await committed.wait()
            committed.clear()
    except NotFound:
        pass  # it may not be seen any more
    ended.set()


async def verify(call: Call) -> Verified:
    run = await _reach(call)
    checked = await call.read(lambda c: ledger.verify(c, run.run_id))
    return msgspec.convert(checked, Verified, from_attributes=True)


async def get_blob(call: Call) -> None:
    run = await _reach(call)
    content = await call.read(lambda c: blobs.get(c, run.run_id, call.path["sha256"]))
    call.handler.set_header("Content-Type", "application/octet-stream")
    call.handler.set_header("Content-Disposition", "attachment")
    call.handler.finish(content)


# -- workers -------------------------------------------------------------------------------------------------------


async def append(call: Call) -> AppendAnswer:
    request: AppendRequest = call.body
    own_run(call.asker, call.path["run"], request.fence)
    return await call.parts.live.append(call.path["run"], request.fence, request)


async def open_(call: Call) -> Opened:
    fence = own_run(call.asker, call.path["run"])
    return await call.parts.live.open(call.path["run"], fence, tool_files)


def tool_files(definition: Definition) -> list[str]:
    """Return the hashes of the sources that a worker loads."""
    return [t.source.removeprefix("file@") for t in definition.tools if t.source.startswith("file@")]


async def heartbeat(call: Call) -> HeartbeatAnswer:
    return await beat(call.parts, call.asker, call.path["run"], call.body)


async def beat(parts: Any, asker: Asker, run_id: str, request: HeartbeatRequest) -> HeartbeatAnswer:
    """Keep a run's lease for its worker, or for the supervisor of its agent. Raises Forbidden, Fenced, NotFound."""
    if asker.kind == "run":
        own_run(asker, run_id, request.fence)
    else:
        run = await parts.db.read(lambda c: ledger.read_run(c, run_id))
        if asker.kind != "agent" or run.agent != asker.name:
            raise NotFound(f"there is no run {run_id}")
    answer: HeartbeatAnswer = await parts.live.heartbeat(run_id, request.fence, request)
    return answer


async def claim(call: Call) -> Claim | None:
    """Give the agent's supervisor its next run; 204 where there is none within `wait` seconds."""
    return await call.parts.claims.take(call.asker.name, call.body)


async def late(call: Call) -> Seq:
    body: Outcome = call.body
    claims = call.asker.claims
    if claims is None or claims.r != call.path["run"]:
        raise Forbidden("this token is not of that run", hint="send the run's own token")
    if body.fence > claims.f:
        raise Fenced(f"fence {body.fence} is none that this token may speak of")
    done = await call.parts.live.outcome(call.path["run"], call.path["call"], body.fence, body.event)
    return Seq(done.seq, done.head)


async def put_blob(call: Call) -> None:
    own_run(call.asker, call.path["run"])
    await call.write(lambda tx: blobs.put(tx, call.path["run"], call.path["sha256"], call.body))


async def bind(call: Call) -> Bound:
    """Begin a run that the asking kernel drives itself; the same Idempotency-Key gets the same run."""
    body: BoundRun = call.body
    drafts.check(body.definition)
    if any(tool.secrets for tool in body.definition.tools):
        raise Invalid("a notebook's own run gets no secrets", hint="publish the agent: its tools get them")
    if not body.name or len(body.name) > 60 or not body.name.isprintable():
        raise Invalid(f"{body.name!r} cannot name a notebook's agent", hint="at most 60 printable characters")
    key = call.handler.request.headers.get("Idempotency-Key")
    given = await attachments.taken(call, body.input, body.definition)

    def write(tx: Tx) -> Run:
        begins = _begins(tx.connection, call.asker, body)
        mode, simulate = modes.settled(tx.connection, call.asker, body.mode, body.simulate, "ask", body.definition)
        asked = tasks.Submission(
            owner=owner_of(tx.connection, call.asker), submitted_by=call.asker.hub_name, target=NOTEBOOK + body.name, input=given,
            mode=mode, simulate=simulate, key=f"run:{key}"[:255] if key else None, workspace="none", variables=body.variables, begins=begins,
        )  # fmt: skip
        choice = tasks.Choice(NOTEBOOK + body.name, body.definition, None, bound=True)
        task, new = tasks.submit(tx, call.parts.db.epoch, asked, choice)
        run = ledger.held(tx, str(task.run_id))
        worker = f"kernel of {call.asker.hub_name}"
        return leases.lease(tx, run, worker, new_id("claim"), call.parts.lease) if new else run

    run = await call.write(write)
    token = runtokens.mint(call.parts.key, epoch=run.epoch, run=run.run_id, fence=run.fence, now=call.parts.db.even())
    return Bound(run.run_id, run.task_id, run.fence, token, call.parts.lease, run.epoch)


def _begins(connection: Connection, asker: Asker, body: BoundRun) -> tuple[NewEvent, ...]:
    if body.fork is None:
        return ()
    run = reach_run(connection, asker, body.fork.run)
    found = forks.origin(connection, run.run_id, body.fork.step, again=body.input is not None)
    told = (
        render(body.definition.prompt, body.definition.variables, body.variables, body.input)
        if body.fork.prompt
        else None
    )
    return tuple(forks.opening(found, told, body.input))


ROUTES = [
    Route("POST", "/runs", bind, "Begin a run driven by the asking kernel", body=BoundRun, answer=Bound, status=201, limit=MAX_APPEND_BYTES, keeps=False),
    Route("GET", "/runs/{run}", show, "Show a run", who="reader", answer=RunView),
    Route("GET", "/runs/{run}/events", events, "Its events: a page, or a stream", who="reader", query=EventsPage, answer=Listed[Event], streams=True),
    Route("POST", "/runs/{run}/events", append, "Append a worker's events", who="run", body=AppendRequest, answer=AppendAnswer, limit=MAX_APPEND_BYTES),
    Route("GET", "/runs/{run}/tokens", tokens, "Stream the model's words", who="reader", query=After, streams=True),
    Route("GET", "/runs/{run}/verify", verify, "Check its chain", who="reader", answer=Verified),
    Route("POST", "/runs/{run}/open", open_, "Take it up", who="run", body=Empty, answer=Opened),
    Route("POST", "/runs/{run}/heartbeat", heartbeat, "Keep its lease, or report its worker dead", who="worker", body=HeartbeatRequest, answer=HeartbeatAnswer, keeps=False),
    Route("POST", "/runs/{run}/calls/{call}/outcome", late, "A late outcome", who="run", body=Outcome, answer=Seq, limit=MAX_APPEND_BYTES),
    Route("GET", "/runs/{run}/blobs/{sha256}", get_blob, "A blob of the run", who="reader", streams=True),
    Route("PUT", "/runs/{run}/blobs/{sha256}", put_blob, "Keep a blob", who="run", raw=True, limit=MAX_BLOB_BYTES + KIB),
    Route("POST", "/claims", claim, "Take a run", who="agent", body=ClaimRequest, answer=Claim, keeps=False),
]  # fmt: skip
