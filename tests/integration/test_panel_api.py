"""What panel and pages stand on: the stream of all changes, lists that need no request per row, the farm and its people."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from servicekit import FakeMachine, Service, service

from jupyterhub_agentfarm.errors import Transient
from jupyterhub_agentfarm.gateway import proxy
from jupyterhub_agentfarm.gateway.asking import UpstreamError
from jupyterhub_agentfarm.handlers.feed import CASES, FARM

Message = tuple[int | None, str, Any]  # id, event, data


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, database_url, monkeypatch) as running:
        yield running


class Listener:
    """Reads one stream; keeps all that came."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self.lines, self.seen = lines, list[Message]()

    async def until(self, wanted: Callable[[Message], bool]) -> Message:
        async def read() -> Message:
            number: int | None = None
            name = ""
            async for line in self.lines:
                if line.startswith("id: "):
                    number = int(line[4:])
                elif line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    self.seen.append((number, name, json.loads(line[6:])))
                    if wanted(self.seen[-1]):
                        return self.seen[-1]
                    number, name = None, ""
            raise AssertionError("the stream ended")

        try:
            return await asyncio.wait_for(read(), 30)
        except asyncio.TimeoutError:
            raise AssertionError(f"it did not come; seen: {self.seen[-8:]}") from None

    async def of(self, event: str, holds: Callable[[Any], bool] = lambda _: True) -> Any:
        return (await self.until(lambda one: one[1] == event and holds(one[2])))[2]

    @property
    def last(self) -> int:
        return next(number for number, *_ in reversed(self.seen) if number is not None)


@asynccontextmanager
async def listening(farm: Service, token: str, query: str = "?state=true") -> AsyncIterator[Listener]:
    async with farm.client(token) as client, client.stream("GET", f"/events{query}") as answer:
        assert answer.status_code == 200
        yield Listener(answer.aiter_lines())


def row_of(agent: str) -> Callable[[Any], bool]:
    return lambda data: any(one.get("name", one.get("agent")) == agent for one in data["items"])


async def submit(farm: Service, text: str = "x", who: str = "ann", target: str = "analyst", **more: Any) -> str:
    return str((await farm.ok(who, "POST", "/tasks", {"target": target, "input": text, **more}))["task_id"])


async def test_the_stream_carries_the_rows_of_tasks_agents_servers_and_the_inbox(farm: Service) -> None:
    await farm.agent(tools=[{"name": "calculator", "approval": "always"}])
    async with listening(farm, "ann", "?state=true&bodies=false") as ann:
        here = await ann.of("here")
        assert ann.last == here["after"] > 0, "an id to come back with, before anything has happened"
        (row,) = (await ann.of("agents", row_of("analyst")))["items"]
        assert row["edited_by"] == "ann" and row["published"] == 1 and row["rights"] == "owner" and "draft" not in row
        assert (await ann.of("servers"))["items"][0] == {
            "agent": "analyst", "ready": False, "pending": None, "microserver": None, "reasons": "", "why": "",
        }  # fmt: skip
        assert (await ann.of("microservers"))["items"][0]["name"] == "local"
        assert (await ann.of("inbox"))["count"] == 0

        task = await submit(farm)
        created = await ann.of("run.created")
        assert (
            created["task"]["task_id"] == task
            and created["task"]["status"] in ("queued", "assigned")
            and created["agent"] == "analyst"
        )
        assert created["event"]["body"] is None, "?bodies=false"
        claim = await farm.claim()
        assert claim
        farm.model.script.append(("calculator", {"expression": "1+1"}))
        body = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": "r", "n": 0}}
        await farm.ok(claim["token"], "POST", "/model/v1/chat/completions", body)
        await ann.of("inbox", lambda data: data == {"count": 1, "kinds": {"approval": 1}})
        await farm.ok("ann", "POST", "/agents/analyst/start", {})
        await ann.of("servers", lambda data: data["items"][0]["ready"] and data["items"][0]["microserver"] == "local")
        await farm.ok("ann", "PATCH", "/agents/analyst", {"draft": {"prompt": "Another."}})
        await ann.of("agents", lambda data: data["items"][0]["draft_rev"] == 2)
        await farm.ok("ann", "POST", f"/tasks/{task}/cancel", {})
        assert (await ann.of("run.cancel_requested"))["task"]["status"] == "cancelling"
        ended = {"fence": claim["fence"], "n": 1, "events": [{"kind": "run.cancelled", "body": {"reason": "asked to"}}]}
        await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/events", ended)
        await ann.of("inbox", lambda data: data["count"] == 0)
    # what happened while nobody listened is told first, and nothing twice
    last = ann.last
    second = await submit(farm, "second")
    async with listening(farm, "ann", f"?state=true&after={last}") as ann:
        told = await ann.of("run.created")
        assert told["task"]["task_id"] == second and told["event"]["body"]["task"] == second
        assert [number for number, *_ in ann.seen if number is not None] == sorted(
            {n for n, *_ in ann.seen if n is not None}
        )


