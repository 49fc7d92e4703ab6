"""The loop, driven by a scripted model over a real ledger in a file: what is recorded, and what the model is shown."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, TypedDict

import pytest

from agentfarm_sdk import Agent, Context, happened, not_happened, tool
from agentfarm_sdk.agent import Run
from agentfarm_sdk.errors import (
    AgentFarmError,
    Cancelled,
    Conflict,
    Divergence,
    InDoubt,
    Invalid,
    LimitReached,
    ModelFailed,
    Transient,
)
from agentfarm_sdk.local import LocalLedger
from agentfarm_sdk.localfile import LocalFile
from agentfarm_sdk.model import Question, Reply
from agentfarm_sdk.protocol import call_key, new_event
from agentfarm_sdk.testing import FakeFarm, ScriptedModel, calls, says


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[FakeFarm]:
    with FakeFarm(tmp_path) as farm:
        yield farm


def kinds(run: Run) -> list[str]:
    return [event.kind for event in run.events()]


@tool(effect="read")
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


class Orders:
    """An exchange: what reached it."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def tool(self, **options: Any) -> Any:
        @tool(name="place_order", **options)
        def place_order(ctx: Context, symbol: str) -> str:
            self.made.append(ctx.key)
            return f"bought {symbol}"

        return place_order


def test_a_run_is_asked_done_told_and_answered(farm: FakeFarm) -> None:
    model = ScriptedModel(calls("add", a=2, b=3), says("5"))
    run = farm.run(Agent("sums", prompt="You add for {{who}}.", tools=[add], variables={"who": "Ann"}), "2+3?", model)
    assert run.result == "5" and run.status == "succeeded"
    assert kinds(run) == [
        "run.created", "message.added", "message.added", "run.leased", "model.reported", "tool.started", "tool.succeeded", "model.reported",
        "run.succeeded",
    ]  # fmt: skip
    assert [(one["role"], one["content"]) for one in model.shown[1]] == [
        ("system", "You add for Ann."), ("user", "2+3?"), ("assistant", None), ("tool", "5"),
    ]  # fmt: skip
    assert run.verify()["ok"]


def test_calls_are_made_side_by_side_and_told_in_call_order(farm: FakeFarm) -> None:
    met = threading.Barrier(2, timeout=10)

    @tool(effect="read")
    def first() -> str:
        met.wait()
        time.sleep(0.02)  # ends after the second, of which it needs that it has begun
        return "one"

    @tool(effect="read")
    async def second() -> str:
        await asyncio.to_thread(met.wait)
        return "two"

    model = ScriptedModel(calls("first") & calls("second"), says("both"))
    run = farm.run(Agent("a", tools=[first, second]), "go", model)
    outcomes = [event.call for event in run.events() if event.kind == "tool.succeeded"]
    assert sorted(filter(None, outcomes)) == ["c0-0", "c0-1"]
    assert [(m["tool_call_id"], m["content"]) for m in model.shown[1][-2:]] == [("c0-0", "one"), ("c0-1", "two")]


def test_a_run_that_was_cancelled_before_its_worker_heard_of_it_ends_as_cancelled_and_not_as_failed(
    farm: FakeFarm,
) -> None:
    class Stopped(ScriptedModel):
        async def reply(self, question: Question) -> Reply:
            raise Cancelled("run run-1 was cancelled: enough", reason="enough")

    run = farm.run(Agent("a", tools=[add]), "go", Stopped())
    with pytest.raises(Cancelled):
        _ = run.result
    assert (kinds(run)[-1], run.status) == ("run.cancelled", "cancelled")
    assert [event.data() for event in run.events()][-1] == {"reason": "enough"}


