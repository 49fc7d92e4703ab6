"""What becomes of a run that waits, is paused or cancelled, and of appends that come again: on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest
from test_store import REPLIED, VALUE, append, claimed, kinds, running, started, submitted

from agentfarm_sdk.protocol import Definition, NewEvent, new_event
from jupyterhub_agentfarm.errors import Conflict, Fenced, Invalid
from jupyterhub_agentfarm.records import Run
from jupyterhub_agentfarm.store import draining, inbox, latest, leases, ledger, tasks, threads
from jupyterhub_agentfarm.store.db import Database
from jupyterhub_agentfarm.store.lists import Wanted, tasks_where

DIED = "kernel exited with -9"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database.open(database_url)
    yield database
    await database.close()


async def row(db: Database, run: Run) -> Run:
    return await db.read(lambda c: ledger.read_run(c, run.run_id))


async def in_doubt(db: Database) -> Run:
    run = await running(db)
    await started(db, run, "once")
    await db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "the kernel died", DIED))
    return run


def resolved(decision: str) -> list[NewEvent]:
    return [new_event("tool.resolved", {"decision": decision, "result": 1, "reason": "seen"}, "c0-0")]


async def waiting_items(db: Database, run: Run) -> int:
    return len(await db.read(lambda c: inbox.waiting_of(c, run.run_id)))


@pytest.mark.parametrize("last", ["run.parked", "run.succeeded"])
async def test_an_append_whose_answer_was_lost_is_answered_again_when_the_run_is_no_longer_held(
    db: Database, last: str
) -> None:
    run = await running(db)
    end = new_event(last, {"reason": "approval", "result": 1})
    first = await append(db, run, 1, end)
    again = await append(db, run, 1, end)
    assert again.repeated and (again.seq, again.head) == (first.seq, first.head)
    with pytest.raises((Fenced, Conflict)):
        await append(db, run, 2, VALUE)


async def test_an_append_without_events_and_one_that_goes_on_behind_the_end_are_refused(db: Database) -> None:
    run = await running(db)
    with pytest.raises(Invalid):
        await append(db, run, 1)
    with pytest.raises(Invalid):
        await append(db, run, 1, new_event("run.succeeded", {"result": 1}), VALUE)
    assert (await append(db, run, 1, VALUE)).n == 1


async def test_a_call_in_doubt_is_the_last_word_until_somebody_decides(db: Database) -> None:
    run = await in_doubt(db)
    assert (await kinds(db, run.run_id))[-2:] == ["tool.started", "tool.doubted"]
    assert (await row(db, run)).lease_until is None
    with pytest.raises(Fenced):
        await append(db, run, 1, new_event("tool.succeeded", {"result": 1}, "c0-0"))
    assert await db.write(lambda tx: leases.claim(tx, "analyst", "w", "c2", 30.0)) is None


async def test_a_decision_closes_the_doubt_and_the_run_queues_again(db: Database) -> None:
    run = await in_doubt(db)
    assert await waiting_items(db, run) == 1
    await db.write(lambda tx: leases.go_on(tx, run.run_id, "user:alice", resolved("happened"), "decided"))
    assert await waiting_items(db, run) == 0
    assert (await claimed(db, "c2")).fence == run.fence + 1


async def test_a_late_outcome_closes_the_doubt_in_the_inbox_too(db: Database) -> None:
    run = await in_doubt(db)
    late = [new_event("tool.succeeded", {"result": 1}, "c0-0"), new_event("run.requeued", {"reason": "late"})]
    await db.write(lambda tx: ledger.record(tx, run.run_id, f"worker:{run.fence}", late))
    assert await waiting_items(db, run) == 0 and (await row(db, run)).status == "queued"


async def test_a_run_that_was_cancelled_while_in_doubt_ends_with_the_decision(db: Database) -> None:
    run = await in_doubt(db)
    asked = await db.write(lambda tx: tasks.cancel(tx, run.task_id, "user:alice", "enough"))
    assert asked.status == "cancelling"
    await db.write(lambda tx: leases.go_on(tx, run.run_id, "user:alice", resolved("happened"), "decided"))
    assert (await db.read(lambda c: tasks.show(c, run.task_id))).status == "cancelled"


async def test_cancelling_a_run_whose_calls_may_have_taken_effect_asks_first(db: Database) -> None:
    run = await running(db)
    await started(db, run, "idempotent")
    await db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "lease expired", None))
    await db.write(lambda tx: tasks.cancel(tx, run.task_id, "user:alice", "enough"))
    assert await waiting_items(db, run) == 1 and (await row(db, run)).ended_at is None


async def test_a_paused_run_stays_paused_through_a_decision_and_a_doubt_stays_through_resuming(db: Database) -> None:
    run = await in_doubt(db)
    await db.write(lambda tx: tasks.pause(tx, run.task_id, "user:alice", "wait"))
    await db.write(lambda tx: tasks.resume(tx, run.task_id, "user:alice"))
    assert (await row(db, run)).waiting == "in_doubt"
    await db.write(lambda tx: tasks.pause(tx, run.task_id, "user:alice", "wait"))
    await db.write(lambda tx: leases.go_on(tx, run.run_id, "user:alice", resolved("happened"), "decided"))
    assert (await row(db, run)).waiting == "paused"
    await db.write(lambda tx: tasks.resume(tx, run.task_id, "user:alice"))
    assert (await row(db, run)).status == "queued"


async def test_a_run_resumed_before_its_worker_parked_stays_with_that_worker(db: Database) -> None:
    run = await running(db)
    await db.write(lambda tx: tasks.pause(tx, run.task_id, "user:alice", "wait"))
    task = await db.write(lambda tx: tasks.resume(tx, run.task_id, "user:alice"))
    assert task.status == "running" and (await row(db, run)).lease_until
    assert (await append(db, run, 1, VALUE)).n == 1


async def test_a_paused_run_whose_worker_died_is_still_paused(db: Database) -> None:
    run = await running(db)
    await db.write(lambda tx: tasks.pause(tx, run.task_id, "user:alice", "wait"))
    await db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "the kernel died", DIED))
    assert (await row(db, run)).waiting == "paused"


async def test_what_is_being_cancelled_cannot_be_paused(db: Database) -> None:
    run = await running(db)
    await db.write(lambda tx: tasks.cancel(tx, run.task_id, "user:alice", "enough"))
    with pytest.raises(Conflict, match="being cancelled"):
        await db.write(lambda tx: tasks.pause(tx, run.task_id, "user:alice", "wait"))


async def test_two_approvals_are_both_given_before_the_run_queues(db: Database) -> None:
    run = await running(db)
    calls = [{"id": f"c0-{i}", "type": "function", "function": {"name": "pay", "arguments": "{}"}} for i in range(2)]
    reply = new_event("model.replied", {"message": {"role": "assistant", "content": "", "tool_calls": calls}})
    asked = [new_event("approval.requested", {"tool": "pay", "effect": "once"}, f"c0-{i}") for i in range(2)]
    await db.write(lambda tx: ledger.record(tx, run.run_id, "gateway", [reply, *asked], fence=run.fence))
    await append(db, run, 1, new_event("run.parked", {"reason": "approval"}))
    for index, status in enumerate(["waiting", "queued"]):
        given = [new_event("approval.given", {}, f"c0-{index}")]
        await db.write(lambda tx, given=given: leases.go_on(tx, run.run_id, "user:alice", given, "decided"))
        assert (await row(db, run)).status == status
    assert await waiting_items(db, run) == 0


async def test_a_run_bound_to_a_kernel_fails_with_it_and_never_queues(db: Database) -> None:
    submission = tasks.Submission(owner="alice", submitted_by="alice", target="draft", input="x")
    choice = tasks.Choice("draft", Definition(), None, bound=True)
    task, _ = await db.write(lambda tx: tasks.submit(tx, db.epoch, submission, choice))
    assert await db.write(lambda tx: leases.claim(tx, "draft", "w", "c1", 30.0)) is None
    run = await db.write(lambda tx: leases.lease(tx, ledger.held(tx, str(task.run_id)), "kernel", "mine", 30.0))
    await db.write(lambda tx: ledger.record(tx, run.run_id, "gateway", [REPLIED], fence=run.fence))
    await db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "lease expired", None))
    ended = await db.read(lambda c: tasks.show(c, task.task_id))
    assert ended.status == "failed" and ended.error["type"] == "kernel-gone"


async def test_a_message_to_another_agents_thread_is_refused(db: Database) -> None:
    thread = await db.write(lambda tx: threads.create(tx, agent="analyst", owner="alice"))
    with pytest.raises(Conflict, match="with analyst"):
        await submitted(db, agent="clerk", thread_id=thread["thread_id"])


async def test_a_key_tells_tasks_apart_by_all_that_was_asked(db: Database) -> None:
    await submitted(db, key="k")
    with pytest.raises(Conflict):
        await submitted(db, key="k", priority=5)


async def test_the_more_important_run_is_claimed_first_and_then_the_older(db: Database) -> None:
    old, new, urgent = [await submitted(db, priority=priority) for priority in (0, 0, 7)]
    got = [(await claimed(db, f"c{i}")).task_id for i in range(3)]
    assert got == [urgent.task_id, old.task_id, new.task_id]


async def test_a_lease_that_ran_out_is_listed_and_one_renewed_is_not(db: Database) -> None:
    run = await running(db)
    until = await db.write(lambda tx: leases.renew(tx, run.run_id, run.fence, 60.0))
    assert await db.read(lambda c: leases.expired(c, until - 1, 61.0)) == []
    assert [one.run_id for one in await db.read(lambda c: leases.expired(c, until + 1, 61.0))] == [run.run_id]
    jumped = await db.read(lambda c: leases.expired(c, until - 3600, 61.0))
    assert [one.run_id for one in jumped] == [run.run_id], "given by a clock that was an hour ahead"
    with pytest.raises(Fenced):
        await db.write(lambda tx: leases.renew(tx, run.run_id, run.fence + 1, 60.0))


async def test_an_ended_task_is_run_again_as_a_task_of_its_own(db: Database) -> None:
    run = await running(db)
    choice = tasks.Choice("analyst", Definition(), 2)
    with pytest.raises(Conflict, match="not ended"):
        await db.write(lambda tx: tasks.rerun(tx, db.epoch, run.task_id, "alice", choice))
    await append(db, run, 1, new_event("run.failed", {"error": {"type": "x", "message": "no"}}))
    again = await db.write(lambda tx: tasks.rerun(tx, db.epoch, run.task_id, "bob", choice))
    assert again.task_id != run.task_id and (again.input, again.submitted_by, again.status) == ("2+2", "bob", "queued")
    assert (await db.read(lambda c: tasks.show(c, run.task_id))).error == {"type": "x", "message": "no"}


async def test_lists_page_without_gap_or_repeat_and_show_only_what_was_asked_for(db: Database) -> None:
    made = [await submitted(db, owner=owner, agent=agent) for owner in ("alice", "bob") for agent in ("a", "b", "a")]
    seen: list[str] = []
    while page := await db.read(partial(tasks.listed, before=seen[-1] if seen else None, limit=4)):
        seen += [task.task_id for task in page]
    assert sorted(seen, reverse=True) == seen and set(seen) == {task.task_id for task in made}
    mine = await db.read(lambda c: tasks.listed(c, *tasks_where(Wanted(agent="a"), ["bob"], [])))
    assert len(mine) == 2 and {(task.owner, task.agent) for task in mine} == {("bob", "a")}
    assert (
        len(await db.read(lambda c: tasks.listed(c, *tasks_where(Wanted(), ["bob"], ["a"])))) == 5
    )  # of these owners or agents
    assert await db.read(lambda c: tasks.listed(c, *tasks_where(Wanted(status=("failed",)), None, None))) == []
    threads_made = [
        await db.write(lambda tx, owner=owner: threads.create(tx, agent="a", owner=owner)) for owner in ("alice", "bob")
    ]
    shown = await db.read(lambda c: threads.listed(c, owners=["bob"]))
    assert [thread["thread_id"] for thread in shown] == [threads_made[1]["thread_id"]]
    with pytest.raises(Invalid):
        await db.write(lambda tx: threads.create(tx, agent="a", owner="o", policy="shout"))


async def test_the_inbox_shows_each_owner_their_own_and_keeps_who_decided(db: Database) -> None:
    run = await in_doubt(db)
    assert await db.read(lambda c: inbox.listed(c, owners=["bob"])) == []
    (item,) = await db.read(lambda c: inbox.listed(c, owners=["alice"]))
    assert (item["kind"], item["call"], item["detail"]["tool"], item["detail"]["proof"]) == (
        "in_doubt",
        "c0-0",
        "pay",
        DIED,
    )
    await db.write(lambda tx: leases.go_on(tx, run.run_id, "user:alice", resolved("happened"), "decided"))
    assert await db.read(lambda c: inbox.listed(c, owners=["alice"])) == []
    shown = await db.read(lambda c: inbox.show(c, item["inbox_id"]))
    assert (shown["decision"], shown["decided_by"], shown["reason"]) == ("happened", "user:alice", "seen")


async def test_a_decision_about_a_long_run_reads_its_latest_step_and_back_to_where_it_was_interrupted(
    db: Database,
) -> None:
    run = await running(db)
    steps = [REPLIED, *(new_event("value.recorded", {"name": "now", "value": n}) for n in range(30))] * 40
    await db.write(lambda tx: ledger.record(tx, run.run_id, "gateway", steps))
    await started(db, run, "once")

    async def looked() -> tuple[int, str | None]:
        whole = await row(db, run)
        step = await db.read(lambda c: latest.step(c, whole))
        return len(step), latest.fold(whole, step).interrupted

    assert await looked() == (2, None), "its reply and what came of it"
    await db.write(lambda tx: leases.interrupt(tx, run.run_id, "task-next"))
    assert await looked() == (3, "interrupted by task-next")
    await db.write(lambda tx: ledger.record(tx, run.run_id, "gateway", steps[:31]))
    assert await looked() == (32, "interrupted by task-next"), "it is still known when another step was made"


async def test_a_run_that_a_drain_put_aside_is_queued_again_as_soon_as_its_worker_lets_go(db: Database) -> None:
    run = await running(db)
    assert [(one.run_id, one.aside) for one in await db.read(lambda c: draining.held(c, ["analyst"]))] == [
        (run.run_id, False)
    ]
    for _ in range(2):  # again is harmless
        await db.write(lambda tx: draining.put_aside(tx, run.run_id, "micro1", "micro1 is drained"))
    assert [one.aside for one in await db.read(lambda c: draining.held(c, ["analyst"]))] == [True]
    await append(db, run, 1, VALUE)  # the step goes on to its end
    await append(db, run, 2, new_event("run.parked", {"reason": "paused"}))
    rested = await row(db, run)
    assert (rested.status, rested.waiting, rested.lease_until) == ("waiting", "paused", None)
    [(found, drain)] = await db.read(draining.resting)
    assert (found.run_id, drain) == (run.run_id, "micro1")
    for _ in range(2):
        await db.write(lambda tx: draining.take_up(tx, run.run_id))
    assert (await row(db, run)).status == "queued"
    assert (
        await db.write(lambda tx: leases.claim(tx, "analyst", "w", "held", 30.0, new=False)) is None
    )  # its agent is held
    again = await claimed(db, "c2")
    assert again.run_id == run.run_id and again.fence == run.fence + 1
    assert (await kinds(db, run.run_id)).count("run.paused") == 1


async def test_what_a_person_paused_before_or_during_a_drain_stays_paused(db: Database) -> None:
    before = await running(db)
    await db.write(lambda tx: tasks.pause(tx, before.task_id or "", "user:alice", "lunch"))
    await db.write(lambda tx: draining.put_aside(tx, before.run_id, "micro1", "micro1 is drained"))
    await append(db, before, 1, new_event("run.parked", {"reason": "paused"}))
    during = await running(db)
    await db.write(lambda tx: draining.put_aside(tx, during.run_id, "micro1", "micro1 is drained"))
    await db.write(lambda tx: tasks.pause(tx, during.task_id or "", "user:alice", "lunch"))
    await append(db, during, 1, new_event("run.parked", {"reason": "paused"}))
    assert await db.read(draining.resting) == []
    for run in (before, during):
        await db.write(partial(lambda tx, run_id: draining.take_up(tx, run_id), run_id=run.run_id))
        assert (await row(db, run)).waiting == "paused"
        assert (
            await db.write(
                partial(lambda tx, task_id: tasks.resume(tx, task_id, "user:alice"), task_id=run.task_id or "")
            )
        ).status == "queued"


async def test_a_drain_finds_its_run_also_where_the_worker_died_instead_of_resting(db: Database) -> None:
    run = await running(db)
    await db.write(lambda tx: draining.put_aside(tx, run.run_id, "micro1", "micro1 is drained"))
    await db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "the kernel died", DIED))
    assert [drain for _, drain in await db.read(draining.resting)] == ["micro1"]
    await db.write(lambda tx: draining.take_up(tx, run.run_id))
    assert (await row(db, run)).status == "queued"


async def test_a_run_that_was_resumed_before_it_rested_is_queued_and_not_paused_again(db: Database) -> None:
    run = await running(db)
    await db.write(lambda tx: tasks.pause(tx, run.task_id or "", "user:alice", "wait"))
    await db.write(lambda tx: tasks.resume(tx, run.task_id or "", "user:alice"))
    await append(db, run, 1, new_event("run.parked", {"reason": "paused"}))  # its worker had not heard of it
    assert (await row(db, run)).status == "queued" and (await claimed(db, "c2")).run_id == run.run_id
