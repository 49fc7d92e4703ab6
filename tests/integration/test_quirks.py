"""Every quirk of real servers, replayed byte for byte over HTTP: what it comes to, and that no guess is ever executed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from aiohttp import web

from agentfarm_sdk.protocol import Definition, ToolSpec
from agentfarm_sdk.quirks import FAILURES, QUIRKS, Quirk, Wire, refused, whole
from agentfarm_sdk.testing import ScriptedServer
from jupyterhub_agentfarm.gateway import admission
from jupyterhub_agentfarm.gateway.asking import Ask, Reply, UpstreamError
from jupyterhub_agentfarm.gateway.proxy import Route, Upstreams
from jupyterhub_agentfarm.gateway.refusals import Memory
from jupyterhub_agentfarm.gateway.upstreams.openai_compatible import OpenAICompatible, Settings
from jupyterhub_agentfarm.store.db import Database

LOOK = ToolSpec(name="look", schema={"type": "object", "properties": {"n": {"type": "integer"}}})
ASK = Ask(model="m", messages=[{"role": "user", "content": "x" * 40}], tools=[LOOK])


async def replay(
    *wires: Wire, ask: Ask = ASK, **settings: Any
) -> tuple[list[Reply | UpstreamError], list[dict[str, Any]]]:
    """Make as many attempts as there are wires; return what each came to, and what was asked."""
    said = iter(wires)
    with ScriptedServer(lambda _messages: next(said)) as server:
        upstream = OpenAICompatible(Settings(**{"name": "quirky", "url": server.url, "native_tools": True, **settings}))
        came: list[Reply | UpstreamError] = []
        try:
            for _ in wires:
                try:
                    came.append(await upstream.complete(ask, lambda _token: None))
                except UpstreamError as error:
                    came.append(error)
        finally:
            await upstream.close()
        return came, server.requests


@pytest.mark.parametrize("name", [name for name in QUIRKS if name not in FAILURES])
async def test_a_quirk_comes_to_what_was_meant_and_only_whole_calls_are_admitted(name: str) -> None:
    quirk: Quirk = QUIRKS[name]
    ((reply,), _) = await replay(quirk.wire)
    assert isinstance(reply, Reply), reply
    assert (reply.content, reply.reasoning, reply.estimated) == (quirk.content, quirk.reasoning, quirk.estimated)
    assert reply.finish == ("tool_calls" if quirk.calls else "stop")
    if not quirk.estimated:
        assert (reply.tokens_in, reply.tokens_out) == (10, 5)
    definition = Definition(tools=[LOOK])
    verdicts = admission.admit(
        definition, admission.validators(definition), admission.message(0, reply.content, reply.calls), mode="live",
        calls_before=0, cancelled=False, epoch="e", run="r", fence=1,
    )  # fmt: skip
    told = [(one.told.tool, one.told.arguments if one.told.state == "admitted" else None) for one in verdicts]
    assert told == list(quirk.calls)


@pytest.mark.parametrize("name", FAILURES)
async def test_a_failure_has_its_name_its_pause_and_its_way_out(name: str) -> None:
    quirk = FAILURES[name]
    ((error,), _) = await replay(quirk.wire)
    assert isinstance(error, UpstreamError) and error.kind == quirk.error, error
    assert error.retry_after == quirk.retry_after and quirk.hint in error.hint
    begun = name in ("error object in mid-stream", "dies in mid-stream", "ends without an end")
    assert (error.used is not None) == begun  # what was answered in part is probably billed


YES = whole({"content": "Yes."})


def no(message: str, status: int = 400) -> Wire:
    return refused(status, {"error": {"message": message}})


@pytest.mark.parametrize(
    ("message", "status", "parameters", "gone", "instead"),
    [
        ("Unknown parameter: 'seed'.", 400, {"seed": 7}, "seed", {}),
        ("parallel_tool_calls is not supported", 422, {"parallel_tool_calls": False}, "parallel_tool_calls", {}),
        ("'tool_choice': 'required' is not supported", 400, {}, "", {"tool_choice": "auto"}),
        ("Extra inputs are not permitted: stream_options", 400, {}, "stream_options", {}),
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", 400, {"max_tokens": 9}, "max_tokens", {"max_completion_tokens": 9}),
        ('"auto" tool choice requires --enable-auto-tool-choice', 400, {}, "tools", {}),
        ("This model does not support function calling", 501, {}, "tools", {}),
    ],
)  # fmt: skip
async def test_what_a_server_refuses_by_name_is_left_out_from_the_next_attempt_on(
    message: str, status: int, parameters: dict[str, Any], gone: str, instead: dict[str, Any]
) -> None:
    ask = Ask(
        model="m",
        messages=[{"role": "user", "content": "x"}],
        tools=[LOOK],
        tool_choice="required",
        parameters=parameters,
    )
    # Without tools of its own the model is asked for a call by a form.
    then = whole({"content": '{"tool": "look", "arguments": {"n": 1}}'}) if gone == "tools" else YES
    came, requests = await replay(no(message, status), then, then, ask=ask, native_tools=None)
    assert isinstance(came[0], UpstreamError) and (came[0].kind, came[0].retry_after) == ("unsupported", 0.0)
    assert isinstance(came[1], Reply) and isinstance(came[2], Reply)
    assert not gone or [gone in request for request in requests] == [True, False, False]
    assert instead.items() <= requests[2].items()


async def test_what_a_server_refuses_is_known_after_a_restart_and_asked_for_again_a_week_later(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Ask(model="m", messages=[{"role": "user", "content": "x"}], parameters={"seed": 7})
    said = iter([no("Unknown parameter: 'seed'."), YES, YES, YES])
    with ScriptedServer(lambda _messages: next(said)) as server:

        async def life(days: int, attempts: int) -> None:
            """A service starts so many days after the first one and asks."""
            db = Database.open(database_url)
            started = db.now() + days * 86_400
            monkeypatch.setattr(db, "now", lambda: started)
            upstream, memory = OpenAICompatible(Settings("quirky", server.url)), Memory(db)
            await memory.remind(Upstreams([Route(upstream, ("m",))]))
            for _ in range(attempts):
                with contextlib.suppress(UpstreamError):
                    await upstream.complete(ask, None)
            for one in (upstream, memory, db):
                await one.close()

        await life(0, 2)
        await life(1, 1)
        await life(8, 1)
        assert ["seed" in request for request in server.requests] == [True, False, False, True]


async def test_a_structured_answer_goes_without_strict_then_without_a_form_where_the_server_takes_none() -> None:
    ask = Ask(model="m", messages=[{"role": "user", "content": "x"}], answer={"type": "object"})
    came, requests = await replay(no("strict: unexpected"), no("response_format is not supported"), YES, ask=ask)
    assert [getattr(one, "kind", "") for one in came] == ["unsupported", "unsupported", ""]
    forms = [request.get("response_format", {}).get("json_schema") for request in requests]
    assert forms[0]["strict"] and "strict" not in forms[1] and forms[2] is None


async def test_a_refusal_that_names_nothing_that_can_be_left_out_is_told() -> None:
    came, requests = await replay(no("messages: too long"), no("seed is odd"), ask=Ask(model="m", messages=[]))
    assert [one.kind for one in came if isinstance(one, UpstreamError)] == ["refused", "refused"] and len(requests) == 2
    assert json.dumps(requests).count("seed") == 0


# -- prices, provenance, order --------------------------------------------------------------------------------------


async def test_a_router_s_list_prices_a_reply_by_the_provider_that_served_it_and_is_read_once() -> None:
    reads: list[str] = []
    priced = {
        "id": "big",
        "providers": [
            {"provider": name, "pricing": {"input": cost, "output": cost}} for name, cost in (("a", 1.0), ("b", 2.0))
        ],
    }

    async def handle(request: web.Request) -> web.Response:
        if request.path.endswith("/models"):
            reads.append(request.path)
            return web.json_response({"data": [priced, {"id": "unpriced"}]})
        said = {"choices": [{"message": {"content": "hi"}}], "usage": {"prompt_tokens": 10, "completion_tokens": 90}}
        return web.json_response(
            {**said, "model": (await request.json())["model"]}, headers={"x-inference-provider": "a"}
        )

    async with answering(handle) as url:
        upstream = OpenAICompatible(Settings(name="hf", url=url, catalog=True, prices={"own": (5.0, 5.0)}))
        reply = await upstream.complete(Ask(model="big", messages=[]), None)
        assert (reply.provider, upstream.cost(reply)) == ("a", 100e-6)
        assert await upstream.price("big", None) == (2.0, 2.0) and await upstream.price("big", "a") == (1.0, 1.0)
        assert await upstream.price("own", None) == (5.0, 5.0) and await upstream.price("unpriced", None) is None
        assert upstream.cost(await upstream.complete(Ask(model="unpriced", messages=[]), None)) is None
        assert len(reads) == 1
        await upstream.close()


async def test_a_list_that_cannot_be_read_costs_its_prices_and_no_reply() -> None:
    async def handle(request: web.Request) -> web.Response:
        if request.path.endswith("/models"):
            return web.Response(text="<html>", status=502)
        return web.json_response({"choices": [{"message": {"content": "hi"}}]})

    async with answering(handle) as url:
        upstream = OpenAICompatible(Settings(name="hf", url=url, catalog=True))
        reply = await upstream.complete(Ask(model="big", messages=[]), None)
        assert (reply.content, upstream.cost(reply), await upstream.price("big", None)) == ("hi", None, None)
        await upstream.close()


async def test_under_load_a_server_gets_no_more_than_its_limit_and_each_owner_its_share() -> None:
    now = most = 0
    order: list[str] = []
    begun, full = asyncio.Event(), asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        nonlocal now, most
        now, body = now + 1, await request.json()
        most = max(most, now)
        order.append(body["user"])
        if len(order) == 4:
            begun.set()
        await full.wait()
        now -= 1
        return web.json_response({"choices": [{"message": {"content": "hi"}}]})

    async with answering(handle) as url:
        upstream = OpenAICompatible(Settings(name="gpu", url=url, max_in_flight=4))
        upstreams = Upstreams([Route(upstream)])
        owners = ["ann"] * 30 + ["bob"] * 6 + ["cy"] * 6
        asks = [(owner, Ask(model="m", messages=[], parameters={"user": owner})) for owner in owners]
        asking = [asyncio.create_task(upstreams.attempt(upstreams.routes[0], ask, owner, None)) for owner, ask in asks]
        await asyncio.wait_for(begun.wait(), 10)  # the first four are ann's, who came first
        full.set()
        await asyncio.gather(*asking)
        await upstreams.close()
    assert most == 4 and len(order) == 42
    last = {owner: max(place for place, one in enumerate(order) if one == owner) for owner in ("ann", "bob", "cy")}
    assert last["bob"] < 30 and last["cy"] < 30 and last["ann"] == 41, order


class answering:
    """A server on a free port, in this loop."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_route("*", "/v1/{path:.*}", self.handle)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"  # type: ignore[union-attr]

    async def __aexit__(self, *_: Any) -> None:
        await self.runner.cleanup()