def test_a_failed_tool_is_told_to_the_model_and_the_run_goes_on(farm: FakeFarm) -> None:
    @tool(effect="read")
    def broken() -> str:
        raise ZeroDivisionError("no way")

    model = ScriptedModel(calls("broken"), says("it is broken"))
    run = farm.run(Agent("a", tools=[broken]), "go", model)
    assert run.result == "it is broken" and model.shown[1][-1]["content"] == "Error: no way"
    failed = next(event.data() for event in run.events() if event.kind == "tool.failed")
    assert failed["error"] == {"type": "ZeroDivisionError", "message": "no way"}


def test_a_call_that_cannot_be_is_not_made_and_the_model_is_told_why(farm: FakeFarm) -> None:
    model = ScriptedModel(
        calls("add", a="two", b=3) & calls("nothing") & calls("add", a=1) & calls("add", a=1, b=2), says("3")
    )
    run = farm.run(Agent("a", tools=[add]), "go", model)
    told = [one["content"] for one in model.shown[1] if one["role"] == "tool"]
    assert (
        "a" in told[0] and "there is no tool nothing" in told[1] and '"b" is a required' in told[2] and told[3] == "3"
    )
    assert kinds(run).count("tool.started") == 1


@pytest.mark.parametrize("sync", [True, False])
def test_a_tool_that_takes_too_long_is_given_up_and_sees_it(farm: FakeFarm, sync: bool) -> None:
    seen = threading.Event()

    @tool(effect="read", timeout=0.1)
    def blocks(ctx: Context) -> str:
        if ctx.cancelled.wait(10):
            seen.set()
        return "late"

    @tool(effect="read", timeout=0.1, name="blocks")
    async def waits() -> str:
        try:
            await asyncio.sleep(10)
        finally:
            seen.set()
        return "late"

    model = ScriptedModel(calls("blocks"), says("too slow"))
    run = farm.run(Agent("a", tools=[blocks if sync else waits]), "go", model)
    assert run.result == "too slow" and "took longer than 0.1 s" in model.shown[1][-1]["content"]
    assert seen.wait(5)


@pytest.mark.parametrize(
    ("limits", "named"), [({"steps": 2}, "2 steps"), ({"tokens": 30}, "30 tokens"), ({"seconds": 0}, "0 seconds")]
)
def test_a_limit_ends_the_run_and_says_which(farm: FakeFarm, limits: dict[str, Any], named: str) -> None:
    run = farm.run(Agent("a", tools=[add], limits=limits), "go", ScriptedModel(calls("add", a=1, b=1)))
    with pytest.raises(LimitReached, match=named):
        _ = run.result
    assert kinds(run)[-1] == "run.failed" and kinds(run).count("model.reported") <= 2


def test_calls_over_the_limit_are_not_made(farm: FakeFarm) -> None:
    orders = Orders()
    model = ScriptedModel(*[calls("place_order", symbol="a") & calls("place_order", symbol="b")] * 2, says("enough"))
    run = farm.run(Agent("a", tools=[orders.tool()], limits={"calls": 3}, mode="live"), "go", model)
    assert len(orders.made) == 3 and len(set(orders.made)) == 3
    assert "limit of 3 calls" in str([event.data() for event in run.events() if event.kind == "tool.failed"])


def test_an_unknown_limit_is_refused_before_anything_runs() -> None:
    with pytest.raises(Invalid, match="limits"):
        Agent("a", limits={"steps": "many"})


def test_a_structured_answer_is_read_and_one_that_does_not_fit_fails_the_run(farm: FakeFarm) -> None:
    class Answer(TypedDict):
        total: Decimal

    agent = Agent("a", answer=Answer)
    assert farm.run(agent, "go", ScriptedModel(says('```json\n{"total": "3.10"}\n```'))).result == {
        "total": Decimal("3.10")
    }
    run = farm.run(agent, "go", ScriptedModel(says("three")))
    with pytest.raises(Invalid, match="does not fit the schema"):
        _ = run.result


