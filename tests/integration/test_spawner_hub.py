"""A real Hub, our spawner and a real fleet daemon: whichever of them dies, servers, units and tokens agree in the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
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

from jupyterhub_agentfarm.fleet.helper.checks import VERSION
from jupyterhub_agentfarm.records import unit_name

HERE = Path(__file__).parent
PROXY = HERE.parents[1] / "node_modules" / ".bin"
ADMIN = "admins-token"
CONFIG = """
import sys
from jupyterhub.auth import DummyAuthenticator
from jupyterhub_agentfarm.hubconfig import configure, farm_authenticator
configure(c, service_url="http://127.0.0.1:1", service_token="s" * 32, fleet_token="f" * 32, admins=["root"])
c.JupyterHub.services.append({"name": "tests", "api_token": "ADMIN", "admin": True})
c.JupyterHub.load_roles.append({"name": "tests", "services": ["tests"], "scopes": ["admin:users", "admin:servers", "tokens", "read:hub"]})
c.JupyterHub.authenticator_class = farm_authenticator(DummyAuthenticator)
c.Authenticator.allow_all = True
c.JupyterHub.bind_url = "http://127.0.0.1:PUBLIC"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:HUB"
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:API"
c.JupyterHub.db_url = "sqlite:///STATE/hub.sqlite"
c.JupyterHub.cookie_secret_file = "STATE/cookie_secret"
c.JupyterHub.cleanup_servers = False
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0.1, "slow_stop_timeout": 0.1}
c.ConfigurableHTTPProxy.should_start = True
c.Spawner.cmd = [sys.executable, "SMALL"]
c.Spawner.poll_interval = 1
c.Spawner.http_timeout = 5
c.Spawner.start_timeout = 8
c.Spawner.environment = {"WAIT_FOR": "STATE/gate"}
"""


def until(look: Callable[[], Any], what: str, seconds: float = 150.0) -> Any:
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        if last := look():
            return last
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:.0f} s: {what} (last: {last!r})")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Place:
    """The state directory, the Hub and the daemon, each started and killed by itself."""

    def __init__(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="afh-", dir="/tmp"))
        self.gate = self.state / "gate"
        self.gate.touch()
        ports = {name: free_port() for name in ("PUBLIC", "HUB", "API")}
        self.api_port = str(ports["API"])
        self.url = f"http://127.0.0.1:{ports['HUB']}/hub/api"
        text = CONFIG.replace("ADMIN", ADMIN).replace("SMALL", str(HERE / "smallserver.py"))
        for name, port in ports.items():
            text = text.replace(f":{name}", f":{port}")
        (self.state / "config.py").write_text(text.replace("STATE", str(self.state)))
        (self.state / "token").write_text("f" * 32)
        dropped = ("JUPYTERHUB_", "AGENTFARM_", "CONFIGPROXY")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)} | {
            "PATH": f"{PROXY}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "AGENTFARM_STATE": str(self.state), "JUPYTERHUB_API_URL": self.url, "AGENTFARM_RECONCILE_SECONDS": "0.5",
            "AGENTFARM_FLEET_TOKEN_FILE": str(self.state / "token"), "CONFIGPROXY_AUTH_TOKEN": "p" * 32,
        }  # fmt: skip
        self.log = open(self.state / "log", "ab")  # noqa: SIM115

    def start_daemon(self) -> None:
        command = [sys.executable, "-m", "jupyterhub_agentfarm.fleet.daemon"]
        self.daemon = subprocess.Popen(command, env=self.env, stdout=self.log, stderr=self.log)
        until(self.units_answer, "the daemon answers")

    def start_hub(self) -> None:
        command = [sys.executable, "-m", "jupyterhub", "-f", str(self.state / "config.py")]
        self.hub = subprocess.Popen(command, cwd=self.state, env=self.env, stdout=self.log, stderr=self.log)
        until(lambda: self.ask("GET", "/info") is not None, "the Hub answers")

    def end_hub(self) -> None:
        """Ask the Hub to end. It waits for its services, for a quarter of a minute and more where they do not hear it."""
        self.hub.terminate()
        try:
            self.hub.wait(90)
        except subprocess.TimeoutExpired:
            self.kill(self.hub)
            raise AssertionError(self.text()[-8000:]) from None

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait(10)

    def text(self) -> str:
        return (self.state / "log").read_text()

    def end_proxy(self) -> None:
        """End the proxy that a Hub started, which was killed itself: a later Hub takes it over and does not own it."""
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if "configurable-http-proxy" in " ".join(one.cmdline()) and self.api_port in one.cmdline():
                    one.kill()

    def units_answer(self) -> bool:
        transport = httpx.HTTPTransport(uds=str(self.state / "fleet.sock"))
        try:
            with httpx.Client(transport=transport, timeout=20) as client:
                self.items = client.get("http://fleet/servers").json()["items"]
        except (httpx.HTTPError, ValueError):
            return False
        return True

    def running(self) -> list[str]:
        assert self.units_answer()
        return sorted(one["unit"] for one in self.items if one["state"] == "running")

    def ask(self, method: str, path: str, body: Any = None, token: str = ADMIN) -> httpx.Response | None:
        try:
            headers = {"Authorization": f"token {token}"}
            return httpx.request(method, self.url + path, json=body, headers=headers, timeout=30)
        except httpx.HTTPError:
            return None

    def server(self, user: str) -> dict[str, Any]:
        answer = self.ask("GET", f"/users/{user}")
        return dict((answer.json().get("servers") or {}).get("") or {}) if answer is not None else {}

    def tokens(self, user: str) -> int:
        """Count the tokens of the user's servers."""
        answer = self.ask("GET", f"/users/{user}/tokens")
        assert answer is not None
        return sum(one["note"].startswith("Server at") for one in answer.json()["api_tokens"])

    def begin(self, user: str) -> None:
        self.ask("POST", f"/users/{user}")
        answer = self.ask("POST", f"/users/{user}/server", {})
        assert answer is not None and answer.status_code in (201, 202), answer

    def up(self, user: str) -> str:
        """Start a server; return the address that the Hub keeps."""
        self.begin(user)
        until(lambda: self.server(user).get("ready"), f"{user}'s server is up")
        return self.address(user)

    def address(self, user: str) -> str:
        assert self.units_answer()
        one = next(unit for unit in self.items if unit["unit"] == unit_name(user))
        return f"http://{one['ip']}:{one['port']}"

    def its_token_works(self, user: str) -> bool:
        token = httpx.get(f"{self.address(user)}/user/{user}/api", timeout=10).text
        answer = self.ask("GET", "/user", token=token)
        return answer is not None and answer.status_code == 200 and answer.json()["name"] == user

    def gone(self, user: str) -> None:
        """Wait until neither unit nor server nor token is left of the user's server."""
        until(lambda: unit_name(user) not in self.running(), f"the unit of {user} is gone")
        until(lambda: not self.server(user), f"the server of {user} is gone")
        until(lambda: self.tokens(user) == 0, f"the tokens of {user}'s server are gone")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    if shutil.which("configurable-http-proxy", path=f"{PROXY}{os.pathsep}{os.environ['PATH']}") is None:
        pytest.skip("configurable-http-proxy is not installed: npm ci")
    made = Place()
    try:
        made.start_daemon()
        made.start_hub()
        yield made
    finally:
        try:
            made.end_hub()
        finally:
            made.end_proxy()
            made.daemon.terminate()
            made.daemon.wait(10)
        for unit in (made.state / "units").iterdir():
            request = json.dumps({"v": VERSION, "op": "stop", "unit": unit.name, "now": True})
            helper = HERE.parents[1] / "jupyterhub_agentfarm" / "fleet" / "helper"
            command = [sys.executable, "-I", str(helper), "--process", str(made.state)]
            subprocess.run(command, input=request, text=True, capture_output=True, check=True)
        made.log.close()
        shutil.rmtree(made.state)


