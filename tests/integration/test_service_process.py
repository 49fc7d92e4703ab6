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

import httpx
import pytest
from servicekit import service

import agentfarm_sdk


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
