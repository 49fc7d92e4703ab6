"""Memory, timers and questions where there is no farm: the local ledger keeps the same promises."""

from __future__ import annotations

import itertools
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfarm_sdk import Agent, effects, tool
from agentfarm_sdk.errors import Conflict, Invalid
from agentfarm_sdk.fold import Fold
from agentfarm_sdk.protocol import Event, new_event
from agentfarm_sdk.testing import FakeFarm, ScriptedModel, calls, says
from agentfarm_sdk.tools.context import Context

made = list[str]()


@tool(effect="once")
def order(ctx: Context, symbol: str) -> str:
    """Order, then wait until it is filled."""
    made.append(symbol)
    ctx.remember("last", symbol)
    try:
        ctx.wait_until(0.05, then=f"filled {symbol}")
    except Exception as error:
        return f"a tool's own handler must not see {error}"


@tool(effect="read")
def seen(ctx: Context, key: str) -> list[Any]:
    """What is remembered, when, and a chance."""
    return [ctx.recall(key), ctx.now().isoformat(), ctx.random(), ctx.uuid()]


@tool(effect="once")
def fails(ctx: Context) -> str:
    """Remember, then fail."""
    ctx.remember("half", "done")
    raise ValueError("no")


def last_told(model: ScriptedModel) -> list[str]:
    return [one["content"] for one in model.shown[-1] if one["role"] == "tool"]


def test_a_run_outside_a_farm_rests_here_and_is_told_when_the_time_has_come() -> None:
    made.clear()
    model = ScriptedModel(calls("order", symbol="BTC"), says("Bought."))
    with FakeFarm() as farm:
        run = farm.run(Agent("trader", tools=[order], mode="live"), "Buy", model)
        assert (run.result, made, last_told(model)) == ("Bought.", ["BTC"], ["filled BTC"])
        kinds = [event.kind for event in run.events()]
        place = kinds.index("timer.set")
        assert kinds[place - 1 : place + 3] == ["memory.remembered", "timer.set", "run.parked", "timer.fired"]
        assert run.verify()["ok"] and farm.ledger.memory("trader")["items"][0]["value"] == "BTC"


def test_what_one_run_remembers_the_next_one_recalls_and_a_failed_call_remembers_nothing() -> None:
    town = calls("remember", key="town", value="Zürich") & calls("fails")
    find = calls("recall", query="ZÜRICH") & calls("recall", key="half") & calls("forget", key="town")
    with FakeFarm() as farm:
        agent = Agent("analyst", tools=["remember", "recall", "forget", fails], mode="live")
        farm.run(agent, "Note it", ScriptedModel(town, says("Noted.")))
        model = ScriptedModel(find, calls("recall", key="town"), says("Done."))
        farm.run(agent, "Where?", model)
        first, second, _, last = last_told(model)
        assert '"town"' in first and second.startswith("Error: nothing is remembered as half")
        assert last.startswith("Error: nothing") and farm.ledger.memory("analyst") == {"items": [], "keys": 0}
        other = ScriptedModel(calls("recall", query="town"), says("Nothing."))
        farm.run(Agent("other", tools=["recall"], mode="live"), "Where?", other)
        assert last_told(other) == ["[]"]


def test_a_simulated_run_makes_no_effects_and_remembers_nothing() -> None:
    made.clear()
    script = ScriptedModel(calls("order", symbol="BTC") & calls("remember", key="k", value=1), says("Would have."))
    with FakeFarm() as farm:
        run = farm.run(Agent("trader", tools=[order, "remember"], mode="simulate"), "Buy", script)
        assert run.result == "Would have." and not made and farm.ledger.memory("trader")["keys"] == 0
        assert all("simulated" in told for told in last_told(script))