def test_a_call_that_needs_approval_waits_and_is_made_when_it_is_given(farm: FakeFarm) -> None:
    orders = Orders()
    agent = Agent("a", tools=[orders.tool(approval="always"), add], mode="live")
    model = ScriptedModel(calls("place_order", symbol="BTC") & calls("add", a=1, b=2), says("done"))
    run = farm.run(agent, "go", model)
    assert run.status == "waiting" and orders.made == [] and [call.tool for call in run.waiting] == ["place_order"]
    assert kinds(run)[-2:] == ["tool.succeeded", "run.parked"], "what needs nobody was done"
    with pytest.raises(Conflict, match="approval"):
        _ = run.result
    run.decide("c0-0", "approve", arguments={"symbol": "ETH"}).resume()
    assert run.result == "done" and len(orders.made) == 1
    assert [one["content"] for one in model.shown[-1] if one["role"] == "tool"] == ["bought ETH", "3"]


def test_a_refused_call_is_told_and_never_made(farm: FakeFarm) -> None:
    orders = Orders()
    model = ScriptedModel(calls("place_order", symbol="BTC"), says("pity"))
    run = farm.run(Agent("a", tools=[orders.tool()], mode="ask"), "go", model)
    run.decide("c0-0", "refuse", reason="too dear").resume()
    assert run.result == "pity" and orders.made == [] and "too dear" in model.shown[-1][-1]["content"]
    with pytest.raises(Conflict):
        run.decide("c0-0", "approve")


def test_in_mode_ask_what_only_reads_needs_nobody(farm: FakeFarm) -> None:
    assert (
        farm.run(Agent("a", tools=[add], mode="ask"), "go", ScriptedModel(calls("add", a=1, b=1), says("2"))).result
        == "2"
    )


class Flaky:
    """A model that is away some times."""

    attested = False

    def __init__(self, *errors: AgentFarmError) -> None:
        self.errors, self.asked = list(errors), 0

    async def reply(self, question: Question) -> Reply:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return Reply({"role": "assistant", "content": "here"})


def test_a_model_that_is_away_is_asked_again_and_one_that_refuses_fails_the_run(farm: FakeFarm) -> None:
    model = Flaky(Transient("busy", retry_after=0.01), Transient("busy", retry_after=0.01))
    assert farm.run(Agent("a", model=model), "go").result == "here" and model.asked == 3
    run = farm.run(Agent("a", model=Flaky(Invalid("no such model", hint="name another"))), "go")
    with pytest.raises(Invalid, match="name another"):
        _ = run.result


def test_attempts_that_the_gateway_has_made_are_not_made_again(farm: FakeFarm) -> None:
    model = Flaky(ModelFailed("the model server is down", hint="start it"), *[Transient("never")] * 9)
    run = farm.run(Agent("a", model=model), "go")
    with pytest.raises(ModelFailed, match="is down"):
        _ = run.result
    assert model.asked == 1


def test_a_bug_fails_the_run_and_says_so(farm: FakeFarm) -> None:
    def bug(messages: list[Any]) -> Any:
        raise KeyError("bug")

    run = farm.run(Agent("a"), "go", ScriptedModel(bug))
    with pytest.raises(AgentFarmError, match="a bug, not the task"):
        _ = run.result
    assert kinds(run)[-1] == "run.failed"


def test_a_run_that_takes_too_long_is_cancelled_and_starts_nothing_more(farm: FakeFarm) -> None:
    orders = Orders()

    @tool(effect="read")
    def waits(ctx: Context) -> str:
        assert ctx.cancelled.wait(10)
        return "stopped"

    model = ScriptedModel(calls("waits"), calls("place_order", symbol="BTC"))
    run = farm.run(Agent("a", tools=[waits, orders.tool()], mode="live"), "go", model, timeout=0.2)
    with pytest.raises(Cancelled):
        _ = run.result
    assert kinds(run)[-2:] == ["tool.succeeded", "run.cancelled"] and orders.made == []


def test_a_model_that_is_still_thinking_does_not_hold_up_a_cancel(farm: FakeFarm) -> None:
    began = time.monotonic()
    run = farm.run(Agent("a"), "go", ScriptedModel(says("late"), delay=30), timeout=0.1)
    assert run.status == "cancelled" and time.monotonic() - began < 10


