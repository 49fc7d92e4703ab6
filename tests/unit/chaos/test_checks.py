"""What a trial judges by: each promise that is broken is said, and a record that keeps all of them passes."""

from __future__ import annotations

import itertools
import json
import socket
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from agentfarm_sdk.errors import Invalid
from jupyterhub_agentfarm.chaos import checks, work
from jupyterhub_agentfarm.chaos.faults import FAULTS
from jupyterhub_agentfarm.chaos.model import reply
from jupyterhub_agentfarm.chaos.network import Wire
from jupyterhub_agentfarm.chaos.scratch import prepared
from jupyterhub_agentfarm.chaos.trial import Trial, chosen, matrix


def event(seq: int, kind: str, call: str = "c0-0", **body: Any) -> dict[str, Any]:
    return {"seq": seq, "kind": kind, "call": call, "body": body}


def started(seq: int, effect: str = "once", key: str = "k") -> dict[str, Any]:
    return event(seq, "tool.started", tool="charge", effect=effect, key=key)


def request(name: str = "charge-1", key: str = "k") -> dict[str, Any]:
    return {"name": name, "key": key, "new": True}


WHOLE = [started(1), event(2, "tool.succeeded")]


def test_a_record_that_keeps_every_promise_passes() -> None:
    assert checks.of_record("run", WHOLE) == []
    assert checks.of_world([request()], {"run": WHOLE}, {"charge-1": "run"}) == []
    assert checks.unfinished({"task_id": "t", "status": "succeeded", "waiting": None}) == []
    assert checks.unfinished({"task_id": "t", "status": "waiting", "waiting": "in_doubt"}) == []


@pytest.mark.parametrize(
    "said", [{"kind": "tool.resolved", "decision": "not_happened"}, {"kind": "tool.probed", "answer": "not_happened"}]
)
def test_a_person_or_a_probe_that_says_that_it_did_not_happen_lets_it_start_again(said: dict[str, Any]) -> None:
    denied = [started(1), event(2, **said), started(3), event(4, "tool.succeeded")]
    assert checks.of_record("run", denied) == []
    assert checks.of_world([request(), request()], {"run": denied}, {"charge-1": "run"}) == []


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([*WHOLE, started(3, "read")], "starts the finished call"),
        ([started(1), started(2)], "a second time"),
        ([started(1), event(2, "tool.resolved", decision="happened"), started(3)], "a second time"),
        ([started(1), event(2, "tool.probed", answer="unknown"), started(3)], "a second time"),
    ],
)
def test_what_is_started_again_is_said(events: list[dict[str, Any]], said: str) -> None:
    (fault,) = checks.of_record("run", events)
    assert said in fault


@pytest.mark.parametrize(
    ("requests", "events", "said"),
    [
        ([request(), request()], [started(1), started(2)], "a once effect happened 2 times"),
        ([request(), request()], [started(1, "read")], "the record knows of 1"),
        ([request(), request(key="other")], [started(1, "idempotent"), started(2, "idempotent")], "under 2 keys"),
        ([request("nobody")], [started(1)], "no run asked for it"),
        ([], [started(1), event(2, "tool.succeeded")], "did not reach the world"),
    ],
)
def test_what_reached_the_world_beyond_the_record_is_said(
    requests: list[dict[str, Any]], events: list[dict[str, Any]], said: str
) -> None:
    found = checks.of_world(requests, {"run": events}, {"charge-1": "run"})
    assert any(said in one for one in found), found


@pytest.mark.parametrize(("status", "waiting"), [("running", None), ("queued", None), ("waiting", None)])
def test_a_task_that_neither_ends_nor_waits_for_somebody_is_said(status: str, waiting: str | None) -> None:
    assert checks.unfinished({"task_id": "t", "status": status, "waiting": waiting})


def test_somebodys_farm_is_not_taken_and_a_scratch_farm_is_taken_again(tmp_path: Path) -> None:
    (tmp_path / "farm.sqlite").touch()
    with pytest.raises(Invalid, match="not a scratch farm"):
        prepared(tmp_path, force=False)
    assert prepared(tmp_path, force=True) == tmp_path
    made = prepared(tmp_path / "new", force=False)
    (made / "farm.sqlite").touch()
    assert prepared(made, force=False) == made


def test_each_database_gets_the_faults_that_it_knows() -> None:
    names = {fault.name for fault in FAULTS}
    for database in ("sqlite", "postgresql"):
        assert {fault.name for fault in chosen("", database)} == {
            fault.name for fault in FAULTS if fault.only in ("", database)
        }
    assert {fault.name for fault in [*chosen("", "sqlite"), *chosen("", "postgresql")]} == names
    with pytest.raises(KeyError):
        chosen("earthquake", "sqlite")


