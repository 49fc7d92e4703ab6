"""What real servers send, quirk by quirk, and what becomes of it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.gateway.accumulate import Accumulator, Lines
from jupyterhub_agentfarm.gateway.asking import Reply, UpstreamError


def of(*deltas: Any, finish: str | None = None, usage: Any = None) -> Reply:
    accumulator = Accumulator()
    for delta in deltas:
        accumulator.chunk({"choices": [{"delta": delta}]})
    accumulator.chunk({"choices": [{"delta": {}, "finish_reason": finish}], **({"usage": usage} if usage else {})})
    return accumulator.reply(400)


def call(name: str | None = None, arguments: Any = None, **rest: Any) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"tool_calls": [{"function": function, **rest}]}


@pytest.mark.parametrize(
    "deltas",
    [
        [call("add", '{"a":', index=0, id="x"), call(None, " 1}", index=0)],
        [call("add", '{"a":', id="x"), call(None, " 1}")],
        [call("add", '{"a":', id="x"), call(None, " 1}", id="x")],
        [call("add", {"a": 1}, index=0)],
        [call("add", '{"a": 1}')],
        [call("add", "", index=0, id="x"), call(None, '{"a": 1}', index=0, id="x")],
        [{"function_call": {"name": "add", "arguments": '{"a": 1}'}}],
        [{"content": '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'}],
    ],
    ids=[
        "split by index",
        "no index",
        "id repeated",
        "arguments an object",
        "whole in one",
        "empty first",
        "function_call",
        "as text",
    ],
)
def test_one_call_however_it_is_sent(deltas: list[Any]) -> None:
    reply = of(*deltas, finish="stop")
    assert [(one.name, json.loads(one.arguments)) for one in reply.calls] == [("add", {"a": 1})]
    assert reply.finish == "tool_calls"


def test_two_calls_with_the_same_index_and_their_own_ids_stay_two() -> None:
    reply = of(call("a", "{}", index=0, id="x"), call("b", "{}", index=0, id="y"))
    assert [one.name for one in reply.calls] == ["a", "b"]


def test_two_calls_by_index_grow_side_by_side() -> None:
    reply = of(
        call("a", '{"x"', index=0, id="1"),
        call("b", '{"y"', index=1, id="2"),
        call(None, ":1}", index=0),
        call(None, ":2}", index=1),
    )
    assert [(one.name, one.arguments) for one in reply.calls] == [("a", '{"x":1}'), ("b", '{"y":2}')]


def test_thoughts_stay_apart_and_content_may_be_null() -> None:
    reply = of({"content": None}, {"reasoning_content": "hm"}, {"content": "<think>so"}, {"content": "</think>Yes."})
    assert (reply.content, reply.reasoning) == ("Yes.", "hmso")


def test_missing_usage_is_estimated_and_said_so() -> None:
    assert of({"content": "four"}).estimated
    counted = of({"content": "four"}, usage={"prompt_tokens": 7, "completion_tokens": 2})
    assert (counted.tokens_in, counted.tokens_out, counted.estimated) == (7, 2, False)
    assert of({"content": "four"}, usage={"prompt_tokens": -7, "completion_tokens": 2}).estimated


@pytest.mark.parametrize("chunk", [{"error": {"message": "overloaded"}}, {"error": "overloaded"}, ["no chunk"], "text"])
def test_an_error_after_ok_and_nonsense_are_errors(chunk: Any) -> None:
    with pytest.raises(UpstreamError):
        Accumulator().chunk(chunk)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "message",
                    "content",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "index",
                    "id",
                    "usage",
                    "prompt_tokens",
                    "completion_tokens",
                    "finish_reason",
                    "reasoning",
                    "model",
                    "text",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.lists(JSON, max_size=4))
def test_whatever_a_server_sends_is_a_reply_that_can_be_recorded_or_an_error(chunks: list[Any]) -> None:
    accumulator = Accumulator()
    try:
        for chunk in [*chunks, {"choices": [chunks]}, {"choices": chunks}]:
            msgspec.json.encode(accumulator.chunk(chunk))
        reply = accumulator.reply(0)
    except UpstreamError:
        return
    msgspec.json.encode(reply)
    assert reply.tokens_in >= 0 and reply.tokens_out >= 0


def test_halves_of_a_character_in_two_chunks_become_one_and_a_lone_half_is_replaced() -> None:
    assert of({"content": "a\ud83d"}, {"content": "\ude42b"}).content == "a🙂b"
    assert of({"content": "\ud83d!"}).content == "\ufffd!"


def test_an_answer_without_a_choice_is_nonsense() -> None:
    accumulator = Accumulator()
    accumulator.chunk({"choices": [], "usage": {}})
    with pytest.raises(UpstreamError, match="without a choice"):
        accumulator.reply(0)


STREAM = ': hello\r\n\r\ndata: {"a": "ä€🙂"}\r\n\r\ndata: [DONE]\n'.encode()


@given(st.lists(st.integers(1, len(STREAM)), max_size=6))
def test_borders_of_chunks_change_nothing(cuts: list[int]) -> None:
    lines, places = Lines(), sorted({0, *cuts, len(STREAM)})
    found = [data for a, b in pairwise(places) for data in lines.feed(STREAM[a:b])]
    assert [*found, *lines.end()] == ['{"a": "ä€🙂"}', "[DONE]"]
