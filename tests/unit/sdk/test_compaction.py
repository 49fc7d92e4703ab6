"""A conversation is made shorter by a summary: when, what stays, and that the fold of it needs nothing of before."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfarm_sdk import Agent, compaction, tool
from agentfarm_sdk.fold import Fold
from agentfarm_sdk.protocol import Event, ModelSpec, new_event
from agentfarm_sdk.testing import FakeFarm, ScriptedModel, calls, says

Json = dict[str, Any]
WORDS = st.text(alphabet="abc äß", max_size=400)


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """A system prompt, perhaps; then what people say, and replies with calls and their results."""
    messages: list[Json] = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    for number in range(draw(st.integers(1, 8))):
        messages.append({"role": "user", "content": draw(WORDS)})
        asked = [f"c{number}-{place}" for place in range(draw(st.integers(0, 3)))]
        if asked:
            made = [{"id": one, "type": "function", "function": {"name": "t", "arguments": "{}"}} for one in asked]
            messages.append({"role": "assistant", "content": None, "tool_calls": made})
            messages += [{"role": "tool", "tool_call_id": one, "content": draw(WORDS)} for one in asked]
        messages.append({"role": "assistant", "content": draw(WORDS)})
    return messages


def folded(messages: list[Json], body: Json, before: int) -> list[Json]:
    """Fold the messages after the first `before` of them, and a summary; those come from another run, or are not known."""
    results = []
    for history in (messages[:before], []):
        fold = Fold(history=lambda _run, _seq, known=history: list(known))  # type: ignore[misc]
        said = [("thread.continued", {"run": "r", "seq": 1}), *(("message.added", one) for one in messages[before:])]
        for seq, (kind, one) in enumerate([*said, ("context.compacted", body)], 1):
            fold.apply(Event(run="r", seq=seq, kind=kind, at="", by="", body=new_event(kind, one).body))
        results.append(fold.messages)
    assert results[0] == results[1], "what stands before a summary is not needed to fold it"
    return results[0]


@given(conversations(), st.integers(512, 2000), st.integers(0, 40))
def test_what_stays_fits_and_no_result_is_without_its_call(messages: list[Json], context: int, own: int) -> None:
    tokens = compaction.size(messages)
    own = min(own, len(messages))
    plan = compaction.plan(messages, own, tokens, context)
    assert plan == compaction.plan(messages, own, tokens, context), "the same messages, the same plan"
    if plan is None:
        return
    assert tokens > compaction.FULL * context and plan.keep <= own
    kept = messages[len(messages) - plan.keep :] if plan.keep else []
    assert compaction.size(kept) <= compaction.KEPT * context
    assert not kept or kept[0]["role"] != "tool"
    assert len(plan.question[1]["content"].encode()) <= compaction.ASKED * context * compaction.BYTES_A_TOKEN + 200
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    if any(one["role"] not in ("user", "system") for one in messages[len(messages) - own :]):
        return  # `message.added` holds no calls: the fold of those is what test_fold.py is about
    short = folded(messages, plan.body("short", system, "m1.summary"), len(messages) - own)
    assert short[-plan.keep :] == kept if plan.keep else len(short) == 1 + bool(system)  # an empty prompt says nothing


def test_the_longest_messages_of_a_transcript_lose_their_middle() -> None:
    messages = [{"role": "user", "content": "begin " + "x" * 9000 + " end"}, {"role": "assistant", "content": "short"}]
    told = compaction.transcript(messages, 600)
    assert told.startswith("user: begin") and "end" in told and "bytes …]" in told and told.endswith("assistant: short")


@tool(effect="read")
def page(number: int) -> str:
    """Return a page."""
    return f"page {number}: " + "lorem ipsum " * 40


def test_a_model_that_lives_here_summarises_for_itself_and_the_run_goes_on() -> None:
    def turn(messages: list[Json]) -> Any:
        if messages[0]["content"] == compaction.INSTRUCTION:
            return says(f"SUMMARY of {messages[1]['content'].count('calls page')} calls")
        read = sum(1 for one in messages if one["role"] == "tool")
        return says("Read.") if len(asked) > 12 else asked.append(read) or calls("page", number=len(asked))

    asked: list[int] = []
    model = ScriptedModel(turn)
    agent = Agent("reader", prompt="You read.", tools=[page], mode="live")
    agent.definition = msgspec.structs.replace(agent.definition, model=ModelSpec(context=1024))
    with FakeFarm() as farm:
        run = farm.run(agent, "Read all of it, Ada.", model)
        assert run.result == "Read." and run.verify()["ok"]
        events = run.events()
        short = [event.data() for event in events if event.kind == "context.compacted"]
        assert len(short) > 1 and all(one["system"] == "You read." for one in short)
        assert max(compaction.size(shown) for shown in model.shown) < 1024
        last = [shown for shown in model.shown if shown[0]["content"] == "You read."][-1]
        assert (
            last[1]["content"].startswith(compaction.HEAD + "SUMMARY") and "Read all of it, Ada." in last[1]["content"]
        )
        assert sum("page 3:" in str(event.data()) for event in events) == 1, "the original stays in the ledger"
        assert run.fold().messages == Fold().apply_all(events).messages and run.fold().steps == 14
        assert run.replay().steps == 14


@pytest.mark.parametrize("context", [None, 100_000])
def test_a_conversation_that_fits_is_left_alone(context: int | None) -> None:
    model = ScriptedModel(calls("page", number=1), says("Read."))
    agent = Agent("reader", tools=[page], mode="live")
    agent.definition = msgspec.structs.replace(agent.definition, model=ModelSpec(context=context))
    with FakeFarm() as farm:
        assert "context.compacted" not in [event.kind for event in farm.run(agent, "Read.", model).events()]
