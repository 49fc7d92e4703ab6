"""Laws of the fold, over histories that hypothesis makes up: sensible ones, and whatever a hostile worker may append."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentfarm_sdk.fold import CLOSED, Fold, as_text
from agentfarm_sdk.protocol import ENDED, GENESIS, WORKER_KINDS, Event, call_id, make_header, read_event, timestamp
from jupyterhub_agentfarm.store.erasure import KEPT

text = st.text("abc é\n", max_size=6)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
Raw = tuple[str, str | None, Any]  # kind, call, body


def event(seq: int, kind: str, body: Any = None, call: str | None = None, by: str = "service") -> Event:
    """Make an event the way that readers get it: from a stored header and body."""
    header = make_header(
        epoch="e", run="run-1", seq=seq, kind=kind, at=f"t{seq:05}", by=by, call=call, body="", prev=GENESIS
    )
    return read_event(header, None if body is None else msgspec.json.encode(body))


def events(history: list[Raw]) -> list[Event]:
    return [event(seq, kind, body, call) for seq, (kind, call, body) in enumerate(history, 1)]


def reply(step: int, calls: int, tool: str = "t") -> Raw:
    asked = [
        {"id": call_id(step, i), "type": "function", "function": {"name": tool, "arguments": "{}"}}
        for i in range(calls)
    ]
    message = (
        {"role": "assistant", "content": None, "tool_calls": asked} if calls else {"role": "assistant", "content": "a"}
    )
    return (
        "model.replied",
        None,
        {"request": f"r{step}", "message": message, "usage": {"input": 3, "output": 2}, "cost": 0.5},
    )


def started(call: str, fence: int = 1) -> Raw:
    return (
        "tool.started",
        call,
        {"tool": "t", "key": "k" + call, "effect": "once", "attempt": 1, "timeout": 5, "fence": fence},
    )


OUTCOMES = st.sampled_from([
    ("tool.succeeded", {"result": "fine"}), ("tool.failed", {"error": {"type": "E", "message": "no"}}),
])  # fmt: skip
DECISIONS = st.sampled_from([
    ("tool.resolved", {"decision": "happened", "result": 7}), ("tool.resolved", {"decision": "given_up"}),
])  # fmt: skip
NOISE = st.sampled_from([
    ("value.recorded", None, {"name": "now", "value": 1}), ("model.requested", None, {"request": "x"}),
    ("planet.aligned", "c0-0", {"in": "the future"}), ("person.executed", None, {}), ("model.failed", None, {}),
    ("run.leased", None, {"fence": 2, "worker": "w"}), ("run.requeued", None, {"reason": "silence", "proof": None}),
    ("run.cancel_requested", None, {"reason": "enough"}), ("planet.erased", None, None),
])  # fmt: skip


@st.composite
def sensible(draw: st.DrawFn) -> list[Raw]:
    """A history as the service makes it: each step's calls end in some order, with doubts and strangers between."""
    history: list[Raw] = [("run.created", None, {}), ("message.added", None, {"role": "system", "content": "s"})]
    history += [("message.added", None, {"role": "user", "content": "u"}), ("run.leased", None, {"fence": 1})]
    for step in range(draw(st.integers(0, 4))):
        count = draw(st.integers(0, 4))
        history.append(reply(step, count))
        ids = draw(st.permutations([call_id(step, i) for i in range(count)]))
        history += [started(one) for one in ids]
        for one in ids:
            history += draw(st.lists(NOISE, max_size=2))
            if doubted := draw(st.booleans()):
                history.append(("tool.doubted", one, {"reason": "silence", "proof": None}))
            kind, body = draw(OUTCOMES | DECISIONS if doubted else OUTCOMES)
            history.append((kind, one, body))
    if draw(st.booleans()):
        history.append(("run.succeeded", None, {"result": "done"}))
    return history


