"""Every quirk of real servers, replayed byte for byte over HTTP: what it comes to, and that no guess is ever executed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentfarm_sdk.protocol import Definition, ToolSpec
from agentfarm_sdk.quirks import FAILURES, QUIRKS, Quirk, Wire, refused, whole
from agentfarm_sdk.testing import ScriptedServer
from jupyterhub_agentfarm.gateway import admission
from jupyterhub_agentfarm.gateway.asking import Ask, Reply, UpstreamError
from jupyterhub_agentfarm.gateway.upstreams.openai_compatible import OpenAICompatible, Settings

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
    came, requests = await replay(no(message, status), YES, YES, ask=ask, native_tools=None)
    assert isinstance(came[0], UpstreamError) and (came[0].kind, came[0].retry_after) == ("unsupported", 0.0)
    assert isinstance(came[1], Reply) and isinstance(came[2], Reply)
    assert not gone or [gone in request for request in requests] == [True, False, False]
    assert instead.items() <= requests[2].items()


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
