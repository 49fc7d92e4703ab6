"""A run step by step, and the requests behind its replies, held against the recorded digests: on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from servicekit import Service, service


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, database_url, monkeypatch) as running:
        yield running


async def ask(farm: Service, claim: dict[str, Any], request: str, n: int, **more: Any) -> Any:
    body = {"run": claim["run"], "fence": claim["fence"], "request": request, "n": n, **more}
    return await farm.ok(claim["token"], "POST", "/model/v1/chat/completions", {"agentfarm": body})


async def append(farm: Service, claim: dict[str, Any], n: int, kind: str, body: Any, call: str | None = None) -> None:
    event = {"kind": kind, "body": body, **({"call": call} if call else {})}
    sent = {"fence": claim["fence"], "n": n, "events": [event]}
    await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/events", sent)


async def worked(farm: Service, text: str = "17*23?", **more: Any) -> dict[str, Any]:
    """Let a run make one call and answer."""
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": text, **more})
    claim = await farm.claim()
    assert claim
    farm.model.script += [("calculator", {"expression": "17*23"}), "It is 391."]
    await ask(farm, claim, "r0", 0)
    await append(farm, claim, 1, "tool.succeeded", {"result": 391}, "c0-0")
    await ask(farm, claim, "r1", 1)
    await append(farm, claim, 2, "run.succeeded", {"result": "It is 391."})
    return claim


async def test_each_step_says_what_it_cost_and_the_request_behind_it_is_the_one_that_was_sent(farm: Service) -> None:
    await farm.agent(tools=["calculator"], model={"parameters": {"temperature": 0}})
    run = (await worked(farm))["run"]
    found = await farm.ok("ann", "GET", f"/runs/{run}/steps")
    first, second = found["items"]
    assert (first["step"], second["step"], found["next"]) == (0, 1, None)
    (call,) = first["calls"]
    assert (call["tool"], call["state"], call["attempts"]) == ("calculator", "succeeded", 1) and call["seconds"] >= 0
    assert (first["input"], first["output"], first["attested"], first["attempts"]) == (3, 2, True, 1)
    assert found["totals"]["steps"] == 2 and found["totals"]["input"] == 6 and second["calls"] == []
    assert [one["step"] for one in (await farm.ok("ann", "GET", f"/runs/{run}/steps?after=0"))["items"]] == [1]
    page = await farm.ok("ann", "GET", f"/runs/{run}/steps?limit=1")
    assert (len(page["items"]), page["next"]) == (1, 0)

    for step, sent in zip(found["items"], farm.model.asked, strict=True):
        shown = await farm.ok("ann", "GET", f"/runs/{run}/requests/{step['asked_seq']}")
        assert (
            shown["messages"] == sent.messages[: len(shown["messages"])]
            and shown["matches"] is True
            and shown["why"] == ""
        )
        assert shown["parameters"] == {"temperature": 0} and shown["tools"][0]["name"] == "calculator"
    assert [one["role"] for one in shown["messages"]] == ["system", "user", "assistant", "tool"]
    assert (await farm.ask("ann", "GET", f"/runs/{run}/requests/{second['seq']}")).status_code == 404
    assert (await farm.ask("bob", "GET", f"/runs/{run}/requests/{first['asked_seq']}")).status_code == 404

    await farm.ok("ann", "POST", f"/runs/{run}/erase", {"reason": "asked for", "kinds": ["message.added"]})
    gone = await farm.ok("ann", "GET", f"/runs/{run}/requests/{first['asked_seq']}")
    assert gone["matches"] is None and "erased" in gone["why"] and "17*23" not in str(gone["messages"])


async def test_the_request_of_a_thread_s_second_message_holds_what_was_said_before(farm: Service) -> None:
    await farm.agent(tools=["calculator"])
    thread = (await farm.ok("ann", "POST", "/threads", {"agent": "analyst"}))["thread_id"]
    await worked(farm, thread_id=thread)
    run = (await worked(farm, "And again?", thread_id=thread))["run"]
    (first, *_) = (await farm.ok("ann", "GET", f"/runs/{run}/steps"))["items"]
    shown = await farm.ok("ann", "GET", f"/runs/{run}/requests/{first['asked_seq']}")
    assert shown["matches"] is True and [one["content"] for one in shown["messages"] if one["role"] == "user"] == [
        "17*23?",
        "And again?",
    ]


async def test_messages_of_a_worker_s_own_are_told_from_those_of_the_ledger(farm: Service) -> None:
    await farm.agent()
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "x"})
    claim = await farm.claim()
    assert claim
    farm.model.script.append("Hm.")
    await ask(farm, claim, "r0", 0, messages=[{"role": "user", "content": "something else"}])
    (step,) = (await farm.ok("ann", "GET", f"/runs/{claim['run']}/steps"))["items"]
    shown = await farm.ok("ann", "GET", f"/runs/{claim['run']}/requests/{step['asked_seq']}")
    assert shown["matches"] is False and "messages of its own" in shown["why"]


async def test_a_draft_is_previewed_with_its_variables_and_an_estimate_before_it_is_saved(farm: Service) -> None:
    definition = {
        "prompt": "You help {{person}} with {{topic}} in {{place}}.",
        "variables": {"person": "Ann"},
        "tools": ["calculator"],
    }
    body = {"definition": definition, "input": {"topic": "sums"}}
    shown = await farm.ok("ann", "POST", "/preview", body)
    assert (
        shown["prompt"] == "You help Ann with sums in {{place}}."
        and shown["missing"] == ["place"]
        and shown["estimated"] is True
    )
    assert [(one["name"], one["source"]) for one in shown["variables"]] == [
        ("person", "default"),
        ("topic", "input"),
        ("place", None),
    ]
    tokens = shown["tokens"]
    assert tokens["total"] == tokens["prompt"] + tokens["input"] + tokens["tools"] and min(tokens.values()) > 0
    farm.model.holds = 4096
    full = await farm.ok("ann", "POST", "/preview", {**body, "variables": {"place": "Bonn", "person": "Bob"}})
    assert full["prompt"] == "You help Bob with sums in Bonn." and full["context"] == 4096 and full["missing"] == []
    wrong = await farm.ask("ann", "POST", "/preview", {"definition": {"prompt": "p", "tools": ["no_such_tool"]}})
    assert wrong.status_code == 422 and "$.tools[0]" in wrong.json()["detail"]