chaos_kinds = st.sampled_from([
    "tool.started", "tool.succeeded", "tool.failed", "tool.doubted", "tool.resolved", "approval.requested", "approval.given",
    "approval.refused", "approval.expired", "approval.voted", "simulation.requested", "simulation.answered", "tool.probed", "run.leased", "run.requeued", "run.parked", "run.paused", "run.resumed",
    "run.cancel_requested", "run.cancelled", "run.succeeded", "run.failed", "context.compacted", "body.erased",
])  # fmt: skip
chaos_bodies = st.sampled_from([
    {"fence": 3, "decision": "happened"}, {"fence": 8, "answer": "happened", "result": 1}, {"fence": 9, "answer": "not_happened", "proof": "x"}, {"fence": 4, "decision": "not_happened", "keep": 2},
    {"fence": 2, "error": {"message": "no"}}, {"fence": 5, "arguments": {"x": 1}, "keep": 9}, {"fence": 6, "decision": "given_up", "keep": -1}, {"fence": 7},
])  # fmt: skip


@st.composite
def chaotic(draw: st.DrawFn) -> list[Raw]:
    """Any kinds in any order between replies; the model is asked only when no call is open, as the gateway sees to."""
    history: list[Raw] = [("message.added", None, {"role": "system", "content": "s"})]
    fold = Fold().apply_all(events(history))
    for step in range(draw(st.integers(1, 3))):
        calls = [call_id(step, i) for i in range(draw(st.integers(0, 3)))]
        history.append(reply(step, len(calls)))
        some_call = st.sampled_from([*calls, "c9-9"]) | st.none()
        history += draw(st.lists(st.tuples(chaos_kinds, some_call, chaos_bodies), max_size=12))
        fold = Fold().apply_all(events(history))
        for one in fold.open_calls:
            history += [("tool.doubted", one.call, {}), ("tool.resolved", one.call, {"decision": "given_up"})]
    return history


histories = sensible() | chaotic()


@given(histories, st.data())
def test_a_fold_of_any_beginning_taken_up_again_equals_the_fold_of_the_whole(history: list[Raw], data: Any) -> None:
    whole, cut = events(history), data.draw(st.integers(0, len(history)))
    first = Fold().apply_all(whole[:cut])
    before = copy.deepcopy(first)
    taken_up = copy.deepcopy(first).apply_all(whole[cut:])
    assert taken_up == Fold().apply_all(whole)
    assert first == before  # two that went on from one state do not see each other


@given(histories)
def test_results_reach_the_model_in_call_order_each_once_and_behind_their_reply(history: list[Raw]) -> None:
    fold = Fold()
    for one in events(history):
        fold.apply(one)
        waiting: list[str] = []
        for message in fold.messages:
            if message["role"] == "tool":
                assert waiting and message["tool_call_id"] == waiting.pop(0)
            else:
                assert not waiting, "a step's results are incomplete, and the conversation went on"
                waiting = [call["id"] for call in message.get("tool_calls") or []]
        assert all(isinstance(m["content"], str) for m in fold.messages if m["role"] == "tool")
        if not fold.open_calls:
            assert not waiting, "a call without a result makes providers refuse the thread for ever"


@given(histories)
def test_a_closed_call_stays_closed_and_keeps_its_outcome(history: list[Raw]) -> None:
    fold, closed = Fold(), {}
    for one in events(history):
        fold.apply(one)
        for call, outcome in closed.items():
            assert fold.calls[call].state in CLOSED and fold.calls[call].outcome == outcome
        closed |= {c.call: c.outcome for c in fold.calls.values() if not c.open}


@given(histories)
def test_a_doubted_call_is_closed_by_its_outcome_or_a_decision_and_by_nothing_else(history: list[Raw]) -> None:
    fold = Fold()
    for one in events(history):
        doubted = {call for call, c in fold.calls.items() if c.state == "doubted"}
        fold.apply(one)
        left = {call for call in doubted if fold.calls[call].state != "doubted"}
        if left:
            assert left == {one.call} and one.kind in {"tool.succeeded", "tool.failed", "tool.resolved"}


@given(histories)
def test_a_run_that_ended_stays_as_it_ended(history: list[Raw]) -> None:
    fold, end = Fold(), None
    for one in events(history):
        fold.apply(one)
        assert end is None or fold.status == end
        end = fold.status if fold.status in ENDED else None
        assert (fold.waiting is None) == (fold.status != "waiting")


