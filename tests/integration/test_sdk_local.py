"""Agents outside a farm: the same loop, record and rules in a local file; killed at any moment, no effect is made twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentfarm_sdk import Agent, tool
from agentfarm_sdk.errors import AgentFarmError, Conflict, Divergence, Invalid
from agentfarm_sdk.protocol import Limits
from agentfarm_sdk.testing import FakeFarm, ScriptedModel, ScriptedServer, calls, says


@tool(effect="read")
def double(n: int) -> int:
    """Double a number."""
    return 2 * n


@tool(effect="once")
def pay(ctx: Any, amount: int) -> dict[str, Any]:
    """Pay."""
    return {"paid": amount, "key": ctx.key}


def agent(*lines: Any, tools: Any = (double, pay), mode: Any = "live", **rest: Any) -> Agent:
    return Agent("t", prompt="p", tools=tools, model=ScriptedModel(*lines), mode=mode, **rest)


def kinds(run: Any) -> list[str]:
    return [event.kind for event in run.events()]


def test_a_run_calls_its_tools_answers_and_verifies() -> None:
    with FakeFarm() as farm:
        run = farm.run(agent(calls("double", n=2) & calls("pay", amount=3), says("done")), "go")
        assert run.result == "done" and run.verify()["ok"]
        assert kinds(run).count("tool.started") == kinds(run).count("tool.succeeded") == 2
        assert run.fold().messages[-2]["content"].startswith('{"paid":3,"key":"')


def test_a_failed_tool_wrong_arguments_and_an_unknown_tool_are_told_to_the_model() -> None:
    @tool(effect="read")
    def broken(n: int) -> int:
        raise ValueError("no luck")

    with FakeFarm() as farm:
        model = agent(
            calls("broken", n=1), calls("double", n="x"), calls("fly"), says("so be it"), tools=(broken, double)
        )
        run = farm.run(model, "go")
        told = [message["content"] for message in run.fold().messages if message["role"] == "tool"]
        assert run.result == "so be it"
        assert "no luck" in told[0] and "do not fit" in told[1] and "no tool fly" in told[2]


def test_in_mode_ask_an_effect_waits_and_goes_on_when_it_is_decided() -> None:
    with FakeFarm() as farm:
        run = farm.run(agent(calls("pay", amount=5), says("paid"), mode="ask"), "go")
        assert run.status == "waiting" and "tool.started" not in kinds(run)
        with pytest.raises(Conflict, match="approval"):
            _ = run.result
        assert run.decide("c0-0", "approve").resume().result == "paid"
        refused = farm.run(agent(calls("pay", amount=5), says("pity"), mode="ask"), "go")
        refused.decide("c0-0", "refuse", reason="too dear").resume()
        assert refused.result == "pity" and "too dear" in refused.fold().messages[-2]["content"]


def test_limits_end_a_run_with_a_sentence() -> None:
    with FakeFarm() as farm:
        run = farm.run(agent(*[calls("double", n=1)] * 5, limits=Limits(steps=2)), "go")
        assert run.status == "failed"
        with pytest.raises(AgentFarmError, match="2 steps"):
            _ = run.result


def test_a_structured_answer_is_checked() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    with FakeFarm() as farm:
        assert farm.run(agent(says('{"n": 4}'), answer=schema), "go").result == {"n": 4}
        assert farm.run(agent(says('{"n": "four"}'), answer=schema), "go").status == "failed"


def test_a_replay_agrees_and_says_where_todays_code_differs() -> None:
    with FakeFarm() as farm:
        run = farm.run(agent(calls("double", n=2), calls("pay", amount=1), says("done")), "go")
        assert (run.replay().again, run.replay().kept) == (1, 1)

        @tool(effect="read", name="double")
        def triple(n: int) -> int:
            return 3 * n

        with pytest.raises(Divergence) as caught:
            run.replay(agent(tools=(triple, pay)))
        assert (caught.value.extra["recorded"], caught.value.extra["today"]) == (4, 6)


def test_it_works_with_a_model_server_and_says_what_is_missing_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AGENTFARM_URL", "AGENTFARM_SOCKET", "AGENTFARM_MODEL_URL", "HF_API_URL", "HUGGING_FACE_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Invalid, match="no model is named"):
        Agent("t", ledger=tmp_path / "l.sqlite").run("go")
    with ScriptedServer(calls("double", n=4), says("eight")) as server:
        monkeypatch.setenv("AGENTFARM_MODEL_URL", server.url)
        run = Agent("t", tools=[double], ledger=tmp_path / "l.sqlite").run("go")
        assert run.result == "eight" and "run" in run._repr_html_()


async def test_it_runs_where_an_event_loop_already_runs() -> None:
    with FakeFarm() as farm:
        assert farm.run(agent(says("hi")), "go").result == "hi"


def test_what_a_model_wrote_is_never_markup() -> None:
    with FakeFarm() as farm:
        assert "<script>" not in farm.run(agent(says("<script>alert(1)</script>")), "go")._repr_html_()


_VICTIM = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from test_sdk_local import *
from agentfarm_sdk import local

effect, at, count, ledger, run = sys.argv[1:6]

@tool(effect=effect, name="effect")
def made(ctx, n: int) -> str:
    fd = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{{ctx.key}}\\n".encode())
    os.fsync(fd)
    if at == "in the tool":
        os.kill(os.getpid(), signal.SIGKILL)
    return "made"

write = local.LocalFile.write
def dying(self, run, events):
    kinds = [event.kind for _, event in events]
    if at in ["before " + kind for kind in kinds]:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, run, events)
if at.startswith("before "):
    local.LocalFile.write = dying
if at.startswith("after "):
    append = local.LocalLedger.append
    async def then_dying(self, events):
        answer = await append(self, events)
        if at == "after " + events[-1].kind:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    local.LocalLedger.append = then_dying
made_of = Agent("t", prompt="p", tools=[made, double], mode="live", ledger=ledger,
                model=ScriptedModel(calls("effect", n=1) & calls("double", n=2), says("done")))
print(made_of.take_up(run).status if run else made_of.run("go").status)
"""
MOMENTS = [
    "in the tool", "before model.reported", "after model.reported", "before tool.succeeded", "after tool.succeeded", "before run.succeeded",
    "after run.succeeded",
]  # fmt: skip


@pytest.mark.parametrize("effect", ["read", "idempotent", "once"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_no_once_effect_is_made_twice_and_every_run_rests(
    effect: str, moment: str, tmp_path: Path
) -> None:
    count, ledger = tmp_path / "count", tmp_path / "ledger.sqlite"
    code = _VICTIM.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "AGENTFARM_LEDGER": str(ledger)}
    environment.pop("AGENTFARM_URL", None)

    def victim(at: str, run: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, effect, at, str(count), str(ledger), run]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert victim(moment).returncode == -signal.SIGKILL
    from agentfarm_sdk.localfile import LocalFile

    file = LocalFile(ledger)
    (run_id,) = file.runs()
    before = file.fold(run_id)
    status = before.status if before.ended else victim("never", run_id).stdout.strip()
    keys = count.read_text().split() if count.exists() else []
    after = file.fold(run_id)
    assert file.verify(run_id)["ok"] and len(set(keys)) <= 1
    if effect == "once":
        assert len(keys) <= 1
        assert status == "succeeded" or (status == "waiting" and after.waiting == "in_doubt"), (status, after.waiting)
    else:
        assert status == "succeeded" and len(keys) <= 2
    file.close()
