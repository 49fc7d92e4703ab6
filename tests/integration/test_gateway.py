"""Live runs on real databases: a step is asked for once, recorded with its admissions, and never lost once paid."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from aiohttp import web
from fixtures_model import KEY

from agentfarm_sdk.protocol import (
    AppendAnswer,
    AppendRequest,
    Definition,
    HeartbeatRequest,
    Limits,
    ModelAnswer,
    ModelRequest,
    ModelSpec,
    NewEvent,
    Retry,
    ToolSpec,
    new_event,
)
from jupyterhub_agentfarm import demo
from jupyterhub_agentfarm.errors import (
    Cancelled,
    Conflict,
    Fenced,
    Forbidden,
    Hole,
    Invalid,
    LimitReached,
    ModelFailed,
    NotFound,
    UserError,
)
from jupyterhub_agentfarm.gateway.asking import Ask, AskedCall, OnToken, Reply, UpstreamError
from jupyterhub_agentfarm.gateway.live import LiveRuns
from jupyterhub_agentfarm.gateway.models import Models
from jupyterhub_agentfarm.gateway.proxy import Route, Upstreams
from jupyterhub_agentfarm.gateway.upstreams.openai_compatible import OpenAICompatible, Settings
from jupyterhub_agentfarm.records import Run
from jupyterhub_agentfarm.store import inbox, leases, ledger, tasks, usage
from jupyterhub_agentfarm.store.db import Database

ARGUMENTS = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


def tool(name: str, effect: Any = "once", approval: str = "never", **rest: Any) -> ToolSpec:
    return ToolSpec(name=name, schema=ARGUMENTS, effect=effect, approval=approval, **rest)


@dataclass
class Script:
    """An upstream in this process that says what the test wrote."""

    replies: list[Reply | UpstreamError]
    asked: list[Ask] = field(default_factory=list)
    holds: int | None = None
    name: str = "script"
    max_in_flight: int = 4
    gate: asyncio.Event | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def complete(self, ask: Ask, on_token: OnToken | None) -> Reply:
        self.asked.append(Ask(**{**ask.__dict__, "messages": list(ask.messages)}))
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        reply = self.replies.pop(0)
        if isinstance(reply, UpstreamError):
            raise reply
        if on_token is not None:
            on_token({"text": reply.content})
        return reply

    async def models(self) -> list[dict[str, Any]]:
        return [{"id": "m"}]

    def cost(self, reply: Reply) -> float:
        return 0.25

    async def context(self, model: str, provider: str | None) -> int | None:
        return self.holds

    async def inputs(self, model: str) -> frozenset[str]:
        return frozenset({"text"})

    async def price(self, model: str, provider: str | None) -> tuple[float, float] | None:
        return (1.0, 2.0)

    async def close(self) -> None:
        return None


def calls(*asked: tuple[str, str]) -> Reply:
    return Reply(
        content="",
        calls=[AskedCall(name, arguments) for name, arguments in asked],
        tokens_in=5,
        tokens_out=3,
        model="m",
    )


def says(text: str) -> Reply:
    return Reply(content=text, tokens_in=5, tokens_out=3, model="m")


class Farm:
    """A database, live runs and models over one upstream; a worker's messages by hand."""

    def __init__(self, db: Database, upstream: Any, model: str = "m") -> None:
        async def secrets(owner: str, names: list[str]) -> dict[str, str]:
            return {name: f"{owner}'s {name}" for name in names}

        self.db, self.upstream = db, upstream
        self.lives = LiveRuns(db, b"k" * 32, secrets)
        self.models = Models(self.lives, Upstreams([Route(upstream, (model,))]))
        self.run: Run
        self.n = 0

    async def begin(self, definition: Definition, given: str = "go", mode: str = "live") -> Run:
        asked = tasks.Submission(owner="alice", submitted_by="alice", target="a", input=given, mode=mode)
        await self.db.write(lambda tx: tasks.submit(tx, self.db.epoch, asked, tasks.Choice("a", definition, 1)))
        return await self.claim("c1")

    async def claim(self, claim_id: str) -> Run:
        run = await self.db.write(lambda tx: leases.claim(tx, "a", "w", claim_id, 30.0))
        assert run is not None
        self.run, self.n = run, 0
        return run

    async def model(self, request: str = "q1", **rest: Any) -> ModelAnswer:
        return await self.models.model(
            ModelRequest(run=self.run.run_id, fence=self.run.fence, request=request, n=self.n, **rest)
        )

    async def append(self, *events: NewEvent) -> AppendAnswer:
        self.n += 1
        raw = msgspec.Raw(msgspec.json.encode(list(events)))
        return await self.lives.append(
            self.run.run_id, self.run.fence, AppendRequest(fence=self.run.fence, n=self.n, events=raw)
        )

    async def done(self, call: str, result: Any = "ok") -> AppendAnswer:
        return await self.append(new_event("tool.succeeded", {"result": result}, call))

    async def kinds(self) -> list[str]:
        events = await self.db.read(lambda c: ledger.read_events(c, self.run.run_id))
        assert (await self.db.read(lambda c: ledger.verify(c, self.run.run_id))).ok
        return [event.kind for event in events][4:]  # after run.created, two messages, run.leased