def test_a_wish_to_stop_that_another_process_wrote_is_heard(farm: FakeFarm) -> None:
    @tool(effect="read")
    def stops(ctx: Context) -> str:
        LocalFile(farm.ledger.path).cancel(ctx.run, "from outside")
        return "asked"

    run = farm.run(Agent("a", tools=[stops]), "go", ScriptedModel(calls("stops"), calls("stops"), says("never")))
    assert run.status == "cancelled" and kinds(run).count("model.reported") == 1


def test_secrets_reach_the_tool_and_not_the_ledger(farm: FakeFarm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_KEY", "s3cret-värde")

    @tool(effect="read", secrets=["BROKER_KEY"])
    def leaks(ctx: Context) -> str:
        return f"key is {ctx.secrets['BROKER_KEY']}"

    model = ScriptedModel(calls("leaks"), says("ok"))
    farm.run(Agent("a", tools=[leaks]), "go", model)
    assert model.shown[1][-1]["content"] == "key is ***"
    assert b"s3cret" not in b"".join(path.read_bytes() for path in farm.folder.glob("ledger.sqlite*") if path.is_file())


def test_a_call_has_its_own_key_and_the_same_in_every_attempt(farm: FakeFarm) -> None:
    orders = Orders()
    model = ScriptedModel(calls("place_order", symbol="a") & calls("place_order", symbol="a"), says("x"))
    run = farm.run(Agent("a", tools=[orders.tool()], mode="live"), "go", model)
    assert sorted(orders.made) == sorted(call_key(farm.ledger.epoch, run.run_id, call) for call in ("c0-0", "c0-1"))


# --- replay -----------------------------------------------------------------------------------------------------


def test_a_replay_gives_recorded_values_back_and_makes_no_effect(farm: FakeFarm) -> None:
    orders = Orders()

    @tool(effect="read")
    def clock(ctx: Context) -> str:
        return f"{ctx.now().isoformat()} {ctx.uuid()} {ctx.random()}"

    agent = Agent("a", prompt="p", tools=[clock, orders.tool()], mode="live")
    run = farm.run(agent, "go", ScriptedModel(calls("clock") & calls("place_order", symbol="a"), says("x")))
    replayed = run.replay()
    assert (replayed.steps, replayed.again, replayed.kept, len(orders.made)) == (2, 1, 1, 1)
    values = next(e.data()["values"] for e in run.events() if e.kind == "tool.succeeded" and e.call == "c0-0")
    assert [value["name"] for value in values] == ["now", "uuid", "random"]


def test_a_replay_says_where_todays_code_differs(farm: FakeFarm) -> None:
    agent = Agent("a", prompt="p", tools=[add])
    run = farm.run(agent, "go", ScriptedModel(calls("add", a=1, b=2), says("3")))

    @tool(effect="read", name="add")
    def wrong(a: int, b: int) -> int:
        return a - b

    for other in (Agent("a", prompt="p", tools=[wrong]), Agent("a", prompt="q", tools=[add]), Agent("a", prompt="p")):
        with pytest.raises(Divergence) as differs:
            run.replay(other)
        assert "recorded" in differs.value.extra and "today" in differs.value.extra


# --- the ledger in a file ---------------------------------------------------------------------------------------


def test_a_run_of_another_process_is_not_taken_up_while_that_lives(farm: FakeFarm) -> None:
    run = farm.ledger.create(Agent("a").definition, "go")

    async def both() -> None:
        first, second = LocalLedger(farm.ledger, run), LocalLedger(LocalFile(farm.ledger.path), run)
        await first.open()
        with pytest.raises(Conflict, match="another process"):
            await second.open()
        await first.close()
        assert (await second.open()).fence == 2
        with pytest.raises(AgentFarmError, match="replaced"):
            await first.append([new_event("run.succeeded", {"result": "stale"})])
        await second.close()

    asyncio.run(both())
    assert farm.ledger.fold(run).status == "running"


async def test_a_once_call_that_nobody_saw_return_is_in_doubt_and_not_made_again(farm: FakeFarm) -> None:
    orders = Orders()
    agent = Agent("a", tools=[orders.tool(), add], mode="live")
    run_id = farm.ledger.create(agent.definition, "go")
    ledger = LocalLedger(farm.ledger, run_id)
    await ledger.open()
    asked = (calls("place_order", symbol="BTC") & calls("add", a=1, b=1)).message()
    for place, one in enumerate(asked["tool_calls"]):
        one["id"] = f"c0-{place}"
    admitted = (await (await ledger.append([new_event("model.reported", {"message": asked})]))).admitted
    assert [call.state for call in admitted] == ["admitted", "admitted"]
    await ledger.append([new_event("tool.succeeded", {"result": 2}, "c0-1")])
    await ledger.close()  # and the process dies while the order is made

    run = await asyncio.to_thread(farm.take_up, agent, run_id, ScriptedModel(says("never"), says("Bought.")))
    assert orders.made == [] and run.status == "waiting" and run.fold().waiting == "in_doubt"
    assert kinds(run)[-2:] == ["tool.succeeded", "tool.doubted"]
    with pytest.raises(InDoubt, match="place_order"):
        _ = run.result
    assert (await asyncio.to_thread(run.resume)).status == "waiting", "nothing changes by trying again"
    run.decide("c0-0", "happened", result="bought BTC")
    assert (await asyncio.to_thread(run.resume)).result == "Bought." and orders.made == []


def test_a_flipped_byte_or_a_missing_event_is_found(farm: FakeFarm) -> None:
    run = farm.run(Agent("a", prompt="p"), "go", ScriptedModel(says("x")))
    whole = run.verify()
    assert whole["ok"] and whole["events"] == len(run.events())
    with sqlite3.connect(farm.ledger.path) as db:
        db.execute(
            "UPDATE events SET body = CAST(replace(CAST(body AS TEXT), 'go', 'no') AS BLOB) WHERE run_id = ? AND seq = 3",
            (run.run_id,),
        )
    assert run.verify()["bad"] == 3
    with sqlite3.connect(farm.ledger.path) as db:
        db.execute(
            "UPDATE events SET body = CAST(replace(CAST(body AS TEXT), 'no', 'go') AS BLOB) WHERE run_id = ? AND seq = 3",
            (run.run_id,),
        )
        db.execute("DELETE FROM events WHERE run_id = ? AND seq = ?", (run.run_id, whole["events"]))
    assert run.verify()["bad"] == whole["events"] and "missing" in run.verify()["why"]


def test_an_ended_run_cannot_be_taken_up_and_an_unknown_one_neither(farm: FakeFarm) -> None:
    agent, model = Agent("a"), ScriptedModel(says("x"))
    run = farm.run(agent, "go", model)
    with pytest.raises(Conflict, match="has ended"):
        farm.take_up(agent, run.run_id, model)
    with pytest.raises(AgentFarmError, match="no run"):
        farm.take_up(agent, "run-nothing", model)


# --- an agent ---------------------------------------------------------------------------------------------------


def test_outside_a_farm_without_a_model_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGENTFARM_URL", "AGENTFARM_SOCKET", "AGENTFARM_MODEL_URL", "HF_API_URL", "HUGGING_FACE_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Invalid) as told:
        Agent("a", ledger=tmp_path / "l.sqlite").run("go")
    assert "AGENTFARM_MODEL_URL" in told.value.hint and not (tmp_path / "l.sqlite").exists()