@given(histories)
def test_a_cancel_that_was_asked_for_shows_until_the_run_ends(history: list[Raw]) -> None:
    fold = Fold()
    for one in events(history):
        asked = fold.cancel is not None
        fold.apply(one)
        if asked and one.kind in {"run.leased", "run.requeued"}:
            assert fold.status in ENDED | {"cancelling"}


@given(sensible(), st.data())
def test_kinds_of_a_later_release_change_nothing_but_the_number(history: list[Raw], data: Any) -> None:
    at = data.draw(st.integers(0, len(history)))
    stranger: Raw = ("moon.waxed", data.draw(st.sampled_from(["c0-0", None])), data.draw(anything))
    one, other = Fold().apply_all(events(history)), Fold().apply_all(events([*history[:at], stranger, *history[at:]]))
    assert one.messages == other.messages and one.status == other.status and other.seq == one.seq + 1
    assert [(c.call, c.state, c.outcome) for c in one.calls.values()] == [
        (c.call, c.state, c.outcome) for c in other.calls.values()
    ]


@given(sensible())
def test_counters_are_sums_over_the_replies(history: list[Raw]) -> None:
    replies = [seq for seq, (kind, _, _) in enumerate(history, 1) if kind == "model.replied"]
    fold = Fold().apply_all(events(history))
    assert (fold.steps, fold.tokens_in, fold.tokens_out) == (len(replies), 3 * len(replies), 2 * len(replies))
    assert fold.cost == pytest.approx(0.5 * len(replies)) and sorted(fold.replies.values()) == replies


# `model.reported` is checked at the door: its form decides which calls are admitted.
@settings(max_examples=300)
@given(
    sensible(),
    st.lists(
        st.tuples(st.sampled_from(sorted(WORKER_KINDS - {"model.reported"})), st.sampled_from(["c0-0", None])),
        max_size=3,
    ),
    st.data(),
)
def test_no_body_that_a_worker_may_append_makes_a_run_unreadable(history: list[Raw], more: Any, data: Any) -> None:
    names = ["result", "error", "reason", "keep", "summary", "name", "value"]
    bodies = st.none() | anything | st.dictionaries(st.sampled_from(names), anything, max_size=4)
    Fold().apply_all(events(history + [(kind, call, data.draw(bodies)) for kind, call in more]))


def test_an_event_that_is_not_the_next_one_is_refused_and_changes_nothing() -> None:
    fold = Fold().apply_all(events([("run.created", None, {}), ("run.leased", None, {"fence": 1})]))
    before = copy.deepcopy(fold)
    for seq in (1, 2, 4):
        with pytest.raises(ValueError, match="came after 2"):
            fold.apply(event(seq, "run.cancelled", {}))
    assert fold == before


def test_a_late_outcome_closes_the_doubt_and_a_later_one_changes_nothing() -> None:
    fold = Fold().apply_all(events([reply(0, 1), started("c0-0"), ("tool.doubted", "c0-0", {"reason": "silence"})]))
    assert (fold.status, fold.waiting, [c.state for c in fold.open_calls]) == ("waiting", "in_doubt", ["doubted"])
    fold.apply(event(4, "tool.succeeded", {"result": "sent"}, "c0-0", by="worker:1"))
    assert not fold.open_calls and fold.messages[-1] == {"role": "tool", "tool_call_id": "c0-0", "content": "sent"}
    fold.apply(event(5, "tool.resolved", {"decision": "not_happened"}, "c0-0"))
    assert not fold.open_calls and fold.calls["c0-0"].outcome == "sent"


def test_a_call_that_did_not_happen_is_called_again_with_its_old_key() -> None:
    doubt: list[Raw] = [reply(0, 1), started("c0-0"), ("tool.doubted", "c0-0", {})]
    fold = Fold().apply_all(events([*doubt, ("tool.resolved", "c0-0", {"decision": "not_happened"})]))
    assert fold.calls["c0-0"].state == "approved" and fold.calls["c0-0"].key == "kc0-0"