Make = Callable[..., Farm]


@pytest.fixture
async def make(database_url: str) -> AsyncIterator[Make]:
    db = Database.open(database_url)
    yield lambda *replies, **rest: Farm(db, Script(list(replies), **rest))
    await db.close()


PAY = Definition(prompt="p", tools=[tool("pay"), tool("look", "read")])


async def test_a_step_is_recorded_with_its_admission_and_the_result_reaches_the_model(make: Make) -> None:
    farm = make(calls(("pay", '{"n": 1}')), says("done"))
    await farm.begin(PAY)
    answer = await farm.model()
    assert [(call.call, call.state, call.arguments) for call in answer.calls] == [("c0-0", "admitted", {"n": 1})]
    await farm.done("c0-0", {"paid": 1})
    assert (await farm.model("q2")).message["content"] == "done"
    assert farm.upstream.asked[1].messages[-1] == {"role": "tool", "tool_call_id": "c0-0", "content": '{"paid":1}'}
    await farm.append(new_event("run.succeeded", {"result": "done"}))
    assert await farm.kinds() == [
        "model.requested", "model.replied", "tool.started", "tool.succeeded", "model.requested", "model.replied", "run.succeeded",
    ]  # fmt: skip
    rows = await farm.db.read(lambda c: usage.listed(c))
    assert [(row["requests"], row["tokens_in"], row["cost"]) for row in rows] == [(2, 10, 0.5)]


async def test_the_same_request_is_asked_once_and_answered_again_also_after_a_restart(make: Make) -> None:
    farm = make(calls(("pay", '{"n": 1}')))
    await farm.begin(PAY)
    one, two = await asyncio.gather(farm.model(), farm.model())
    farm.lives.drop(farm.run.run_id)
    three = await farm.model()
    assert len(farm.upstream.asked) == 1
    assert one.calls == two.calls == three.calls and three.message == one.message


async def test_a_worker_that_goes_away_does_not_lose_the_reply_that_is_paid(make: Make) -> None:
    gate = asyncio.Event()
    farm = make(calls(("pay", '{"n": 1}')), gate=gate)
    await farm.begin(PAY)
    asking = asyncio.create_task(farm.model())
    await farm.upstream.begun.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    gate.set()
    assert (await farm.model()).calls[0].state == "admitted" and len(farm.upstream.asked) == 1


async def test_each_attempt_is_an_event_and_a_refusal_is_told(make: Make) -> None:
    busy = UpstreamError("busy", "too many requests", status=429, retry=True, retry_after=0.01)
    farm = make(busy, says("hi"), UpstreamError("unauthorised", "no key", status=401, hint="check the key"))
    await farm.begin(PAY)
    await farm.model()
    assert await farm.kinds() == ["model.requested", "model.failed", "model.requested", "model.replied"]
    with pytest.raises(UserError, match="no key"):
        await farm.model("q2")


async def test_an_upstream_that_stays_away_is_asked_as_often_as_the_version_says_and_no_more(make: Make) -> None:
    farm = make(*[UpstreamError("down", "gone", retry=True, retry_after=0.0) for _ in range(8)])
    await farm.begin(Definition(prompt="p", model=ModelSpec(retry=Retry(attempts=3))))
    with pytest.raises(ModelFailed):  # no Transient: the loop would begin anew
        await farm.model()
    assert (await farm.kinds()).count("model.failed") == 3


