"""Budgets on real databases: never overshot, however many ask at once; kept over a kill; raised, waived, refused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from servicekit import Service, service
from test_gateway import Farm, Make, Script, calls, says, tool

from agentfarm_sdk.protocol import Definition, Limits, ModelRequest, ModelSpec, new_event
from jupyterhub_agentfarm.errors import BudgetReached, Conflict, Fenced, Invalid, ModelFailed, Parked
from jupyterhub_agentfarm.gateway.asking import Ask, OnToken, Reply, UpstreamError
from jupyterhub_agentfarm.gateway.budgets import Budgets
from jupyterhub_agentfarm.records import Run
from jupyterhub_agentfarm.store import budgets, inbox, leases, ledger, tasks, usage
from jupyterhub_agentfarm.store.budgets import Budget
from jupyterhub_agentfarm.store.db import Database

SAYS = Definition(prompt="p", model=ModelSpec(parameters={"max_tokens": 60}), limits=Limits(tokens=None))


def budget(amount: float, unit: str = "tokens", action: str = "stop", scope: str = "agent", name: str = "a") -> Budget:
    return Budget(scope, name, unit, "day", amount, action, "root", 0.0)


@pytest.fixture
async def make(database_url: str) -> AsyncIterator[Make]:
    db = Database.open(database_url)
    yield lambda *replies, **rest: Farm(db, Script(list(replies), **rest))
    await db.close()


class Priced(Script):
    """An upstream that always says something: 30 tokens in, 50 out, 1 USD a million in, 2 out."""

    async def complete(self, ask: Ask, on_token: OnToken | None) -> Reply:
        self.asked.append(ask)
        await asyncio.sleep(0.002)
        assert ask.parameters["max_tokens"] <= 60
        return Reply("yes", tokens_in=30, tokens_out=50, model="m", asked="m")

    def cost(self, reply: Reply) -> float:
        return (reply.tokens_in + 2 * reply.tokens_out) / 1e6


async def runs(farm: Farm, count: int) -> list[Run]:
    """Begin runs of one agent, each with a worker."""
    found = []
    for number in range(count):
        asked = tasks.Submission(owner="alice", submitted_by="alice", target="a", input="go", mode="live")
        await farm.db.write(lambda tx, a=asked: tasks.submit(tx, farm.db.epoch, a, tasks.Choice("a", SAYS, 1)))  # type: ignore[misc]
        run = await farm.db.write(lambda tx, n=number: leases.claim(tx, "a", "w", f"c{n}", 30.0))  # type: ignore[misc]
        assert run is not None
        found.append(run)
    return found


async def used(farm: Farm) -> tuple[int, float]:
    rows = await farm.db.read(lambda c: usage.listed(c))
    return sum(row["tokens_in"] + row["tokens_out"] for row in rows), sum(row["cost"] for row in rows)


@pytest.mark.parametrize("unit", ["tokens", "usd"])
async def test_fifty_agents_at_once_use_a_budget_up_and_never_overshoot(make: Make, unit: str) -> None:
    farm = make()
    farm = Farm(farm.db, Priced([], max_in_flight=50))
    amount = {"tokens": 1000.0, "usd": 1500e-6}[unit]
    for scope, name in (("agent", "a"), ("owner", "alice"), ("farm", "")):
        await farm.models.budgets.change(budget(amount, unit, scope=scope, name=name))
    asking = [
        farm.models.model(ModelRequest(run=run.run_id, fence=run.fence, request="q1", n=0))
        for run in await runs(farm, 50)
    ]
    answers = await asyncio.gather(*asking, return_exceptions=True)
    refused = [one for one in answers if isinstance(one, BudgetReached)]
    assert {type(one) for one in answers if isinstance(one, BaseException)} == {BudgetReached}
    tokens, cost = await used(farm)
    spent = tokens if unit == "tokens" else cost
    assert 0.8 * amount < spent <= amount and len(refused) == 50 - len(farm.upstream.asked)
    assert await farm.db.read(budgets.orphans) == [] and "has used" in refused[0].detail


async def test_the_reply_is_cut_to_what_is_left_and_the_reservation_stands_in_the_record(make: Make) -> None:
    farm = make(says("one"))
    await farm.models.budgets.change(budget(2000))
    await farm.begin(Definition(prompt="p"))
    await farm.model()
    (requested,) = [
        e.data()
        for e in await farm.db.read(lambda c: ledger.read_events(c, farm.run.run_id))
        if e.kind == "model.requested"
    ]
    assert requested["parameters"]["max_tokens"] == requested["reserved"]["output"] < 2000
    assert requested["reserved"]["input"] + requested["reserved"]["output"] <= 2000
    assert farm.models.budgets.used(budget(0)) == 8.0 and farm.models.budgets.reserved(budget(0)) == 0.0


class Counts(Script):
    """An upstream that counts as models do: four bytes are a token."""

    async def complete(self, ask: Ask, on_token: OnToken | None) -> Reply:
        reply = await super().complete(ask, on_token)
        return replace(reply, tokens_in=len(msgspec.json.encode([ask.messages, ask.tools])) // 4, tokens_out=20)


async def test_what_the_model_counted_itself_is_not_estimated_anew_and_never_too_small(make: Make) -> None:
    """Else a long conversation would reserve, and near a budget's limit be refused, twice what it uses."""
    farm = make()
    farm = Farm(farm.db, Counts([calls(("look", f'{{"n": {n}}}')) for n in range(4)]))
    await farm.models.budgets.change(budget(1e6))
    await farm.begin(Definition(prompt="word " * 4000, tools=[tool("look", "read")]))
    for step in range(4):
        await farm.model(f"q{step}")
        await farm.done(f"c{step}-0", "seen " * 100)
    events = await farm.db.read(lambda c: ledger.read_events(c, farm.run.run_id))
    reserved = [event.data()["reserved"]["input"] for event in events if event.kind == "model.requested"]
    used = [event.data()["usage"]["input"] for event in events if event.kind == "model.replied"]
    assert all(held >= have for held, have in zip(reserved, used, strict=True)), "never too small"
    assert reserved[0] > 1.9 * used[0] and all(
        held < have + 400 for held, have in zip(reserved[1:], used[1:], strict=True)
    )