async def test_the_stream_tells_each_only_what_they_may_see_and_when_that_ends(farm: Service) -> None:
    await farm.agent()
    await farm.agent("other", owner="bob")
    await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": "vic", "rights": "view"})
    async with listening(farm, "viewer") as vic, listening(farm, "bob") as bob, listening(farm, "agent-other") as agent:
        assert [one["name"] for one in (await vic.of("agents"))["items"]] == ["analyst"]
        assert [one["name"] for one in (await agent.of("agents"))["items"]] == ["other"]
        await bob.of("inbox")
        await submit(farm, "secret of ann")
        await vic.of("run.created")
        await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": "vic", "rights": None})
        assert (await vic.of("agents", lambda data: bool(data["gone"])))["gone"] == ["analyst"]
        await submit(farm, "of bob", "bob", "other")
        assert (await bob.of("run.created"))["agent"] == (await agent.of("run.created"))["agent"] == "other"
    for one in (bob, agent):
        assert "analyst" not in json.dumps(one.seen) and "secret of ann" not in json.dumps(one.seen)


async def test_verdicts_are_told_by_the_stream_to_those_who_see_the_agent(farm: Service) -> None:
    await farm.agent()
    await farm.agent("other", owner="bob")
    case = {"name": "a sum", "input": "17*23?", "expect": [{"kind": "contains", "text": "391"}]}
    await farm.ok("ann", "POST", "/agents/analyst/cases", case)
    async with listening(farm, "ann") as ann, listening(farm, "bob") as bob:
        assert (await ann.of("cases"))["items"] == [] == (await bob.of("cases"))["items"], "nothing waits for a verdict"
        begun = await farm.ok("ann", "POST", "/agents/analyst/cases/run", {"versions": [1, "draft"]})
        (told,) = (await ann.of("cases"))["items"]
        assert (
            told["agent"] == "analyst" and told["batch_id"] == begun["batch_id"] and told["totals"] == begun["totals"]
        )
        for result in ("It is 390.", "It is 391."):
            claim = await farm.claim()
            assert claim
            ended = [{"kind": "run.succeeded", "body": {"result": result}}]
            await farm.ok(
                claim["token"],
                "POST",
                f"/runs/{claim['run']}/events",
                {"fence": claim["fence"], "n": 1, "events": ended},
            )
        done = await ann.of("cases", lambda data: not any(one["pending"] for one in data["items"][0]["totals"]))
        shown = await farm.ok("ann", "GET", f"/agents/analyst/cases/runs/{begun['batch_id']}")
        assert done["items"][0]["totals"] == shown["totals"] and {one["passed"] for one in shown["totals"]} == {0, 1}
        await submit(farm, "x", "bob", "other")
        await bob.of("run.created")
        assert "analyst" not in json.dumps(bob.seen)
    async with listening(farm, "ann") as ann:
        assert (await ann.of("cases"))["items"] == [], "what has been judged is told to nobody anew"


