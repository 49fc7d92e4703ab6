"""Batches by the front door: thousands of tasks, results in order or as they come, over a client that dies in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from servicekit import Service, service

from agentfarm_sdk import Farm
from agentfarm_sdk.errors import AgentFarmError, Cancelled
from agentfarm_sdk.protocol import new_event
from agentfarm_sdk.tools.registry import in_thread
from jupyterhub_agentfarm.cli.main import main
from jupyterhub_agentfarm.store import leases, ledger
from jupyterhub_agentfarm.store.db import Tx

T = TypeVar("T")


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.delenv("AGENTFARM_SOCKET", raising=False)
    async with service(tmp_path, database_url, monkeypatch) as farm:
        monkeypatch.setenv("AGENTFARM_URL", farm.url)
        monkeypatch.setenv("AGENTFARM_TOKEN", "ann")
        await farm.agent()
        yield farm


async def there(fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call what blocks in another thread: the service is in this one."""
    return await asyncio.wait_for(in_thread(lambda: fn(*args, **kwargs)), 60)  # type: ignore[no-any-return]


async def worked(
    farm: Service, count: int, outcome: Callable[[str], Any] = str.upper, agent: str = "analyst"
) -> list[str]:
    """Do the agent's next runs in the store, as workers would: succeed with what `outcome` makes of the input, or fail."""

    def one(tx: Tx) -> str | None:
        run = leases.claim(tx, agent, "w", f"b{next(farm.counter)}", 30.0)
        if run is None:
            return None
        said = [e.data()["content"] for e in ledger.read_events(tx.connection, run.run_id) if e.kind == "message.added"]
        made = outcome(said[-1])
        error = {"error": {"type": "limit-reached", "message": "too long"}}
        end = new_event("run.failed", error) if made is None else new_event("run.succeeded", {"result": made})
        ledger.record(tx, run.run_id, "service", [end])
        return said[-1]

    done: list[str] = []
    deadline = asyncio.get_running_loop().time() + 40
    while len(done) < count:
        assert asyncio.get_running_loop().time() < deadline, f"{len(done)} of {count} came"
        found = await asyncio.gather(*(farm.db.write(one) for _ in range(min(50, count - len(done)))))
        done += [given for given in found if given is not None]
    return done


async def test_results_come_in_order_or_as_they_end_and_errors_where_they_belong(farm: Service) -> None:
    inputs = [f"n{number}" for number in range(300)]
    batch = await there(Farm().submit_many, "analyst", inputs, key="sums", priority=3)
    assert (await there(batch.progress))["tasks"] == 300
    reading = asyncio.create_task(there(lambda: list(batch.results())))
    told = asyncio.create_task(there(lambda: list(batch.results(ordered=False))))
    order = await worked(farm, 300, lambda given: None if given == "n7" else given.upper())
    results = await reading
    assert [result.place for result in results] == list(range(300)) and results[5].value == "N5"
    assert results[7].error is not None and "too long" in results[7].error.detail
    assert [f"n{result.place}" for result in await told] == order
    again = await there(lambda: list(Farm().map("analyst", inputs, key="sums", priority=3, errors="return")))
    assert again[8] == "N8" and isinstance(again[7], AgentFarmError)
    assert (await there(batch.progress))["counts"] == {"succeeded": 299, "failed": 1}
    with pytest.raises(AgentFarmError, match="too long"):
        await there(lambda: list(Farm().map("analyst", inputs, key="sums", priority=3)))


@pytest.mark.parametrize("order", ["input", "completion"])
async def test_a_stream_of_results_goes_on_behind_its_last_id(farm: Service, order: str) -> None:
    batch = await there(Farm().submit_many, "analyst", ["a", "b", "c", "d"])
    await worked(farm, 3)
    path = f"/batches/{batch.id}/results?order={order}"
    async with farm.client("ann", Accept="text/event-stream") as client:
        seen: list[tuple[int, Any]] = []

        async def read(count: int, **headers: str) -> None:
            async with client.stream("GET", path, headers=headers) as answer:
                number = 0
                async for line in answer.aiter_lines():
                    if line.startswith("id: "):
                        number = int(line[4:])
                    elif line.startswith("data: "):
                        seen.append((number, json.loads(line[6:])["result"]))
                        count -= 1
                        if not count:
                            return

        await read(2)
        rest = asyncio.create_task(read(99, **{"Last-Event-ID": str(seen[-1][0])}))
        await worked(farm, 1)
        await asyncio.wait_for(rest, 10)
    assert seen == [(1, "A"), (2, "B"), (3, "C"), (4, "D")]


