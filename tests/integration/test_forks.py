"""What was done, done again: forks at a step, replay against the agent of today, reruns that say what would happen twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from servicekit import Service, service

from agentfarm_sdk import Agent, tool
from agentfarm_sdk.errors import Invalid
from agentfarm_sdk.ledger import FarmLedger
from agentfarm_sdk.protocol import ModelAnswer, ModelRequest, new_event
from agentfarm_sdk.testing import ScriptedModel, calls, says
from agentfarm_sdk.tools.registry import in_thread
from jupyterhub_agentfarm.cli.main import main

NOTE = '@tool(effect="once")\ndef note(text: str) -> str:\n    """Note it."""\n    return text\n'
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.delenv("AGENTFARM_SOCKET", raising=False)
    async with service(tmp_path, database_url, monkeypatch) as farm:
        monkeypatch.setenv("AGENTFARM_URL", farm.url)
        monkeypatch.setenv("AGENTFARM_TOKEN", "ann")
        yield farm


async def cli(*arguments: str) -> int:
    return await asyncio.wait_for(in_thread(lambda: main(list(arguments))), 60)  # type: ignore[no-any-return]


async def worked(farm: Service, script: list[Any], agent: str = "analyst") -> str:
    """Do the agent's next run as a worker would: steps until an answer; return its id."""
    claim = await farm.claim(agent)
    assert claim is not None
    farm.model.script += script
    ledger = FarmLedger(farm.url, claim["run"], claim["fence"], claim["token"])
    await ledger.open()
    for number in range(len(script)):
        request = ModelRequest(run=ledger.run, fence=ledger.fence, request=f"r{number}", n=ledger.n)
        reply = msgspec.json.decode(await ledger.request("model", request), type=ModelAnswer)
        for call in reply.calls:
            await ledger.append([new_event("tool.succeeded", {"result": "391"}, call.call)])
    await ledger.append([new_event("run.succeeded", {"result": script[-1]})])
    await ledger.drain()
    await ledger.close()
    return str(claim["run"])


async def calculated(farm: Service) -> str:
    await farm.agent(tools=[{"name": "calculator", "source": "builtin"}])
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "What is 17*23?"})
    return await worked(farm, [("calculator", {"expression": "17*23"}), "391"])


def shown(farm: Service) -> list[tuple[str, Any]]:
    """Return what the model was shown last; the list is the run's own, and its reply stands behind by now."""
    return [(one["role"], one["content"]) for one in farm.model.asked[-1].messages[:-1]]


# --- forks --------------------------------------------------------------------------------------------------------


async def test_a_fork_begins_behind_a_step_and_the_old_run_stays_as_it_is(farm: Service) -> None:
    run = await calculated(farm)
    before = await farm.ok("ann", "GET", f"/runs/{run}/events")
    task = await farm.ok("ann", "POST", f"/runs/{run}/fork", {"step": 1, "prompt": "You are brief."})
    assert task["mode"] == "ask" and task["input"] == "What is 17*23?"
    forked = await worked(farm, ["It is 391."])
    assert forked == task["run_id"]
    assert shown(farm) == [("system", "You are brief."), ("user", "What is 17*23?"), ("assistant", ""), ("tool", "391")]
    assert [one["step"] for one in (await farm.ok("ann", "GET", f"/runs/{forked}/replay"))["items"]] == [1]
    answer = await farm.ask("ann", "POST", f"/runs/{forked}/fork", {"step": 0})
    assert answer.status_code == 422 and "from 1 to 2" in answer.json()["hint"]
    kinds = [one["kind"] for one in (await farm.ok("ann", "GET", f"/runs/{forked}/events"))["items"]]
    assert kinds[:2] == ["run.created", "run.forked"]
    assert (await farm.ok("ann", "GET", f"/runs/{forked}/verify"))["ok"]
    assert await farm.ok("ann", "GET", f"/runs/{run}/events") == before


async def test_a_fork_may_ask_something_else_from_the_start_and_be_run_again(farm: Service) -> None:
    run = await calculated(farm)
    await farm.ok("ann", "POST", f"/runs/{run}/fork", {"step": 0, "input": "What is 2+2?"})
    forked = await worked(farm, ["4"])
    assert shown(farm) == [("system", "You calculate."), ("user", "What is 2+2?")]
    task = (await farm.ok("ann", "GET", f"/runs/{forked}"))["task_id"]
    await farm.ok("ann", "POST", f"/tasks/{task}/rerun", {})
    await worked(farm, ["4"])
    assert shown(farm) == [("system", "You calculate."), ("user", "What is 2+2?")]
    await farm.ok("ann", "POST", f"/runs/{run}/fork", {"step": 2, "input": "And half of it?"})
    await worked(farm, ["195.5"])
    assert shown(farm)[-2:] == [("assistant", "391"), ("user", "And half of it?")]