@pytest.mark.parametrize("retry", [Retry(on=("busy",)), Retry(max_wait=5.0)], ids=["another failure", "too long"])
async def test_a_failure_that_the_version_does_not_wait_for_ends_the_run_at_once(make: Make, retry: Retry) -> None:
    farm = make(UpstreamError("down", "gone", retry=True, retry_after=7.0))
    await farm.begin(Definition(prompt="p", model=ModelSpec(retry=retry)))
    with pytest.raises(ModelFailed):
        await farm.model()
    assert await farm.kinds() == ["model.requested", "model.failed"]


async def test_limits_end_before_the_call_is_paid(make: Make) -> None:
    farm = make(says("one"), says("two"))
    await farm.begin(Definition(prompt="p", limits=Limits(steps=1)))
    await farm.model()
    with pytest.raises(LimitReached, match="steps"):
        await farm.model("q2")
    assert len(farm.upstream.asked) == 1


async def test_a_request_ahead_of_its_append_waits_for_it(make: Make) -> None:
    farm = make(calls(("look", '{"n": 1}')), says("done"))
    await farm.begin(PAY)
    await farm.model()
    farm.n = 1
    asking = asyncio.create_task(farm.model("q2"))
    await asyncio.sleep(0.05)
    assert len(farm.upstream.asked) == 1
    farm.n = 0
    await farm.done("c0-0")
    assert (await asking).message["content"] == "done"


async def test_what_a_worker_cannot_say_is_refused_and_nothing_is_lost(make: Make) -> None:
    farm = make(calls(("pay", '{"n": 1}')))
    await farm.begin(PAY)
    await farm.model()
    for bad, error in (
        (new_event("tool.succeeded", {}, "c9-9"), Conflict),
        (new_event("tool.started", {}, "c0-0"), Forbidden),
        (new_event("run.succeeded", {"result": 1}), Conflict),
        (new_event("model.reported", {"message": {"role": "user"}}), Conflict),
    ):
        with pytest.raises(error):
            await farm.append(bad)
        farm.n -= 1
    with pytest.raises(Invalid):
        await farm.lives.append(farm.run.run_id, 1, AppendRequest(fence=1, n=1, events=msgspec.Raw(b'[{"kind": 7}]')))
    farm.n = 5
    with pytest.raises(Hole):
        await farm.done("c0-0")
    farm.n = 0
    assert (await farm.done("c0-0")).n == 1
    farm.n = 0
    assert (await farm.done("c0-0")).n == 1  # the same number and bytes again


async def test_a_stale_worker_is_fenced_everywhere(make: Make) -> None:
    farm = make(says("hi"))
    old = await farm.begin(PAY)
    await farm.db.write(lambda tx: leases.requeue(tx, old.run_id, old.fence, "lease expired", None))
    await farm.claim("c2")
    await farm.model()
    farm.run = old
    for act in (
        farm.model("q9"),
        farm.done("c0-0"),
        farm.lives.heartbeat(old.run_id, old.fence, HeartbeatRequest(fence=old.fence)),
    ):
        with pytest.raises(Fenced):
            await act


async def test_a_reported_reply_is_admitted_in_the_same_append(make: Make) -> None:
    farm = make()
    await farm.begin(PAY)
    said = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c0-0", "type": "function", "function": {"name": "pay", "arguments": '{"n": 2}'}}],
    }
    answer = await farm.append(new_event("model.reported", {"message": said}))
    assert [call.state for call in answer.admitted] == ["admitted"]
    assert await farm.kinds() == ["model.reported", "tool.started"]


async def test_secrets_leave_only_with_the_admission_of_their_tool(make: Make) -> None:
    farm = make(calls(("post", '{"n": 1}'), ("look", '{"n": 1}')))
    await farm.begin(Definition(prompt="p", tools=[tool("post", secrets=["api-key"]), tool("look", "read")]))
    answer = await farm.model()
    assert [call.secrets for call in answer.calls] == [{"api-key": "alice's api-key"}, {}]
    events = await farm.db.read(lambda c: ledger.read_events(c, farm.run.run_id))
    assert b"alice's api-key" not in b"".join(bytes(event.body) for event in events)