def test_a_prompt_with_a_variable_that_nobody_gave_is_refused(farm: FakeFarm) -> None:
    with pytest.raises(Invalid, match="who"):
        farm.run(Agent("a", prompt="For {{ who }}"), "go", ScriptedModel(says("x")))
    with pytest.raises(Invalid, match="same name"):
        Agent("a", tools=[add, add])


async def test_an_agent_runs_where_an_event_loop_runs_already(farm: FakeFarm) -> None:
    assert farm.run(Agent("a"), "go", ScriptedModel(says("from a notebook"))).result == "from a notebook"


def test_what_a_notebook_shows_of_a_run_is_escaped(farm: FakeFarm) -> None:
    run = farm.run(Agent("<b>"), "<script>alert(1)</script>", ScriptedModel(says("<img src=x onerror=alert(1)>")))
    shown = run._repr_html_()
    assert "<script" not in shown and "<img" not in shown and "&lt;script&gt;" in shown and "<b>&lt;b&gt;</b>" in shown


# -- calls that a former process left --------------------------------------------------------------------------------


async def left_under_way(path: Path, agent: Agent, *tools: str) -> str:
    """Begin a run whose model asks for these tools, and let its process die before one of them says what came of it."""
    file = LocalFile(path)
    run = file.create(agent.definition, "go", mode="live")
    ledger = LocalLedger(file, run)
    await ledger.open()
    asked = [
        {"id": f"c0-{place}", "type": "function", "function": {"name": name, "arguments": '{"symbol": "BTC"}'}}
        for place, name in enumerate(tools)
    ]
    reply = {"role": "assistant", "content": "", "tool_calls": asked}
    await ledger.append([new_event("model.reported", {"request": "m0", "message": reply})])
    await ledger.close()
    return run