def test_a_question_waits_for_its_answer_here() -> None:
    model = ScriptedModel(calls("ask_person", question="Which?", choices=["red", "blue"]), says("Blue."))
    with FakeFarm() as farm:
        run = farm.run(Agent("painter", tools=["ask_person"]), "Paint", model)
        (call,) = run.waiting
        with pytest.raises(Conflict, match=r"Which\?"):
            _ = run.result
        with pytest.raises(Invalid, match="none of the choices"):
            run.decide(call.call, "answer", result="green")
        assert run.decide(call.call, "answer", result="blue").resume().result == "Blue."
        assert last_told(model) == ["blue"]


def test_a_replay_sees_the_memory_the_time_and_the_chances_that_the_run_saw() -> None:
    with FakeFarm() as farm:
        agent = Agent("analyst", tools=["remember", seen], mode="live")
        farm.run(agent, "Note", ScriptedModel(calls("remember", key="k", value=1), says(".")))
        run = farm.run(agent, "Look", ScriptedModel(calls("seen", key="k"), says("Seen.")))
        farm.run(agent, "Note", ScriptedModel(calls("remember", key="k", value=2), says(".")))
        assert run.replay().again == 1
        outcome = next(event.data() for event in run.events() if event.kind == "tool.succeeded")
        assert [one["name"] for one in outcome["values"]] == ["recall", "now", "random", "uuid"]
        assert outcome["result"][0] == 1


def test_memory_that_is_full_is_told_and_a_key_that_is_there_still_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "MAX_KEYS", 1)
    script = [calls("remember", key=key, value=key) for key in ("a", "b", "a")]
    with FakeFarm() as farm:
        model = ScriptedModel(*script, says("Done."))
        farm.run(Agent("analyst", tools=["remember"], mode="live"), "Go", model)
        first, full, again = last_told(model)
        assert "full" in full and full.startswith("Error") and first == again == "remembered as a"


def test_the_time_that_a_run_rests_counts_for_no_limit() -> None:
    at = itertools.chain(["00:00:00", "00:00:01", "09:00:01", "09:00:02"])
    fold = Fold()
    for seq, (kind, body) in enumerate(
        (("run.leased", {"fence": 1}), ("run.parked", {"reason": "timer"}), ("run.requeued", {}), ("run.leased", {"fence": 2})), 1
    ):  # fmt: skip
        moment = f"2026-01-01T{next(at)}.000000Z"
        fold.apply(Event(run="r", seq=seq, kind=kind, at=moment, by="service", body=new_event(kind, body).body))
    assert fold.rested == 9 * 3600 + 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: effects.timer(31 * 86400, time.time(), None, "c"),
        lambda: effects.timer(float("nan"), time.time(), None, "c"),
        lambda: effects.timer(datetime.now(timezone.utc) + timedelta(days=31), time.time(), None, "c"),
        lambda: effects.question(" ", None, None, None, "c"),
        lambda: effects.question("?", ["a"], {"enum": ["a"]}, None, "c"),
        lambda: effects.question("?", None, {"type": "nonsense"}, None, "c"),
        lambda: effects.question("?", None, None, -1, "c"),
        lambda: effects.remembered("", 1, "c"),
        lambda: effects.remembered("a\nb", 1, "c"),
        lambda: effects.remembered("k", "x" * 20_000, "c"),
        lambda: effects.remembered("k", object(), "c"),
    ],
)
def test_what_cannot_be_asked_of_the_farm_is_said_with_a_way_out(make: Any) -> None:
    with pytest.raises(Invalid) as said:
        make()
    assert said.value.hint


BODIES = st.dictionaries(
    st.sampled_from(["key", "value", "until", "question", "choices", "schema", "expires"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=2) | st.dictionaries(st.text(), st.integers(), max_size=1),
)  # fmt: skip


@given(st.sampled_from(sorted(effects.KINDS)), BODIES)
def test_whatever_a_worker_writes_is_an_effect_or_is_refused(kind: str, body: dict[str, Any]) -> None:
    try:
        effects.check(new_event(kind, body, "c0-0"), time.time())
    except Invalid as error:
        assert error.hint