async def test_an_approved_call_is_admitted_once_when_the_run_is_taken_up(make: Make) -> None:
    farm = make(calls(("ask", '{"n": 1}')), says("done"))
    await farm.begin(Definition(prompt="p", tools=[tool("ask", approval="always")]))
    assert [call.state for call in (await farm.model()).calls] == ["awaiting"]
    await farm.append(new_event("run.parked", {"reason": "approval"}))
    (item,) = await farm.db.read(lambda c: inbox.listed(c, owners=["alice"]))
    with pytest.raises(Invalid):
        await farm.lives.decide(item["inbox_id"], "approve", "alice", arguments={"n": "no"})
    await farm.lives.decide(item["inbox_id"], "approve", "alice", "fine", arguments={"n": 2})
    with pytest.raises(Conflict):
        await farm.lives.decide(item["inbox_id"], "refuse", "bob")
    with pytest.raises(NotFound):
        await farm.lives.decide("inbox-x", "refuse", "bob")
    await farm.claim("c2")
    opened = await farm.lives.open(farm.run.run_id, farm.run.fence, lambda d: [])
    assert [(call.arguments, call.attempt) for call in opened.calls] == [({"n": 2}, 1)]
    again = await farm.lives.open(farm.run.run_id, farm.run.fence, lambda d: [])
    assert again.calls == opened.calls and (await farm.kinds()).count("tool.started") == 1


async def test_a_refused_call_is_told_to_the_model(make: Make) -> None:
    farm = make(calls(("ask", '{"n": 1}')), says("well"))
    await farm.begin(Definition(prompt="p", tools=[tool("ask", approval="always")]))
    await farm.model()
    await farm.append(new_event("run.parked", {"reason": "approval"}))
    (item,) = await farm.db.read(lambda c: inbox.listed(c))
    await farm.lives.decide(item["inbox_id"], "refuse", "alice", "too dear")
    await farm.claim("c2")
    await farm.lives.open(farm.run.run_id, farm.run.fence, lambda d: [])
    await farm.model("q2")
    assert "too dear" in farm.upstream.asked[1].messages[-1]["content"]


@pytest.mark.parametrize(("effect", "again"), [("read", 1), ("idempotent", 1), ("once", 0)])
async def test_after_a_death_only_what_is_safe_is_called_again_with_the_same_key(
    make: Make, effect: str, again: int
) -> None:
    farm = make(calls(("t", '{"n": 1}')))
    await farm.begin(Definition(prompt="p", tools=[tool("t", effect)]))
    first = (await farm.model()).calls[0]
    await farm.lives.heartbeat(
        farm.run.run_id, farm.run.fence, HeartbeatRequest(fence=farm.run.fence, dead="kernel exited with -9")
    )
    if effect == "once":
        (item,) = await farm.db.read(lambda c: inbox.listed(c))
        assert item["kind"] == "in_doubt" and item["detail"]["proof"] == "kernel exited with -9"
        await farm.lives.decide(item["inbox_id"], "happened", "alice", "the bank says so", result={"paid": 1})
    await farm.claim("c2")
    opened = await farm.lives.open(farm.run.run_id, farm.run.fence, lambda d: [])
    assert [(call.key, call.attempt) for call in opened.calls] == [(first.key, 2)] * again


async def test_a_doubt_over_a_silent_worker_is_not_called_again_unless_forced_with_a_reason(make: Make) -> None:
    farm = make(calls(("pay", '{"n": 1}')))
    run = await farm.begin(PAY)
    await farm.model()
    await farm.db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "lease expired", None))
    (item,) = await farm.db.read(lambda c: inbox.listed(c))
    for reason, force in (("", False), ("surely not", False), ("", True)):
        with pytest.raises(Conflict, match="only silent"):
            await farm.lives.decide(item["inbox_id"], "not_happened", "alice", reason, force=force)
    await farm.lives.decide(item["inbox_id"], "not_happened", "alice", "the machine is unplugged", force=True)
    await farm.claim("c2")
    opened = await farm.lives.open(farm.run.run_id, farm.run.fence, lambda d: [])
    assert [call.attempt for call in opened.calls] == [2]


async def test_a_late_outcome_of_the_worker_that_started_it_closes_the_doubt(make: Make) -> None:
    farm = make(calls(("pay", '{"n": 1}')))
    run = await farm.begin(PAY)
    await farm.model()
    await farm.db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "lease expired", None))
    with pytest.raises(Forbidden):
        await farm.lives.outcome(run.run_id, "c0-0", run.fence + 1, new_event("tool.succeeded", {"result": 1}))
    await farm.lives.outcome(run.run_id, "c0-0", run.fence, new_event("tool.succeeded", {"result": 1}))
    with pytest.raises(Conflict):
        await farm.lives.outcome(run.run_id, "c0-0", run.fence, new_event("tool.succeeded", {"result": 1}))
    assert await farm.db.read(lambda c: inbox.listed(c)) == []
    assert (await farm.db.read(lambda c: ledger.read_run(c, run.run_id))).status == "queued"