@pytest.fixture(autouse=True)
def gate(place: Place) -> Iterator[Path]:
    place.gate.touch()
    yield place.gate
    place.gate.touch()


def test_a_hub_that_is_killed_finds_its_servers_again_at_the_same_address_and_with_their_tokens(place: Place) -> None:
    address = place.up("ann")
    place.kill(place.hub)
    place.start_hub()
    until(lambda: place.server("ann").get("ready"), "the Hub has found the server again")
    assert place.server("ann")["user_options"]["profile"].startswith("local: it is pinned there"), "on the admin page"
    assert place.address("ann") == address and place.its_token_works("ann") and place.tokens("ann") == 1
    place.ask("DELETE", "/users/ann/server")  # this Hub never saw the token
    place.gone("ann")


def test_a_hub_that_is_killed_while_a_server_starts_takes_it_over(place: Place, gate: Path) -> None:
    gate.unlink()
    place.begin("bea")
    until(lambda: unit_name("bea") in place.running(), "the unit of bea runs")
    place.kill(place.hub)
    gate.touch()
    place.start_hub()
    until(lambda: place.server("bea").get("ready"), "the Hub has taken the server over")
    assert place.its_token_works("bea") and place.tokens("bea") == 1


def test_what_starts_behind_the_back_of_a_dead_hub_is_ended_or_taken_over(place: Place) -> None:
    place.daemon.send_signal(signal.SIGSTOP)  # it has the order when it wakes
    place.begin("cat")
    place.kill(place.hub)
    place.daemon.send_signal(signal.SIGCONT)
    place.start_hub()

    def agree() -> bool:
        has = bool(place.server("cat").get("ready"))
        return has == (unit_name("cat") in place.running()) and place.tokens("cat") == int(has)

    until(agree, "the Hub's servers, units and tokens agree")