_CLIENT = """
from agentfarm_sdk import Farm
for value in Farm().map("analyst", [f"n{n}" for n in range(500)], key="many"):
    print(value, flush=True)
"""


async def test_a_client_killed_in_the_middle_asks_again_and_nothing_is_done_twice(farm: Service) -> None:
    environment = {**os.environ, "AGENTFARM_URL": farm.url, "AGENTFARM_TOKEN": "ann"}

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", _CLIENT], env=environment, stdout=subprocess.PIPE, text=True)

    first = begin()  # killed while it submits
    for _ in range(2000):
        if (await farm.ok("ann", "GET", "/tasks"))["items"]:
            break
        await asyncio.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = begin()  # killed while it reads
    done = await worked(farm, 300)
    assert second.stdout
    assert await there(second.stdout.readline) == "N0\n"
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    third = begin()
    done += await worked(farm, 200)
    output, _ = await there(third.communicate)
    assert output.split() == [f"N{n}" for n in range(500)] and third.returncode == 0
    assert sorted(done) == sorted(f"n{n}" for n in range(500)), "each was done once"


async def test_a_whole_batch_is_cancelled(farm: Service) -> None:
    batch = await there(Farm().submit_many, "analyst", ["a", "b", "c"])
    await worked(farm, 1)
    told = await there(batch.cancel, "enough")
    assert told["counts"] == {"succeeded": 1, "cancelled": 2}
    results = await there(lambda: list(batch.results()))
    assert [one.status for one in results] == ["succeeded", "cancelled", "cancelled"]
    assert isinstance(results[2].error, Cancelled) and "enough" in results[2].error.detail
    assert (await farm.ask("bob", "GET", f"/batches/{batch.id}")).status_code == 404


async def test_a_key_of_another_batch_and_a_batch_with_one_bad_task_are_refused_whole(farm: Service) -> None:
    good = {"target": "analyst", "input": "a", "key": "k1"}
    one = await farm.ok("ann", "POST", "/tasks", {"tasks": [good], "batch": "first"})
    assert (await farm.ok("ann", "POST", "/tasks", {"tasks": [good], "batch": "first"}))["batch_id"] == one["batch_id"]
    clash = await farm.ask("ann", "POST", "/tasks", {"tasks": [good], "batch": "second"})
    assert clash.status_code == 409 and "outside of batch" in clash.json()["detail"]
    bad = [{**good, "key": "k2"}, {"target": "analyst", "input": "b", "after": ["task-none"]}]
    assert (await farm.ask("ann", "POST", "/tasks", {"tasks": bad, "batch": "third"})).status_code == 404
    assert len((await farm.ok("ann", "GET", "/tasks"))["items"]) == 1


async def test_the_command_line_maps_a_file_and_prints_json_lines(
    farm: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "people.csv").write_text("name,age\nAda,36\nAlan,41\n")
    asked = ["task", "map", "analyst", str(tmp_path / "people.csv"), "--input", "Greet {{name}}.", "--key", "people"]
    mapping = asyncio.create_task(there(main, asked))
    await worked(farm, 2)
    assert await mapping == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["result"] for line in lines] == ["GREET ADA.", "GREET ALAN."] and lines[1]["input"] == "Greet Alan."
    (tmp_path / "bad.jsonl").write_text('"a"\n{\n')
    assert await there(main, ["task", "map", "analyst", str(tmp_path / "bad.jsonl")]) != 0
    assert "line 2" in capsys.readouterr().err
