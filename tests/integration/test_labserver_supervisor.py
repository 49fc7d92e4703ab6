"""An agent's server: a real Jupyter server with real kernels, a scripted service on a real port."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from labserverkit import HUB_TOKEN, FakeService, Server, until

from jupyterhub_agentfarm.errors import Unauthenticated
from jupyterhub_agentfarm.labserver import link
from jupyterhub_agentfarm.labserver.supervisor import Supervisor


@pytest.fixture
async def service() -> AsyncIterator[FakeService]:
    service = FakeService()
    await service.start()
    yield service
    await service.stop()


@pytest.fixture
async def server(tmp_path: Path, service: FakeService) -> AsyncIterator[Server]:
    server = Server(tmp_path / "s", service, agent="analyst")
    try:
        await server.ready()
        yield server
    finally:
        await server.stop()


async def kernels(server: Server) -> list[int]:
    """Return the pids of the server's worker kernels."""
    return [child.pid for child in psutil.Process(server.process.pid).children() if "ipykernel_launcher" in " ".join(child.cmdline())]  # fmt: skip


async def began(server: Server, run: str) -> int:
    """Return the pid of the kernel in which the run began."""
    return int((await until(lambda: server.began(run), 30, f"{run} begins"))["pid"])


async def test_a_run_is_claimed_and_begins_in_a_worker_kernel(server: Server, service: FakeService) -> None:
    run = service.offer("quick")
    pid = await began(server, run)
    assert pid in await kernels(server)
    assert service.handshakes[0]["Authorization"] == f"token {HUB_TOKEN}"
    assert service.handshakes[0]["Agentfarm-Protocol"] == "1"
    assert service.claims[0]["worker"].startswith("analyst@")


async def test_the_same_definition_gets_the_same_kernel_and_a_fresh_one_another(
    server: Server, service: FakeService
) -> None:
    first = await began(server, service.offer("quick"))
    assert await began(server, service.offer("quick")) == first
    other = await began(server, service.offer("quick", definition="def-b"))
    assert other != first
    fresh = await began(server, service.offer("quick", definition="def-a", fresh=True))
    assert fresh not in (first, other)
    await until(lambda: not psutil.pid_exists(fresh) or None, 15, "the fresh kernel is closed after its run")


async def test_two_runs_are_worked_on_at_once_and_a_third_waits(server: Server, service: FakeService) -> None:
    runs = [service.offer("obedient") for _ in range(3)]
    pids = [await began(server, run) for run in runs[:2]]
    assert len(set(pids)) == 2 and service.waiting.qsize() == 1
    await service.push(runs[0], "run.cancel_requested", {"reason": "enough"})
    assert await began(server, runs[2]) == pids[0]


async def test_a_killed_kernel_is_reported_at_once_and_the_next_run_gets_another(
    server: Server, service: FakeService
) -> None:
    run = service.offer("block")
    pid = await began(server, run)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: service.dead(run), 8, "the death is reported, long before the next heartbeat")
    assert service.dead(run) == "kernel exited with -9"
    assert await began(server, service.offer("quick")) != pid


async def test_a_cancelled_run_that_does_not_listen_is_killed_after_its_grace(
    server: Server, service: FakeService
) -> None:
    run = service.offer("block")
    pid = await began(server, run)
    asked = time.monotonic()
    await service.push(run, "run.cancel_requested", {"reason": "enough"})
    await until(lambda: any(one.get("cancel") == "enough" for one in server.lines()), 5, "the worker hears of it")
    proof = await until(lambda: service.dead(run), 60, "the kernel is killed and reported")
    assert time.monotonic() - asked > 9.5, "it had its grace"
    assert proof == "kernel exited with -9 (it was to stop: enough)" and not psutil.pid_exists(pid)


async def test_a_kernel_that_speaks_nonsense_is_killed_and_reported(server: Server, service: FakeService) -> None:
    assert await until(lambda run=service.offer("nonsense"): service.dead(run), 30, "it is reported")


async def test_while_the_service_is_away_kernels_go_on_and_deaths_are_told_afterwards(
    server: Server, service: FakeService
) -> None:
    living, dying = service.offer("block"), service.offer("block")
    pids = {run: await began(server, run) for run in (living, dying)}
    await service.stop()
    os.kill(pids[dying], signal.SIGKILL)
    await until(lambda: not psutil.pid_exists(pids[dying]) or None, 10, "the kernel is gone")
    await service.start()
    await until(lambda: service.dead(dying), 20, "the death is told after the outage")
    await until(
        lambda: any(run == living and not body.get("dead") for _, run, body in service.beats), 5, "the lease is renewed"
    )
    assert psutil.pid_exists(pids[living])
    assert await until(lambda: any("renewed" in one.get("told", []) for one in server.lines() if one.get("run") == living), 5)  # fmt: skip