def test_an_edited_approval_is_what_is_called_and_a_refusal_is_told_to_the_model() -> None:
    asked: list[Raw] = [reply(0, 2), *[("approval.requested", f"c0-{i}", {"effect": "once"}) for i in (0, 1)]]
    fold = Fold().apply_all(events([
        *asked, ("approval.given", "c0-0", {"arguments": {"size": 2}}), ("approval.refused", "c0-1", {"reason": "too big"}),
    ]))  # fmt: skip
    assert (fold.calls["c0-0"].state, fold.calls["c0-0"].arguments) == ("approved", '{"size":2}')
    assert "too big" in str(fold.calls["c0-1"].outcome) and fold.messages[-1]["role"] == "assistant"


def test_a_thread_goes_on_from_the_messages_of_its_earlier_run() -> None:
    def history(run: str, seq: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": f"{run} {seq}"}]

    fold = Fold(history=history).apply_all(events([("thread.continued", None, {"run": "run-0", "seq": 9, "head": ""})]))
    assert fold.messages == [{"role": "user", "content": "run-0 9"}]


@given(st.integers(-2, 12))
def test_compacting_keeps_the_system_prompt_and_the_last_messages_once(keep: int) -> None:
    talk: list[Raw] = [("message.added", None, {"role": "system", "content": "s"})]
    talk += [("message.added", None, {"role": "user", "content": f"u{i}"}) for i in range(4)]
    fold = Fold().apply_all(events([*talk, ("context.compacted", None, {"summary": "sum", "keep": keep})]))
    kept = [f"u{i}" for i in range(4)][4 - min(max(keep, 0), 4) :]
    assert [m["content"] for m in fold.messages] == ["s", "sum", *kept]


def test_an_erased_reply_leaves_a_run_that_still_folds() -> None:
    fold = Fold().apply_all(events([("model.replied", None, None), ("tool.succeeded", "c0-0", None)]))
    assert fold.steps == 1 and fold.messages == [{"role": "assistant", "content": "(erased)"}]


def in_the_world(fold: Fold) -> set[str]:
    """Return the once calls that happened, or may have: what a rerun warns of."""
    had = {"started", "succeeded", "doubted"}
    return {one.call for one in fold.calls.values() if one.effect == "once" and one.attempts and one.state in had}


@given(sensible() | chaotic(), st.data())
def test_whatever_bodies_are_erased_the_run_folds_to_the_same_end_and_hides_no_effect(
    history: list[Raw], data: st.DataObject
) -> None:
    gone = data.draw(st.sets(st.integers(0, len(history))))
    left = [(k, c, None if at in gone and k not in KEPT else b) for at, (k, c, b) in enumerate(history)]
    whole, fold = Fold().apply_all(events(history)), Fold().apply_all(events(left))
    assert (fold.status, fold.steps) == (whole.status, whole.steps)
    assert in_the_world(whole) <= in_the_world(fold)


@given(anything)
def test_a_result_is_told_to_the_model_as_text(value: Any) -> None:
    assert as_text(value) == value if isinstance(value, str) else msgspec.json.decode(as_text(value)) == value


def test_what_a_run_waited_for_a_person_or_its_clock_jumped_over_is_no_time_of_its_own() -> None:
    """A doubt takes a run from its worker without a word of parking; a clock set ahead makes nothing last longer."""
    minutes = {
        "run.leased": 0, "model.replied": 1, "tool.started": 1, "tool.doubted": 2, "tool.resolved": 302, "run.requeued": 302,
        "clock.jumped": 303, "tool.succeeded": 364,
    }  # fmt: skip
    bodies: dict[str, Any] = {"run.leased": {"fence": 1}, "clock.jumped": {"seconds": 3600.0}}
    bodies |= {"model.replied": reply(0, 1)[2], "tool.resolved": {"decision": "not_happened"}}
    history = [(kind, at, bodies.get(kind, {})) for kind, at in minutes.items()]
    history.insert(6, ("run.leased", 303, {"fence": 2}))
    fold, noon = Fold(), 1_800_000_000.0
    for seq, (kind, at, body) in enumerate(history, 1):
        call = "c0-0" if kind.startswith("tool") else None
        told = Event(run="r", seq=seq, kind=kind, at=timestamp(noon + 60 * at), by="service", call=call,
                     body=msgspec.Raw(msgspec.json.encode(body)))  # fmt: skip
        fold.apply(told)
    assert fold.used(noon + 60 * 364) == pytest.approx(60 * (2 + 1)), "to the doubt, and from the second lease"
