"""Whose turn it is, on real databases: nothing starves, equals go in order, owners take turns, keys are held one at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentfarm_sdk.protocol import Definition, ToolSpec, new_event
from jupyterhub_agentfarm.errors import NotFound
from jupyterhub_agentfarm.records import Run, Task
from jupyterhub_agentfarm.store import leases, ledger, links, queue, tasks, turns
from jupyterhub_agentfarm.store.clock import Clock
from jupyterhub_agentfarm.store.db import Database

DEFINITION = Definition(prompt="Add.", tools=[ToolSpec(name="pay"), ToolSpec(name="look", effect="read")])

_claims = itertools.count()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database.open(database_url)
    yield database
    await database.close()


async def submitted(db: Database, owner: str = "ann", agent: str = "analyst", **asked: Any) -> Task:
    submission = tasks.Submission(
        owner=owner, submitted_by=owner, target=agent, input=asked.pop("input", "2+2"), **asked
    )
    return (await db.write(lambda tx: tasks.submit(tx, db.epoch, submission, tasks.Choice(agent, DEFINITION, 1))))[0]


async def claimed(db: Database, agent: str = "analyst") -> Run | None:
    return await db.write(lambda tx: leases.claim(tx, agent, "w", f"c{next(_claims)}", 30.0))


async def ended(db: Database, run: Run | None, kind: str = "run.succeeded", **body: Any) -> None:
    assert run is not None
    await db.write(lambda tx: ledger.record(tx, run.run_id, "service", [new_event(kind, body or {"result": 1})]))


async def shown(db: Database, task: Task) -> Task:
    return await db.read(lambda c: tasks.show(c, task.task_id))


async def events(db: Database, run_id: str | None) -> list[Any]:
    return await db.read(lambda c: ledger.read_events(c, str(run_id)))


# -- laws ----------------------------------------------------------------------------------------------------------

asks = st.tuples(st.sampled_from(["ann", "bob", "cyd"]), st.integers(-100, 100), st.floats(0, 20_000))
_agents = itertools.count()  # one for each example
moves = st.lists(asks | st.just("claim"), max_size=25)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves)
def test_an_owner_s_runs_go_by_priority_and_age_and_owners_take_turns(database_url: str, history: list[Any]) -> None:
    """A model of the queue against the store: by owner a list in the order of rank, and whose turn is longest ago."""

    async def drive() -> None:
        db, agent, clock = Database.open(database_url), f"a{next(_agents)}", 0.0
        db._clock = Clock(0.0, lambda: clock)
        clock = 1_000_000.0
        waiting: dict[str, list[tuple[float, int, str]]] = {}
        last: dict[str, int] = {}
        try:
            for number, move in enumerate(history):
                if move != "claim":
                    owner, priority, pause = move
                    clock += pause
                    task = await submitted(db, owner, agent, priority=priority)
                    waiting.setdefault(owner, []).append((clock - 60.0 * priority, number, task.task_id))
                    continue
                clock += 0.001
                run = await claimed(db, agent)
                owners = [owner for owner in waiting if waiting[owner]]
                if not owners:
                    assert run is None
                    continue
                assert run is not None
                firsts = {owner: min(waiting[owner]) for owner in owners}
                owner = min(owners, key=lambda one: (last.get(one, 0), firsts[one]))
                assert (run.owner, run.task_id) == (owner, firsts[owner][2])
                waiting[owner].remove(firsts[owner])
                if len(owners) > 1:
                    last[owner] = max(last.values(), default=0) + 1
        finally:
            await db.close()

    asyncio.run(drive())


@given(st.integers(-100, 100), st.integers(-100, 100), st.floats(0, 1e6), st.floats(0, 1e6))
def test_nothing_is_overtaken_by_what_comes_longer_after_it_than_priorities_are_worth(
    low: int, high: int, first: float, pause: float
) -> None:
    late = first + pause
    overtaken = turns.rank(late, high) < turns.rank(first, low)
    assert not overtaken or pause <= (high - low) * turns.AGE_SECONDS + 1e-6
    if low == high and pause > 1e-6:
        assert not overtaken, "equal priorities: first come, first served"


# -- concurrency keys ----------------------------------------------------------------------------------------------


async def test_a_concurrency_key_is_held_from_the_first_lease_to_the_end_over_all_agents(db: Database) -> None:
    first = await submitted(db, concurrency_key="account-1")
    await submitted(db, agent="other", concurrency_key="account-1")
    await submitted(db, owner="bob", agent="other", concurrency_key="account-1")
    free = await submitted(db, agent="other")
    run = await claimed(db)
    assert run is not None and run.task_id == first.task_id
    mine = {(await claimed(db, "other")), (await claimed(db, "other")), (await claimed(db, "other"))}
    assert {one.task_id if one and one.owner == "ann" else one and one.owner for one in mine} == {
        free.task_id,
        "bob",
        None,
    }
    await db.write(
        lambda tx: ledger.record(tx, run.run_id, "service", [new_event("run.parked", {"reason": "approval"})])
    )
    assert await claimed(db, "other") is None, "what waits for a person has begun: it holds its key"
    assert [one.agent for one in await db.read(lambda c: queue.waiting(c, db.now()))] == []
    await ended(db, run)
    assert [one.agent for one in await db.read(lambda c: queue.waiting(c, db.now()))] == ["other"]
    assert await claimed(db, "other") is not None


async def test_a_key_lets_as_many_run_at_once_as_its_tasks_say(db: Database) -> None:
    for _ in range(5):
        await submitted(db, concurrency_key="slow-api", concurrency=3)
    taken = [await claimed(db) for _ in range(5)]
    assert [run is not None for run in taken] == [True, True, True, False, False]
    await ended(db, taken[1], "run.failed", error={"type": "x", "message": "y"})
    assert await claimed(db) is not None and await claimed(db) is None


# -- tasks after others --------------------------------------------------------------------------------------------


async def test_a_task_waits_for_those_before_it_and_is_told_their_results(db: Database) -> None:
    one, two = await submitted(db, input="1+1"), await submitted(db, input="2+2")
    last = await submitted(db, input="Add them.", after=[one.task_id, two.task_id], results=True)
    assert (last.status, last.waiting) == ("waiting", "after")
    first, second = await claimed(db), await claimed(db)
    await ended(db, first, result="two")
    assert await claimed(db) is None and (await shown(db, last)).waiting == "after"
    await ended(db, second, result="four")
    assert (await shown(db, last)).status == "queued"
    run = await claimed(db)
    assert run is not None and run.task_id == last.task_id
    said = [event.data()["content"] for event in await events(db, run.run_id) if event.kind == "message.added"]
    assert said[0] == "Add." and said[1].startswith("Add them.\n\nResult of task-") and len(said) == 2
    assert "two" in said[1] and "four" in said[1]
    assert (await db.read(lambda c: ledger.verify(c, run.run_id))).ok


async def test_a_chain_of_a_thousand_fails_with_its_first_and_says_why(db: Database) -> None:
    before = first = await submitted(db)
    chain = []
    for _ in range(1000 if db.sqlite else 100):
        before = await submitted(db, after=[before.task_id])
        chain.append(before)
    anyhow = await submitted(db, after=[before.task_id], after_any_end=True)
    await ended(db, await claimed(db), "run.failed", error={"type": "x", "message": "no coffee"})
    last = await shown(db, chain[-1])
    assert last.status == "failed" and last.error and last.error["type"] == "after"
    assert first.task_id in (await shown(db, chain[0])).error["message"]  # type: ignore[index]
    assert (await shown(db, anyhow)).status == "queued"


async def test_what_comes_after_an_ended_or_an_unknown_task_is_decided_at_once(db: Database) -> None:
    done = await submitted(db)
    await ended(db, await claimed(db))
    assert (await submitted(db, after=[done.task_id])).status == "queued"
    stopped = await submitted(db)
    await db.write(lambda tx: tasks.cancel(tx, stopped.task_id, "user:ann", "enough"))
    late = await submitted(db, after=[stopped.task_id])
    assert late.status == "failed" and "enough" in str(late.error)
    with pytest.raises(NotFound, match="task-none"):
        await submitted(db, after=["task-none"])
    with pytest.raises(NotFound):
        await submitted(db, owner="bob", after=[done.task_id])


async def test_a_paused_task_that_comes_after_another_still_waits_when_it_is_resumed(db: Database) -> None:
    first = await submitted(db)
    later = await submitted(db, after=[first.task_id], results=True)
    await db.write(lambda tx: tasks.pause(tx, later.task_id, "user:ann", "lunch"))
    await db.write(lambda tx: tasks.resume(tx, later.task_id, "user:ann"))
    assert (await shown(db, later)).waiting == "after"
    await db.write(lambda tx: tasks.pause(tx, later.task_id, "user:ann", "tea"))
    await ended(db, await claimed(db))
    assert (await shown(db, later)).waiting == "paused"
    await db.write(lambda tx: tasks.resume(tx, later.task_id, "user:ann"))
    assert (await shown(db, later)).status == "queued"
    assert [e.kind for e in await events(db, later.run_id)].count("message.added") == 2


# -- retries -------------------------------------------------------------------------------------------------------

AWAY = {"type": "unavailable", "message": "the model is away"}


async def test_a_failed_task_is_tried_again_as_a_new_run_that_names_the_earlier_ones(db: Database) -> None:
    task = await submitted(db, retry={"attempts": 3, "backoff": 0.0, "on": []})
    later = await submitted(db, agent="other", after=[task.task_id])
    first = await claimed(db)
    await ended(db, first, "run.failed", error=AWAY)
    again = await shown(db, task)
    assert (again.status, again.error, again.ended_at) == ("queued", None, None) and again.run_id != task.run_id
    created = (await events(db, again.run_id))[0].data()
    assert created["earlier"] == [task.run_id] and (await shown(db, later)).waiting == "after"
    assert [e.kind for e in await events(db, again.run_id)] == ["run.created", "message.added", "message.added"]
    await ended(db, await claimed(db), "run.failed", error=AWAY)
    await ended(db, await claimed(db), "run.failed", error=AWAY)
    over = await shown(db, task)
    assert over.status == "failed" and len((await events(db, over.run_id))[0].data()["earlier"]) == 2
    assert (await shown(db, later)).status == "failed"


async def test_a_retry_waits_for_its_backoff_and_not_beyond_its_deadline(db: Database) -> None:
    await submitted(db, retry={"attempts": 3, "backoff": 3000.0, "on": []})
    await ended(db, await claimed(db), "run.failed", error=AWAY)
    assert await claimed(db) is None
    soon = await db.read(lambda c: queue.next_not_before(c, db.now()))
    assert soon is not None and 2900 < soon - db.now() <= 3000
    hurried = await submitted(db, retry={"attempts": 3, "backoff": 3000.0, "on": []}, deadline=db.now() + 60)
    await ended(db, await claimed(db), "run.failed", error=AWAY)
    assert (await shown(db, hurried)).status == "failed"


@pytest.mark.parametrize(("tool", "effect", "again"), [("pay", "once", False), ("look", "read", True)])
async def test_a_task_whose_run_began_a_once_call_is_never_tried_again_by_itself(
    tmp_path: Path, tool: str, effect: str, again: bool
) -> None:
    db = Database.open(f"sqlite:///{tmp_path}/farm.sqlite")
    task = await submitted(db, retry={"attempts": 3, "backoff": 0.0, "on": []})
    run = await claimed(db)
    assert run is not None
    asked = {"id": "c0-0", "type": "function", "function": {"name": tool, "arguments": "{}"}}
    begun = {"tool": tool, "key": "k", "effect": effect, "attempt": 1, "timeout": 60, "fence": run.fence}
    told = [
        new_event("model.replied", {"message": {"role": "assistant", "content": "", "tool_calls": [asked]}}),
        new_event("tool.started", begun, "c0-0"),
        new_event("tool.succeeded", {"result": 1}, "c0-0"),
        new_event("run.failed", {"error": AWAY}),
    ]
    await db.write(lambda tx: ledger.record(tx, run.run_id, "service", told))
    assert ((await shown(db, task)).status == "queued") is again
    await db.close()


async def test_a_run_that_every_worker_dies_on_is_given_up_unless_it_gets_a_step_forward(db: Database) -> None:
    task = await submitted(db)

    async def dies() -> Run:
        run = await claimed(db)
        assert run is not None
        await db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "the worker died", "exited with -9"))
        return run

    for _ in range(leases.MAX_DEATHS - 1):
        run = await dies()
    run = await claimed(db)  # type: ignore[assignment]
    reply = new_event("model.replied", {"message": {"role": "assistant", "content": ""}})
    await db.write(lambda tx: ledger.record(tx, run.run_id, "gateway", [reply], fence=run.fence))
    await db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "the worker died", "exited with -9"))
    for _ in range(leases.MAX_DEATHS - 2):
        await dies()
    assert (await shown(db, task)).status == "queued", "a step forward counts anew"
    await dies()
    over = await shown(db, task)
    assert over.status == "failed" and over.error and over.error["type"] == "worker-died"
    assert "exited with -9" in over.error["message"]


def test_only_what_may_be_gone_the_next_time_is_tried_again() -> None:
    policy = {"attempts": 9, "backoff": 2.0, "on": []}
    assert [links.may_retry(policy, made, "unavailable") for made in (1, 2, 3)] == [2.0, 4.0, 8.0]
    assert links.may_retry(policy, 9, "unavailable") is None
    assert links.may_retry(policy, 1, "invalid") is None
    assert links.may_retry({**policy, "on": ["invalid"]}, 1, "invalid") == 2.0


# -- deadlines -----------------------------------------------------------------------------------------------------


async def test_the_next_deadline_is_known_and_one_that_is_being_cancelled_is_not_looked_at_again(db: Database) -> None:
    now = db.now()
    early, late = await submitted(db, deadline=now + 10), await submitted(db, deadline=now + 20)
    run = await claimed(db)
    assert run is not None and run.task_id == early.task_id
    assert await db.read(lambda c: queue.deadlines(c, now)) == ([], now + 10)
    assert await db.read(lambda c: queue.deadlines(c, now + 15)) == ([early.task_id], now + 20)
    await db.write(lambda tx: tasks.cancel(tx, early.task_id, "service", "its deadline has passed"))
    assert await db.read(lambda c: queue.deadlines(c, now + 15)) == ([], now + 20)
    await db.write(lambda tx: tasks.cancel(tx, late.task_id, "service", "its deadline has passed"))
    assert await db.read(lambda c: queue.deadlines(c, now + 99)) == ([], None)
    assert (await shown(db, late)).error == {"type": "cancelled", "message": "its deadline has passed"}
