"""What is done for a workspace on a microserver that is drained: laws of the decision."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.scheduling.draining import PATIENT, There, Until, next_act

untils = st.sampled_from(get_args(Until))
agents = st.sampled_from(["", "far"])
workspaces = st.builds(
    lambda agent, state, to, moving, going, aside, scratch: There(
        agent, state, to, "no room", moving, *((len(going) + aside, tuple(going)) if agent and state != "exited" else (0, ())), scratch
    ),
    agents, st.sampled_from(["running", "starting", "unknown", "exited"]), st.sampled_from([None, "micro2"]), st.booleans(),
    st.lists(st.sampled_from(["run-1", "run-2"]), unique=True), st.integers(0, 2), st.booleans(),
)  # fmt: skip


@given(workspaces, untils)
def test_before_the_deadline_no_server_is_stopped_whose_runs_or_person_may_go_on(one: There, until: Any) -> None:
    act = next_act(one, until, False)
    if until in PATIENT and not one.moving and one.state != "exited" and (one.working or not one.agent):
        assert act.do in ("wait", "rest")
    if act.how == "kill":
        assert until == "kill"


@given(workspaces, untils, st.booleans())
def test_runs_are_asked_to_rest_only_for_finish_step_and_each_only_once(one: There, until: Any, overdue: bool) -> None:
    act = next_act(one, until, overdue)
    assert not act.runs or (act.do == "rest" and until == "finish-step" and not overdue and act.runs == one.going)


@given(workspaces, untils, st.booleans())
def test_what_nobody_can_ask_is_left_alone(one: There, until: Any, overdue: bool) -> None:
    if one.state == "unknown":
        assert next_act(one, until, overdue).do == "wait"


@given(workspaces, untils)
def test_what_has_nowhere_to_go_works_on_until_the_deadline(one: There, until: Any) -> None:
    if one.to is None and not one.moving and one.state != "unknown":
        act = next_act(one, until, False)
        assert (act.do, act.hold) == ("wait", False) and "no room" in act.why
        assert next_act(one, until, True).do == ("wait" if one.state == "exited" else "stop")


@given(workspaces, untils, st.booleans())
def test_a_server_that_is_stopped_takes_no_new_run_first(one: There, until: Any, overdue: bool) -> None:
    act = next_act(one, until, overdue)
    assert act.hold or act.do == "wait"
    assert act.why and not (one.scratch and act.do == "move"), "away from its files: they are elsewhere"


@given(agents, untils, st.integers(0, 3))
def test_each_workspace_that_has_somewhere_to_go_moves_in_the_end(agent: str, until: Any, runs: int) -> None:
    """Runs come to rest, people stop their servers, what is stopped ends: then nothing is waited for any more."""
    runs = runs if agent else 0
    going = tuple(f"run-{n}" for n in range(runs))
    one = There(agent, "running", "micro2", working=runs, going=going)
    done = []
    for _ in range(10):
        act = next_act(one, until, False)
        done.append(act.do)
        if act.do == "rest" or (act.do == "wait" and one.working):  # the step, or the run, ends
            one = There(agent, "running", "micro2")
        elif act.do == "wait" and not one.moving:  # the person stops it
            one = There(agent, "exited", "micro2")
        elif act.do in ("move", "stop"):
            one = There(agent, "exited", "micro2", moving=True)
    assert "move" in done and done[-1] == "wait" and one.moving