@pytest.mark.parametrize(
    ("answer", "made", "last"),
    [
        ("happened", 0, ["run.requeued", "run.leased", "tool.probed", "model.reported", "run.succeeded"]),
        ("not_happened", 1, ["tool.probed", "tool.started", "tool.succeeded", "model.reported", "run.succeeded"]),
        (None, 0, ["run.requeued", "run.leased", "tool.probed", "tool.doubted"]),
        ("broken", 0, ["run.requeued", "run.leased", "tool.probed", "tool.doubted"]),
    ],
)
def test_a_probe_is_asked_what_became_of_a_call_and_only_its_word_lets_the_call_be_made_again(
    tmp_path: Path, answer: str | None, made: int, last: list[str]
) -> None:
    orders, asked = Orders(), []

    def was_it_placed(ctx: Context, symbol: str) -> Any:
        asked.append((ctx.key, symbol))
        if answer == "broken":
            raise ValueError("the exchange is closed")
        return happened({"id": 7}) if answer == "happened" else not_happened() if answer else None

    agent = Agent("t", tools=[orders.tool(probe=was_it_placed)], mode="live", ledger=tmp_path / "ledger", model=ScriptedModel(says("done")))  # fmt: skip
    run_id = asyncio.run(left_under_way(tmp_path / "ledger", agent, "place_order"))
    run = agent.take_up(run_id)
    assert kinds(run)[-len(last) :] == last and len(orders.made) == made
    call = run.fold().calls["c0-0"]
    assert asked == [(call.key, "BTC")] and set(orders.made) <= {call.key}
    if answer == "happened":
        assert call.outcome == '{"id":7}'
    if last[-1] == "tool.doubted":
        doubt = run.events()[-1].data()
        assert run.fold().waiting == "in_doubt" and "probe was asked" in doubt["reason"] and doubt["proof"]
        assert run.decide("c0-0", "happened", result=1, reason="seen").resume().result == "done"
        assert len(orders.made) == 0


def test_a_call_in_doubt_is_the_last_word_and_its_siblings_are_not_made_again(tmp_path: Path) -> None:
    orders = Orders()
    agent = Agent(
        "t", tools=[orders.tool()], mode="live", ledger=tmp_path / "ledger", model=ScriptedModel(says("done"))
    )
    run = agent.take_up(asyncio.run(left_under_way(tmp_path / "ledger", agent, "place_order", "place_order")))
    assert kinds(run)[-4:] == ["tool.started", "tool.started", "tool.doubted", "tool.doubted"] and not orders.made
