"""What happens to a run at the worst moments: read anew in mid-request, stopped while it is read, told twice, too late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from test_gateway import PAY, Farm, Make, Script, calls, says

from agentfarm_sdk.protocol import Definition, NewEvent, new_event
from jupyterhub_agentfarm.errors import Cancelled, Conflict, Fenced, Hole, Invalid, Transient
from jupyterhub_agentfarm.gateway import live as live_module
from jupyterhub_agentfarm.gateway.asking import UpstreamError
from jupyterhub_agentfarm.store import leases, ledger, tasks, usage
from jupyterhub_agentfarm.store.db import Database

PAYS = calls(("pay", '{"n": 1}'))


@pytest.fixture
async def make(database_url: str) -> AsyncIterator[Make]:
    db = Database.open(database_url)
    yield lambda *replies, **rest: Farm(db, Script(list(replies), **rest))
    await db.close()


async def asked(farm: Farm) -> None:
    await asyncio.wait_for(farm.upstream.begun.wait(), 10)


async def test_a_run_that_is_read_anew_while_its_model_thinks_gets_one_reply_and_goes_on(make: Make) -> None:
    gate = asyncio.Event()
    farm = make(PAYS, says("done"), gate=gate)
    await farm.begin(PAY)
    first = asyncio.create_task(farm.model())
    await asked(farm)
    await farm.lives.open(farm.run.run_id, farm.run.fence, lambda d: [])  # the worker lost its connection
    second = asyncio.create_task(farm.model())
    gate.set()
    one, two = await asyncio.gather(first, second)
    assert one == two and len(farm.upstream.asked) == 1
    await farm.done("c0-0")
    assert (await farm.model("q2")).message["content"] == "done"
    assert farm.upstream.asked[1].messages[-1]["content"] == "ok"


async def test_a_wish_to_stop_that_comes_while_the_run_is_read_is_not_lost(make: Make) -> None:
    farm = make(says("never asked"))
    run = await farm.begin(PAY)
    real, read, go = farm.db.read, asyncio.Event(), asyncio.Event()

    async def slow(fn: Any) -> Any:
        found = await real(fn)
        read.set()
        await go.wait()
        return found

    farm.db.read = slow  # type: ignore[method-assign]
    asking = asyncio.create_task(farm.model())
    await read.wait()  # as the run was before the wish
    await farm.db.write(lambda tx: tasks.cancel(tx, run.task_id, "user:alice", "stop"))
    go.set()
    with pytest.raises(Cancelled):
        await asking
    assert farm.upstream.asked == []


async def test_a_call_that_the_model_asks_for_after_the_wish_to_stop_is_not_admitted(make: Make) -> None:
    gate = asyncio.Event()
    farm = make(PAYS, gate=gate)
    run = await farm.begin(PAY)
    asking = asyncio.create_task(farm.model())
    await asked(farm)
    farm.lives.drop(run.run_id)  # what is read anew hears the wish, too
    await farm.db.write(lambda tx: tasks.cancel(tx, run.task_id, "user:alice", "stop"))
    await farm.lives.get(run.run_id, run.fence)
    gate.set()
    assert [call.state for call in (await asking).calls] == ["failed"]
    assert "tool.started" not in await farm.kinds()


async def test_a_run_asks_its_model_one_thing_at_a_time_and_only_when_no_call_is_open(make: Make) -> None:
    gate = asyncio.Event()
    farm = make(PAYS, gate=gate)
    await farm.begin(PAY)
    asking = asyncio.create_task(farm.model("q1"))
    await asked(farm)
    with pytest.raises(Conflict, match="under way"):
        await farm.model("q2")
    gate.set()
    await asking
    with pytest.raises(Conflict, match="no outcome"):
        await farm.model("q2")
    assert len(farm.upstream.asked) == 1


async def test_an_ended_run_asks_nothing(make: Make) -> None:
    farm = make(says("hi"))
    await farm.begin(PAY)
    await farm.append(new_event("run.failed", {"error": {"type": "x", "message": "y"}}))
    with pytest.raises((Conflict, Fenced)):
        await farm.model()
    assert farm.upstream.asked == []


async def test_a_reply_that_comes_after_the_lease_is_counted_and_not_recorded(make: Make) -> None:
    gate = asyncio.Event()
    farm = make(PAYS, gate=gate)
    run = await farm.begin(PAY)
    asking = asyncio.create_task(farm.model())
    await asked(farm)
    await farm.db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "lease expired", None))
    gate.set()
    with pytest.raises(Fenced):
        await asking
    assert "model.replied" not in await farm.kinds()
    rows = await farm.db.read(lambda c: usage.listed(c))
    assert [(row["requests"], row["tokens_out"], row["cost"]) for row in rows] == [(1, 3, 0.25)]


async def test_an_append_that_the_store_refuses_for_a_moment_is_sent_again_and_the_paid_reply_follows_it(
    make: Make,
) -> None:
    farm = make(PAYS, says("done"))
    await farm.begin(PAY)
    await farm.model()
    real, refused = farm.db.submit, list[int]()

    def away(fn: Any) -> Any:
        if refused:
            return real(fn)
        refused.append(1)
        failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        failed.set_exception(Transient("the database is away"))
        return failed

    farm.db.submit = away  # type: ignore[method-assign]
    appending = asyncio.create_task(farm.done("c0-0"))
    await asyncio.sleep(0)  # arrived, folded, and refused
    asking = asyncio.create_task(farm.model("q2"))
    with pytest.raises(Transient):
        await appending
    farm.n = 0
    await farm.done("c0-0")
    assert (await asking).message["content"] == "done"
    assert farm.upstream.asked[1].messages[-1]["content"] == "ok"
    assert (await farm.kinds())[-3:] == ["tool.succeeded", "model.requested", "model.replied"]


async def test_a_request_whose_append_never_comes_is_told_which_one_is_missing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "ARRIVAL_SECONDS", 0.05)
    farm = make(says("hi"))
    await farm.begin(PAY)
    farm.n = 3
    with pytest.raises(Hole, match="append 1"):
        await farm.model()


async def test_a_cancelled_run_is_not_tried_again_at_the_upstream(make: Make) -> None:
    farm = make(UpstreamError("busy", "later", retry=True, retry_after=0.3), says("never"))
    run = await farm.begin(PAY)
    asking = asyncio.create_task(farm.model())
    await asked(farm)
    await farm.db.write(lambda tx: tasks.cancel(tx, run.task_id, "user:alice", "stop"))
    with pytest.raises(Cancelled):
        await asking
    assert len(farm.upstream.asked) == 1


# -- several events in one append -----------------------------------------------------------------------------------


def succeeded(call: str) -> NewEvent:
    return new_event("tool.succeeded", {"result": 1}, call)


def reported(step: int, *tools: str) -> NewEvent:
    asked_for = [
        {"id": f"c{step}-{i}", "type": "function", "function": {"name": name, "arguments": '{"n": 1}'}}
        for i, name in enumerate(tools)
    ]
    return new_event("model.reported", {"message": {"role": "assistant", "content": "", "tool_calls": asked_for}})


ENDED = new_event("run.succeeded", {"result": "done"})


async def test_an_outcome_and_the_end_may_come_in_one_append(make: Make) -> None:
    farm = make(PAYS)
    await farm.begin(PAY)
    await farm.model()
    await farm.append(succeeded("c0-0"), ENDED)
    assert (await farm.kinds())[-2:] == ["tool.succeeded", "run.succeeded"]


@pytest.mark.parametrize(
    "events",
    [
        [reported(0, "pay"), succeeded("c0-0")],
        [reported(0, "pay"), ENDED],
        [reported(0), reported(1)],
        [reported(0, "pay"), reported(1)],
        [reported(1, "pay")],
    ],
    ids=["outcome before admission", "end before the outcome", "two replies", "reply before outcome", "foreign ids"],
)
async def test_what_an_append_says_too_early_is_refused_and_the_number_stays_free(
    make: Make, events: list[NewEvent]
) -> None:
    farm = make()
    await farm.begin(PAY)
    with pytest.raises((Conflict, Invalid)):
        await farm.append(*events)
    farm.n = 0
    assert [call.state for call in (await farm.append(reported(0, "pay"))).admitted] == ["admitted"]
    with pytest.raises(Conflict):
        await farm.append(succeeded("c0-0"), succeeded("c0-0"))
    farm.n = 1
    await farm.append(succeeded("c0-0"), ENDED)
    assert await farm.kinds() == ["model.reported", "tool.started", "tool.succeeded", "run.succeeded"]


async def test_what_is_in_memory_is_what_the_ledger_folds_to(make: Make) -> None:
    farm = make(calls(("look", '{"n": 1}'), ("pay", '{"n": "no"}')), says("done"))
    await farm.begin(Definition(prompt="p", tools=PAY.tools))
    await farm.model()
    await farm.done("c0-0")
    await farm.model("q2")
    lived = await farm.lives.get(farm.run.run_id, farm.run.fence)
    read = await farm.db.read(lambda c: live_module.load(c, farm.run.run_id))
    for name in ("messages", "steps", "tokens_in", "tokens_out", "cost", "status", "fence"):
        assert getattr(lived.fold, name) == getattr(read.fold, name), name
    assert lived.roll_digest() == read.roll_digest() and lived.known_seq == read.known_seq
    assert {c.call: c.state for c in lived.fold.calls.values()} == {c.call: c.state for c in read.fold.calls.values()}
    replied = [
        e for e in await farm.db.read(lambda c: ledger.read_events(c, farm.run.run_id)) if e.kind == "model.requested"
    ]
    assert replied[-1].data()["messages"] == 5