def test_a_unit_that_the_hub_does_not_know_is_ended(place: Place) -> None:
    place.up("dan")
    place.kill(place.daemon)
    deleted = place.ask("DELETE", "/users/dan")  # the Hub cannot stop it: it may refuse, or forget the user
    assert deleted is not None
    place.start_daemon()
    if deleted.status_code >= 400:
        assert place.ask("DELETE", "/users/dan") is not None
    until(lambda: unit_name("dan") not in place.running(), "no server outlives its user")


def test_a_server_that_never_answers_is_given_up_whole(place: Place, gate: Path) -> None:
    gate.unlink()
    place.begin("eve")
    until(lambda: unit_name("eve") in place.running(), "the unit of eve runs")
    place.gone("eve")
    gate.touch()
    place.up("eve")


def test_a_server_that_waits_for_its_turn_says_so_where_its_user_waits_for_it(place: Place, gate: Path) -> None:
    gate.unlink()
    first = [f"ida-{number}" for number in range(psutil.cpu_count())]
    for user in first:
        place.begin(user)
    until(lambda: {unit_name(user) for user in first} <= set(place.running()), "as many start as there are cores")
    place.begin("last")
    told: list[str] = []
    address, headers = f"{place.url}/users/last/server/progress", {"Authorization": f"token {ADMIN}"}
    with httpx.stream("GET", address, headers=headers, timeout=60) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                told.append(json.loads(line[6:])["message"])
            if told and told[-1].startswith("Waiting for its turn"):
                gate.touch()
    waits = f"Waiting for its turn: {len(first)} servers start on microserver local before it"
    assert waits in told[:-1] and told[-1].startswith("Server ready"), told
    for user in [*first, "last"]:
        place.ask("DELETE", f"/users/{user}/server")
        place.gone(user)


def test_a_start_that_takes_too_long_while_the_daemon_hangs_leaves_nothing(place: Place) -> None:
    place.daemon.send_signal(signal.SIGSTOP)
    place.begin("fay")
    until(lambda: not place.server("fay").get("ready") and "giving up" in place.text(), "the Hub gives up", 30)
    place.daemon.send_signal(signal.SIGCONT)
    place.gone("fay")


def test_a_daemon_that_dies_while_a_server_starts_costs_nothing(place: Place, gate: Path) -> None:
    gate.unlink()
    place.begin("gus")
    until(lambda: unit_name("gus") in place.running(), "the unit of gus runs")
    place.kill(place.daemon)
    gate.touch()
    until(lambda: place.server("gus").get("ready"), "the server is up without the daemon")
    (place.state / "fleet.json").unlink()
    place.start_daemon()
    before = place.address("gus")
    assert place.its_token_works("gus"), "a lost fleet.json is made anew from the units"
    assert place.up("hal") != before


def test_jupyterhub_s_own_culler_stops_people_s_idle_servers_and_does_not_see_agents(place: Place) -> None:
    config = place.state / "config.py"
    config.write_text(
        config.read_text() + "from jupyterhub_agentfarm.hubconfig import cull_people\ncull_people(c, 2)\n"
    )
    place.end_hub()
    place.start_hub()
    place.ask("POST", "/users/agent-idle")
    place.ask("POST", "/groups/agents/users", {"users": ["agent-idle"]})
    place.up("agent-idle")
    place.begin("idler")
    until(lambda: "Culling server idler" in place.text(), "the person's idle server was culled")
    until(lambda: not place.server("idler"), "it is gone")
    assert place.server("agent-idle").get("ready"), place.text()[-4000:]
    place.ask("DELETE", "/users/agent-idle/server")
    place.gone("agent-idle")
