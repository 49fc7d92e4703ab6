"""The service by its front door: agents, tasks, runs, streams, the worker's messages; and what it refuses."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any

import httpx
import pytest
import websockets
from servicekit import Service, service

from agentfarm_sdk.protocol import MAX_APPEND_BYTES
from jupyterhub_agentfarm import runtokens
from jupyterhub_agentfarm.handlers import worker as sockets
from jupyterhub_agentfarm.scheduling import scheduler


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, database_url, monkeypatch) as running:
        yield running


def worker(claim: dict[str, Any]) -> str:
    return str(claim["token"])


async def append(farm: Service, claim: dict[str, Any], n: int, *events: dict[str, Any]) -> httpx.Response:
    body = {"fence": claim["fence"], "n": n, "events": list(events)}
    return await farm.ask(claim["token"], "POST", f"/runs/{claim['run']}/events", body)


async def run_to_its_end(farm: Service, task_input: str = "What is 2+2?") -> tuple[dict[str, Any], dict[str, Any]]:
    """Submit, claim, ask the model once, succeed."""
    task = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": task_input})
    claim = await farm.claim()
    assert claim
    farm.model.script.append("It is 4.")
    body = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": "r0", "n": 0}}
    answer = await farm.ok(claim["token"], "POST", "/model/v1/chat/completions", body)
    said = answer["choices"][0]["message"]["content"]
    done = await append(farm, claim, 1, {"kind": "run.succeeded", "body": {"result": said}})
    assert done.status_code == 200, done.text
    return task, claim


async def read_sse(client: httpx.AsyncClient, path: str, count: int, **headers: str) -> list[tuple[int, str, Any]]:
    """Return `count` events of the ledger from a stream, or all until it ends."""
    found: list[tuple[int, str, Any]] = []
    async with client.stream("GET", path, headers={"Accept": "text/event-stream", **headers}) as answer:
        assert answer.status_code == 200, await answer.aread()
        number, name = 0, ""
        async for line in answer.aiter_lines():
            if line.startswith("id: "):
                number = int(line[4:])
            elif line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                if "." not in name:  # how things are, told beside the events
                    continue
                found.append((number, name, json.loads(line[6:])))
                if len(found) == count:
                    break
    return found


# -- a task, from asking to its result -----------------------------------------------------------------------------


async def test_a_task_is_claimed_worked_on_and_its_result_read_back(farm: Service) -> None:
    await farm.agent()
    task, claim = await run_to_its_end(farm)
    ended = await farm.ok("ann", "GET", f"/tasks/{task['task_id']}")
    assert (ended["status"], ended["result"], ended["run_id"]) == ("succeeded", "It is 4.", claim["run"])
    events = (await farm.ok("ann", "GET", f"/runs/{claim['run']}/events"))["items"]
    kinds = [event["kind"] for event in events]
    assert kinds[:3] == ["run.created", "message.added", "message.added"] and kinds[-2:] == [
        "model.replied",
        "run.succeeded",
    ]
    assert (await farm.ok("ann", "GET", f"/runs/{claim['run']}/verify"))["ok"] is True
    used = (await farm.ok("ann", "GET", "/usage"))["items"]
    assert [(one["agent"], one["tokens_out"]) for one in used] == [("analyst", 2)]


async def test_a_waiting_supervisor_gets_a_run_at_its_commit(farm: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "LOOK_SECONDS", 3600.0)  # nobody looks around by himself
    await farm.agent()
    waiting = asyncio.create_task(farm.claim(wait=20))
    await farm.listens("analyst")
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "now"})
    assert await waiting
    assert not farm.hub.running, "a server whose supervisor listens is not started"


async def test_a_run_is_leased_in_the_transaction_that_creates_it_where_a_supervisor_listens(farm: Service) -> None:
    await farm.agent()
    waiting = asyncio.create_task(farm.claim(wait=20))
    await farm.listens("analyst")
    await farm.db.write(lambda tx: None)  # its first look is through, and found nothing
    refused = await farm.ask("ann", "POST", "/tasks", {"target": "analyst", "input": "now", "thread_id": "none"})
    assert refused.status_code == 404 and not waiting.done()
    task = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "now"})
    claim = await waiting
    assert claim and claim["run"] == task["run_id"]
    events = (await farm.ok("ann", "GET", f"/runs/{claim['run']}/events"))["items"]
    moments = {event["kind"]: event["at"] for event in events}
    assert moments["run.leased"] == moments["run.created"], "one transaction, one moment"
    assert (await farm.ok("ann", "GET", f"/tasks/{task['task_id']}"))["status"] == "running"
    assert await farm.claim() is None


async def test_an_agent_nobody_serves_gets_its_server_started(farm: Service) -> None:
    await farm.agent()
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "now"})
    await asyncio.wait_for(farm.hub.started.wait(), 20)
    assert ("POST", "users/agent-analyst/server", {"user_options": {}}) in farm.hub.asked


async def test_a_supervisor_that_came_gives_its_agent_all_its_time_anew(farm: Service) -> None:
    await farm.agent()
    tasks = [await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": text}) for text in "ab"]
    await asyncio.wait_for(farm.hub.started.wait(), 20)
    assert "analyst" in farm.scheduler.attempts
    assert await farm.claim()
    end = time.monotonic() + 20
    while "analyst" in farm.scheduler.attempts:
        assert time.monotonic() < end, "an agent that always has work would fail for an outage long ago"
        farm.scheduler.wake()
        await asyncio.sleep(0.02)
    shown = [await farm.ok("ann", "GET", f"/tasks/{task['task_id']}") for task in tasks]
    assert "queued" in [one["status"] for one in shown], "one waited all the while"


async def test_a_task_whose_server_never_comes_fails_with_the_reasons(farm: Service) -> None:
    farm.hub.refuses_start = "no room"
    farm.scheduler.deadline = 0.0
    await farm.agent()
    await farm.ok("ann", "PUT", "/agents/analyst/resources", {"memory": 1 << 40})
    task = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "now"})
    async with farm.client("ann") as client:
        events = await read_sse(client, f"/runs/{task['run_id']}/events", 100)
    assert events[-1][1] == "run.failed"
    error = (await farm.ok("ann", "GET", f"/tasks/{task['task_id']}"))["error"]
    assert (
        error["type"] == "unplaceable"
        and "no room" in error["message"]
        and "1048576 MiB are asked for" in error["message"]
    )


async def test_a_pool_s_task_goes_to_the_member_that_listens(farm: Service) -> None:
    for name in ("analyst", "other"):
        await farm.ok("ann", "POST", "/agents", {"name": name, "pool": "all", "draft": {"prompt": "p"}})
        await farm.ok("ann", "POST", f"/agents/{name}/publish", {})
    waiting = asyncio.create_task(farm.claim("other", wait=20))
    await farm.listens("other")
    task = await farm.ok("ann", "POST", "/tasks", {"target": "pool:all", "input": "x"})
    claim = await waiting
    assert claim and claim["agent"] == "other"
    assert (await farm.ok("ann", "GET", f"/tasks/{task['task_id']}"))["agent"] == "other"
    refused = await farm.ask("bob", "POST", "/tasks", {"target": "pool:all", "input": "x"})
    assert refused.status_code == 404, "a pool is what its asker may use of it"


async def test_many_tasks_are_all_or_none(farm: Service) -> None:
    await farm.agent()
    good = {"target": "analyst", "input": "a"}
    bad = await farm.ask("ann", "POST", "/tasks", {"tasks": [good, {"target": "nobody", "input": "b"}]})
    assert bad.status_code == 404 and (await farm.ok("ann", "GET", "/tasks"))["items"] == []
    made = await farm.ok("ann", "POST", "/tasks", {"tasks": [good, {**good, "input": "b"}]})
    assert [one["input"] for one in made["items"]] == ["a", "b"]


async def test_a_cancelled_paused_and_resumed_task_says_so(farm: Service) -> None:
    await farm.agent()
    task = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    path = f"/tasks/{task['task_id']}"
    assert (await farm.ok("ann", "POST", f"{path}/pause", {"reason": "lunch"}))["waiting"] == "paused"
    assert await farm.claim() is None
    assert (await farm.ok("ann", "POST", f"{path}/resume", {}))["status"] == "queued"
    assert (await farm.ok("ann", "POST", f"{path}/cancel", {"reason": "enough"}))["status"] == "cancelled"
    again = await farm.ok("ann", "POST", f"{path}/rerun", {})
    assert again["task_id"] != task["task_id"] and again["input"] == "a"


async def test_a_task_past_its_deadline_is_cancelled(farm: Service) -> None:
    await farm.agent()
    body = {"target": "analyst", "input": "a", "deadline": 0.05}
    task = await farm.ok("ann", "POST", "/tasks", body)
    async with farm.client("ann") as client:
        events = await read_sse(client, f"/runs/{task['run_id']}/events", 100)
    assert events[-1][1] == "run.cancelled"


# -- streams -------------------------------------------------------------------------------------------------------


async def test_a_stream_resumes_behind_its_last_id_without_a_gap_and_ends_with_the_run(farm: Service) -> None:
    await farm.agent()
    task = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    async with farm.client("ann") as client:
        first = await read_sse(client, f"/runs/{task['run_id']}/events", 2)
        claim = await farm.claim()
        assert claim
        following = asyncio.create_task(
            read_sse(client, f"/runs/{claim['run']}/events", 100, **{"Last-Event-ID": str(first[-1][0])})
        )
        await append(farm, claim, 1, {"kind": "run.succeeded", "body": {"result": 1}})
        rest = await asyncio.wait_for(following, 10)
    assert [number for number, _, _ in first + rest] == list(range(1, len(first + rest) + 1))
    assert rest[-1][1] == "run.succeeded" and rest[-1][2]["body"] == {"result": 1}


async def test_tokens_reach_a_viewer_and_the_streaming_worker_before_the_admission(farm: Service) -> None:
    await farm.agent()
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    claim = await farm.claim()
    assert claim
    farm.model.script.append("one two")
    async with farm.client("ann") as viewer, farm.client(claim["token"]) as worker_:
        seen: asyncio.Queue[str] = asyncio.Queue()

        async def watch() -> None:
            async with viewer.stream("GET", f"/runs/{claim['run']}/tokens") as answer:
                async for line in answer.aiter_lines():
                    seen.put_nowait(line)

        watching = asyncio.create_task(watch())
        assert (await asyncio.wait_for(seen.get(), 20)).startswith(":")
        request = {"run": claim["run"], "fence": claim["fence"], "request": "r", "n": 0}
        answer = await worker_.post("/model/v1/chat/completions", json={"agentfarm": request, "stream": True})
        lines = [line for line in answer.text.splitlines() if line]
        assert lines[-1] == "data: [DONE]" and lines[-3] == "event: agentfarm.admitted"
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines[:-3] if line.startswith("data: ")]
        assert "".join(delta.get("content", "") for delta in deltas) == "one two "
        told = [await asyncio.wait_for(seen.get(), 20) for _ in range(3)]
        assert any('"content":"one "' in line for line in told)
        watching.cancel()


async def test_the_farm_s_stream_shows_what_its_asker_may_see_and_nothing_else(farm: Service) -> None:
    await farm.agent()
    await farm.agent("other", owner="bob")
    async with farm.client("bob") as bob, farm.client("ann") as ann:
        start = await farm.ok("operator", "GET", "/runs/farm")
        assert start["seq"] > 0
        seen = [asyncio.create_task(read_sse(one, "/events?after=1", 1)) for one in (bob, ann)]
        await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "secret of ann"})
        await farm.ok("bob", "POST", "/tasks", {"target": "other", "input": "of bob"})
        (of_bob,), (of_ann,) = [await asyncio.wait_for(one, 10) for one in seen]
    assert (of_bob[2]["agent"], of_ann[2]["agent"]) == ("other", "analyst")


# -- workers -------------------------------------------------------------------------------------------------------


async def test_a_worker_drives_a_tool_call_over_its_websocket(farm: Service) -> None:
    await farm.agent(tools=["calculator"])
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "17*23?"})
    uri = farm.url.replace("http", "ws") + "/api/v1/worker"
    headers = {"Authorization": "token agent-analyst", "Agentfarm-Protocol": "1"}
    async with websockets.connect(uri, additional_headers=headers) as supervisor:
        (ours,) = farm.parts.workers.open  # without it two small frames wait 40 ms for each other
        for transport in (ours.wire.transport, supervisor.transport):
            assert transport.get_extra_info("socket").getsockopt(IPPROTO_TCP, TCP_NODELAY)
        await supervisor.send(json.dumps({"id": 1, "op": "claim", "body": {"worker": "w", "claim_id": "c", "wait": 5}}))
        claim = json.loads(await supervisor.recv())["ok"]
        own = {"Authorization": f"token {claim['token']}"}
        async with websockets.connect(uri, additional_headers=own) as kernel:
            run, fence = claim["run"], claim["fence"]

            async def op(number: int, name: str, body: Any) -> Any:
                await kernel.send(json.dumps({"id": number, "op": name, "run": run, "body": body}))
                answer = json.loads(await asyncio.wait_for(kernel.recv(), 10))
                assert answer["id"] == number
                return answer

            opened = (await op(1, "open", {}))["ok"]
            assert opened["definition"]["tools"][0]["name"] == "calculator"
            farm.model.script.append(("calculator", {"expression": "17*23"}))
            reply = (await op(2, "model", {"run": run, "fence": fence, "request": "r0", "n": 0}))["ok"]
            call = reply["calls"][0]
            assert call["arguments"] == {"expression": "17*23"} and len(call["key"]) == 64
            done = {"kind": "tool.succeeded", "call": call["call"], "body": {"result": 391}}
            assert (await op(3, "append", {"fence": fence, "n": 1, "events": [done]}))["ok"]["n"] == 1
            assert (await op(4, "append", {"fence": fence, "n": 3, "events": [done]}))["error"]["type"] == "hole"
            assert (await op(5, "nonsense", {}))["error"]["status"] == 422
            assert (await op(6, "claim", {"worker": "w", "claim_id": "d"}))["error"]["type"] == "forbidden"
            await supervisor.send(json.dumps({"id": 2, "op": "heartbeat", "run": run, "body": {"fence": fence}}))
            assert json.loads(await supervisor.recv())["ok"]["token"].startswith("afr.")
            task = (await farm.ok("ann", "GET", "/tasks"))["items"][0]["task_id"]
            await farm.ok("ann", "POST", f"/tasks/{task}/cancel", {"reason": "enough"})
            for socket in (kernel, supervisor):  # pushed: nobody asked
                pushed = json.loads(await asyncio.wait_for(socket.recv(), 20))
                assert (pushed["push"], pushed["run"]) == ("inbox", run)
                assert pushed["events"][0]["kind"] == "run.cancel_requested"


async def test_a_worker_s_connection_goes_on_with_the_next_run_by_that_run_s_token_alone(farm: Service) -> None:
    await farm.agent()
    claims = []
    for _ in range(2):
        await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
        claims.append(await farm.claim())
    first, second = claims
    assert first and second
    uri = farm.url.replace("http", "ws") + "/api/v1/worker"

    async def ask(socket: Any, claim: dict[str, Any], op: str, body: Any) -> Any:
        await socket.send(json.dumps({"id": 1, "op": op, "run": claim["run"], "body": body}))
        return json.loads(await asyncio.wait_for(socket.recv(), 10))

    def end(claim: dict[str, Any]) -> Any:
        return {"fence": claim["fence"], "n": 1, "events": [{"kind": "run.succeeded", "body": {"result": 1}}]}

    async with websockets.connect(uri, additional_headers={"Authorization": f"token {first['token']}"}) as kernel:
        sign_in = {"fence": second["fence"], "token": second["token"]}
        assert (await ask(kernel, second, "open", {}))["error"]["type"] == "forbidden"
        assert (await ask(kernel, second, "open", {**sign_in, "token": "afr.forged.mac"}))["error"]["status"] == 401
        assert (await ask(kernel, second, "open", {**sign_in, "token": "agent-analyst"}))["error"]["status"] == 401
        assert (await ask(kernel, second, "open", {**sign_in, "token": first["token"]}))["error"]["type"] == "forbidden"
        assert (await ask(kernel, first, "append", end(first)))["ok"]["n"] == 1
        assert (await ask(kernel, second, "open", sign_in))["ok"]["run"] == second["run"]
        assert (await ask(kernel, first, "append", end(first)))["error"]["type"] == "forbidden"
        await farm.ok("ann", "POST", f"/tasks/{(await task_of(farm, second))}/cancel", {"reason": "enough"})
        pushed = json.loads(await asyncio.wait_for(kernel.recv(), 20))
        assert (pushed["push"], pushed["run"]) == ("inbox", second["run"])
    agent = {"Authorization": "token agent-analyst"}
    async with websockets.connect(uri, additional_headers=agent) as supervisor:
        assert (await ask(supervisor, second, "open", sign_in))["error"]["type"] == "forbidden"


async def task_of(farm: Service, claim: dict[str, Any]) -> str:
    return str((await farm.ok("ann", "GET", f"/runs/{claim['run']}"))["task_id"])


async def test_appends_sent_at_once_over_the_websocket_are_written_in_their_order(farm: Service) -> None:
    await farm.agent()
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    claim = await farm.claim()
    assert claim
    uri = farm.url.replace("http", "ws") + "/api/v1/worker"
    async with websockets.connect(uri, additional_headers={"Authorization": f"token {claim['token']}"}) as kernel:
        for n in range(1, 31):
            event = {"kind": "value.recorded", "body": {"name": "n", "value": n}}
            body = {"fence": claim["fence"], "n": n, "events": [event]}
            await kernel.send(json.dumps({"id": n, "op": "append", "run": claim["run"], "body": body}))
        answers = [json.loads(await asyncio.wait_for(kernel.recv(), 10)) for _ in range(30)]
    assert sorted(answer["ok"]["n"] for answer in answers) == list(range(1, 31))
    events = (await farm.ok("ann", "GET", f"/runs/{claim['run']}/events?limit=100"))["items"]
    assert [e["body"]["value"] for e in events if e["kind"] == "value.recorded"] == list(range(1, 31))


async def test_a_connection_that_asks_on_and_on_is_told_to_wait_for_its_answers(
    farm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "MAX_BEGUN", 2)
    await farm.agent()
    uri = farm.url.replace("http", "ws") + "/api/v1/worker"
    async with websockets.connect(uri, additional_headers={"Authorization": "token agent-analyst"}) as supervisor:

        async def heard() -> Any:
            return json.loads(await asyncio.wait_for(supervisor.recv(), 30))

        for number in (1, 2, 3):
            body = {"worker": "w", "claim_id": f"c{number}", "wait": 50}
            await supervisor.send(json.dumps({"id": number, "op": "claim", "body": body}))
        told = await heard()
        assert told["id"] == 3 and told["error"]["status"] == 503 and told["error"]["hint"]
        await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
        claim = (await heard())["ok"]
        body = {"fence": claim["fence"]}
        await supervisor.send(json.dumps({"id": 4, "op": "heartbeat", "run": claim["run"], "body": body}))
        told = await heard()
        assert told["id"] == 4 and told["ok"]["token"], "there is room again"


async def test_an_agent_has_so_many_connections_and_no_more(farm: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "MAX_CONNECTIONS", 2)
    await farm.agent()
    uri = farm.url.replace("http", "ws") + "/api/v1/worker"

    def connect() -> Any:
        return websockets.connect(uri, additional_headers={"Authorization": "token agent-analyst"})

    async with connect() as first, connect():
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect()
        assert refused.value.response.status_code == 503 and b"hint" in refused.value.response.body
        await first.close()
        for _ in range(1000):
            if len(farm.parts.workers.open) < 2:
                break
            await asyncio.sleep(0.02)
        async with connect() as again:
            await again.send(json.dumps({"id": 1, "op": "claim", "body": {"worker": "w", "claim_id": "c"}}))
            assert json.loads(await asyncio.wait_for(again.recv(), 20)) == {"id": 1, "ok": None}


async def test_with_a_disk_that_is_nearly_full_nothing_new_is_taken_up_and_what_was_goes_on(
    farm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await farm.agent()
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    held = await farm.claim()
    assert held
    task = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "b"})
    monkeypatch.setattr(farm.parts.claims, "full", lambda: "0.1 % are free")
    assert await farm.claim() is None
    again = {"worker": "w", "claim_id": "c0"}  # the answer was lost: what is held already is given again
    assert (await farm.ok("agent-analyst", "POST", "/claims", again))["run"] == held["run"]
    assert (await append(farm, held, 1, {"kind": "run.succeeded", "body": {"result": 1}})).is_success
    told = await farm.ok("ann", "GET", "/health")
    assert (told["status"], told["problems"]) == ("degraded", ["disk: 0.1 % are free"])
    explained = await farm.ok("ann", "GET", f"/placements/explain?task={task['task_id']}")
    assert any("0.1 % are free" in why for why in explained["queue"])
    waiting = asyncio.create_task(farm.claim(wait=30))
    await farm.listens("analyst")
    monkeypatch.setattr(farm.parts.claims, "full", lambda: "")
    assert (claim := await waiting) and claim["run"] == task["run_id"], "there is room again: nobody has to ask anew"


async def test_a_dead_kernel_is_reported_and_the_run_goes_on_under_the_next_fence(farm: Service) -> None:
    await farm.agent()
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    claim = await farm.claim()
    assert claim
    beat = {"fence": claim["fence"], "dead": "kernel exited with -9"}
    await farm.ok("agent-analyst", "POST", f"/runs/{claim['run']}/heartbeat", beat)
    late = await append(farm, claim, 1, {"kind": "run.succeeded", "body": {"result": "late"}})
    assert (late.status_code, late.json()["type"]) == (409, "fenced")
    again = await farm.claim()
    assert again and (again["run"], again["fence"]) == (claim["run"], claim["fence"] + 1)


async def test_a_plain_openai_request_of_a_worker_is_recorded_too(farm: Service) -> None:
    await farm.agent()
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    claim = await farm.claim()
    assert claim
    farm.model.script.append("Hello.")
    body = {"model": "any", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
    answer = await farm.ok(claim["token"], "POST", "/model/v1/chat/completions", body)
    assert answer["object"] == "chat.completion" and answer["choices"][0]["message"]["content"] == "Hello."
    events = (await farm.ok("ann", "GET", f"/runs/{claim['run']}/events"))["items"]
    assert events[-1]["kind"] == "model.replied" and events[-1]["by"] == "gateway"


async def test_a_notebook_s_own_run_is_driven_by_its_kernel_and_its_key_gives_the_same_run(farm: Service) -> None:
    body = {"name": "draft", "definition": {"prompt": "p"}, "input": "hi", "mode": "live"}
    first = await farm.ok("ann-server", "POST", "/runs", body, **{"Idempotency-Key": "k"})
    again = await farm.ok("ann-server", "POST", "/runs", body, **{"Idempotency-Key": "k"})
    assert (again["run"], again["fence"]) == (first["run"], first["fence"])
    done = await append(farm, first, 1, {"kind": "run.succeeded", "body": {"result": "ok"}})
    assert done.status_code == 200, done.text
    run = await farm.ok("ann", "GET", f"/runs/{first['run']}")
    assert run["bound"] and run["status"] == "succeeded" and run["agent"] == "~draft"
    assert (await farm.ask("bob", "GET", f"/runs/{first['run']}")).status_code == 404


# -- people decide -------------------------------------------------------------------------------------------------


async def test_an_approval_is_decided_by_a_person_and_never_by_an_agent_or_a_server(farm: Service) -> None:
    await farm.agent(tools=[{"name": "calculator", "approval": "always"}])
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    claim = await farm.claim()
    assert claim
    farm.model.script.append(("calculator", {"expression": "1+1"}))
    body = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": "r", "n": 0}}
    answer = await farm.ok(claim["token"], "POST", "/model/v1/chat/completions", body)
    assert answer["agentfarm"]["calls"][0]["state"] == "awaiting"
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    path, wish = f"/inbox/{item['inbox_id']}", {"decision": "approve", "reason": "fine"}
    for token in ("agent-analyst", "ann-server", claim["token"]):
        assert (await farm.ask(token, "POST", path, wish)).status_code == 403
    assert (await farm.ask("bob", "POST", path, wish)).status_code == 404
    decided = await farm.ok("ann", "POST", path, wish)
    assert (decided["decision"], decided["decided_by"]) == ("given", "user:ann")
    assert (await farm.ask("ann", "POST", path, wish)).status_code == 409


# -- agents --------------------------------------------------------------------------------------------------------


async def test_drafts_move_by_their_etag_versions_stay_and_an_old_one_comes_back_as_a_draft(farm: Service) -> None:
    await farm.agent()
    shown = await farm.ask("ann", "GET", "/agents/analyst")
    tag = {"If-Match": shown.headers["ETag"]}
    new = {"draft": {"prompt": "Second.", "tools": ["calculator"]}}
    assert (await farm.ok("ann", "PATCH", "/agents/analyst", new, **tag))["draft_rev"] == 2
    stale = await farm.ask("ann", "PATCH", "/agents/analyst", new, **tag)
    assert (stale.status_code, stale.json()["draft_rev"]) == (409, 2)
    assert (await farm.ok("ann", "POST", "/agents/analyst/publish", {"note": "two"}))["number"] == 2
    assert (await farm.ok("ann", "POST", "/agents/analyst/publish", {}))["number"] == 2, (
        "the same draft: the same version"
    )
    changed = (await farm.ok("ann", "GET", "/agents/analyst/diff?from=1&to=2"))["items"]
    assert {one["path"] for one in changed} == {"prompt", "tools.calculator"}
    await farm.ok("ann", "POST", "/agents/analyst/restore", {"number": 1})
    assert (await farm.ok("ann", "GET", "/agents/analyst"))["draft"]["prompt"] == "You calculate."
    listed = (await farm.ok("ann", "GET", "/agents/analyst/versions"))["items"]
    assert [one["number"] for one in listed] == [2, 1]
    events = (await farm.ok("operator", "GET", "/runs/farm/events"))["items"]
    assert [e["kind"] for e in events][-3:] == ["agent.created", "version.published", "version.published"]


async def test_an_exported_agent_comes_back_with_the_same_hash_and_its_tool_s_code(farm: Service) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    draft = {"prompt": "One\ntwo: {{name}}\n", "variables": {"name": "x"}, "tools": [
        {"name": "double", "schema": schema, "source": "file:mine.py", "effect": "read"}, "calculator"]}  # fmt: skip
    code = "from agentfarm_sdk import tool\n\n@tool(effect='read')\ndef double(x: int) -> int:\n    return 2 * x\n"
    await farm.ok("ann", "POST", "/agents", {"name": "analyst", "draft": draft, "files": {"mine.py": code}})
    first = await farm.ok("ann", "POST", "/agents/analyst/publish", {})
    text = (await farm.ask("ann", "GET", "/agents/analyst/export")).text
    assert "two: {{name}}" in text and "return 2 * x" in text
    async with farm.client("bob", **{"Content-Type": "application/yaml"}) as bob:
        made = await bob.post("/agents/import?name=copy", content=text)
        assert made.status_code == 200, made.text
    again = await farm.ok("bob", "POST", "/agents/copy/publish", {})
    assert again["hash"] == first["hash"]
    digest = first["definition"]["tools"][0]["source"].removeprefix("file@")
    assert (await farm.ask("agent-analyst", "GET", f"/tools/files/{digest}")).text == code


async def test_an_agent_is_a_hub_user_is_shared_at_the_hub_and_leaves_its_record_when_retired(farm: Service) -> None:
    await farm.agent()
    assert farm.fleet.users == {"agent-analyst"}
    granted = [body for method, path, body in farm.hub.asked if (method, path) == ("POST", "shares/agent-analyst/")]
    assert granted[0]["user"] == "ann" and "access:servers" in granted[0]["scopes"]
    await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": "vic", "rights": "view"})
    assert (await farm.ok("viewer", "GET", "/agents/analyst"))["rights"] == "view"
    await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": "vic", "rights": None})
    assert (await farm.ask("viewer", "GET", "/agents/analyst")).status_code == 404
    assert (await farm.ok("ann", "POST", "/agents/analyst/connect", {}))["token"] == "minted-for-agent-analyst"
    await farm.ok("ann", "DELETE", "/agents/analyst")
    assert farm.fleet.users == set()
    assert (await farm.ok("ann", "GET", "/agents/analyst"))["retired_at"]
    refused = await farm.ask("ann", "POST", "/tasks", {"target": "analyst", "input": "x"})
    assert (refused.status_code, refused.json()["type"]) == (409, "conflict")
    assert (await farm.ask("ann", "POST", "/agents", {"name": "analyst"})).status_code == 409


async def test_a_secret_goes_in_and_comes_out_with_an_admission_alone(farm: Service) -> None:
    await farm.ok("ann", "PUT", "/secrets", {"name": "API_KEY", "value": "s3cret"})
    assert (await farm.ask("ann-server", "PUT", "/secrets", {"name": "A", "value": "b"})).status_code == 403
    listed = await farm.ask("ann", "GET", "/secrets")
    assert "API_KEY" in listed.text and "s3cret" not in listed.text
    await farm.agent(tools=[{"name": "calculator", "secrets": ["API_KEY"]}])
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    claim = await farm.claim()
    assert claim
    farm.model.script.append(("calculator", {"expression": "1+1"}))
    body = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": "r", "n": 0}}
    answer = await farm.ok(claim["token"], "POST", "/model/v1/chat/completions", body)
    assert answer["agentfarm"]["calls"][0]["secrets"] == {"API_KEY": "s3cret"}
    events = await farm.ask("ann", "GET", f"/runs/{claim['run']}/events")
    assert "s3cret" not in events.text


# -- bad input -----------------------------------------------------------------------------------------------------


async def test_a_body_that_is_too_large_is_refused_with_the_limit(farm: Service) -> None:
    await farm.agent()
    answer = await farm.ask("ann", "POST", "/tasks", {"target": "analyst", "input": "x" * (MAX_APPEND_BYTES + 1)})
    assert (answer.status_code, answer.json()["type"]) == (413, "too-large")
    assert answer.headers["Content-Type"] == "application/problem+json"

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 131072

    async with farm.client("ann") as client:
        assert (await client.post("/tasks", content=chunks())).status_code == 413


async def test_a_key_used_for_another_body_is_refused_and_the_same_body_gets_the_same_answer(farm: Service) -> None:
    await farm.agent()
    body, key = {"target": "analyst", "input": "a"}, {"Idempotency-Key": "k1"}
    first = await farm.ask("ann", "POST", "/tasks", body, **key)
    again = await farm.ask("ann", "POST", "/tasks", body, **key)
    assert first.status_code == again.status_code == 201 and first.json() == again.json()
    assert again.headers["Idempotent-Replay"] == "true"
    other = await farm.ask("ann", "POST", "/tasks", {**body, "input": "b"}, **key)
    assert (other.status_code, other.json()["type"]) == (409, "conflict")
    keyed = {**body, "key": "mine"}
    one, two = [await farm.ok("ann", "POST", "/tasks", keyed) for _ in range(2)]
    assert one["task_id"] == two["task_id"]
    assert (await farm.ask("ann", "POST", "/tasks", {**keyed, "input": "c"})).status_code == 409
    assert len((await farm.ok("ann", "GET", "/tasks"))["items"]) == 2


async def test_a_run_token_that_expired_is_foreign_or_forged_opens_nothing(farm: Service) -> None:
    await farm.agent()
    for text in ("a", "b"):
        await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": text})
    one, two = await farm.claim(), await farm.claim()
    assert one and two
    path = f"/runs/{one['run']}/open"
    assert (await farm.ask(two["token"], "POST", path, {})).status_code == 403
    assert (await farm.ask(two["token"], "GET", f"/runs/{one['run']}/events")).status_code == 404
    now = time.time()
    for key, epoch, seconds in (
        (farm.parts.key, farm.db.epoch, -1),
        (farm.parts.key, "else", 9),
        (b"x" * 32, farm.db.epoch, 9),
    ):
        token = runtokens.mint(key, epoch=epoch, run=one["run"], fence=one["fence"], now=now, seconds=seconds)
        answer = await farm.ask(token, "POST", path, {})
        assert (answer.status_code, answer.json()["type"]) == (401, "unauthenticated") and answer.json()["hint"]
    assert (await farm.ask("afr.nonsense", "POST", path, {})).status_code == 401


async def test_with_the_hub_away_people_wait_and_runs_go_on(farm: Service) -> None:
    await farm.agent()
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    claim = await farm.claim()
    assert claim
    await farm.hub.stop()
    farm.parts.door.auth.cache.clear()
    answer = await farm.ask("ann", "GET", "/agents")
    assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
    done = await append(farm, claim, 1, {"kind": "run.succeeded", "body": {"result": 1}})
    assert done.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/agents", {"name": "Bad Name"}, 422, "cannot name an agent"),
        ("POST", "/agents", {"name": "x", "colour": 1}, 422, "colour"),
        ("POST", "/agents", {"name": "x", "draft": {"tools": ["teleport"]}}, 422, "teleport"),
        ("POST", "/agents", {"name": "x", "draft": {"promt": "x"}}, 422, "promt"),
        ("POST", "/agents", {"name": "x", "draft": {"limits": {"steps": -1}}}, 422, "$.limits.steps"),
        (
            "POST",
            "/agents",
            {"name": "x", "draft": {"tools": [{"name": "t", "source": "file@00", "schema": {}}]}},
            422,
            "no file",
        ),
        (
            "POST",
            "/agents",
            {"name": "x", "draft": {"tools": [{"name": "calculator", "effect": "once"}]}},
            422,
            "effect",
        ),
        ("POST", "/tasks", {"target": "nobody", "input": "x"}, 404, "nobody"),
        ("POST", "/tasks", {"target": "nobody"}, 422, "input"),
        ("POST", "/tasks", {"target": "x", "input": 1, "priority": 1000}, 422, "priority"),
        ("GET", "/tasks?limit=0", None, 422, "limit"),
        ("GET", "/tasks?limi=1", None, 422, "limi"),
        ("GET", "/tasks/task-none", None, 404, "task-none"),
        ("GET", "/nowhere", None, 404, "nowhere"),
        ("PUT", "/tasks", {}, 405, "PUT"),
    ],
)
async def test_bad_input_is_answered_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: Any, status: int, words: str
) -> None:
    async with service(tmp_path, f"sqlite:///{tmp_path}/farm.sqlite", monkeypatch) as farm:
        answer = await farm.ask("ann", method, path, body)
        problem = answer.json()
        assert (answer.status_code, problem["status"]) == (status, status), problem
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert words in problem["detail"] and {"type", "title", "hint"} <= problem.keys()


async def test_a_body_that_is_no_json_or_is_compressed_is_said_to_be_so(farm: Service) -> None:
    async with farm.client("ann") as client:
        for content in (b'{"target": ', b"\xff\xfe", gzip.compress(b"{}")):
            answer = await client.post("/tasks", content=content)
            assert answer.status_code == 422 and "not JSON" in answer.json()["detail"]


async def test_a_malformed_agent_file_names_the_place_and_what_is_expected(farm: Service) -> None:
    good = "agentfarm: 1\nname: analyst\ndefinition:\n  prompt: hi\n  tools:\n  - name: calculator\n    timeout: soon\n"
    cases = {
        "agentfarm: 1\nname: [": "line 2",
        "name: x\n": "agentfarm: 1",
        good: "line 7, column 5: definition.tools[0].timeout: Expected `float`, got `str`",
        good.replace("timeout: soon", "effct: read"): "line 7, column 5: definition.tools[0].effct",
        "agentfarm: 1\nname: x\ndefinition: &a\n  prompt: *a\n": "aliases",
        "agentfarm: 9\nname: x\ndefinition: {}\n": "form 9",
    }
    async with farm.client("ann", **{"Content-Type": "text/yaml"}) as client:
        for text, words in cases.items():
            answer = await client.post("/agents/import", content=text)
            assert answer.status_code == 422 and words in answer.json()["detail"], (text, answer.text)


async def test_a_bug_answers_500_without_what_it_held(farm: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("the secret is s3cret")

    monkeypatch.setattr(farm.parts.claims, "take", broken)
    answer = await farm.ask("agent-analyst", "POST", "/claims", {"worker": "w", "claim_id": "c"})
    assert answer.status_code == 500 and "s3cret" not in answer.text and answer.json()["hint"]


async def test_metrics_are_on_the_own_listener_and_through_the_proxy_for_operators_alone(farm: Service) -> None:
    await farm.agent()
    await run_to_its_end(farm)
    text = (await farm.ask("", "GET", "/metrics")).text
    assert 'agentfarm_runs_total{agent="analyst",outcome="succeeded"} 1.0' in text
    assert 'agentfarm_model_tokens_total{direction="out",model="scripted"} 2.0' in text
    assert "run-" not in text
    async with httpx.AsyncClient(base_url=farm.url + "/services/agentfarm/api/v1") as client:
        assert (await client.get("/metrics")).status_code == 403
        assert (await client.get("/metrics", headers={"Authorization": "token operator"})).status_code == 200