async def test_a_wish_to_cancel_reaches_the_worker_and_stops_admission(make: Make) -> None:
    farm = make(calls(("pay", '{"n": 1}')))
    run = await farm.begin(PAY)
    await farm.model()
    pushed: list[str] = []
    farm.lives.push = lambda run_id, events: pushed.extend(event.kind for event in events)
    await farm.db.write(lambda tx: tasks.cancel(tx, run.task_id, "user:alice", "stop"))
    answer = await farm.done("c0-0")
    assert [event.kind for event in answer.inbox] == ["run.cancel_requested"] == pushed
    with pytest.raises(Cancelled):
        await farm.model("q2")
    await farm.append(new_event("run.cancelled", {"reason": "stop"}))
    assert (await farm.db.read(lambda c: tasks.show(c, run.task_id))).status == "cancelled"


async def test_viewers_see_the_tokens(make: Make) -> None:
    farm = make(says("hello"))
    run = await farm.begin(PAY)
    async with farm.models.watch(run.run_id) as queue:
        await farm.model()
        assert await queue.get() == {"step": 0, "text": "hello"}


# -- real servers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            lambda: web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "7"}),
            "busy",
        ),
        (
            lambda: web.json_response({"error": {"message": "Incorrect API key: very-secret"}}, status=401),
            "unauthorised",
        ),
        (lambda: web.Response(text="[" * 4000, status=400), "refused"),
        (lambda: web.Response(text="[" * 100_000, content_type="application/json"), "nonsense"),
        (lambda: web.json_response({"choices": [["x"]]}), "nonsense"),
        (lambda: web.Response(text="<html>Bad Gateway</html>", status=502, content_type="text/html"), "failed"),
        (lambda: web.Response(text="<html>Welcome</html>", content_type="text/html"), "nonsense"),
        (lambda: web.json_response([1]), "nonsense"),
        (lambda: web.json_response({"choices": []}), "nonsense"),
        (lambda: web.json_response({"message": "Credit"}, status=402), "no-credit"),
    ],
)
async def test_each_way_to_fail_has_its_name_and_never_shows_the_key(answer: Any, error: str) -> None:
    async with serving(answer) as url:
        upstream = OpenAICompatible(Settings(name="s", url=url, key="very-secret"))
        with pytest.raises(UpstreamError) as caught:
            await upstream.complete(Ask(model="m", messages=[{"role": "user", "content": "x"}]), None)
        assert caught.value.kind == error and "very-secret" not in caught.value.message
        if error == "busy":
            assert caught.value.retry_after == 7
        await upstream.close()


async def test_a_server_that_is_down_or_breaks_off_is_said() -> None:
    upstream = OpenAICompatible(Settings(name="s", url="http://127.0.0.1:1/v1"))
    with pytest.raises(UpstreamError, match="cannot be reached"):
        await upstream.complete(Ask(model="m", messages=[]), None)
    await upstream.close()

    def half() -> web.Response:
        return web.Response(text='data: {"choices":[{"delta":{"content":"ha"}}]}\n\n', content_type="text/event-stream")

    async with serving(half) as url:
        upstream = OpenAICompatible(Settings(name="s", url=url))
        with pytest.raises(UpstreamError, match="broke off"):
            await upstream.complete(Ask(model="m", messages=[]), lambda token: None)
        await upstream.close()


MOOD = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
MOODY = Definition(prompt="p", tools=[tool("look", "read")], answer=MOOD)


async def test_an_answer_that_does_not_fit_is_asked_for_once_more_without_tools_and_in_the_form(make: Make) -> None:
    farm = make(calls(("look", '{"n": 1}')), says("It is good."), says('```json\n{"mood": "good"}\n```'))
    await farm.begin(MOODY)
    await farm.model()
    await farm.done("c0-0")
    first = await farm.model("q2")
    (told,) = first.after  # the worker's loop takes it in, and asks again
    assert told.kind == "message.added" and "not JSON" in told.data()["content"] and '"mood"' in told.data()["content"]
    assert (await farm.model("q2")).after == [told]  # asked again: the same answer
    farm.lives.drop(farm.run.run_id)
    assert (await farm.model("q3")).after == []
    assert [ask.tool_choice for ask in farm.upstream.asked] == ["auto", "auto", "none"]
    assert farm.upstream.asked[2].messages[-1]["content"] == told.data()["content"]
    assert (await farm.kinds())[-5:] == [
        "model.requested",
        "model.replied",
        "message.added",
        "model.requested",
        "model.replied",
    ]


