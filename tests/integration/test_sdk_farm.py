"""The SDK against the real service: tasks over HTTP, a notebook's own agent over the WebSocket, cuts and blobs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest
from servicekit import Service, service

from agentfarm_sdk import Agent, Farm, tool
from agentfarm_sdk.agent import Run
from agentfarm_sdk.errors import (
    AgentFarmError,
    Cancelled,
    Conflict,
    Fenced,
    Invalid,
    NotFound,
    Transient,
    Unauthenticated,
)
from agentfarm_sdk.ledger import PREVIEW, FarmLedger
from agentfarm_sdk.protocol import BLOB_OVER, EFFECT_SECONDS, MAX_UNANSWERED, new_event
from agentfarm_sdk.testing import ScriptedModel, calls, says
from agentfarm_sdk.tools.registry import in_thread
from jupyterhub_agentfarm.handlers.worker import WorkerSocket

T = TypeVar("T")


@pytest.fixture
async def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.delenv("AGENTFARM_SOCKET", raising=False)
    async with service(tmp_path, f"sqlite:///{tmp_path}/farm.sqlite", monkeypatch) as farm:
        monkeypatch.setenv("AGENTFARM_URL", farm.url)
        monkeypatch.setenv("AGENTFARM_TOKEN", "ann")
        yield farm


async def there(fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call what blocks in another thread: the service is in this one."""
    return await asyncio.wait_for(in_thread(lambda: fn(*args, **kwargs)), 60)  # type: ignore[no-any-return]


async def work(farm: Service, *outcomes: dict[str, Any] | None) -> None:
    """Do the agent's next runs as a worker would: succeed with a result, or fail."""
    for result in outcomes:
        claim = None
        while claim is None:
            claim = await farm.claim(wait=5)
        ledger = FarmLedger(farm.url, claim["run"], claim["fence"], claim["token"])
        await ledger.open()
        error = {"error": {"type": "limit-reached", "message": "the limit of 2 steps is reached"}}
        end = new_event("run.failed", error) if result is None else new_event("run.succeeded", result)
        await ledger.append([end])
        await ledger.drain()
        await ledger.close()


# --- tasks ------------------------------------------------------------------------------------------------------


async def test_a_task_is_submitted_followed_and_its_result_returned(farm: Service) -> None:
    await farm.agent()
    task = await there(Farm().submit, "analyst", "What is 17*23?", priority=3)
    result = asyncio.create_task(there(task.result))
    await work(farm, {"result": "391"})
    assert await result == "391"
    events = await there(lambda: list(task.events(follow=False)))
    assert [event.seq for event in events] == list(range(1, len(events) + 1)) and events[-1].data() == {"result": "391"}
    assert [e.seq for e in await there(lambda: list(task.events()))] == [e.seq for e in events]
    assert (await there(Farm().verify, task.run_id))["ok"]
    assert await there(lambda: Farm().task(task.id).status) == "succeeded"


async def test_the_same_key_submits_once_and_map_keeps_the_order(farm: Service) -> None:
    await farm.agent()
    first = await there(Farm().submit, "analyst", "a", key="once")
    assert (await there(Farm().submit, "analyst", "a", key="once")).id == first.id
    with pytest.raises(Conflict):
        await there(Farm().submit, "analyst", "b", key="once")
    await work(farm, {"result": "a"})
    mapped = asyncio.create_task(there(lambda: list(Farm().map("analyst", ["1", "2", "3"], key="sums"))))
    await work(farm, {"result": "one"}, {"result": "two"}, {"result": "three"})
    assert sorted(await mapped) == ["one", "three", "two"]
    assert await there(lambda: list(Farm().map("analyst", ["1", "2", "3"], key="sums"))) == await mapped
    assert len(await there(lambda: list(Farm().tasks()))) == 4


async def test_what_ended_a_run_is_raised(farm: Service) -> None:
    from agentfarm_sdk.errors import LimitReached

    await farm.agent()
    failed = await there(Farm().submit, "analyst", "a")
    await work(farm, None)
    with pytest.raises(LimitReached, match="2 steps"):
        await there(failed.result)
    cancelled = await there(Farm().submit, "analyst", "b")
    await there(cancelled.cancel, "changed my mind")
    with pytest.raises(Cancelled):
        await there(cancelled.result)
    slow = await there(Farm().submit, "analyst", "c")
    with pytest.raises(TimeoutError):
        await there(slow.result, 0.3)


