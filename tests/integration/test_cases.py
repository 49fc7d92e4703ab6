"""Test cases of agents: saved, tried against the draft and versions, judged; on both databases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from servicekit import Service, service

from agentfarm_sdk.errors import ToolFailed
from agentfarm_sdk.tools import python as walled
from jupyterhub_agentfarm.cli.main import main
from jupyterhub_agentfarm.scheduling import judging
from jupyterhub_agentfarm.scheduling.judging import asserted, compared


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, database_url, monkeypatch) as running:
        yield running


async def answer(farm: Service, result: Any) -> dict[str, Any]:
    """Let the next run of the agent end with that result, without asking a model."""
    claim = await farm.claim()
    assert claim
    sent = {"fence": claim["fence"], "n": 1, "events": [{"kind": "run.succeeded", "body": {"result": result}}]}
    await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/events", sent)
    return claim


async def judged(farm: Service, batch: str) -> dict[str, Any]:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found: dict[str, Any] = await farm.ok("ann", "GET", f"/agents/analyst/cases/runs/{batch}")
        if not any(one["pending"] for one in found["totals"]):
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"no verdict came: {found}")


async def save(farm: Service, name: str, *expect: dict[str, Any], **more: Any) -> dict[str, Any]:
    body = {"name": name, "input": "17*23?", "expect": list(expect), **more}
    made: dict[str, Any] = await farm.ok("ann", "POST", "/agents/analyst/cases", body)
    return made


async def test_cases_are_tried_with_the_draft_beside_the_published_version(farm: Service) -> None:
    await farm.agent()
    await farm.ok("ann", "PATCH", "/agents/analyst", {"draft": {"prompt": "You calculate well."}})
    await save(farm, "a sum", {"kind": "contains", "text": "391"}, {"kind": "exact", "value": "It is 391."})
    begun = await farm.ok("ann", "POST", "/agents/analyst/cases/run", {"versions": [1, "draft"]})
    assert [(one["version"], one["verdict"]) for one in begun["items"]] == [(1, None), ("draft", None)]
    await answer(farm, "It is 390.")
    await answer(farm, "It is 391.")
    found = await judged(farm, begun["batch_id"])
    old, new = found["items"]
    assert (old["verdict"], new["verdict"]) == ("failed", "passed") and new["result"] == "It is 391."
    assert [one["passed"] for one in old["checks"]] == [False, False] and "does not stand in it" in old["checks"][0][
        "why"
    ]
    assert found["totals"] == [
        {"version": 1, "passed": 0, "failed": 1, "errors": 0, "pending": 0},
        {"version": "draft", "passed": 1, "failed": 0, "errors": 0, "pending": 0},
    ]
    (listed,) = (await farm.ok("ann", "GET", "/agents/analyst/cases/runs"))["items"]
    assert listed["batch_id"] == begun["batch_id"] and listed["totals"] == found["totals"]
    task = await farm.ok("ann", "GET", f"/tasks/{new['task_id']}")
    assert task["mode"] == "ask" and task["batch_id"] == begun["batch_id"]
    await farm.ok("ann", "POST", f"/runs/{old['run_id']}/erase", {"reason": "asked for", "all": True})
    again = await farm.ok("ann", "GET", f"/agents/analyst/cases/runs/{begun['batch_id']}")
    first = again["items"][0]
    assert first["verdict"] == "failed" and [one["why"] for one in first["checks"]] == ["", ""], "its words went too"


async def test_a_run_that_is_saved_as_a_case_answers_the_calls_of_those_that_try_it(farm: Service) -> None:
    await farm.agent(tools=["calculator"])
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "What is 17*23?"})
    run = (await answer(farm, "391"))["run"]
    case = await farm.ok(
        "ann", "POST", "/agents/analyst/cases", {"name": "saved", "from_run": run, "expect": [{"kind": "schema", "schema": {"type": "number"}}]}
    )  # fmt: skip
    assert case["input"] == "What is 17*23?" and case["mode"] == "simulate"
    assert case["simulate"] == {"recording": run, "otherwise": "refuse"}
    begun = await farm.ok("ann", "POST", "/agents/analyst/cases/run", {})
    assert (await farm.ok("ann", "GET", f"/tasks/{begun['items'][0]['task_id']}"))["mode"] == "simulate"
    await answer(farm, "not a number")
    assert (await judged(farm, begun["batch_id"]))["items"][0]["verdict"] == "failed"
    path = f"/agents/analyst/cases/{case['case_id']}"
    changed = await farm.ok("ann", "PATCH", path, {"name": "other", "expect": [{"kind": "exact", "value": 1}]})
    assert changed["name"] == "other" and changed["input"] == case["input"]
    await farm.ok("ann", "DELETE", path)
    assert (await farm.ok("ann", "GET", "/agents/analyst/cases"))["items"] == []
    assert (await farm.ask("ann", "POST", "/agents/analyst/cases/run", {})).status_code == 409
    assert len((await farm.ok("ann", "GET", "/agents/analyst/cases/runs"))["items"]) == 1, "what it came to stays"


async def test_a_judging_model_is_asked_in_a_run_of_its_own_that_the_owner_pays(farm: Service) -> None:
    await farm.agent()
    await save(farm, "polite", {"kind": "judge", "question": "Is the answer polite?"})
    begun = await farm.ok("ann", "POST", "/agents/analyst/cases/run", {})
    farm.model.script += ["nonsense", '{"passed": true, "why": "It says please."}']
    await answer(farm, "Please wait.")
    (one,) = (await judged(farm, begun["batch_id"]))["items"]
    (check,) = one["checks"]
    assert one["verdict"] == "passed" and check["why"] == "It says please."
    kinds = [event["kind"] for event in (await farm.ok("ann", "GET", f"/runs/{check['judge_run']}/events"))["items"]]
    assert kinds.count("model.replied") == 2 and kinds[-1] == "run.succeeded"
    assert (await farm.ok("ann", "GET", f"/runs/{check['judge_run']}/verify"))["ok"]
    used = (await farm.ok("ann", "GET", "/usage?by=agent"))["items"]
    assert [(row["agent"], row["requests"]) for row in used] == [("~judge", 2)]
    assert (
        "Please wait." in str(farm.model.asked[0].messages)
        and (await farm.ask("bob", "GET", f"/runs/{check['judge_run']}")).status_code == 404
    )


async def test_a_check_that_breaks_on_a_result_is_an_error_of_its_case_and_the_others_are_judged(
    farm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(check: Any, result: Any) -> tuple[bool, str] | None:
        if check["kind"] == "contains":
            raise RecursionError("too deep")
        return compared(check, result)

    monkeypatch.setattr(judging, "compared", broken)
    await farm.agent()
    await save(farm, "a", {"kind": "contains", "text": "391"})
    await save(farm, "b", {"kind": "exact", "value": "391"})
    begun = await farm.ok("ann", "POST", "/agents/analyst/cases/run", {})
    await answer(farm, "391")
    await answer(farm, "391")
    found = await judged(farm, begun["batch_id"])
    assert [one["verdict"] for one in found["items"]] == ["error", "passed"]
    assert found["items"][0]["checks"][0]["why"] == "the check broke on this result: RecursionError"


async def test_what_cannot_be_checked_is_refused_at_the_door(farm: Service) -> None:
    await farm.agent()
    for check, where in (
        ({"kind": "python", "code": "assert ("}, "$.expect[0].code"),
        ({"kind": "contains"}, "$.expect[0].text"),
        ({"kind": "schema", "schema": {"type": "no such type"}}, "$.expect[0].schema"),
        ({"kind": "oracle"}, "$.expect[0].kind"),
    ):
        refused = await farm.ask("ann", "POST", "/agents/analyst/cases", {"name": "n", "input": "x", "expect": [check]})
        assert refused.status_code == 422 and where in refused.json()["detail"], refused.text
    await save(farm, "n", {"kind": "exact", "value": 1})
    body = {"name": "n", "input": "x", "expect": [{"kind": "exact", "value": 1}]}
    assert (await farm.ask("ann", "POST", "/agents/analyst/cases", body)).status_code == 409, "the name is taken"
    gone = await farm.ask("ann", "POST", "/agents/analyst/cases/run", {"cases": ["case-0"]})
    assert gone.status_code == 404


def test_results_are_compared_by_what_they_say() -> None:
    assert compared({"kind": "exact", "value": {"a": 1}}, {"a": 1}) == (True, "")
    assert compared({"kind": "contains", "text": "YES", "ignore_case": True}, "well, yes") == (True, "")
    assert compared({"kind": "schema", "schema": {"type": "object"}}, '```json\n{"a": 1}\n```') == (True, "")
    assert compared({"kind": "python", "code": ""}, 1) is None


@pytest.mark.skipif(bool(walled.refusal()), reason=f"no process can be walled in here: {walled.refusal()}")
def test_a_python_check_sees_the_result_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTFARM_SECRET", "hidden")
    (tmp_path / "secret").write_text("s")
    assert asserted("assert result['sum'] == 391 and input == 'x'", {"sum": 391}, "x") == (True, "")
    assert asserted("assert len(text) > 99, 'too short: passed'", "short", None) == (False, "too short: passed")
    alone = (
        f"import os\nassert 'AGENTFARM_SECRET' not in os.environ and not os.path.exists({str(tmp_path / 'secret')!r})"
    )
    assert asserted(alone, 1, None) == (True, "")
    with pytest.raises(ToolFailed, match="ZeroDivisionError"):
        asserted("1 / 0", 1, None)
    with pytest.raises(ToolFailed, match="Error"):
        asserted("import socket; socket.create_connection(('127.0.0.1', 1), 2)", 1, None)


async def test_cases_are_kept_and_tried_from_the_command_line(
    farm: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENTFARM_URL", farm.url)
    monkeypatch.setenv("AGENTFARM_TOKEN", "ann")

    async def agentfarm(*argv: str) -> tuple[int, str]:
        code = await asyncio.to_thread(main, ["case", *argv])
        return code, "".join(capsys.readouterr())

    await farm.agent()
    await farm.ok("ann", "PATCH", "/agents/analyst", {"draft": {"prompt": "You calculate well."}})
    added = await agentfarm(
        "add", "analyst", "a sum", "--input", "17*23?", "--contains", "391", "--python", "assert text"
    )
    assert added[0] == 0 and (await agentfarm("add", "analyst", "a sum", "--input", "x", "--exact", "1"))[0] == 2
    assert "contains 391" in (await agentfarm("list", "analyst"))[1]
    trial = asyncio.create_task(agentfarm("run", "analyst", "--version", "1", "--version", "draft", "--case", "a sum"))
    for result in ("It is 390.", "It is 391."):
        while not (claim := await farm.claim(wait=1.0)):
            assert not trial.done(), trial
        sent = {"fence": claim["fence"], "n": 1, "events": [{"kind": "run.succeeded", "body": {"result": result}}]}
        await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/events", sent)
    code, said = await asyncio.wait_for(trial, 60)
    assert code == 1 and "1: 0 passed, 1 failed" in said and "does not stand in it" in said
    assert "draft: 1 passed" in said
    assert (await agentfarm("delete", "analyst", "a sum"))[0] == 0 and (await agentfarm("delete", "analyst", "a sum"))[
        0
    ] != 0