@pytest.mark.parametrize("limits", [Limits(steps=1), Limits()])
async def test_an_answer_is_repaired_once_and_where_a_step_is_left(make: Make, limits: Limits) -> None:
    farm = make(says("no"), says("never"))
    await farm.begin(Definition(prompt="p", answer=MOOD, limits=limits))
    repaired = len((await farm.model()).after)
    assert repaired == (limits.steps != 1)
    if repaired:
        assert (await farm.model("q2")).after == []


async def test_what_a_server_refuses_by_name_costs_an_attempt_on_record_whatever_the_version_allows(make: Make) -> None:
    farm = make(UpstreamError("unsupported", "no seed", status=400, retry=True, retry_after=0.0), says("hi"))
    await farm.begin(Definition(prompt="p", model=ModelSpec(retry=Retry(attempts=1))))
    await farm.model()
    assert await farm.kinds() == ["model.requested", "model.failed", "model.requested", "model.replied"]


async def test_a_server_without_tool_calls_is_asked_by_schema_from_then_on() -> None:
    bodies: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> web.Response:
        bodies.append(body)
        if "tools" in body:
            return web.json_response(
                {"error": {"message": '"auto" tool choice requires --enable-auto-tool-choice'}}, status=400
            )
        return web.json_response({"choices": [{"message": {"content": '{"tool": "look", "arguments": {"n": 3}}'}}]})

    async with serving(answer) as url:
        upstream = OpenAICompatible(Settings(name="s", url=url))
        ask = Ask(model="m", messages=[{"role": "user", "content": "x"}], tools=[tool("look")], tool_choice="required")
        with pytest.raises(UpstreamError) as caught:  # an attempt of its own, and on record as one
            await upstream.complete(ask, None)
        assert caught.value.kind == "unsupported"
        for _ in range(2):
            reply = await upstream.complete(ask, None)
            assert [(call.name, json.loads(call.arguments)) for call in reply.calls] == [("look", {"n": 3})]
        assert ["tools" in body for body in bodies] == [True, False, False]
        await upstream.close()


class serving:
    """A server on a free port that answers each chat completion by `answer`."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def __aenter__(self) -> str:
        async def handle(request: web.Request) -> web.StreamResponse:
            wants = self.answer.__code__.co_argcount
            return self.answer(await request.json()) if wants else self.answer()  # type: ignore[no-any-return]

        app = web.Application()
        app.router.add_post("/v1/chat/completions", handle)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"  # type: ignore[union-attr]

    async def __aexit__(self, *_: Any) -> None:
        await self.runner.cleanup()


@pytest.fixture
async def embedded(model_server: str) -> AsyncIterator[OpenAICompatible]:
    upstream = OpenAICompatible(Settings(name="embedded", url=model_server, key=KEY, native_tools=False))
    yield upstream
    await upstream.close()


@pytest.mark.parametrize("question", [task for agent, task in demo.TASKS if agent == "analyst"])
async def test_the_embedded_model_calls_the_calculator_and_answers_with_its_result(
    make: Make, embedded: OpenAICompatible, question: str
) -> None:
    from agentfarm_sdk.tools.calculator import calculator

    farm = Farm(make().db, embedded, model="smollm2-135m-instruct")
    await farm.begin(demo.agents()["analyst"], question)
    (call,) = (await farm.model()).calls
    assert call.state == "admitted"
    await farm.done(call.call, calculator(**call.arguments))
    expected = {"What is 17*23?": 391, "What is 12345 * 678?": 8369910}[question]
    assert json.loads((await farm.model("q2")).message["content"]) == {"result": expected}


@pytest.mark.parametrize("review", [task for agent, task in demo.TASKS if agent == "reviewer"])
async def test_the_embedded_model_says_what_a_review_is_in_the_form_that_is_asked_for(
    make: Make, embedded: OpenAICompatible, review: str
) -> None:
    farm = Farm(make().db, embedded, model="smollm2-135m-instruct")
    await farm.begin(demo.agents()["reviewer"], review)
    expected = "negative" if "cold" in review else "positive"
    assert json.loads((await farm.model()).message["content"]) == {"mood": expected}