async def test_a_run_waits_for_a_budget_that_asks_and_goes_on_when_it_is_raised(make: Make) -> None:
    farm = make(says("done"))
    await farm.models.budgets.change(budget(10, action="ask"))
    run = await farm.begin(SAYS)
    with pytest.raises(Parked):
        await farm.model()
    row = await farm.db.read(lambda c: ledger.read_run(c, run.run_id))
    assert (row.status, row.waiting, row.lease_until) == ("waiting", "budget", None) and farm.upstream.asked == []
    (item,) = await farm.db.read(lambda c: inbox.listed(c, owners=["alice"]))
    assert item["kind"] == "budget" and item["detail"]["limit"] == 10.0
    await farm.models.budgets.change(budget(20, action="ask"))  # not enough: it waits on
    assert (await farm.db.read(lambda c: ledger.read_run(c, run.run_id))).waiting == "budget"
    await farm.models.budgets.change(budget(5000, action="ask"))
    await farm.claim("c2")
    assert (await farm.model()).message["content"] == "done"
    assert await farm.kinds() == [
        "budget.reached", "run.parked", "budget.freed", "run.requeued", "run.leased", "model.requested", "model.replied",
    ]  # fmt: skip
    assert await farm.db.read(lambda c: inbox.listed(c)) == []
    changed = [
        e.data()["amount"]
        for e in await farm.db.read(lambda c: ledger.read_events(c, "farm"))
        if e.kind == "budget.changed"
    ]
    assert changed == [10.0, 20.0, 5000.0] and (await farm.db.read(lambda c: ledger.verify(c, "farm"))).ok


async def test_a_person_waives_a_budget_for_one_run_and_not_for_others(make: Make) -> None:
    farm = make(says("one"), says("two"))
    await farm.models.budgets.change(budget(10, action="ask"))
    for decision in ("approve", "refuse"):
        run = await farm.begin(SAYS) if decision == "approve" else await again(farm)
        with pytest.raises(Parked):
            await farm.model()
        (item,) = await farm.db.read(lambda c: inbox.listed(c))
        with pytest.raises(Invalid):
            await farm.lives.decide(item["inbox_id"], "happened", "alice")
        await farm.lives.decide(item["inbox_id"], decision, "alice", "a good reason")
        if decision == "approve":
            assert await farm.db.read(budgets.waived) == {budget(0).id: [run.run_id]}
            await farm.claim("c2")
            await farm.model()
            farm.lives.drop(run.run_id)  # it is on record, not in memory
            await farm.model("q2")
            await farm.append(new_event("run.succeeded", {"result": 1}))
    task = await farm.db.read(lambda c: tasks.show(c, run.task_id))
    assert task.status == "failed" and task.error and task.error["type"] == "budget"
    assert "a good reason" in task.error["message"] and len(farm.upstream.asked) == 2


