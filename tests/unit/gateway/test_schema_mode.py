"""A call that is asked for by JSON Schema is read, or it is said why it cannot be: half a call is no answer."""

from __future__ import annotations

import pytest

from agentfarm_sdk.protocol import ToolSpec
from jupyterhub_agentfarm.gateway.asking import Ask, Reply, UpstreamError
from jupyterhub_agentfarm.gateway.schema_mode import read

TOOL = ToolSpec(name="note", schema={"type": "object"})


def told(content: str, choice: str = "required", finish: str = "stop") -> Reply:
    ask = Ask(model="m", messages=[], tools=[TOOL], tool_choice=choice, parameters={}, answer=None, provider=None)
    return read(ask, Reply(content, [], tokens_in=3, tokens_out=5, model="m", finish=finish))


def test_a_call_and_an_answer_are_read() -> None:
    (call,) = told('{"tool": "note", "arguments": {"text": "x"}}').calls
    assert (call.name, call.arguments) == ("note", '{"text": "x"}')
    assert told('{"answer": "done"}', "auto").content == "done"
    assert told("plain words", "auto").content == "plain words"
    assert told('{"tool": "note"', "none", "length").content == '{"tool": "note"'


@pytest.mark.parametrize(
    ("content", "choice", "finish", "hint"),
    [
        ('{"tool": "note", "argum', "required", "length", "max_tokens"),
        ('{"tool": "note", "argum', "auto", "length", "max_tokens"),
        ("I would note it", "required", "stop", "larger"),
        ('{"answer": "no"}', "required", "stop", "larger"),
    ],
)
def test_half_a_call_fails_the_attempt_and_what_it_used_is_counted(
    content: str, choice: str, finish: str, hint: str
) -> None:
    with pytest.raises(UpstreamError) as caught:
        told(content, choice, finish)
    assert hint in caught.value.hint and not caught.value.retry and caught.value.used == (3, 5)
