"""Threads of many tasks: the conversation is made shorter when it nears what the model can take, and never read in full."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa
from servicekit import Service, service

from agentfarm_sdk import compaction
from agentfarm_sdk.protocol import Definition, new_event
from jupyterhub_agentfarm.gateway.asking import UpstreamError
from jupyterhub_agentfarm.gateway.live import load
from jupyterhub_agentfarm.records import new_id
from jupyterhub_agentfarm.store import definitions, ledger, threads
from jupyterhub_agentfarm.store.db import Tx

LONG = "lorem ipsum " * 30
HOLDS = 1024


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, database_url, monkeypatch) as running:
        running.model.holds = HOLDS
        running.model.script = Talk(running.model)
        await running.agent(model={"retry": {"attempts": 1}})
        yield running


class Talk(list[Any]):
    """What the model says: a summary where it is asked for one, else much. `fails`: so many answers are errors instead."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.fails = model, 0
        self.shown: list[list[dict[str, Any]]] = []

    def pop(self, *_: Any) -> str:
        self.shown.append(list(self.model.asked[-1].messages))
        summarises = self.model.asked[-1].messages[0]["content"] == compaction.INSTRUCTION
        if self.fails and not summarises:
            self.fails -= 1
            raise UpstreamError("down", "it is away", retry=True)
        return "SUMMARY" if summarises else LONG


async def talk(farm: Service, thread: str, said: str) -> dict[str, Any]:
    """Send a message, and do its run as a worker would; return the claim."""
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": said, "thread_id": thread})
    claim = await farm.claim(wait=5)
    assert claim
    body = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": "m0", "n": 0}}
    answered = await farm.ask(claim["token"], "POST", "/model/v1/chat/completions", body)
    if answered.status_code == 502:  # asked again, as by the next worker
        answered = await farm.ask(claim["token"], "POST", "/model/v1/chat/completions", body)
    assert answered.status_code == 200, answered.text
    end = [{"kind": "run.succeeded", "body": {"result": "said"}}]
    await farm.ok(
        claim["token"], "POST", f"/runs/{claim['run']}/events", {"fence": claim["fence"], "n": 1, "events": end}
    )
    return claim


async def events(farm: Service, run: str) -> list[dict[str, Any]]:
    return list((await farm.ok("ann", "GET", f"/runs/{run}/events"))["items"])


async def test_a_thread_near_the_model_s_context_goes_on_from_a_summary(farm: Service) -> None:
    thread = (await farm.ok("ann", "POST", "/threads", {"agent": "analyst"}))["thread_id"]
    shortened, talking = 0, cast(Talk, farm.model.script)
    for number in range(9):
        said = f"message {number}: {LONG[:100]}"
        run = (await talk(farm, thread, said))["run"]
        asked = talking.shown[-1]
        assert asked[0] == {"role": "system", "content": "You calculate."} and asked[-1]["content"].endswith(said)
        assert compaction.size(asked) < HOLDS
        kinds = [one["kind"] for one in await events(farm, run)]
        if "context.compacted" in kinds:
            shortened += 1
            place = kinds.index("context.compacted")
            assert kinds[place - 2 : place + 3] == [
                "model.requested", "model.replied", "context.compacted", "model.requested", "model.replied",
            ]  # fmt: skip
            assert "SUMMARY" in asked[1]["content"]
        assert (await farm.ok("ann", "GET", f"/runs/{run}/verify"))["ok"]
    assert 2 <= shortened < 8
    usage = (await farm.ok("ann", "GET", "/usage?by=agent"))["items"][0]["requests"]
    assert usage == 9 + shortened


async def test_a_summary_that_is_recorded_is_not_asked_for_again(farm: Service) -> None:
    """The step behind it fails; whoever asks for that step again finds the conversation short already."""
    thread = (await farm.ok("ann", "POST", "/threads", {"agent": "analyst"}))["thread_id"]
    summaries, talking = 0, cast(Talk, farm.model.script)
    for number in range(5):
        talking.shown.clear()
        talking.fails = 1
        run = (await talk(farm, thread, f"{number} {LONG}"))["run"]
        found = [one for one in talking.shown if one[0]["content"] == compaction.INSTRUCTION]
        assert len(found) == [one["kind"] for one in await events(farm, run)].count("context.compacted") <= 1
        summaries += len(found)
    assert summaries


async def test_a_thread_of_hundreds_of_tasks_is_read_back_to_its_last_summary(farm: Service) -> None:
    thread = (await farm.ok("ann", "POST", "/threads", {"agent": "analyst"}))["thread_id"]
    runs: list[str] = []

    def grow(tx: Tx, several: int, short: bool) -> None:
        held = definitions.put(tx, Definition(prompt="p"))
        for _ in range(several):
            previous = ledger.held(tx, runs[-1]) if runs else None
            said = threads.opening(Definition(prompt="p"), f"say {len(runs)}", {}, previous)
            if short:
                body = {"summary": "all of it", "system": "p", "keep": 1, "replaced": 2, "request": "m0.summary"}
                said.append(new_event("context.compacted", body))
            reply = {"request": "m0", "message": {"role": "assistant", "content": "said"}, "usage": {}}
            runs.append(new_id("run"))
            ledger.create_run(
                tx, run_id=runs[-1], task_id=None, agent="analyst", owner="ann", epoch=farm.db.epoch, definition_hash=held,
                version=None, mode="live", thread_id=thread, events=[new_event("run.created", {}), *said, new_event("model.replied", reply), new_event("run.succeeded", {"result": "said"})],
            )  # fmt: skip

    def messages() -> int:
        return len(farm.db.read_now(lambda c: load(c, runs[-1])).fold.messages)

    await farm.db.write(lambda tx: grow(tx, 400, False))
    assert messages() == 801, "a conversation of hundreds of runs can be read"
    await farm.db.write(lambda tx: grow(tx, 1, True))
    await farm.db.write(lambda tx: grow(tx, 2, False))
    asked: list[str] = []

    def count(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    with farm.db._reader.connect() as connection:
        sa.event.listen(connection, "before_cursor_execute", count)
        found = load(connection, runs[-1]).fold.messages
    assert [one["content"] for one in found] == [
        "p",
        "all of it",
        "say 400",
        "said",
        "say 401",
        "said",
        "say 402",
        "said",
    ]
    assert len(asked) < 8, asked
