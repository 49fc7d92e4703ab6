"""What a task may ask for, by SDK and command line against the real service: after, retry, keys, deadlines, threads."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from servicekit import Service, service

from agentfarm_sdk import Farm
from agentfarm_sdk.errors import Cancelled
from agentfarm_sdk.tools.registry import in_thread
from jupyterhub_agentfarm.cli.main import main

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


async def work(farm: Service, kind: str, **body: Any) -> list[str]:
    """Do the agent's next run as a worker would; return the messages that it began with."""
    claim = None
    while claim is None:
        claim = await farm.claim(wait=10)
    opened = await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/open", {})
    sent = {"fence": claim["fence"], "n": 1, "events": [{"kind": kind, "body": body}]}
    await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/events", sent)
    return [event["body"]["content"] for event in opened["events"] if event["kind"] == "message.added"]


async def test_the_sdk_waits_over_retries_and_hands_results_on(farm: Service) -> None:
    api = Farm()
    first = await there(
        api.submit, "analyst", "a", retry={"attempts": 2, "backoff": 0.05}, concurrency_key="k", priority=5
    )
    second = await there(api.submit, "analyst", "b", after=[first], results=True, deadline=60.0, concurrency_key="k")
    assert second.data["waiting"] == "after" and second.data["options"]["after"] == [first.id]
    result = asyncio.create_task(there(first.result))
    await work(farm, "run.failed", error={"type": "unavailable", "message": "away"})
    await work(farm, "run.succeeded", result="four")
    assert await result == "four"
    assert (await work(farm, "run.succeeded", result="done"))[-1] == f"b\n\nResult of {first.id}:\nfour"
    assert await there(second.result) == "done"


async def test_the_command_line_asks_for_all_of_it_and_a_deadline_is_kept_to_the_moment(
    farm: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await there(main, ["task", "submit", "--json", "analyst", "a", "--thread", "new", "--policy", "reject"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (await farm.ok("ann", "GET", f"/threads/{first['thread_id']}"))["policy"] == "reject"
    asked = [
        "--after",
        first["task_id"],
        "--retries",
        "2",
        "--deadline",
        "0.8",
        "--concurrency-key",
        "k",
        "--priority",
        "9",
    ]
    began = time.monotonic()
    assert await there(main, ["task", "submit", "--json", "analyst", "b", *asked]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["options"] == {"after": [first["task_id"]], "retry": {"attempts": 3, "backoff": 5.0, "on": []}}
    assert (told["concurrency_key"], told["priority"]) == ("k", 9)
    task = await there(Farm().task, told["task_id"])
    with pytest.raises(Cancelled, match="deadline"):
        await there(task.result)
    assert time.monotonic() - began > 0.7, "the deadline, and nothing before it"


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"after": ["task-none"]}, 404), ({"results": True}, 422), ({"retry": {"attempts": 1}}, 422),
        ({"concurrency": 0}, 422), ({"deadline": -1}, 422), ({"priority": 101}, 422),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_at_the_door(farm: Service, more: dict[str, Any], status: int) -> None:
    refused = await farm.ask("ann", "POST", "/tasks", {"target": "analyst", "input": "a", **more})
    assert refused.status_code == status and refused.json()["hint"]
    assert (await farm.ok("ann", "GET", "/tasks"))["items"] == []
