"""`agentfarm up` with all real parts: it comes up, heals, refuses a second one, and leaves nothing running."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from jupyterhub_agentfarm.chaos.postgres import Postgres
from jupyterhub_agentfarm.cli.main import main
from jupyterhub_agentfarm.errors import StartError
from jupyterhub_agentfarm.launcher.parts import node, proxy_script

ROOT = Path(__file__).parents[2]
PARTS = {"proxy", "hub", "service", "daemon"}
pytestmark = [pytest.mark.timeout(300)]


def why_not() -> str:
    try:
        node(os.environ)
        proxy_script(os.environ)
    except StartError as error:
        return error.detail
    return ""


if reason := why_not():
    pytest.skip(f"no farm can be started here: {reason}", allow_module_level=True)


def until(look: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return found


def command(state: Path, *argv: str) -> list[str]:
    return [sys.executable, "-m", "jupyterhub_agentfarm.cli", "up", "--state", str(state), "--no-demo", *argv]


def environment(**more: str) -> dict[str, str]:
    mine = ("AGENTFARM_", "JUPYTERHUB_", "HF_", "HUGGING_FACE", "DB_CONNECTION")
    return {name: value for name, value in os.environ.items() if not name.startswith(mine)} | more


class Up:
    """A farm under its launcher."""

    def __init__(self, state: Path, **env: str) -> None:
        self.state, self.log, self.env = state, state.parent / "up.log", environment(**env)

    def start(self, *argv: str) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                command(self.state, *argv), cwd=ROOT, env=self.env, stdout=out, stderr=out, start_new_session=True
            )
        mine = self.process.pid  # ready.json may be one that a killed launcher left
        until(lambda: self.ready.get("pid") == mine or self.process.poll() is not None, 120, "the farm is up")
        assert self.process.poll() is None, self.log.read_text()

    @property
    def ready(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.state / "ready.json").read_text()))
        except (OSError, ValueError):
            return {}

    @property
    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(pid) for pid in self.ready["pids"].values()]

    def get(self, url: str, **headers: str) -> httpx.Response:
        with httpx.Client(transport=httpx.HTTPTransport(), timeout=10) as client:
            return client.get(url, headers=headers)

    def answers(self, url: str) -> bool:
        try:
            return self.get(url).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    folder = Path(tempfile.mkdtemp(prefix="afup-", dir="/tmp"))
    farm = Up(folder / "farm")
    farm.start("--port", "0")
    yield farm
    if farm.process.poll() is None:
        farm.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_every_part_is_up_and_answers_on_the_public_port(up: Up) -> None:
    assert up.ready["pids"].keys() >= PARTS
    port = up.ready["public_url"].rpartition(":")[2]
    assert up.get(f"http://127.0.0.1:{port}/hub/api/").json()["version"]
    health = up.get(f"http://127.0.0.1:{port}/services/agentfarm/api/v1/health").json()
    assert health["status"] == "ok"
    assert up.get(f"{up.ready['service_url']}/api/v1/health").json() == health


def test_nothing_listens_beyond_this_machine(up: Up) -> None:
    listening = [
        one.laddr.ip
        for process in up.processes
        for one in process.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 4 and set(listening) <= {"127.0.0.1", "::1"}


def test_no_secret_is_in_anybody_s_argument_list_or_in_a_log(up: Up) -> None:
    secrets = [file.read_bytes().strip() for file in (up.state / "secrets").iterdir() if file.suffix != ".json"]
    secrets += [json.loads((up.state / "client.json").read_text())["token"].encode()]
    assert len(secrets) >= 7
    lines = [" ".join(process.cmdline()).encode() for process in [psutil.Process(up.process.pid), *up.processes]]
    logs = [file.read_bytes() for file in (up.state / "logs").iterdir()]
    assert not [text for text in lines + logs for secret in secrets if secret in text]


def test_what_holds_secrets_is_read_by_its_owner_alone(up: Up) -> None:
    assert stat.S_IMODE(up.state.stat().st_mode) & 0o066 == 0  # agents' own users may pass through to their workspaces
    assert stat.S_IMODE((up.state / "secrets").stat().st_mode) == 0o700
    for file in [up.state / "client.json", up.state / "ready.json", *(up.state / "secrets").iterdir()]:
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_the_command_line_s_token_is_the_admin_s_but_for_approving(up: Up) -> None:
    token = json.loads((up.state / "client.json").read_text())["token"]
    model = up.get(f"{up.ready['hub_url']}api/user", Authorization=f"token {token}").json()
    assert model["name"] == "admin" and "custom:agentfarm:admin" in model["scopes"]
    assert not [scope for scope in model["scopes"] if "approve" in scope or scope.startswith("admin:")]


def test_the_command_line_finds_the_farm(up: Up, capsys: pytest.CaptureFixture[str]) -> None:
    state = ["--state", str(up.state)]
    assert main(["status", *state]) == 0 and main(["microserver", "list", *state]) == 0
    assert "local" in capsys.readouterr().out
    assert main(["agent", "show", "nobody", *state]) == 2


def test_people_sign_in_and_find_the_farm_in_the_navigation_and_agents_do_not_sign_in(up: Up) -> None:
    passwords = json.loads((up.state / "secrets/passwords.json").read_text())
    port = up.ready["public_url"].rpartition(":")[2]
    host = {"Host": f"farm.localhost:{port}"}

    def sign_in(name: str, password: str) -> httpx.Response:
        with httpx.Client(transport=httpx.HTTPTransport(), base_url=f"http://127.0.0.1:{port}", headers=host) as client:
            jar = dict(client.get("/hub/login").cookies)
            cookies = "; ".join(f"{key}={value}" for key, value in jar.items())
            data = {"username": name, "password": password, "_xsrf": jar["_xsrf"]}
            answer = client.post("/hub/login?next=/hub/home", data=data, headers={"Cookie": cookies})
            if answer.status_code != 302:
                return answer
            got = "; ".join(one.partition(";")[0] for one in answer.headers.get_list("set-cookie"))
            return client.get("/hub/home", headers={"Cookie": f"{cookies}; {got}"})

    home = sign_in("alice", passwords["people"])
    page = f'href="http://agentfarm--service.farm.localhost:{port}/services/agentfarm/"'
    assert home.status_code == 200 and page in home.text and re.search(r">\s*AgentFarm\s*<", home.text)
    assert sign_in("admin", passwords["admin"]["admin"]).status_code == 200
    assert sign_in("admin", passwords["people"]).status_code == 403
    assert sign_in("agent-x", passwords["people"]).status_code == 403
    assert sign_in("alice", "guessed").status_code == 403


def test_a_second_one_is_told_where_the_first_one_is(up: Up) -> None:
    done = subprocess.run(
        command(up.state), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and up.ready["public_url"] in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_part_that_is_killed_comes_back_where_it_was_and_the_others_stay(up: Up, name: str) -> None:
    before = up.ready["pids"]
    os.kill(before[name], signal.SIGKILL)
    until(lambda: up.ready["pids"][name] != before[name], 20, f"{name} is started again")
    port = up.ready["public_url"].rpartition(":")[2]
    # Through the proxy to the service: only where the Hub has filled a new proxy with its routes again.
    until(lambda: up.answers(f"http://127.0.0.1:{port}/services/agentfarm/api/v1/health"), 60, "all answer again")
    until(lambda: up.answers(f"{up.ready['hub_url']}api/"), 60, "the Hub answers again")
    until(lambda: f"{name} is up again" in up.log.read_text(), 30, "the person is told")
    assert {**up.ready["pids"], name: 0} == {**before, name: 0}


def test_a_launcher_that_is_killed_takes_its_parts_along_and_the_next_one_starts_on_the_same_ports(up: Up) -> None:
    processes, ports = up.processes, json.loads((up.state / "ports.json").read_text())
    token = (up.state / "client.json").read_text()
    up.process.kill()
    up.process.wait(10)
    up.start("--port", "0")
    psutil.wait_procs(processes, 10)
    assert not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert json.loads((up.state / "ports.json").read_text()) == ports
    assert (up.state / "client.json").read_text() == token


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_ends_all_that_it_started(up: Up, number: int) -> None:
    if up.process.poll() is not None:
        up.start("--port", "0")
    processes = up.processes
    assert up.stop(number) == 0
    gone, alive = psutil.wait_procs(processes, 5)
    assert alive == [] and len(gone) == len(processes)
    assert not (up.state / "ready.json").exists() and not (up.state / "processes.json").exists()
    assert "the ledger and the workspaces are as they were" in up.log.read_text()


def refused(state: Path, *argv: str, **env: str) -> str:
    """Start a farm that cannot start; return what it says."""
    done = subprocess.run(
        command(state, *argv),
        cwd=ROOT,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    left = [one for one in psutil.process_iter(["cmdline", "environ"]) if (one.info["environ"] or {}).get("AGENTFARM_STATE") == str(state)]  # fmt: skip
    assert left == []
    return done.stderr


def test_a_taken_port_is_a_sentence_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(tmp_path / "farm", "--port", str(port))
    assert f"port {port} is taken" in said and "--port" in said


def test_a_database_that_cannot_be_used_is_a_sentence_with_the_reason(tmp_path: Path) -> None:
    short = Path(tempfile.mkdtemp(prefix="afup-", dir="/tmp"))
    try:
        said = refused(
            short / "farm", "--port", "0", DB_CONNECTION_STRING=f"sqlite:///{tmp_path}/no/such/folder/farm.sqlite"
        )
    finally:
        shutil.rmtree(short)
    assert "service does not start" in said and "folder" in said


@pytest.fixture
def short() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="afup-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_standby_beside_sqlite_is_a_sentence_with_the_way_out(short: Path) -> None:
    said = refused(short / "farm", "--port", "0", "--standby")
    assert "SQLite cannot have a standby" in said and "PostgreSQL" in said


def test_with_a_standby_the_farm_s_address_answers_again_when_the_leader_is_killed(
    short: Path, postgres: Postgres
) -> None:
    farm = Up(short / "farm", DB_CONNECTION_STRING=postgres.create())
    farm.start("--port", "0", "--standby")
    try:
        processes, before = farm.processes, farm.ready["pids"]
        address = f"{farm.ready['service_url']}/api/v1/health"
        assert farm.get(address).json()["generation"] == 1
        leader = json.loads((farm.state / "leading.json").read_text())["pid"]
        (name,) = [name for name, pid in before.items() if pid == leader]
        assert name in ("service", "standby")
        os.kill(leader, signal.SIGKILL)
        until(lambda: farm.get(address).json()["generation"] == 2, 60, "the other one leads")
        until(lambda: farm.ready["pids"][name] != leader, 60, f"{name} is started again")
        own = json.loads((farm.state / "ports.json").read_text())[f"{name}_own"]
        until(lambda: f"{name} is up again" in farm.log.read_text(), 60, "it stands by")
        assert farm.get(f"http://127.0.0.1:{own}/api/v1/health").json()["status"] == "standby"
        public = farm.ready["public_url"].rpartition(":")[2]
        assert farm.answers(f"http://127.0.0.1:{public}/services/agentfarm/api/v1/health")
        processes += [psutil.Process(farm.ready["pids"][name])]
        assert farm.stop() == 0
        assert psutil.wait_procs(processes, 10)[1] == []
    finally:
        if farm.process.poll() is None:
            farm.process.kill()
