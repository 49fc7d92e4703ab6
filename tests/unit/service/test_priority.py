"""What the scheduler's pure parts decide."""

from __future__ import annotations

from jupyterhub_agentfarm.scheduling.lifecycle import Attempts, next_move
from jupyterhub_agentfarm.scheduling.priority import AHEAD, BACKOFF, choose_member, next_try, to_start
from jupyterhub_agentfarm.store.pools import Busy


def test_a_pool_s_task_goes_to_the_least_busy_member_that_has_room() -> None:
    assert choose_member(["b", "c"], {"b": Busy(0, 2), "c": Busy(1, 1)}) == "c"
    assert choose_member(["b", "c"], {"b": Busy(0, 9), "c": Busy(AHEAD, 2)}) == "b", (
        "one whose runs nobody claims is full"
    )
    assert choose_member(["b"], {"b": Busy(AHEAD, AHEAD)}) is None and choose_member([], {}) is None


def test_so_many_members_are_started_as_have_work_and_one_that_does_not_come_is_not_waited_for() -> None:
    assert to_start(["a", "b", "c"], {}, 2) == ["a", "b"]
    coming = {"a": Attempts(0, 0, tries=1)}
    assert to_start(["a", "b", "c"], coming, 1) == ["a"] and to_start(["a", "b", "c"], coming, 2) == ["a", "b"]
    refused = {"a": Attempts(0, 0, tries=1, why="no room", refused=True)}
    assert to_start(["a", "b"], refused, 1) == ["b"]
    assert to_start(["a", "b"], {"a": Attempts(0, 0, tries=9), "b": Attempts(0, 0, tries=9)}, 1) == ["a"]


def test_a_server_is_asked_for_with_growing_pauses_until_the_deadline() -> None:
    assert next_move(True, None, 0) == "none" and next_move(False, None, 0) == "start"
    tried = Attempts(first=0, last=0, tries=1)
    assert next_move(False, tried, BACKOFF[0] - 0.1) == "none" and next_move(False, tried, BACKOFF[0]) == "start"
    assert next_move(False, Attempts(first=0, last=299, tries=9), 300) == "fail"
    assert [next_try(n) for n in (1, 5, 50)] == [BACKOFF[0], BACKOFF[-1], BACKOFF[-1]]