async def test_the_steps_of_a_fork_are_counted_on(farm: Service) -> None:
    await farm.agent(tools=[{"name": "calculator", "source": "builtin"}], tool_choice=["required", "none"])
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "What is 17*23?"})
    run = await worked(farm, [("calculator", {"expression": "17*23"}), "391"])
    await farm.ok("ann", "POST", f"/runs/{run}/fork", {"step": 1})
    await worked(farm, ["It is 391."])
    assert farm.model.asked[-1].tool_choice == "none"


async def test_a_fork_of_a_step_that_is_not_there_is_refused(farm: Service) -> None:
    run = await calculated(farm)
    answer = await farm.ask("ann", "POST", f"/runs/{run}/fork", {"step": 7})
    assert answer.status_code == 422 and "from 0 to 2" in answer.json()["hint"]
    assert (await farm.ask("ann", "POST", "/runs/farm/fork", {"step": 0})).status_code == 404


async def test_a_notebooks_own_run_is_forked_in_its_kernel(farm: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    farm.model.script += ["one", "two"]

    def work() -> tuple[Any, Any]:
        first = Agent("draft", prompt="Count.", model="scripted").run("go")
        return first.result, first.fork(0, prompt="Count on.").result

    assert await asyncio.wait_for(in_thread(work), 60) == ("one", "two")
    assert shown(farm) == [("system", "Count on."), ("user", "go")]


def test_a_run_outside_a_farm_is_forked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGENTFARM_URL", "AGENTFARM_SOCKET"):
        monkeypatch.delenv(name, raising=False)

    @tool(effect="read")
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    model = ScriptedModel(calls("add", a=1, b=2), says("3"))
    run = Agent("adder", prompt="Add.", tools=[add], model=model, ledger=tmp_path / "l.sqlite").run("1+2")
    assert run.result == "3" and run.fork(1, prompt="In words.").result == "3"
    assert [one["role"] for one in model.shown[-1]] == ["system", "user", "assistant", "tool"]
    assert model.shown[-1][0]["content"] == "In words."
    again = run.fork(0, input="2+2")
    assert again.result == "3" and again.verify()["ok"] and model.shown[-2][-1]["content"] == "2+2"
    with pytest.raises(Invalid, match="step"):
        run.fork(9)


# --- replay, rerun ------------------------------------------------------------------------------------------------


async def test_a_replay_shows_the_first_difference_to_the_agent_of_today(
    farm: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    run = await calculated(farm)
    assert await cli("run", "replay", run) == 0
    assert "2 steps, 1 calls made again" in capsys.readouterr().out
    replies = (await farm.ok("ann", "GET", f"/runs/{run}/replay"))["items"]
    assert [one["step"] for one in replies] == [0, 1] and replies[1]["message"]["content"] == "391"
    agent = await farm.ok("ann", "GET", "/agents/analyst")
    draft = {**agent["draft"], "prompt": "You calculate slowly."}
    await farm.ok("ann", "PATCH", "/agents/analyst", {"draft": draft})
    assert await cli("run", "replay", run, "--version", "draft") == 1
    told = capsys.readouterr().out
    assert '-"You calculate."' in told and '+"You calculate slowly."' in told
    assert await cli("run", "replay", run, "--version", "x") == 2


async def test_a_rerun_says_what_would_happen_twice_and_does_it_only_then(
    farm: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"name": "analyst", "draft": {"prompt": "Note.", "tools": [{"name": "note", "source": "file:note.py", "schema": SCHEMA}]}, "files": {"note.py": "from agentfarm_sdk import tool\n" + NOTE}}  # fmt: skip
    await farm.ok("ann", "POST", "/agents", made)
    await farm.ok("ann", "POST", "/agents/analyst/publish", {})
    task = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "note it"})
    run = await worked(farm, [("note", {"text": "x"}), "noted"])
    assert [one["tool"] for one in (await farm.ok("ann", "GET", f"/runs/{run}/effects"))["items"]] == ["note"]
    refused = await farm.ask("ann", "POST", f"/tasks/{task['task_id']}/rerun", {})
    assert refused.status_code == 409 and refused.json()["effects"][0]["tool"] == "note"
    assert await cli("task", "rerun", task["task_id"]) == 2 and "note" in capsys.readouterr().out
    assert await cli("task", "rerun", task["task_id"], "--yes") == 0
    assert (await farm.claim()) is not None
