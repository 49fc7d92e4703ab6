"""The supervisor's decisions: what happened goes in, instructions come out."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentfarm_sdk.protocol import CANCEL_GRACE_SECONDS, HEARTBEAT_SECONDS, Claim, Event, HeartbeatAnswer
from jupyterhub_agentfarm.labserver.plan import (
    BEGIN_SECONDS,
    AskForRun,
    Beat,
    CloseKernel,
    Hand,
    Instruction,
    KillKernel,
    Plan,
    StartKernel,
    Tell,
)


def claim(run: str = "run-1", fence: int = 1, definition: str = "def-a", fresh: bool = False) -> Claim:
    return Claim(
        run=run, fence=fence, token=f"afr.{run}.{fence}", lease=30.0, agent="analyst", definition=definition,
        fresh_kernel=fresh,
    )  # fmt: skip


def of(kind: type, instructions: list[Instruction]) -> list:
    return [one for one in instructions if isinstance(one, kind)]


@pytest.fixture
def plan() -> Plan:
    """A connected plan with two slots whose spare, kernel 1, is warm, and whose claim is under way."""
    plan = Plan(slots=2, worker="w")
    assert of(StartKernel, plan.tick(0.0)) == [StartKernel("1")]
    assert len(of(AskForRun, plan.up(0.0))) == 1
    plan.warm("1", 0.0)
    return plan


def begin(plan: Plan, one: Claim, now: float = 0.0) -> str:
    """Let the plan take the claim; return the kernel that got the run."""
    hands = of(Hand, plan.claimed(one, now))
    assert [hand.claim for hand in hands] == [one]
    return hands[0].name


def test_a_claimed_run_goes_to_the_spare_and_another_spare_is_started(plan: Plan) -> None:
    done = plan.claimed(claim(), 1.0)
    assert of(Hand, done) == [Hand("1", claim())]
    assert Tell("1", {"renewed": 1.0}) in done
    assert of(StartKernel, done) == [StartKernel("2")]
    assert len(of(AskForRun, done)) == 1  # there is a second slot


def test_no_more_runs_are_claimed_than_there_are_slots(plan: Plan) -> None:
    begin(plan, claim("run-1"))
    plan.warm("2", 1.0)
    done = plan.claimed(claim("run-2"), 1.0)
    assert of(Hand, done) == [Hand("2", claim("run-2"))]
    assert of(AskForRun, done) == []
    done = plan.said("1", {"finished": "run-1", "outcome": "succeeded"}, 2.0)
    assert len(of(AskForRun, done)) == 1


def test_a_run_of_the_same_definition_gets_the_same_kernel_again(plan: Plan) -> None:
    first = begin(plan, claim("run-1"))
    plan.warm("2", 1.0)
    plan.said(first, {"finished": "run-1", "outcome": "succeeded"}, 2.0)
    plan.claimed(None, 2.0)
    assert begin(plan, claim("run-2"), 3.0) == first


def test_a_run_of_another_definition_gets_the_spare(plan: Plan) -> None:
    first = begin(plan, claim("run-1"))
    plan.warm("2", 1.0)
    plan.said(first, {"finished": "run-1", "outcome": "succeeded"}, 2.0)
    assert begin(plan, claim("run-2", definition="def-b"), 3.0) == "2"


def test_a_definition_that_wants_fresh_kernels_gets_one_and_leaves_none(plan: Plan) -> None:
    first = begin(plan, claim("run-1", fresh=True))
    plan.warm("2", 1.0)
    assert CloseKernel(first) in plan.said(first, {"finished": "run-1", "outcome": "succeeded"}, 2.0)
    assert begin(plan, claim("run-2", fresh=True), 3.0) == "2"


def test_used_kernels_beyond_the_slots_are_closed_longest_idle_first(plan: Plan) -> None:
    now = 0.0
    for number, definition in enumerate(["def-a", "def-b"], 1):
        name = begin(plan, claim(f"run-{number}", definition=definition), now)
        plan.warm(str(number + 1), now)
        plan.said(name, {"finished": f"run-{number}", "outcome": "succeeded"}, now := now + 1)
    done = plan.claimed(claim("run-3", definition="def-c"), now)
    assert of(Hand, done)[0].name == "3"
    assert of(CloseKernel, done) == [CloseKernel("1")]


def test_a_dead_kernel_is_reported_at_once_with_its_proof(plan: Plan) -> None:
    name = begin(plan, claim())
    assert Beat("run-1", 1, "kernel exited with -9") in plan.died(name, "kernel exited with -9", 3.0)
    assert of(Beat, plan.reported("run-1", 1, True, 3.1)) == []
    assert of(Beat, plan.tick(100.0)) == []


def test_a_death_is_reported_after_the_service_is_back_and_until_it_is_heard(plan: Plan) -> None:
    name = begin(plan, claim())
    plan.down(1.0)
    assert of(Beat, plan.died(name, "kernel exited with -9", 2.0)) == []
    report = Beat("run-1", 1, "kernel exited with -9")
    assert report in plan.up(3.0)
    plan.down(3.1)  # cut before the answer
    assert report in plan.up(4.0)
    assert of(Beat, plan.reported("run-1", 1, False, 4.1)) == []  # the service could not write just now
    assert report in plan.tick(5.2)


def test_a_shorter_lease_is_renewed_as_often_and_lets_effects_begin_as_much_sooner() -> None:
    from agentfarm_sdk.protocol import EFFECT_SECONDS, LEASE_SECONDS, beat_seconds, effect_seconds

    assert (beat_seconds(LEASE_SECONDS), effect_seconds(LEASE_SECONDS)) == (HEARTBEAT_SECONDS, EFFECT_SECONDS)
    for lease in (1.0, 4.0, 30.0, 120.0):
        assert 2 * beat_seconds(lease) < effect_seconds(lease) < lease


def test_the_lease_is_renewed_every_ten_seconds_and_the_worker_told_since_when(plan: Plan) -> None:
    name = begin(plan, claim())
    plan.said(name, {"progress": 600.0}, 0.0)
    assert of(Beat, plan.tick(HEARTBEAT_SECONDS - 0.1)) == []
    assert of(Beat, plan.tick(10.0)) == [Beat("run-1", 1)]
    assert of(Beat, plan.tick(11.0)) == []  # one at a time
    done = plan.beaten("run-1", 1, HeartbeatAnswer(lease=30.0, token="afr.new"), sent=10.0, now=12.0)
    assert of(Tell, done) == [Tell(name, {"token": "afr.new"}), Tell(name, {"renewed": 10.0})]
    assert of(Beat, plan.tick(20.0)) == [Beat("run-1", 1)]


def test_a_stuck_kernel_loses_its_renewals_then_its_life(plan: Plan) -> None:
    name = begin(plan, claim())
    plan.said(name, {"progress": 15.0}, 0.0)
    deadline = max(15.0, BEGIN_SECONDS)
    assert plan.working(9.0) and not plan.working(deadline)
    plan.tick(10.0)
    plan.beaten("run-1", 1, HeartbeatAnswer(lease=30.0, token=""), sent=deadline - 5, now=deadline - 5)
    assert of(Beat, plan.tick(deadline + 6)) == []
    assert of(KillKernel, plan.tick(deadline + CANCEL_GRACE_SECONDS)) == [KillKernel(name)]
    done = plan.died(name, "kernel exited with -9", deadline + 11)
    assert of(Beat, done) == [Beat("run-1", 1, "kernel exited with -9 (it made no progress in its time)")]


def test_progress_in_the_grace_saves_a_slow_kernel(plan: Plan) -> None:
    name = begin(plan, claim())
    plan.tick(BEGIN_SECONDS + 1)
    done = plan.said(name, {"progress": 60.0}, BEGIN_SECONDS + 2)
    assert Beat("run-1", 1) in done
    assert of(KillKernel, plan.tick(BEGIN_SECONDS + CANCEL_GRACE_SECONDS + 1)) == []


def cancel_event(reason: str = "enough") -> Event:
    return Event(
        run="run-1", seq=9, kind="run.cancel_requested", at="", by="user:ann",
        body=msgspec.Raw(msgspec.json.encode({"reason": reason})),
    )  # fmt: skip


@pytest.mark.parametrize("way", ["push", "heartbeat"])
def test_a_cancel_is_told_and_enforced_after_its_grace(plan: Plan, way: str) -> None:
    name = begin(plan, claim())
    if way == "push":
        done = plan.pushed("run-1", [cancel_event()], 5.0)
    else:
        answer = HeartbeatAnswer(lease=30.0, token="", inbox=[cancel_event()])
        done = plan.beaten("run-1", 1, answer, sent=5.0, now=5.0)
    assert Tell(name, {"cancel": "enough"}) in done
    assert of(Tell, plan.pushed("run-1", [cancel_event()], 6.0)) == []  # said once
    assert of(KillKernel, plan.tick(14.9)) == []
    assert of(KillKernel, plan.tick(15.0)) == [KillKernel(name)]


def test_a_cancel_that_is_obeyed_in_time_kills_nothing(plan: Plan) -> None:
    name = begin(plan, claim())
    plan.pushed("run-1", [cancel_event()], 5.0)
    plan.said(name, {"finished": "run-1", "outcome": "cancelled"}, 6.0)
    assert of(KillKernel, plan.tick(100.0)) == []


def test_a_cancel_before_the_run_has_a_kernel_goes_with_it() -> None:
    plan = Plan(slots=1, worker="w")
    plan.up(0.0)
    plan.claimed(claim(), 1.0)
    plan.pushed("run-1", [cancel_event()], 2.0)
    done = plan.warm("1", 30.0)
    assert [type(one) for one in done][:1] == [Hand]
    assert any("cancel" in one.message for one in of(Tell, done))
    assert of(KillKernel, plan.tick(39.0)) == []
    assert of(KillKernel, plan.tick(40.0)) == [KillKernel("1")]


def test_a_lost_lease_stops_the_worker_whose_death_is_reported_all_the_same_for_it_proves_what_it_left(
    plan: Plan,
) -> None:
    name = begin(plan, claim())
    plan.tick(10.0)
    assert Tell(name, {"cancel": "fenced"}) in plan.beat_refused("run-1", 1, "fenced", 10.1)
    assert of(Beat, plan.tick(30.0)) == []
    (report,) = of(Beat, plan.died(name, "kernel exited with -9", 31.0))
    assert report == Beat("run-1", 1, "kernel exited with -9 (it was to stop: fenced)")
    assert of(Beat, plan.reported("run-1", 1, True, 31.1)) == [] == of(Beat, plan.tick(60.0)), "told once"


def test_a_claim_that_was_cut_is_asked_again_by_its_name_and_renewed_before_it_begins(plan: Plan) -> None:
    asked = plan.claim_id
    plan.down(5.0)
    again = of(AskForRun, plan.up(25.0))
    assert [one.claim_id for one in again] == [asked]
    done = plan.claimed(claim(), 25.5)
    assert of(Hand, done) == [] and of(Beat, done) == [Beat("run-1", 1)]
    done = plan.beaten("run-1", 1, HeartbeatAnswer(lease=30.0, token="afr.t2"), sent=25.5, now=25.6)
    assert [(hand.name, hand.claim.token) for hand in of(Hand, done)] == [("1", "afr.t2")]


def test_an_answered_claim_is_followed_by_one_of_another_name(plan: Plan) -> None:
    asked = plan.claim_id
    assert of(AskForRun, plan.claimed(None, 20.0))[0].claim_id != asked


def test_kernels_that_cannot_start_are_tried_ever_more_slowly_and_nothing_is_claimed_meanwhile() -> None:
    plan = Plan(slots=1, worker="w")
    plan.tick(0.0)
    assert of(StartKernel, plan.died("1", "no such kernel", 0.0)) == []
    assert of(AskForRun, plan.up(0.5)) == []
    assert of(StartKernel, plan.tick(1.0)) == [StartKernel("2")]
    plan.died("2", "no such kernel", 1.0)
    assert plan.next_due(1.0) == 3.0
    plan.tick(3.0)
    plan.warm("3", 4.0)
    assert plan.failures == 0


def test_a_run_that_gets_no_kernel_is_given_back() -> None:
    plan = Plan(slots=1, worker="w")
    plan.up(0.0)
    plan.claimed(claim(), 1.0)
    done = plan.tick(1.0 + BEGIN_SECONDS)
    assert [one.dead is not None for one in of(Beat, done)] == [True]
    assert "run-1" not in plan.holds


def test_a_stopping_server_kills_what_works_reports_it_and_starts_nothing(plan: Plan) -> None:
    name = begin(plan, claim())
    done = plan.stop(5.0)
    assert of(KillKernel, done) == [KillKernel(name)] and of(CloseKernel, done) == [CloseKernel("2")]
    done = plan.died(name, "kernel exited with -9", 5.1)
    assert done == [Beat("run-1", 1, "kernel exited with -9 (the server was stopped)")]
    assert not plan.settled
    plan.reported("run-1", 1, True, 5.2)
    assert plan.died("2", "kernel exited with 0", 5.3) == [] and plan.settled


EVENTS = st.one_of(
    st.tuples(st.just("claim"), st.integers(1, 3), st.sampled_from(["def-a", "def-b"])),
    st.tuples(st.sampled_from(["up", "down", "tick", "none", "beat", "refuse", "cancel"]), st.integers(1, 3), st.just("")),
    st.tuples(st.sampled_from(["warm", "die", "finish"]), st.integers(1, 12), st.just("")),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_no_kernel_has_two_runs_and_no_slot_is_overdrawn(events: list[tuple[str, int, str]]) -> None:
    """And a run whose kernel died is either reported, or lost to another lease."""
    plan, now, fence = Plan(slots=2, worker="w"), 0.0, 0
    plan.tick(now)
    for kind, number, definition in events:
        now += 0.5
        run = f"run-{number}"
        hold = plan.holds.get(run)
        match kind:
            case "claim" if plan.claiming and run not in plan.holds:
                fence += 1
                plan.claimed(claim(run, fence, definition), now)
            case "none" if plan.claiming:
                plan.claimed(None, now)
            case "up" if not plan.connected:
                plan.up(now)
            case "down" if plan.connected:
                plan.down(now)
            case "tick":
                now += 7
                plan.tick(now)
            case "beat" if hold and hold.beating:
                plan.beaten(run, hold.claim.fence, HeartbeatAnswer(lease=30.0, token="t"), sent=now, now=now)
            case "refuse" if hold and hold.beating:
                plan.beat_refused(run, hold.claim.fence, "fenced", now)
            case "cancel":
                plan.pushed(run, [cancel_event()], now)
            case "warm":
                plan.warm(str(number), now)
            case "die":
                owned = next((h for h in plan.holds.values() if h.kernel == str(number)), None)
                plan.died(str(number), "killed", now)
                if owned and not owned.lost:
                    assert plan.reports[owned.claim.run].fence == owned.claim.fence
            case "finish" if owned := next((h for h in plan.holds.values() if h.kernel == str(number)), None):
                plan.said(str(number), {"finished": owned.claim.run, "outcome": "succeeded"}, now)
        busy = [hold.kernel for hold in plan.holds.values() if hold.kernel]
        assert len(busy) == len(set(busy)) and all(plan.kernels[name].state == "busy" for name in busy)
        assert len(plan.holds) <= 2
        assert {k.name for k in plan.kernels.values() if k.state == "busy"} == set(busy)
        due = plan.next_due(now)
        assert due is None or due > now
