"""The service as a process: what hinders its start is one sentence; SIGTERM ends it; a silent worker's run goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from servicekit import FakeHub, service

import agentfarm_sdk
from agentfarm_sdk.testing import ScriptedServer, says


def start(state: Path, port: int, **more: str) -> subprocess.Popen[str]:
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("JUPYTERHUB_", "AGENTFARM_", "DB_"))
    }
    env |= {
        "AGENTFARM_STATE": str(state), "AGENTFARM_SERVICE_PORT": str(port), "JUPYTERHUB_API_URL": "http://127.0.0.1:9/hub/api",
        "JUPYTERHUB_API_TOKEN": "token-of-the-service", "JUPYTERHUB_CLIENT_ID": "service-agentfarm", "JUPYTERHUB_SERVICE_NAME": "agentfarm",
        "JUPYTERHUB_SERVICE_PREFIX": "/services/agentfarm/", "JUPYTERHUB_BASE_URL": "/",
        "PYTHONPATH": str(Path(agentfarm_sdk.__file__).parents[1]), **more,
    }  # fmt: skip
    argv = [sys.executable, "-m", "jupyterhub_agentfarm.app"]
    return subprocess.Popen(argv, env=env, cwd=state.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def refusal(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1, (out, err)
    lines = err.strip().splitlines()
    assert lines[-1].startswith("agentfarm: ") and "Traceback" not in err and "token-of-the-service" not in err
    return lines[-1]


def test_a_taken_port_is_one_sentence_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = refusal(start(tmp_path / "state", taken.getsockname()[1]))
    assert "is taken" in said and "AGENTFARM_SERVICE_PORT" in said


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "secrets"
    folder.mkdir(parents=True)
    (folder / "service.key").write_bytes(b"k" * 32)
    (folder / "service.key").chmod(0o640)
    assert "chmod 600" in refusal(start(tmp_path / "state", free_port()))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"JUPYTERHUB_API_TOKEN": ""}, "JUPYTERHUB_API_TOKEN is not set"),
        ({"AGENTFARM_SERVICE_PORT": "many"}, "AGENTFARM_SERVICE_PORT"),
        ({"DB_CONNECTION_STRING": "postgresql://nobody@127.0.0.1:9/none"}, ""),
    ],
)
def test_a_wrong_setting_is_one_sentence(tmp_path: Path, more: dict[str, str], words: str) -> None:
    assert words in refusal(start(tmp_path / "state", free_port(), **more))


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "agentfarm_config.py").write_text("c.AgentFarm.lease_seconds = = 3\n")
    assert "agentfarm_config.py" in refusal(start(tmp_path / "state", free_port()))


def test_the_service_answers_and_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path / "state", port)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/health", timeout=5)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline and process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.1)
        assert answer.status_code == 200 and answer.json()["database"] == "sqlite"
        assert answer.json()["problems"] == ["model: none is set; set HF_API_URL and HUGGING_FACE_AUTH_TOKEN"]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=15)
        assert process.returncode == 0, err
        assert "token-of-the-service" not in out + err
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


async def test_a_silent_worker_s_run_is_queued_again_after_a_whole_lease_of_steady_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(tmp_path, f"sqlite:///{tmp_path}/farm.sqlite", monkeypatch, lease=1.5) as farm:
        await farm.agent()
        await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
        first = await farm.claim()
        assert first
        reaping = asyncio.create_task(farm.reaper.run())
        again = await farm.claim(wait=15)
        reaping.cancel()
        assert again and (again["run"], again["fence"]) == (first["run"], first["fence"] + 1)
        kinds = [e["kind"] for e in (await farm.ok("ann", "GET", f"/runs/{first['run']}/events"))["items"]]
        assert kinds[-3:] == ["run.leased", "run.requeued", "run.leased"] and farm.reaper.reaped == 1


async def test_what_a_killed_service_had_reserved_is_counted_when_it_starts_again_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    hub = FakeHub()
    await hub.start()
    state, port = tmp_path / "state", free_port()
    with ScriptedServer(says("here I am"), delay=3600.0) as model:
        settings = {"name": "gpu", "url": model.url, "models": ["scripted"], "prices": {"*": [1.0, 2.0]}}
        (tmp_path / "agentfarm_config.py").write_text(f"c.AgentFarm.upstreams = [{settings!r}]\n")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30) as client:

            async def ask(token: str, method: str, path: str, body: Any = None) -> Any:
                answer = await client.request(method, path, json=body, headers={"Authorization": f"token {token}"})
                assert answer.is_success, answer.text
                return answer.json()

            process = start(state, port, JUPYTERHUB_API_URL=hub.url)
            try:
                await up(client, process)
                budget = {"scope": "owner", "name": "ann", "unit": "usd", "period": "day", "amount": 5}
                await ask("operator", "PUT", "/budgets", budget)
                run = await ask("ann", "POST", "/runs", {"definition": {"prompt": "p"}, "input": "go"})
                request = {"agentfarm": {"run": run["run"], "fence": run["fence"], "request": "r", "n": 0}}
                asking = asyncio.create_task(ask(run["token"], "POST", "/model/v1/chat/completions", request))
                held = 0.0
                for _ in range(1000):
                    held = (await ask("ann", "GET", "/budgets"))["items"][0]["reserved"]
                    if held and model.requests:
                        break
                    await asyncio.sleep(0.02)
                process.kill()
                process.communicate()
                await asyncio.gather(asking, return_exceptions=True)
                model.delay = 0.0
                process = start(state, port, JUPYTERHUB_API_URL=hub.url)
                await up(client, process)
                (item,) = (await ask("ann", "GET", "/budgets"))["items"]
                assert (item["spent"], item["reserved"]) == (pytest.approx(held), 0.0)
                (used,) = (await ask("ann", "GET", "/usage"))["items"]
                assert (used["estimated"], used["tokens_out"]) == (1, 4096)
                answer = await ask(run["token"], "POST", "/model/v1/chat/completions", request)
                assert answer["choices"][0]["message"]["content"] == "here I am"
                events = (await ask("ann", "GET", f"/runs/{run['run']}/events"))["items"]
                asked = [(e["kind"], e["body"].get("attempt")) for e in events if e["kind"].startswith("model.")]
                assert asked == [
                    ("model.requested", 1),
                    ("model.failed", None),
                    ("model.requested", 2),
                    ("model.replied", None),
                ]
            finally:
                process.kill()
                process.communicate()
                await hub.stop()


async def up(client: httpx.AsyncClient, process: subprocess.Popen[str]) -> None:
    """Wait until the service answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            if (await client.get("/health")).status_code == 200:
                return
        except httpx.TransportError:
            assert time.monotonic() < deadline and process.poll() is None, process.stderr and process.stderr.read()
        await asyncio.sleep(0.1)