async def test_a_model_that_is_away_is_told_by_the_stream_and_so_is_its_return(
    farm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await farm.agent()
    async with listening(farm, "ann") as ann:
        assert await ann.of("health") == {"status": "ok", "problems": []}
        await submit(farm)
        claim = await farm.claim()
        assert claim

        async def away(*_: Any) -> Any:
            raise UpstreamError("down", "it is away", retry=False)

        monkeypatch.setattr(proxy, "AGAIN_SECONDS", 0.0)
        monkeypatch.setattr(farm.model, "complete", away)
        here, farm.model.models = farm.model.models, away  # type: ignore[method-assign]
        ask = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": "r", "n": 0}}
        refused = await farm.ask(claim["token"], "POST", "/model/v1/chat/completions", ask)
        assert refused.status_code >= 400
        (problem,) = (await farm.ok("ann", "GET", "/health"))["problems"]
        assert "scripted cannot be reached" in problem
        assert await ann.of("health") == {"status": "degraded", "problems": [problem]}
        farm.model.models = here  # type: ignore[method-assign]
        told = await ann.of("health")
        assert told == {"status": "ok", "problems": []}, "it was looked for: nobody may ask it for long"


async def test_the_stream_stands_while_the_database_is_away_and_says_so(
    farm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await farm.agent()
    async with listening(farm, "ann") as ann:
        await ann.of("cases")
        read = farm.parts.db.read

        async def away(fn: Any) -> Any:
            raise Transient("the database is away", hint="it is tried again")

        monkeypatch.setattr(farm.parts.db, "read", away)
        farm.parts.feed.wake(FARM)
        farm.parts.feed.wake(CASES)
        told = await ann.of("health", lambda data: data["status"] == "degraded")
        assert told["problems"] == ["database: the database is away"]
        monkeypatch.setattr(farm.parts.db, "read", read)
        await ann.of("health", lambda data: data["status"] == "ok")
        await submit(farm)
        await ann.of("run.created")


async def test_two_people_who_edit_one_draft_are_shown_both(farm: Service) -> None:
    await farm.agent()
    await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": "mia", "rights": "manage"})
    etag = (await farm.ask("ann", "GET", "/agents/analyst")).headers["ETag"]
    await farm.ok("manager", "PATCH", "/agents/analyst", {"draft": {"prompt": "Mia's."}}, **{"If-Match": etag})
    refused = await farm.ask("ann", "PATCH", "/agents/analyst", {"draft": {"prompt": "Ann's."}}, **{"If-Match": etag})
    said = refused.json()
    assert refused.status_code == 409 and said["draft"]["prompt"] == "Mia's." and said["draft_rev"] == 2
    assert said["edited_by"] == "mia" and said["edited_at"].endswith("Z")
    now = await farm.ok("ann", "PATCH", "/agents/analyst", {"draft": {"prompt": "Both's."}}, **{"If-Match": '"2"'})
    assert now["edited_by"] == "ann" and now["draft"]["prompt"] == "Both's."


async def test_a_list_of_agents_says_of_each_how_its_server_is(farm: Service) -> None:
    await farm.agent()
    await farm.agent("second")
    await farm.ok("ann", "POST", "/agents/second/start", {})
    asked = len(farm.hub.asked)
    rows = {one["name"]: one["server"] for one in (await farm.ok("ann", "GET", "/agents"))["items"]}
    assert rows["second"] == {"ready": True, "pending": None, "microserver": "local", "reasons": "", "why": ""}
    assert not rows["analyst"]["ready"] and rows["analyst"]["microserver"] is None
    assert [path for _, path, _ in farm.hub.asked[asked:]] == ["users"], "one question for all of them"
    (local,) = (await farm.ok("ann", "GET", "/microservers"))["items"]
    assert local["agents"] == ["second"] and local["verbs"] == [] and local["drain"] is None
    assert (await farm.ok("bob", "GET", "/microservers/local"))["agents"] == [], "others' agents are not named"


async def test_how_one_signs_in_at_a_microserver_is_told_to_operators_alone(farm: Service) -> None:
    farm.fleet.machines["micro1"] = FakeMachine(ssh="root@10.0.0.11", login="admin@10.0.0.11")
    shown = await farm.ok("operator", "GET", "/microservers/micro1")
    assert (shown["ssh"], shown["login"]) == ("root@10.0.0.11", "admin@10.0.0.11")
    async with listening(farm, "ann") as ann:
        told = await ann.of("microservers", row_of("micro1"))
    told["items"] += (await farm.ok("ann", "GET", "/microservers"))["items"]
    told["items"].append(await farm.ok("ann", "GET", "/microservers/micro1"))
    assert "10.0.0.11" not in str(told) and str(told).count("micro1") >= 3


async def test_operators_cordon_a_microserver_and_the_farm_s_chain_says_who_and_why(farm: Service) -> None:
    assert (await farm.ask("ann", "POST", "/microservers/local/cordon", {})).status_code == 403
    assert (await farm.ask("operator", "POST", "/microservers/nowhere/cordon", {})).status_code == 404
    now = await farm.ok("operator", "POST", "/microservers/local/cordon", {"reason": "a new disk"})
    assert now["state"] == "cordoned" and now["verbs"] == ["uncordon", "drain"]
    assert (await farm.ok("operator", "POST", "/microservers/local/uncordon", {}))["state"] == "ready"
    told = (await farm.ok("operator", "GET", "/runs/farm/events?limit=1000"))["items"]
    first = next(one for one in told if one["kind"] == "microserver.cordoned")
    assert first["by"] == "user:root" and first["body"] == {"microserver": "local", "reason": "a new disk"}
    await farm.agent()
    task = await submit(farm)
    why = await farm.ok("ann", "GET", f"/placements/explain?task={task}")
    assert why["agent"] == "analyst" and why["reasons"] == {"local": None} and why["feasible"] == "now"
    assert (await farm.ask("bob", "GET", f"/placements/explain?task={task}")).status_code == 404


async def test_tasks_are_narrowed_counted_and_found_by_their_text(farm: Service) -> None:
    await farm.agent()
    await farm.agent("other", owner="bob")
    first = await submit(farm, "Invoice 50%_A of Miller")
    second = await submit(farm, "Invoice 500A of Smith")
    await submit(farm, "Invoice of bob", "bob", "other")
    await farm.ok("ann", "POST", f"/tasks/{second}/cancel", {})

    async def found(query: str, who: str = "ann") -> list[str]:
        return [one["task_id"] for one in (await farm.ok(who, "GET", f"/tasks?{query}"))["items"]]

    assert await found("text=50%25_A") == [first], "what means something to SQL means itself here"
    assert await found("status=cancelled,failed") == [second] and await found("since=2999-01-01") == []
    assert len(await found("text=Invoice&until=2999-01-01T00:00:00Z", "operator")) == 3
    assert await found("owner=bob") == [] and len(await found("owner=bob", "operator")) == 1
    counts = await farm.ok("ann", "GET", "/tasks/counts?agent=analyst")
    assert counts["total"] == 2 and counts["counts"]["cancelled"] == 1, "the other one waits for a server"
    assert (await farm.ok("operator", "GET", "/tasks/counts"))["total"] == 3
    wrong = await farm.ask("ann", "GET", "/tasks?status=done")
    assert wrong.status_code == 422 and "queued" in wrong.json()["hint"]
    assert (await farm.ask("ann", "GET", "/tasks?since=yesterday")).status_code == 422
    runs = await farm.ok("ann", "GET", "/runs?limit=1")
    more = await farm.ok("ann", "GET", f"/runs?limit=5&cursor={runs['next']}")
    assert [one["task_id"] for one in (*runs["items"], *more["items"])] == [second, first]
    assert [one["task_id"] for one in (await farm.ok("ann", "GET", f"/runs?task={first}"))["items"]] == [first]


async def test_people_and_rights_are_shown_to_those_whom_they_concern(farm: Service) -> None:
    await farm.agent()
    await farm.agent("other", owner="bob")
    await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": "vic", "rights": "view"})

    async def people(who: str) -> dict[str, list[tuple[str, str]]]:
        items = (await farm.ok(who, "GET", "/people"))["items"]
        return {one["person"]: [(a["agent"], a["rights"]) for a in one["agents"]] for one in items}

    assert await people("ann") == {"ann": [("analyst", "owner")], "vic": [("analyst", "view")]}
    assert await people("viewer") == {"ann": [("analyst", "owner")], "vic": [("analyst", "view")]}
    assert await people("bob") == {"bob": [("other", "owner")]}
    assert set(await people("operator")) == {"ann", "bob", "root", "vic"}


async def test_each_template_makes_an_agent_that_can_be_published(farm: Service) -> None:
    items = (await farm.ok("ann", "GET", "/templates"))["items"]
    assert {"analyst", "assistant", "data-analyst"} <= {one["name"] for one in items}
    for one in items:
        name = f"my-{one['name']}"
        made = await farm.ok("ann", "POST", "/agents", {"name": name, "draft": one["definition"]})
        assert [tool["name"] for tool in made["draft"].get("tools", [])] == [
            t["name"] for t in one["definition"].get("tools", [])
        ]
        assert made["draft"]["prompt"] == one["definition"]["prompt"] and one["title"] and one["tasks"]
        assert (await farm.ok("ann", "POST", f"/agents/{name}/publish", {}))["number"] == 1