async def test_a_claim_whose_answer_was_cut_is_asked_again_by_its_name(server: Server, service: FakeService) -> None:
    await until(lambda: service.claims, 20, "the server claims")
    service.drop_next_claim = True
    run = service.offer("quick")
    await began(server, run)
    named = [claim["claim_id"] for claim in service.claims]
    assert named[0] == named[1] and len(service.given) >= 1
    assert len([one for one in server.lines() if one.get("began") == run]) == 1


async def test_a_stopped_server_kills_its_kernels_and_reports_them(server: Server, service: FakeService) -> None:
    run = service.offer("block")
    pid = await began(server, run)
    everything = [pid, *await kernels(server)]
    await server.stop()
    assert service.dead(run) == "kernel exited with -9 (the server was stopped)"
    assert not [pid for pid in everything if psutil.pid_exists(pid)]


async def test_a_refused_token_is_said_in_the_log_with_the_way_out(tmp_path: Path, service: FakeService) -> None:
    service.refuse = 403
    server = Server(tmp_path / "s", service, agent="analyst")
    try:
        await server.ready()
        said = "refuses this server (403: this token is not known)"
        await until(lambda: said in server.log.read_text(), 20, "it is said")
        assert "Start the server again from the hub" in server.log.read_text()
    finally:
        await server.stop()


async def test_a_token_that_the_hub_forgot_for_good_ends_the_server_for_another_one(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "REFUSED_WAIT_SECONDS", 0.01)
    service.refuse, broken = 401, asyncio.get_running_loop().create_future()
    supervisor = Supervisor(
        url=service.url, token=HUB_TOKEN, agent="analyst", slots=1, manager=None, sessions=None, kernel_env={}, active=lambda: None,
        broken=broken.set_result, log=logging.getLogger("supervisor"),
    )  # fmt: skip
    monkeypatch.setattr(supervisor.plan, "tick", lambda now: [])  # without kernels
    supervisor.start()
    try:
        error = await asyncio.wait_for(broken, 20)
    finally:
        await supervisor.stop()
    assert isinstance(error, Unauthenticated) and error.detail == "this token is not known"
    assert len(service.handshakes) == link.REFUSALS


def environment_of(process: psutil.Process) -> str:
    """Read the environment as it lies in the process; '' where even its own user may not (it is not dumpable)."""
    try:
        return Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace")
    except PermissionError:
        assert os.geteuid() != 0
        return ""


async def test_no_token_is_in_the_servers_or_any_kernels_or_terminals_reach(
    server: Server, service: FakeService
) -> None:
    pid = await began(server, service.offer("block"))
    visitors = await server.kernel()
    printed, _ = await server.execute(visitors, "import os; print(dict(os.environ))")
    assert "AGENTFARM_URL" in printed and HUB_TOKEN not in printed
    async with server.http.post(server.url + "api/terminals") as answer:
        assert answer.status == 200, await answer.text()
    looked: list[int] = []
    for process in [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]:
        try:
            command = " ".join(process.cmdline())
            assert HUB_TOKEN not in environment_of(process) + command, command
        except (ProcessLookupError, FileNotFoundError, psutil.NoSuchProcess):
            continue  # a short-lived child that has ended
        looked.append(process.pid)
    assert {server.process.pid, pid} <= set(looked)
    worker = Path(f"/proc/{pid}/environ").read_text()
    assert "not for agents" not in worker and "AGENTFARM_SOCKET" not in worker
    assert "afr." not in worker and f"AGENTFARM_WORKSPACE={server.folder / 'work'}" in worker
    # The process is not dumpable: nobody but root owns its /proc entries, whoever runs it.
    assert Path(f"/proc/{server.process.pid}/environ").stat().st_uid == 0


async def named(server: Server, run: str) -> str:
    """Return the id of the kernel that people are shown as the run's."""
    deadline = time.monotonic() + 20
    while not (found := [one for one in await server.get("api/sessions") if one["name"] == f"analyst: {run}"]):
        assert time.monotonic() < deadline, await server.get("api/sessions")
        await asyncio.sleep(0.05)
    return str(found[0]["kernel"]["id"])


async def test_people_see_the_worker_by_name_and_can_run_cells_beside_its_run(
    server: Server, service: FakeService
) -> None:
    run = service.offer("block")
    pid = await began(server, run)
    printed, _ = await server.execute(await named(server, run), "import os; print(os.getpid())")
    assert int(printed) == pid
    assert service.dead(run) is None