def test_the_model_asks_step_by_step_and_forgets_nothing_when_it_is_killed() -> None:
    call = {"tool": "look", "arguments": {"where": "x"}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": '{"steps": [[%s, %s], [%s]]}' % ((str(call).replace("'", '"'),) * 3)}]  # fmt: skip
    for expected in (2, 1):
        said = reply(messages)
        assert said is not None
        assert len(said["tool_calls"]) == expected
        messages += [said, *({"role": "tool", "content": "did"} for _ in range(expected))]
    assert reply(messages) == {"role": "assistant", "content": "done: did"}
    assert reply([{"role": "user", "content": '{"refuse": true}'}]) is None


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([started(1), event(2, "run.cancelled")], "nobody says what became of the once call c0-0"),
        ([started(1, "read"), event(2, "run.succeeded")], "nobody says what became of the read call c0-0"),
        ([event(1, "child.finished"), event(2, "child.finished"), event(3, "run.failed")], "has ended 2 times"),
    ],
)
def test_what_an_ended_run_left_open_is_said(events: list[dict[str, Any]], said: str) -> None:
    (fault,) = checks.of_end("run", events)
    assert said in fault


def test_a_run_that_ends_with_a_doubt_a_rest_or_an_outcome_leaves_nothing_open() -> None:
    for closing in ("tool.doubted", "tool.failed", "child.submitted"):
        assert checks.of_end("run", [started(1), event(2, closing), event(3, "run.failed")]) == []
    assert checks.of_end("run", [started(1), event(2, "run.parked")]) == [], "it has not ended"


def test_a_run_may_fail_of_what_was_asked_for_and_of_nothing_else() -> None:
    failed = [event(1, "run.failed", error={"type": "limit-reached", "message": "1800 seconds"})]
    assert checks.of_failure("run", failed, {"limit-reached"}) == []
    (fault,) = checks.of_failure("run", failed, {"given-up"})
    assert "limit-reached" in fault


def test_every_sort_of_work_names_what_reaches_the_world_and_its_children_name_their_own() -> None:
    sorts = {*work.BRINGS.values(), *work.SORTS, "notebook"}
    for sort in sorts:
        made = work.make(Random(1), sort, "t-1", "http://w", "other")
        assert work.names(made.input) and len(set(work.names(made.input))) == len(work.names(made.input))
        assert work.make(Random(1), sort, "t-1", "http://w", "other") == made, "the same seed, the same work"
    steps = json.loads(work.make(Random(1), "child", "t-1", "http://w", "other").input)["steps"]
    child = next(call for call in steps[0] if call["tool"] == "delegate")["arguments"]
    mine = work.names(json.dumps({"steps": steps}))
    assert child["target"] == "other" and not set(work.names(child["input"])) & set(mine)


def test_a_short_trial_strikes_with_each_fault_before_any_comes_again_and_the_next_seed_begins_one_further_on() -> None:
    def struck(seed: int, times: int) -> list[str]:
        farm: Any = SimpleNamespace(postgres=None)
        trial = Trial(farm, seed, chosen("", "sqlite"), print)
        return [fault.name for fault, _ in itertools.islice(trial._plan(), times)]

    every = chosen("", "sqlite")
    assert sorted(struck(7, len(every))) == sorted(fault.name for fault in every)
    assert struck(8, 3) == struck(7, 4)[1:]


def test_the_matrix_is_every_process_behind_every_kind() -> None:
    pairs = matrix(chosen("", "postgresql", processes=True), [])
    assert {fault.name for fault, _ in pairs} >= {
        "kernel", "server", "service", "hub", "proxy", "daemon", "model", "database", "notebook",
    }  # fmt: skip
    assert len(set((fault.name, kind) for fault, kind in pairs)) == len(pairs) and {k for _, k in pairs} == set(
        work.BRINGS
    )


def test_a_wire_loses_one_direction_and_keeps_the_other() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        wire = Wire(lambda: int(listening.getsockname()[1]))
        with socket.create_connection(("127.0.0.1", wire.port)) as near:
            far, _ = listening.accept()
            with far:
                far.settimeout(10)
                near.settimeout(0.2)
                wire.silence("down")
                near.sendall(b"up")
                assert far.recv(9) == b"up"
                far.sendall(b"down")
                with pytest.raises(TimeoutError):
                    near.recv(9)
                wire.open()
                near.settimeout(10)
                assert near.recv(9) == b"", "what was held back is lost with its connection"
        wire.close()
