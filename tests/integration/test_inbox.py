"""What waits for a person, by the service's front door and on both databases: who may decide, how, until when."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from servicekit import Service, service

from agentfarm_sdk.ledger import FarmLedger
from agentfarm_sdk.protocol import new_event
from jupyterhub_agentfarm.errors import Fenced, FleetError
from jupyterhub_agentfarm.store import leases, tasks
from jupyterhub_agentfarm.store.tables import inbox, runs

PAY = {
    "name": "pay", "source": "file:tools.py", "effect": "once",
    "schema": {"type": "object", "properties": {"to": {"type": "string"}, "size": {"type": "number"}}, "additionalProperties": False},
}  # fmt: skip
FILES = {
    "tools.py": "from agentfarm_sdk import tool\n\n\n@tool\ndef pay(to: str, size: float = 0) -> str:\n    return to\n"
}


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, database_url, monkeypatch) as running:
        yield running


async def with_tool(farm: Service, **rules: Any) -> None:
    draft = {"prompt": "You pay.", "tools": [{**PAY, **rules}]}
    await farm.ok("ann", "POST", "/agents", {"name": "analyst", "draft": draft, "files": FILES})
    await farm.ok("ann", "POST", "/agents/analyst/publish", {})


async def ask_model(farm: Service, claim: dict[str, Any], reply: Any, n: int = 0) -> dict[str, Any]:
    farm.model.script.append(reply)
    body = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": f"r{claim['fence']}-{n}", "n": n}}
    answer = await farm.ok(claim["token"], "POST", "/model/v1/chat/completions", body)
    told: dict[str, Any] = answer["agentfarm"]
    return {**told, "calls": [{"state": "admitted", **call} for call in told.get("calls", [])]}


def shown(farm: Service) -> str:
    """Return what the model was told last of a call."""
    return str([one["content"] for one in farm.model.asked[-1].messages if one["role"] == "tool"][-1])


async def append(farm: Service, claim: dict[str, Any], n: int, kind: str, body: Any, call: str | None = None) -> None:
    events = {"fence": claim["fence"], "n": n, "events": [{"kind": kind, "body": body, "call": call}]}
    await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/events", events)


async def paying(
    farm: Service, to: str = "bob", size: float = 1.0, **task: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Submit a task and let its model ask to pay; return the claim and what became of the call."""
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "pay", **task})
    claim = await farm.claim()
    assert claim
    (call,) = (await ask_model(farm, claim, ("pay", {"to": to, "size": size})))["calls"]
    return claim, call