@pytest.mark.parametrize("act", ["DELETE", "POST restart"])
async def test_a_visitor_who_ends_a_worker_ends_it_and_the_farm_knows(
    server: Server, service: FakeService, act: str
) -> None:
    run = service.offer("block")
    pid = await began(server, run)
    mine = await named(server, run)
    method, _, action = act.partition(" ")
    async with server.http.request(method, f"{server.url}api/kernels/{mine}" + (f"/{action}" if action else "")):
        pass
    assert "kernel exited with" in await until(lambda: service.dead(run), 15, "its death is reported")
    assert await began(server, service.offer("quick")) != pid


async def test_kernels_speak_over_unix_sockets_that_only_this_user_reaches(
    server: Server, service: FakeService
) -> None:
    command = psutil.Process(await began(server, service.offer("block"))).cmdline()
    connection = Path(command[command.index("-f") + 1])
    assert json.loads(connection.read_text())["transport"] == "ipc"
    assert connection.parent.stat().st_mode & 0o077 == 0


async def test_a_working_run_counts_as_activity_of_the_server(server: Server, service: FakeService) -> None:
    run = service.offer("block")
    await began(server, run)
    before = (await server.get("api/status"))["last_activity"]
    await until(lambda: [1 for _, one, _ in service.beats if one == run], 15, "a heartbeat")
    await asyncio.sleep(0)
    assert (await server.get("api/status"))["last_activity"] > before


async def test_a_warm_kernel_begins_within_milliseconds_of_the_claim(server: Server, service: FakeService) -> None:
    await began(server, service.offer("quick"))
    spent = []
    for _ in range(10):
        await until(lambda: service.claims and service.claims[-1]["claim_id"] not in service.given, 5, "a claim waits")
        asked = time.monotonic()
        run = service.offer("quick")
        await began(server, run)
        spent.append(server.began(run)["at"] - asked)
    print("offer to begin, ms:", [round(1000 * one, 2) for one in sorted(spent)])
    assert sorted(spent)[5] < 0.05


async def test_the_log_holds_no_token(server: Server, service: FakeService) -> None:
    await began(server, service.offer("quick"))
    assert not re.search(rf"{HUB_TOKEN}|afr\.", server.log.read_text())


async def test_jupyterhubs_own_server_works_on_when_its_token_is_out_of_reach(
    tmp_path: Path, service: FakeService
) -> None:
    """jupyterhub-singleuser reads its token when it first needs it: it must have done so before the token is taken away."""
    server = Server(tmp_path / "s", service, agent="analyst", of_hub=True)
    try:
        await server.ready()
        await began(server, service.offer("block"))
        printed, _ = await server.execute(await server.kernel(), "import os; print(dict(os.environ))")
        assert "JUPYTERHUB_USER" in printed and HUB_TOKEN not in printed
        for process in [
            psutil.Process(server.process.pid),
            *psutil.Process(server.process.pid).children(recursive=True),
        ]:
            assert HUB_TOKEN not in environment_of(process)
        known = len(service.activity)
        await until(lambda: len(service.activity) > known, 15, "activity is told to the hub")
        assert service.activity[-1][0] == f"token {HUB_TOKEN}"
        assert service.handshakes[0]["Authorization"] == f"token {HUB_TOKEN}"
    finally:
        await server.stop()


async def test_a_kernel_that_lacks_the_sdk_is_said_to_be_of_no_use_and_gets_no_run(
    tmp_path: Path, service: FakeService
) -> None:
    server = Server(tmp_path / "s", service, agent="analyst", worker="no_such_extension")
    try:
        await server.ready()
        service.offer("quick")
        said = "no_such_extension cannot be loaded in it: is agentfarm_sdk installed"
        await until(lambda: server.log.read_text().count(said) >= 2, 30, "it is said, and tried again")
        assert "goes to worker kernel" not in server.log.read_text()
    finally:
        await server.stop()


IN_THE_MIDDLE = """
import io, os, signal, sys


class Raw(io.RawIOBase):
    def writable(self):
        return True

    def write(self, data):
        if b"in-the-middle" in bytes(data):
            os.kill(os.getpid(), signal.SIGTERM)
        return os.write(2, data)


sys.stderr = io.TextIOWrapper(io.BufferedWriter(Raw()), line_buffering=True)
"""


async def test_a_signal_that_meets_a_line_of_the_log_which_is_just_written_is_not_lost(
    tmp_path: Path, service: FakeService
) -> None:
    (tmp_path / "sitecustomize.py").write_text(IN_THE_MIDDLE)
    paths = (tmp_path, Path(__file__).parents[2], Path(__file__).parent)
    server = Server(tmp_path / "s", service, agent="analyst", PYTHONPATH=os.pathsep.join(map(str, paths)))
    try:
        await server.ready()
        assert server.http
        async with server.http.get(server.url + "api/in-the-middle") as answer:  # its line in the log brings the signal
            assert answer.status == 404
        assert await asyncio.to_thread(server.process.wait, 20) == 0
        assert "received signal 15, stopping" in server.log.read_text()
    finally:
        await server.stop()