async def test_a_person_lets_a_run_go_so_much_beyond_a_budget_and_is_asked_again_behind_it(make: Make) -> None:
    farm = make(*[says("more")] * 9)
    await farm.models.budgets.change(budget(10, action="ask"))
    await farm.begin(SAYS)
    with pytest.raises(Parked):
        await farm.model()
    (item,) = await farm.db.read(lambda c: inbox.listed(c))
    amount = item["detail"]["needed"] + 10
    for wrong in ({"amount": 1}, {"amount": "90"}, {"amount": True}, {"amount": amount, "more": 1}, {}):
        with pytest.raises(Invalid, match="waived"):
            await farm.lives.decide(item["inbox_id"], "approve", "alice", arguments=wrong)
    await farm.lives.decide(item["inbox_id"], "approve", "alice", arguments={"amount": amount})
    await farm.claim("c2")
    with pytest.raises(Parked):
        for number in range(9):
            await farm.model(f"q{number}")
            farm.lives.drop(farm.run.run_id)  # it is on record, not in memory
    assert 0 < (await used(farm))[0] <= amount and 0 < len(farm.upstream.asked) < 9
    (item,) = await farm.db.read(lambda c: inbox.listed(c))
    await farm.lives.decide(item["inbox_id"], "approve", "alice")
    await farm.claim("c3")
    await farm.model("r1")


async def again(farm: Farm) -> Run:
    asked = tasks.Submission(owner="alice", submitted_by="alice", target="a", input="more", mode="live")
    await farm.db.write(lambda tx: tasks.submit(tx, farm.db.epoch, asked, tasks.Choice("a", SAYS, 1)))
    return await farm.claim("c9")


async def test_what_a_killed_service_had_reserved_is_counted_in_full_at_the_next_start(make: Make) -> None:
    gate = asyncio.Event()
    farm = make(says("never heard"), gate=gate)
    await farm.models.budgets.change(budget(5000))
    run = await farm.begin(SAYS)
    asking = asyncio.create_task(farm.model())
    await asyncio.wait_for(farm.upstream.begun.wait(), 10)
    await farm.db.write(lambda tx: None)  # behind the reservation in the writer's queue
    held = await farm.db.read(budgets.orphans)
    later = Budgets(farm.db)  # the service is killed here, and another one starts
    await later.ready()
    reserved = held[0].tokens_in + held[0].tokens_out
    assert later.used(budget(0)) == reserved and await farm.db.read(budgets.orphans) == []
    (row,) = await farm.db.read(lambda c: usage.listed(c))
    assert (row["estimated"], row["tokens_out"]) == (1, 60)
    (failed,) = [
        e.data() for e in await farm.db.read(lambda c: ledger.read_events(c, run.run_id)) if e.kind == "model.failed"
    ]
    assert failed["error"]["type"] == "lost" and failed["usage"] == {
        "input": held[0].tokens_in,
        "output": 60,
        "estimated": True,
    }
    farm.lives.drop(run.run_id)
    assert (await farm.lives.get(run.run_id, run.fence)).attempts == 1  # the next attempt is the second one, on record
    gate.set()
    await asyncio.gather(asking, return_exceptions=True)


async def test_a_failed_attempt_gives_back_what_it_reserved_unless_it_was_answered_in_part(make: Make) -> None:
    half = UpstreamError("down", "broke off", retry=True, retry_after=0.0)
    half.used = (20, 7)
    farm = make(UpstreamError("busy", "later", retry=True, retry_after=0.0), half, says("done"))
    await farm.models.budgets.change(budget(5000))
    await farm.begin(SAYS)
    await farm.model()
    assert farm.models.budgets.used(budget(0)) == 27 + 8 and farm.models.budgets.reserved(budget(0)) == 0
    assert (await used(farm))[0] == 27 + 8 and await farm.db.read(budgets.orphans) == []