async def parked(farm: Service, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Let a run wait for an approval with its kernel freed; return claim and inbox item."""
    claim, call = await paying(farm, **options)
    assert call["state"] == "awaiting"
    await append(farm, claim, 1, "run.parked", {"reason": "approval"})
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    return claim, item


async def opened(farm: Service) -> dict[str, Any]:
    """Claim the run again and take it up."""
    claim = await farm.claim(wait=5)
    assert claim
    taken: dict[str, Any] = await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/open", {})
    return {**taken, "token": claim["token"]}


async def kinds(farm: Service, run: str) -> list[str]:
    return [event["kind"] for event in (await farm.ok("ann", "GET", f"/runs/{run}/events"))["items"]]


async def decide(farm: Service, who: str, item: dict[str, Any], decision: str, status: int = 200, **more: Any) -> Any:
    answer = await farm.ask(who, "POST", f"/inbox/{item['inbox_id']}", {"decision": decision, **more})
    assert answer.status_code == status, f"{who} {decision}: {answer.status_code} {answer.text}"
    return answer.json()


async def later(farm: Service, seconds: float) -> None:
    """Let so many seconds pass for what waits, and let the service look."""
    moved = {name: inbox.c[name] - seconds for name in ("due_at", "expires_at")}
    await farm.db.write(lambda tx: tx.execute(inbox.update().values(**moved)) and None)
    await farm.reaper.look()


# -- when a person is asked ----------------------------------------------------------------------------------------


async def test_a_condition_on_the_arguments_asks_a_person_for_large_sizes_alone(farm: Service) -> None:
    await with_tool(farm, approval='size > 100 and to != "treasury"')
    assert (await paying(farm, size=100))[1]["state"] == "admitted"
    assert (await paying(farm, "treasury", size=500))[1]["state"] == "admitted"
    _, call = await paying(farm, size=101)
    assert call["state"] == "awaiting"
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    assert item["detail"]["why"].startswith("its condition holds") and item["detail"]["arguments"]["size"] == 101


async def test_a_rule_that_cannot_be_kept_is_refused_where_the_builder_writes_it(farm: Service) -> None:
    for rules, field, says in (
        ({"approval": "sise > 100"}, "approval", "sise, which is no argument of pay"),
        ({"approval": "size >"}, "approval", "no condition"),
        ({"approvers": 0}, "approvers", "0 approvers"),
        ({"approval_expires": 0.1}, "approval_expires", "0.1 s"),
        ({"escalate_to": "desk"}, "escalate_to", "without a time"),
    ):
        draft = {"prompt": "p", "tools": [{**PAY, **rules}]}
        refused = await farm.ask("ann", "POST", "/agents", {"name": "a", "draft": draft, "files": FILES})
        said = refused.json()
        assert refused.status_code == 422 and f"$.tools[0].{field}" in said["detail"] and says in said["detail"], said
        assert said["hint"]


async def test_drafts_ask_before_each_effect_and_versions_do_not(farm: Service) -> None:
    await with_tool(farm)
    _, call = await paying(farm)
    assert call["state"] == "admitted"
    _, call = await paying(farm, version="draft")
    assert call["state"] == "awaiting"


# -- who decides, and how ------------------------------------------------------------------------------------------


async def test_several_people_must_approve_the_same_arguments_and_their_votes_are_on_record(farm: Service) -> None:
    await with_tool(farm, approval="always", approvers=2)
    for person in ("bob", "cho"):
        await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": person, "rights": "manage"})
    claim, item = await parked(farm)
    first = await decide(farm, "ann", item, "approve", reason="fine")
    assert first["decided_at"] is None and [vote["by"] for vote in first["votes"]] == ["user:ann"]
    assert "have approved" in (await decide(farm, "ann", item, "approve", 409))["detail"]
    await decide(farm, "bob", item, "approve", arguments={"to": "bob", "size": 2})
    assert (await farm.ok("ann", "GET", f"/inbox/{item['inbox_id']}"))["decided_at"] is None, (
        "they mean different calls"
    )
    done = await decide(farm, "chatter", item, "approve", arguments={"to": "bob", "size": 2}, reason="two then")
    assert (done["decision"], done["decided_by"], len(done["votes"])) == ("given", "user:cho", 3)
    await decide(farm, "operator", item, "refuse", 409)
    taken = await opened(farm)
    assert [call["arguments"] for call in taken["calls"]] == [{"to": "bob", "size": 2}]
    events = (await farm.ok("ann", "GET", f"/runs/{claim['run']}/events"))["items"]
    asked = [(event["kind"], event["by"]) for event in events if event["kind"].startswith("approval.")]
    assert asked == [
        ("approval.requested", "gateway"), ("approval.voted", "user:ann"), ("approval.voted", "user:bob"),
        ("approval.voted", "user:cho"), ("approval.given", "user:cho"),
    ]  # fmt: skip
    (given,) = [event for event in events if event["kind"] == "approval.given"]
    assert given["body"]["approvers"] == ["user:bob", "user:cho"]


async def test_one_refusal_refuses_whoever_approved_and_the_model_is_told_the_reason(farm: Service) -> None:
    await with_tool(farm, approval="always", approvers=2)
    _, item = await parked(farm)
    await decide(farm, "ann", item, "approve")
    await decide(farm, "operator", item, "refuse", reason="not to bob")
    taken = await opened(farm)
    assert "calls" not in taken
    await ask_model(farm, taken, "well")
    assert "not to bob" in shown(farm)


async def test_agents_cannot_approve_by_any_route(farm: Service) -> None:
    await with_tool(farm, approval="always")
    claim, call = await paying(farm)
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    for token in ("agent-analyst", "approving-agent", "agent-other", "ann-server", claim["token"]):
        for decision in ("approve", "refuse", "happened", "not_happened", "give_up", "answer"):
            assert (
                await farm.ask(token, "POST", f"/inbox/{item['inbox_id']}", {"decision": decision})
            ).status_code == 403
    forged = [
        {"kind": kind, "body": {"decision": "happened", "by": "user:ann"}, "call": call["call"]}
        for kind in ("approval.given", "approval.voted", "tool.started", "tool.resolved", "run.resumed", "run.requeued", "simulation.answered")
    ]  # fmt: skip
    run = f"/runs/{claim['run']}"
    for event in forged:
        body = {"fence": claim["fence"], "n": 1, "events": [event]}
        assert (await farm.ask(claim["token"], "POST", f"{run}/events", body)).status_code == 403, event
        late = await farm.ask(
            claim["token"], "POST", f"{run}/calls/{call['call']}/outcome", {"fence": claim["fence"], "event": event}
        )
        assert late.status_code == 422, late.text
    for kind in ("tool.succeeded", "tool.failed"):  # nor say that it was done before it was allowed
        event = {"kind": kind, "body": {"result": 1}, "call": call["call"]}
        body = {"fence": claim["fence"], "n": 1, "events": [event]}
        assert (await farm.ask(claim["token"], "POST", f"{run}/events", body)).status_code == 409
        late = await farm.ask(
            claim["token"], "POST", f"{run}/calls/{call['call']}/outcome", {"fence": claim["fence"], "event": event}
        )
        assert late.status_code in (403, 409), late.text
    page = {"Cookie": farm.cookie("approving-agent"), "Sec-Fetch-Mode": "cors"}  # nor at a page of the farm
    async with httpx.AsyncClient(base_url=farm.url, headers=page) as browser:
        first = await browser.get("/services/agentfarm/")
        kept = {"Cookie": f"{page['Cookie']}; _xsrf={first.cookies.get('_xsrf')}"}
        xsrf = {"X-XSRFToken": first.text.partition('data-xsrf="')[2].partition('"')[0]}
        path = f"/services/agentfarm/api/v1/inbox/{item['inbox_id']}"
        assert (await browser.post(path, json={"decision": "approve"}, headers={**kept, **xsrf})).status_code in (
            401,
            403,
        )
    url = farm.url.replace("http", "ws") + "/api/v1/worker"
    async with websockets.connect(url, additional_headers={"Authorization": f"token {claim['token']}"}) as socket:
        for op, body in (
            ("decide", {"decision": "approve"}),
            ("append", {"fence": claim["fence"], "n": 1, "events": forged[:1]}),
        ):
            await socket.send(json.dumps({"id": 1, "op": op, "run": claim["run"], "body": body}))
            assert "error" in json.loads(await socket.recv())
    for token in ("agent-analyst", "approving-agent"):  # nor change the rule
        assert (await farm.ask(token, "PATCH", "/agents/analyst", {"draft": {"prompt": "p"}})).status_code == 403
        assert (await farm.ask(token, "POST", "/agents/analyst/publish", {})).status_code == 403
    reopened = await farm.ok(claim["token"], "POST", f"{run}/open", {})
    assert "calls" not in reopened and "approval.given" not in await kinds(farm, claim["run"])
    shown_to_ann = await farm.ok("ann", "GET", f"/inbox/{item['inbox_id']}")
    assert shown_to_ann["decided_at"] is None and shown_to_ann["may_decide"]
    await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": "vic", "rights": "chat"})
    assert (await farm.ok("viewer", "GET", f"/inbox/{item['inbox_id']}"))["may_decide"] is False


# -- time --------------------------------------------------------------------------------------------------------


async def test_an_approval_that_nobody_gives_in_time_expires_and_the_model_is_told_honestly(farm: Service) -> None:
    await with_tool(farm, approval="always", approval_expires=60)
    claim, item = await parked(farm)
    assert item["expires_at"] > item["asked_at"]
    await farm.reaper.look()
    assert (await farm.ok("ann", "GET", f"/inbox/{item['inbox_id']}"))["decided_at"] is None
    await later(farm, 60)
    closed = await farm.ok("ann", "GET", f"/inbox/{item['inbox_id']}")
    assert (closed["decision"], closed["decided_by"]) == ("expired", "service")
    assert "was decided" in (await decide(farm, "ann", item, "approve", 409))["detail"]
    taken = await opened(farm)
    assert "calls" not in taken and "tool.started" not in await kinds(farm, claim["run"])
    await ask_model(farm, taken, "well")
    assert shown(farm) == "Error: this call was not made: nobody approved it within 60 s"


async def test_what_waits_too_long_is_shown_to_a_group_whose_members_may_then_decide(farm: Service) -> None:
    await with_tool(farm, approval="always", escalate_after=30, escalate_to="desk", approval_expires=90)
    claim, item = await parked(farm)
    path = f"/inbox/{item['inbox_id']}"
    assert (await farm.ask("trader", "GET", path)).status_code == 404
    assert (await farm.ok("trader", "GET", "/inbox"))["items"] == []
    assert (await farm.ok("operator", "GET", "/inbox?escalated=true"))["items"] == []
    await later(farm, 30)
    (found,) = (await farm.ok("trader", "GET", "/inbox"))["items"]
    assert found["escalated_at"] and found["escalate_to"] == "desk" and found["expires_at"]
    assert len((await farm.ok("operator", "GET", "/inbox?escalated=true"))["items"]) == 1
    assert (await farm.ask("bob", "GET", path)).status_code == 404
    assert (await decide(farm, "trader", item, "approve"))["decided_by"] == "user:tom"
    await later(farm, 60)
    assert (await kinds(farm, claim["run"]))[-4:] == [
        "run.parked",
        "approval.escalated",
        "approval.given",
        "run.requeued",
    ]


async def test_a_decision_starts_a_parked_run_again_at_once_and_repeats_nothing(farm: Service) -> None:
    await with_tool(farm, approval="size > 100")
    claim, call = await paying(farm, size=1)
    await append(farm, claim, 1, "tool.succeeded", {"result": "paid"}, call["call"])
    assert (await ask_model(farm, claim, ("pay", {"to": "bob", "size": 200}), n=1))["calls"][0]["state"] == "awaiting"
    await append(farm, claim, 2, "run.parked", {"reason": "approval"})
    row = await farm.db.read(lambda c: c.execute(runs.select().where(runs.c.run_id == claim["run"])).mappings().one())
    assert row["lease_until"] is None and row["worker"] is None, "its kernel is free for another run"
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    waiting = asyncio.create_task(opened(farm))
    await farm.listens("analyst")
    began = time.monotonic()
    await decide(farm, "ann", item, "approve")
    taken = await waiting
    assert time.monotonic() - began < 15, "some milliseconds, on a machine that does nothing else"
    assert [(one["call"], one["arguments"]["size"]) for one in taken["calls"]] == [("c1-0", 200)]
    assert (await kinds(farm, claim["run"])).count("tool.started") == 2


# -- in doubt ------------------------------------------------------------------------------------------------------


async def lost(farm: Service, claim: dict[str, Any], dead: str | None) -> None:
    """Let the worker be gone: proven dead by its supervisor, or only silent until its lease has expired."""
    if dead:
        await farm.ok(
            "agent-analyst", "POST", f"/runs/{claim['run']}/heartbeat", {"fence": claim["fence"], "dead": dead}
        )
        return
    await farm.db.write(lambda tx: leases.requeue(tx, claim["run"], claim["fence"], "the lease expired", None))


async def probed(farm: Service, dead: str | None, answer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Lose a worker in the middle of a call, and let the next one ask the tool's probe; return both claims."""
    await with_tool(farm, probe=True)
    first, call = await paying(farm)
    await lost(farm, first, dead)
    assert (await farm.ok("ann", "GET", "/inbox"))["items"] == [], "the probe is asked before a person is"
    taken = await opened(farm)
    assert [(one["state"], one["key"]) for one in taken["calls"]] == [("probe", call["key"])]
    await append(farm, taken, 1, "tool.probed", answer, call["call"])
    return first, taken


async def test_a_probe_that_found_the_effect_gives_the_call_its_result(farm: Service) -> None:
    _, taken = await probed(farm, None, {"answer": "happened", "result": {"id": 7}})
    assert "calls" not in await farm.ok(taken["token"], "POST", f"/runs/{taken['run']}/open", {})
    await ask_model(farm, taken, "Paid.", n=1)
    assert shown(farm) == '{"id":7}' and (await kinds(farm, taken["run"])).count("tool.started") == 1


async def test_a_call_whose_probe_nobody_can_ask_is_left_to_a_person(farm: Service) -> None:
    await with_tool(farm, probe=True)
    claim, _ = await paying(farm)
    await lost(farm, claim, "kernel exited with -9")
    run = await farm.ok("ann", "GET", f"/runs/{claim['run']}")
    await farm.db.write(lambda tx: tasks.fail(tx, tasks.show(tx.connection, run["task_id"]), "unplaceable", "no room"))
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    assert "no room" in item["detail"]["reason"] and item["worker"] == "proven dead: kernel exited with -9"
    task = await farm.ok("ann", "GET", f"/tasks/{run['task_id']}")
    assert (task["status"], task["waiting"]) == ("waiting", "in_doubt")


async def test_a_probe_that_found_nothing_lets_a_call_be_made_again_when_its_worker_is_proven_dead(
    farm: Service,
) -> None:
    first, taken = await probed(farm, "kernel exited with -9", {"answer": "not_happened"})
    (again,) = (await farm.ok(taken["token"], "POST", f"/runs/{taken['run']}/open", {}))["calls"]
    assert again["attempt"] == 2 and again.get("state", "admitted") == "admitted"
    late = {"fence": first["fence"], "event": {"kind": "tool.succeeded", "call": again["call"], "body": {"result": 1}}}
    path = f"/runs/{taken['run']}/calls/{again['call']}/outcome"
    assert (await farm.ask(first["token"], "POST", path, late)).status_code == 403
    await append(farm, taken, 2, "tool.succeeded", {"result": "paid"}, again["call"])


@pytest.mark.parametrize(
    ("dead", "answer", "says"),
    [
        (None, {"answer": "not_happened"}, "only silent"),
        ("kernel exited with -9", {"answer": "unknown", "reason": "the bank is closed"}, "the bank is closed"),
    ],
)
async def test_a_probe_that_cannot_end_the_doubt_leaves_it_to_a_person(
    farm: Service, dead: str | None, answer: Any, says: str
) -> None:
    first, taken = await probed(farm, dead, answer)
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    assert item["kind"] == "in_doubt" and says in item["detail"]["reason"]
    assert item["worker"] == (f"proven dead: {dead}" if dead else "only silent")
    assert (await kinds(farm, taken["run"]))[-2:] == ["tool.probed", "tool.doubted"]
    assert (await farm.ask(taken["token"], "POST", f"/runs/{taken['run']}/open", {})).json()["type"] == "fenced"
    if dead:
        await decide(farm, "ann", item, "not_happened")
        (again,) = (await opened(farm))["calls"]
        assert again.get("state", "admitted") == "admitted" and again["attempt"] == 2, "it is not probed twice"
    else:
        late = {"kind": "tool.succeeded", "call": item["call"], "body": {"result": "paid"}}
        path = f"/runs/{taken['run']}/calls/{item['call']}/outcome"
        await farm.ok(first["token"], "POST", path, {"fence": first["fence"], "event": late})
        closed = await farm.ok("ann", "GET", f"/inbox/{item['inbox_id']}")
        assert closed["decision"] == "succeeded" and "calls" not in await opened(farm)


@pytest.mark.parametrize("claimed", [False, True], ids=["waiting", "held by another"])
async def test_a_worker_that_was_taken_for_dead_tells_what_came_of_its_call_and_that_closes_the_doubt(
    farm: Service, claimed: bool
) -> None:
    await with_tool(farm, probe=claimed)
    claim, call = await paying(farm)
    zombie = FarmLedger(farm.url, claim["run"], claim["fence"], claim["token"])
    await zombie.open()
    await lost(farm, claim, None)
    taken = await opened(farm) if claimed else None
    late = await zombie.append([new_event("tool.succeeded", {"result": "paid"}, call["call"])])
    with pytest.raises(Fenced):
        await late
    await zombie.close()
    recorded = (await farm.ok("ann", "GET", f"/runs/{claim['run']}/events"))["items"]
    told = [(event["by"], event["body"]["result"]) for event in recorded if event["kind"] == "tool.succeeded"]
    assert told == [(f"worker:{claim['fence']}", "paid")]
    assert (await farm.ok("ann", "GET", "/inbox"))["items"] == []
    if taken:  # its probe comes too late to say anything else, and does no harm
        await append(farm, taken, 1, "tool.probed", {"answer": "unknown"}, call["call"])
    taken = taken or await opened(farm)
    await ask_model(farm, taken, "well", n=1 if claimed else 0)
    assert shown(farm) == "paid" and (await kinds(farm, claim["run"])).count("tool.started") == 1


async def test_the_death_of_who_asked_the_probe_proves_nothing_of_who_made_the_call(farm: Service) -> None:
    await with_tool(farm, probe=True)
    first, call = await paying(farm)
    await lost(farm, first, None)
    second = await opened(farm)
    await lost(farm, {**second, "run": first["run"]}, "kernel exited with -9")
    third = await opened(farm)
    assert [one["state"] for one in third["calls"]] == ["probe"]
    await append(farm, third, 1, "tool.probed", {"answer": "not_happened"}, call["call"])
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    assert item["worker"] == "only silent" and "only silent" in item["detail"]["reason"]


@pytest.mark.parametrize("probe", [False, True], ids=["in doubt", "before its probe"])
async def test_a_proof_of_death_that_comes_late_counts_for_the_calls_that_the_worker_left(
    farm: Service, probe: bool
) -> None:
    await with_tool(farm, probe=probe)
    claim, call = await paying(farm)
    await lost(farm, claim, None)
    report = {"fence": claim["fence"], "dead": "kernel exited with -9"}
    for _ in range(2):  # the supervisor had no contact; it says so until it is answered
        answer = await farm.ask("agent-analyst", "POST", f"/runs/{claim['run']}/heartbeat", report)
        assert answer.json()["title"] and answer.status_code == 409
    assert (await kinds(farm, claim["run"])).count("worker.died") == 1
    if not probe:
        (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
        assert item["worker"] == "proven dead: kernel exited with -9"
        await decide(farm, "ann", item, "not_happened", reason="it is not in the bank's list")
        (again,) = (await opened(farm))["calls"]
        assert again["attempt"] == 2
        return
    taken = await opened(farm)
    await append(farm, taken, 1, "tool.probed", {"answer": "not_happened"}, call["call"])
    (again,) = (await farm.ok(taken["token"], "POST", f"/runs/{claim['run']}/open", {}))["calls"]
    assert again["attempt"] == 2


async def test_a_worker_says_of_a_call_only_what_it_may(farm: Service) -> None:
    await with_tool(farm, probe=True)
    claim, call = await paying(farm)
    run = f"/runs/{claim['run']}/events"

    async def refused(kind: str, body: Any, of: dict[str, Any], status: int) -> None:
        events = {"fence": of["fence"], "n": 1, "events": [{"kind": kind, "body": body, "call": call["call"]}]}
        assert (await farm.ask(of["token"], "POST", run, events)).status_code == status

    await refused(
        "tool.probed", {"answer": "happened", "result": 1}, claim, 409
    )  # its own call: it has an outcome or none
    await lost(farm, claim, "kernel exited with -9")
    taken = await opened(farm)
    await refused("tool.succeeded", {"result": 1}, taken, 409)  # it did not make that call
    await refused("tool.probed", {"answer": "perhaps"}, taken, 422)


async def test_a_person_s_three_answers_to_a_doubt_are_recorded_with_name_and_reason(farm: Service) -> None:
    await with_tool(farm)
    for decision, more, status in (
        ("happened", {"result": "paid"}, "queued"), ("not_happened", {"force": True}, "queued"), ("give_up", {}, "failed"),
    ):  # fmt: skip
        claim, _ = await paying(farm)
        await lost(farm, claim, None)
        (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
        assert item["worker"] == "only silent" and item["detail"]["key"] and item["asked_at"]
        if decision == "not_happened":
            assert "only silent" in (await decide(farm, "ann", item, decision, 409))["detail"]
            assert "only silent" in (await decide(farm, "ann", item, decision, 409, reason="surely"))["detail"]
        await decide(farm, "ann", item, "approve", 422)
        done = await decide(farm, "ann", item, decision, reason="the bank says so", **more)
        assert (done["decided_by"], done["reason"]) == ("user:ann", "the bank says so")
        assert (await farm.ok("ann", "GET", f"/runs/{claim['run']}"))["status"] == status
        await farm.ok("ann", "POST", f"/tasks/{(await farm.ok('ann', 'GET', '/tasks'))['items'][0]['task_id']}/cancel", {}) if status != "failed" else None  # fmt: skip


async def test_a_server_that_is_gone_proves_its_worker_dead_and_an_idempotent_call_is_made_again_at_once(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(tmp_path, database_url, monkeypatch, lease=0.2) as farm:
        await with_tool(farm, effect="idempotent", timeout=3000)
        for state, again in ((FleetError("the daemon is away"), False), ({"state": "exited", "exit_code": -9}, True)):
            claim, _ = await paying(farm)

            async def unit(agent: str, state: Any = state) -> Any:
                assert agent == "analyst"
                if isinstance(state, Exception):
                    raise state
                return state

            farm.reaper.unit = unit
            await until(lambda claim=claim: looked(farm, claim["run"]))
            taken = await farm.claim()
            assert (taken is not None) is again, "a silent worker may still be making it, until its timeout"
            (requeued,) = [
                event for event in (await farm.ok("ann", "GET", f"/runs/{claim['run']}/events"))["items"] if event["kind"] == "run.requeued"
            ]  # fmt: skip
            assert requeued["body"]["proof"] == ("its server has ended with exit code -9" if again else None)


async def test_a_dead_server_s_run_goes_on_before_its_lease_has_ended(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(tmp_path, database_url, monkeypatch, lease=1000.0) as farm:
        await with_tool(farm, effect="idempotent", timeout=3000)
        claim, _ = await paying(farm)
        told = {"state": "running"}
        asked: list[str] = []

        async def unit(agent: str) -> Any:
            asked.append(agent)
            return told

        farm.reaper.unit = unit
        await farm.reaper.look()
        assert asked == [], "its lease was renewed a moment ago"
        await farm.db.write(lambda tx: leases.renew(tx, claim["run"], claim["fence"], 400.0))  # as if 600 s had passed
        await farm.reaper.look()
        assert asked == ["analyst"] and (await kinds(farm, claim["run"]))[-1] == "tool.started"
        told |= {"state": "exited", "exit_code": -9}
        monkeypatch.setattr(farm.reaper, "_asked", -1e9)
        await farm.reaper.look()
        assert (await kinds(farm, claim["run"]))[-1] == "run.requeued"
        (again,) = (await opened(farm))["calls"]
        assert again["attempt"] == 2


async def test_a_late_proof_of_death_ends_the_wait_for_an_idempotent_call(farm: Service) -> None:
    await with_tool(farm, effect="idempotent", timeout=3000)
    claim, _ = await paying(farm)
    await lost(farm, claim, None)
    assert await farm.claim() is None, "its silent worker may still be making the call"
    waits = asyncio.create_task(farm.claim(wait=15))
    await farm.listens("analyst")
    report = {"fence": claim["fence"], "dead": "kernel exited with -9"}
    assert (await farm.ask("agent-analyst", "POST", f"/runs/{claim['run']}/heartbeat", report)).status_code == 409
    taken = await waits
    assert taken and taken["run"] == claim["run"]


async def looked(farm: Service, run: str) -> bool:
    await farm.reaper.look()
    return bool((await farm.ok("ann", "GET", f"/runs/{run}"))["status"] == "queued")


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not await true():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.02)