async def test_problems_come_as_errors_with_a_way_out(
    farm: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(NotFound):
        await there(Farm().submit, "nobody", "a")
    with pytest.raises(Unauthenticated):
        await there(lambda: list(Farm(farm.url, "forged").agents()))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Transient, match="cannot be reached"):
        await there(Farm(f"http://127.0.0.1:{port}", "x").status)
    for name in ("AGENTFARM_URL", "AGENTFARM_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Invalid) as told:
        Farm()
    assert "make farm" in told.value.hint


async def test_the_command_lines_file_is_found_and_refused_when_others_can_read_it(
    farm: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AGENTFARM_TOKEN")
    file = tmp_path / ".farm" / "client.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"url": farm.url, "token": "ann"}))
    file.chmod(0o600)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    assert await there(lambda: list(Farm().agents())) == []
    file.chmod(0o644)
    with pytest.raises(Invalid, match="can be read by others"):
        Farm()


# --- a notebook's own agent -------------------------------------------------------------------------------------


@tool(effect="read")
def multiply(a: int, b: int) -> int:
    """Multiply two whole numbers."""
    return a * b


def kinds(run: Run) -> list[str]:
    return [event.kind for event in run.events()]


async def test_a_notebooks_agent_is_driven_here_and_recorded_by_the_farm(farm: Service) -> None:
    farm.model.script[:] = [("multiply", {"a": 17, "b": 23}), "It is 391."]
    run = await there(Agent("draft", prompt="You do sums.", tools=[multiply, "calculator"]).run, "17*23?")
    assert await there(lambda: run.result) == "It is 391."
    recorded = await there(kinds, run)
    assert [k for k in recorded if k.startswith(("tool", "model.rep", "run"))] == [
        "run.created", "run.leased", "model.replied", "tool.started", "tool.succeeded", "model.replied", "run.succeeded",
    ]  # fmt: skip
    assert (await there(run.verify))["ok"] and (await there(run.replay)).again == 1
    assert farm.model.asked[1].messages[3]["content"] == "391"


async def test_a_model_that_lives_in_the_kernel_is_reported(farm: Service) -> None:
    model = ScriptedModel(calls("multiply", a=2, b=3) & calls("multiply", a=4, b=5), says("6 and 20"))
    run = await there(Agent("draft", tools=[multiply], model=model).run, "go")
    assert await there(lambda: run.result) == "6 and 20"
    assert (await there(kinds, run)).count("model.reported") == 2 and farm.model.asked == []
    assert [m["content"] for m in model.shown[1] if m["role"] == "tool"] == ["6", "20"]


async def test_an_effect_waits_in_the_kernel_until_a_person_decides(farm: Service) -> None:
    made: list[str] = []

    @tool(effect="once")
    def order(symbol: str) -> str:
        made.append(symbol)
        return "bought"

    farm.model.script[:] = [("order", {"symbol": "BTC"}), "Bought."]
    driving = asyncio.create_task(there(Agent("draft", tools=[order]).run, "go"))
    items: list[Any] = []
    while not items:
        items = (await farm.ok("ann", "GET", "/inbox"))["items"]
        assert not driving.done(), driving
        await asyncio.sleep(0.02)
    assert made == []
    await farm.ok(
        "ann", "POST", f"/inbox/{items[0]['inbox_id']}", {"decision": "approve", "arguments": {"symbol": "ETH"}}
    )
    run = await driving
    assert made == ["ETH"] and await there(lambda: run.result) == "Bought."


async def test_a_simulated_run_in_a_kernel_makes_no_effect_and_waits_there_for_the_answer_of_a_person(
    farm: Service,
) -> None:
    made: list[str] = []

    @tool(effect="once")
    def order(symbol: str) -> str:
        made.append(symbol)
        return "bought"

    @tool(effect="read")
    def price(symbol: str) -> str:
        return "of today"

    farm.model.script[:] = [("order", {"symbol": "BTC"}), ("price", {"symbol": "BTC"}), "Bought."]
    stubs = {"order": "stubbed", "price": "of then"}
    run = await there(Agent("draft", tools=[order, price], mode="simulate", simulate={"stubs": stubs}).run, "go")
    assert await there(lambda: run.result) == "Bought."
    assert [m["content"] for m in farm.model.asked[-1].messages if m["role"] == "tool"] == ["stubbed", "of then"]
    assert (await there(run.replay)).kept == 2, "what was simulated is not held against today's code"

    farm.model.script[:] = [("order", {"symbol": "ETH"}), "Bought."]
    driving = asyncio.create_task(there(Agent("draft", tools=[order], mode="simulate").run, "go"))
    items: list[Any] = []
    while not items:
        items = (await farm.ok("ann", "GET", "/inbox"))["items"]
        assert not driving.done(), driving
        await asyncio.sleep(0.02)
    await farm.ok("ann", "POST", f"/inbox/{items[0]['inbox_id']}", {"decision": "answer", "result": "so be it"})
    run = await driving
    assert await there(lambda: run.result) == "Bought." and made == []
    assert [m["content"] for m in farm.model.asked[-1].messages if m["role"] == "tool"] == ["so be it"]


async def test_a_cancel_reaches_a_kernel_and_its_tool(farm: Service) -> None:
    began = threading.Event()

    @tool(effect="read")
    def waits(ctx: Any) -> str:
        began.set()
        return "stopped" if ctx.cancelled.wait(20) else "not told"

    farm.model.script[:] = [("waits", {})]
    driving = asyncio.create_task(there(Agent("draft", tools=[waits]).run, "go"))
    await there(began.wait, 20)
    (task,) = (await farm.ok("ann", "GET", "/tasks"))["items"]
    await farm.ok("ann", "POST", f"/tasks/{task['task_id']}/cancel", {"reason": "enough"})
    run = await driving
    assert await there(lambda: run.status) == "cancelled"
    outcome = [e.data() for e in await there(run.events) if e.kind == "tool.succeeded"]
    assert outcome[0]["result"] == "stopped"


async def test_a_large_result_goes_as_a_blob_and_the_model_sees_its_beginning(farm: Service) -> None:
    text = "".join(chr(97 + n % 26) for n in range(BLOB_OVER * 2))

    @tool(effect="read")
    def reads() -> str:
        return text

    farm.model.script[:] = [("reads", {}), "long"]
    run = await there(Agent("draft", tools=[reads]).run, "go")
    assert await there(lambda: run.result) == "long"
    shown = farm.model.asked[1].messages[-2]["content"]
    assert shown.startswith(text[:PREVIEW]) and f"of {len(text) + 2} bytes" in shown and len(shown) < BLOB_OVER
    recorded = next(e.data() for e in await there(run.events) if e.kind == "tool.succeeded")
    assert await there(Farm().whole, run.run_id, recorded["result"]) == text
    assert (await there(run.verify))["ok"] and (await there(run.replay)).again == 1


# --- numbered appends -------------------------------------------------------------------------------------------


class Cutter:
    """A relay before the service that can be cut, and that can swallow answers."""

    def __init__(self, port: int) -> None:
        self.port, self.writers, self.swallow = port, set[asyncio.StreamWriter](), False

    async def start(self) -> str:
        self.server = await asyncio.start_server(self.relay, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers |= {writer, there_writer}

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
            try:
                while data := await source.read(65536):
                    if not (answers and self.swallow):
                        sink.write(data)
                        await sink.drain()
            except ConnectionError:
                pass  # cut: what this relay is for
            finally:
                sink.close()

        await asyncio.gather(pump(reader, there_writer, False), pump(there_reader, writer, True))

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    async def stop(self) -> None:
        self.cut()
        self.server.close()


async def bound(farm: Service) -> dict[str, Any]:
    body = {"name": "n", "definition": {"prompt": "p"}, "input": "go", "mode": "live", "variables": {}}
    answer: dict[str, Any] = await farm.ok("ann", "POST", "/runs", body)
    return answer


async def test_appends_survive_cuts_in_order_without_a_hole_and_none_twice(farm: Service) -> None:
    run = await bound(farm)
    cutter = Cutter(int(farm.url.rpartition(":")[2]))
    ledger = FarmLedger(await cutter.start(), run["run"], run["fence"], run["token"])
    try:
        await asyncio.wait_for(ledger.open(), 10)
        answers = []
        for number in range(60):
            answers.append(await ledger.append([new_event("value.recorded", {"name": "n", "value": number})]))
            if number % 20 == 5:
                cutter.swallow = True  # written, and the answer lost
            if number % 20 == 9:
                await asyncio.sleep(0.05)
                cutter.swallow = False
                cutter.cut()
        await asyncio.wait_for(ledger.drain(), 30)
        assert [(await answer).n for answer in answers] == list(range(1, 61))
    finally:
        await ledger.close()
        await cutter.stop()
    items = (await farm.ok("ann", "GET", f"/runs/{run['run']}/events"))["items"]
    assert [one["body"]["value"] for one in items if one["kind"] == "value.recorded"] == list(range(60))


async def test_not_more_than_eight_appends_are_under_way(farm: Service) -> None:
    run = await bound(farm)
    cutter = Cutter(int(farm.url.rpartition(":")[2]))
    ledger = FarmLedger(await cutter.start(), run["run"], run["fence"], run["token"])
    try:
        await ledger.open()
        cutter.swallow = True
        for number in range(20):
            await ledger.append([new_event("value.recorded", {"name": "n", "value": number})])
        until = asyncio.get_running_loop().time() + 10
        count = 0
        while count < MAX_UNANSWERED:
            items = (await farm.ok("ann", "GET", f"/runs/{run['run']}/events"))["items"]
            count = sum(1 for one in items if one["kind"] == "value.recorded")
            assert asyncio.get_running_loop().time() < until
        assert count == MAX_UNANSWERED and sum(1 for one in ledger._pending.values() if one.sent) == MAX_UNANSWERED
        cutter.swallow = False
        cutter.cut()
        await asyncio.wait_for(ledger.drain(), 20)
    finally:
        await ledger.close()
        await cutter.stop()


async def test_a_worker_whose_lease_is_anothers_is_fenced_and_says_nothing_more(farm: Service) -> None:
    await farm.agent()
    await there(Farm().submit, "analyst", "a")
    claim = await farm.claim(wait=5)
    assert claim is not None
    ledger = FarmLedger(farm.url, claim["run"], claim["fence"], claim["token"])
    await ledger.open()
    await farm.ok(
        "agent-analyst", "POST", f"/runs/{claim['run']}/heartbeat", {"fence": claim["fence"], "dead": "killed"}
    )
    assert (await farm.claim(wait=5))["fence"] > claim["fence"]  # type: ignore[index]
    with pytest.raises(Fenced):
        await (await ledger.append([new_event("run.succeeded", {"result": "stale"})]))
    with pytest.raises(Fenced):
        await ledger.drain()
    with pytest.raises(Fenced):
        await (await ledger.append([new_event("run.succeeded", {"result": "stale"})]))
    await ledger.close()
    assert (await farm.ok("ann", "GET", f"/runs/{claim['run']}"))["status"] == "running"


async def test_no_effect_starts_later_than_25_seconds_after_the_last_renewal(farm: Service) -> None:
    ledger = FarmLedger(farm.url, "run-x", 1, "token")
    ledger.renewed_at(time.monotonic() - EFFECT_SECONDS + 15)
    await asyncio.wait_for(ledger.may_start(), 20)
    stale = FarmLedger(farm.url, "run-x", 1, "token")
    stale.renewed_at(time.monotonic() - EFFECT_SECONDS - 1)
    waiting = asyncio.create_task(stale.may_start())
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done
    stale.renewed_at(time.monotonic())
    await asyncio.wait_for(waiting, 20)


async def test_a_tool_that_blocks_the_loop_for_longer_than_the_lease_is_slow_and_not_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @tool(effect="once")
    async def blocks() -> str:
        """An async tool that forgets where it runs."""
        time.sleep(3.5)
        return "done"

    monkeypatch.delenv("AGENTFARM_SOCKET", raising=False)
    async with service(tmp_path, f"sqlite:///{tmp_path}/farm.sqlite", monkeypatch, lease=1.2) as farm:
        monkeypatch.setenv("AGENTFARM_URL", farm.url)
        monkeypatch.setenv("AGENTFARM_TOKEN", "ann")
        looking = asyncio.create_task(farm.reaper.run())
        try:
            agent = Agent("slow", tools=[blocks], model=ScriptedModel(calls("blocks"), says("Done.")), mode="live")
            run = await there(agent.run, "go")
            assert await there(lambda: run.result) == "Done." and farm.reaper.reaped == 0
            events = await there(run.events)
            assert [event.kind for event in events].count("run.leased") == 1
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)


async def test_a_refused_heartbeat_does_not_speak_before_the_answer_of_the_append_that_ended_the_run(
    farm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"name": "mine", "definition": {"prompt": "Work."}, "input": "go", "mode": "live"}
    run = await farm.ok("ann", "POST", "/runs", asked)
    ledger = FarmLedger(farm.url, run["run"], run["fence"], run["token"], renews=True, lease=0.3)
    held, tell = [], WorkerSocket.tell  # the answer is on its way for longer than a heartbeat
    refused, take = asyncio.Event(), FarmLedger._beat_refused

    def taken(mine: FarmLedger, error: AgentFarmError) -> None:
        take(mine, error)
        refused.set()

    monkeypatch.setattr(FarmLedger, "_beat_refused", taken)
    await ledger.open()
    monkeypatch.setattr(WorkerSocket, "tell", lambda mine, message: held.append((mine, message)))
    answer = await ledger.append([new_event("run.succeeded", {"result": 1})])
    await asyncio.wait_for(refused.wait(), 30)
    monkeypatch.undo()
    for mine, message in held:
        tell(mine, message)
    assert (await asyncio.wait_for(answer, 30)).n == 1
    await ledger.close()


def test_a_request_that_takes_its_time_is_waited_for_as_long_as_was_said() -> None:
    may = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            may.wait(30)
            with contextlib.suppress(BrokenPipeError):  # nobody waits any more
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Farm(f"http://127.0.0.1:{server.server_port}", "t", timeout=0.3) as farm:
            with pytest.raises(Transient, match="did not answer in time"):
                farm.request("GET", "/slow")
            threading.Timer(0.6, may.set).start()
            assert farm.request("GET", "/slow", timeout=60) == {}
        server.shutdown()