async def test_a_new_day_gives_a_day_s_budget_anew_and_lets_those_go_on_who_wait(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm = make(says("one"), says("two"))
    await farm.models.budgets.change(budget(500, action="ask"))
    run = await farm.begin(SAYS)
    await farm.db.write(
        lambda tx: usage.add(tx, agent="a", owner="alice", model="m", tokens_in=490, tokens_out=0, cost=0.0)
    )
    await farm.models.budgets.change(budget(500, action="ask"))  # reads the rows
    with pytest.raises(Parked):
        await farm.model()
    now = farm.db.now()
    monkeypatch.setattr(farm.db, "now", lambda: now + 86_400)
    await farm.models.budgets.revive("service", "a new day has begun")
    assert (await farm.db.read(lambda c: ledger.read_run(c, run.run_id))).status == "queued"


async def test_a_cancelled_run_that_waits_for_a_budget_ends(make: Make) -> None:
    farm = make()
    await farm.models.budgets.change(budget(10, action="ask"))
    run = await farm.begin(SAYS)
    with pytest.raises(Parked):
        await farm.model()
    await farm.db.write(lambda tx: tasks.cancel(tx, run.task_id, "user:alice", "enough"))
    assert (await farm.db.read(lambda c: tasks.show(c, run.task_id))).status == "cancelled"
    assert await farm.db.read(lambda c: inbox.listed(c)) == []


# -- over the API --------------------------------------------------------------------------------------------------


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, database_url, monkeypatch) as running:
        yield running


def limit(amount: float | None, scope: str = "agent", name: str = "analyst", **rest: Any) -> dict[str, Any]:
    return {"scope": scope, "name": name, "unit": "tokens", "period": "day", "amount": amount, **rest}


async def ask_model(farm: Service, claim: dict[str, Any]) -> Any:
    body = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": "r", "n": 0}}
    return await farm.ask(claim["token"], "POST", "/model/v1/chat/completions", body)


async def test_the_owner_limits_an_agent_and_only_an_operator_the_owner(farm: Service) -> None:
    await farm.agent()
    assert (await farm.ok("ann", "PUT", "/budgets", limit(100)))["left"] == 100
    for body in (limit(1, "owner", "ann"), limit(1, "farm", "")):
        assert (await farm.ask("ann", "PUT", "/budgets", body)).status_code == 403
        await farm.ok("operator", "PUT", "/budgets", body)
    for body in (limit(1, "farm", "x"), limit(-1), limit(1, unit="EUR"), limit(1, period="week")):
        assert (await farm.ask("operator", "PUT", "/budgets", body)).status_code == 422
    assert (await farm.ask("ann", "PUT", "/budgets", limit(1, name="none"))).status_code == 404
    seen = {
        who: len((await farm.ok(who, "GET", "/budgets"))["items"])
        for who in ("ann", "bob", "operator", "agent-analyst")
    }
    assert seen == {"ann": 2, "bob": 0, "operator": 3, "agent-analyst": 1}
    await farm.ok("ann", "PUT", "/budgets", limit(None))
    assert (await farm.ask("ann", "PUT", "/budgets", limit(None))).status_code == 404
    told = await farm.ok("ann", "PUT", "/budgets", limit(5, unit="usd"))
    assert "scripted has no price" in told["warning"]
    for body in ({"target": "analyst", "input": "x"}, {"tasks": [{"target": "analyst", "input": "x"}]}):
        refused = await farm.ask("ann", "POST", "/tasks", body)  # it would only fail
        assert refused.status_code == 422 and "scripted has no price" in refused.json()["detail"]
    assert (await farm.ask("bob", "POST", "/tasks", {"target": "analyst", "input": "x"})).status_code == 404
    await farm.ok("ann", "PUT", "/budgets", limit(None, unit="usd"))
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "x"})


async def test_a_run_that_waits_is_decided_by_who_may_set_the_budget_and_is_claimed_within_a_second(
    farm: Service,
) -> None:
    await farm.agent()
    await farm.ok("operator", "PUT", "/budgets", limit(10, "owner", "ann", action="ask"))
    task = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    claim = await farm.claim()
    assert claim
    parked = await ask_model(farm, claim)
    assert (parked.status_code, parked.json()["type"]) == (409, "parked")
    assert (await farm.ok("ann", "GET", f"/tasks/{task['task_id']}"))["waiting"] == "budget"
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    decision = {"decision": "approve", "reason": "once"}
    assert (await farm.ask("ann", "POST", f"/inbox/{item['inbox_id']}", decision)).status_code == 403
    claiming = asyncio.create_task(farm.claim(wait=10))
    await farm.listens("analyst")
    began = asyncio.get_running_loop().time()
    await farm.ok("operator", "POST", f"/inbox/{item['inbox_id']}", decision)
    claim = await claiming
    assert claim and asyncio.get_running_loop().time() - began < 1.0
    farm.model.script.append("done")
    assert (await ask_model(farm, claim)).status_code == 200


async def test_a_used_up_budget_is_a_problem_that_names_it_and_usage_is_summed_by_what_is_asked(farm: Service) -> None:
    await farm.agent()
    for number in range(2):
        await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
        claim = await farm.claim()
        assert claim
        farm.model.script.append("done")
        if number:
            await farm.ok("ann", "PUT", "/budgets", limit(20))
        answer = await ask_model(farm, claim)
    assert (answer.status_code, answer.json()["type"]) == (402, "budget")
    assert "agent analyst may use 20 tokens a day and has used 5" in answer.json()["detail"]
    (by_owner,) = (await farm.ok("ann", "GET", "/usage?by=owner"))["items"]
    assert (by_owner["owner"], by_owner["agent"], by_owner["requests"], by_owner["tokens_in"]) == ("ann", "", 1, 3)
    assert (await farm.ok("bob", "GET", "/usage?by=model"))["items"] == []
    assert (await farm.ok("ann", "GET", "/usage?since=2100-01-01"))["items"] == []
    assert (await farm.ask("ann", "GET", "/usage?by=colour")).status_code == 422


async def test_a_budget_in_usd_refuses_a_model_without_a_price(make: Make) -> None:
    farm = make(says("never"))

    async def unpriced(model: str, provider: str | None) -> None:
        return None

    farm.upstream.price = unpriced
    await farm.begin(Definition(prompt="p", limits=Limits(cost=1.0)))
    with pytest.raises(Invalid, match="limits"):
        await farm.model()
    await farm.append(new_event("run.failed", {"error": {"type": "invalid", "message": "x"}}))
    await farm.models.budgets.change(budget(5, "usd"))
    await farm.begin(SAYS)
    with pytest.raises(Invalid, match="has no price"):
        await farm.model()
    assert farm.upstream.asked == []


class Moody(Script):
    """An upstream of chance: replies, refuses, or breaks off in its answer.

    A prompt is counted as models do, longer by what was replied: what is reserved for a step goes by the count of the one before.
    """

    chance: random.Random

    async def complete(self, ask: Ask, on_token: OnToken | None) -> Reply:
        await asyncio.sleep(self.chance.random() / 200)
        tokens_in = 20 + len(ask.messages)
        mood = self.chance.random()
        if mood < 0.6:
            return Reply(
                "yes",
                tokens_in=tokens_in,
                tokens_out=self.chance.randint(1, ask.parameters["max_tokens"]),
            )
        error = UpstreamError("down", "gone", retry=True, retry_after=0.0)
        error.used = (tokens_in, self.chance.randint(0, 60)) if mood < 0.8 else None
        raise error

    def cost(self, reply: Reply) -> float:
        return (reply.tokens_in + 2 * reply.tokens_out) / 1e6


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_memory_and_rows_agree_and_no_limit_that_stands_is_overshot(
    make: Make, seed: int
) -> None:
    farm = Farm(make().db, Moody([], max_in_flight=50))
    chance = farm.upstream.chance = random.Random(seed)
    limits = [budget(3000), budget(4000e-6, "usd", scope="owner", name="alice"), budget(10_000, scope="farm", name="")]
    for one in limits:
        await farm.models.budgets.change(one)

    async def live(run: Run) -> None:
        for number in range(3):
            request = ModelRequest(run=run.run_id, fence=run.fence, request=f"q{number}", n=0)
            if chance.random() < 0.1:  # its worker dies in the middle
                asking = asyncio.create_task(farm.models.model(request))
                await asyncio.sleep(chance.random() / 100)
                await farm.db.write(lambda tx: leases.requeue(tx, run.run_id, run.fence, "it died", "kernel exited"))
                await asking
                return
            await farm.models.model(request)
            for one in limits:
                taken = farm.models.budgets.used(one) + farm.models.budgets.reserved(one)
                assert taken <= one.amount + 1e-9

    living = [asyncio.create_task(live(run)) for run in await runs(farm, 30)]
    for _ in range(5):  # what is read anew in the middle loses nothing
        await asyncio.sleep(0.01)
        await farm.models.budgets.change(limits[2])
    ended = await asyncio.gather(*living, return_exceptions=True)
    assert not [one for one in ended if isinstance(one, AssertionError)]
    known = (BudgetReached, Fenced, ModelFailed, Conflict)
    assert not [one for one in ended if isinstance(one, BaseException) and not isinstance(one, known)]
    fresh = Budgets(farm.db)
    await fresh.ready()
    assert await farm.db.read(budgets.orphans) == []
    for one in limits:
        assert (
            farm.models.budgets.used(one) == pytest.approx(fresh.used(one)) and farm.models.budgets.reserved(one) == 0
        )
        assert 0 < fresh.used(one) <= one.amount
