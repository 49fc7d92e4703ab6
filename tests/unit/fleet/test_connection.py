"""Whom the daemon asks and how often, what ssh's complaints mean, which ports lead to servers elsewhere, what these are told."""

from __future__ import annotations

import asyncio
import socket
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.errors import Conflict, Invalid, StartError
from jupyterhub_agentfarm.fleet.connection import (
    CONNECT_SECONDS,
    LONGEST_WAIT,
    Connection,
    Files,
    backoff,
    meaning,
    once_only,
    target,
)
from jupyterhub_agentfarm.fleet.microserver import SshMicroserver
from jupyterhub_agentfarm.fleet.ports import Ports, forwards_of, is_free
from jupyterhub_agentfarm.fleet.remotes import Remotes
from jupyterhub_agentfarm.fleet.state import FleetState, user_of, workspace_of


@pytest.mark.parametrize(
    ("text", "known_as"),
    [("root@10.0.0.11", "10.0.0.11"), ("root@micro1.lan:2222", "[micro1.lan]:2222"), ("root@[fe80::1]", "fe80::1"), ("r@[::1]:23", "[::1]:23")],
)  # fmt: skip
def test_an_address_names_user_host_and_port(text: str, known_as: str) -> None:
    assert target(text).known_as == known_as and str(target(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "10.0.0.11", "root@", "-oProxyCommand=x@h", "root@-oProxyCommand=x", "root@h;reboot", "root@h h", "root@h:0", "root@h:65536", "root@h\n",
        "root@h:22:22", "Root@h", "root@h/..", "root@$(x)",
    ],
)  # fmt: skip
def test_what_ssh_could_take_for_something_else_is_no_address(text: str) -> None:
    with pytest.raises(Invalid):
        target(text)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_the_next_try_comes_after_a_while_that_grows_and_never_too_late(tries: int, luck: float) -> None:
    wait = backoff(tries, luck)
    assert 0.5 <= wait <= LONGEST_WAIT <= 30 - CONNECT_SECONDS and backoff(tries + 1, luck) >= wait


def test_complaints_of_ssh_are_told_in_words() -> None:
    changed = "@@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n@@@@\nHost key verification failed."
    assert "not the one that the farm knows" in meaning(changed)
    assert meaning("ssh: connect to host h port 22: Connection refused") == "nothing listens on its SSH port"
    assert meaning("something new\n") == "something new" and meaning("") == "ssh did not say why"


def test_a_port_that_was_given_lately_is_not_given_to_another_server(tmp_path: Path) -> None:
    state = FleetState(tmp_path / "fleet.json", forwards_of("24100-24104"))
    given_out = []
    for number in range(3):
        state.units[f"af-{number}"] = {"microserver": "m", "port": state.forward()}
        given_out.append(state.units[f"af-{number}"]["port"])
    del state.units["af-2"]
    assert state.forward() not in given_out
    state.save()
    assert FleetState(tmp_path / "fleet.json", state.forwards).last_forward == state.last_forward
    for number in range(5):
        state.units[f"af-{number}"] = {"microserver": "m", "port": state.forwards[number]}
    with pytest.raises(StartError, match="no loopback port"):
        state.forward()


def test_a_port_of_a_server_that_is_away_is_nobody_else_s_until_it_is_let_go() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    ports = Ports()
    ports.hold(port)
    ports.hold(port)
    assert not is_free(port, reused=False)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)) as ours:  # reuses addresses, as ssh does
        socket.create_connection(("127.0.0.1", port)).close()
        ports.let_go(port)
        ports.hold(port)  # somebody listens
        assert ours.fileno() > 0
    ports.let_go(port)
    ports.let_go(port)


@pytest.mark.parametrize("text", ["", "1", "80-90", "30000-20000", "20000-70000", "a-b", "21000-24999-3"])
def test_a_range_of_ports_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(StartError):
        forwards_of(text)


@given(st.text(min_size=1, max_size=40).filter(lambda text: not text.startswith("agent-")))
def test_every_person_has_a_workspace_whose_name_is_safe_and_tells_whose_it_is(user: str) -> None:
    name = workspace_of(user)
    assert name.startswith("~") and "/" not in name and name.isascii() and user_of(name) == user


@pytest.mark.parametrize(
    ("name", "ssh", "keys", "other"),
    [
        ("micro2", "root@10.0.0.1", ["ed C"], "address"), ("micro2", "root@10.0.0.2", ["ed A"], "host key"),
        ("micro2", "root@10.0.0.1:2222", ["ed C"], ""), ("micro1", "root@10.0.0.1", ["ed A"], ""),
    ],
)  # fmt: skip
def test_a_machine_joins_by_one_name_only(name: str, ssh: str, keys: list[str], other: str) -> None:
    known = {"micro1": {"ssh": "root@10.0.0.1", "host_keys": ["ed A"]}}
    with pytest.raises(Conflict, match=f"micro1 already: it has the same {other}") if other else nullcontext():
        once_only(name, target(ssh), keys, known)


class _Way:
    """A connection that says yes, or no for the first ports."""

    def __init__(self, taken: int = 0) -> None:
        self.taken, self.led = taken, list[tuple[int, str, int]]()

    async def lead_back(self, port: int, host: str, to: int) -> bool:
        self.led.append((port, host, to))
        self.taken -= 1
        return self.taken < 0


@pytest.mark.parametrize(("taken", "port"), [(0, 8081), (1, 21_000), (2, 21_001)])
def test_a_server_elsewhere_is_told_how_it_reaches_hub_and_service_from_there(
    tmp_path: Path, taken: int, port: int
) -> None:
    state = FleetState(tmp_path / "fleet.json")
    state.microservers["m"] = {"state": "ready", "ssh": "root@h"}
    remotes = Remotes(tmp_path, state, {})
    micro: Any = remotes.microservers["m"]
    assert isinstance(micro, SshMicroserver) and isinstance(micro.connection, Connection)
    way = micro.connection = _Way(taken)
    env = {
        "PATH": "/here", "JUPYTER_CONFIG_PATH": "/here", "LANG": "C.UTF-8", "JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api",
        "JUPYTERHUB_ACTIVITY_URL": "http://127.0.0.1:8081/hub/api/users/a/activity", "AGENTFARM_URL": "https://farm.example/x",
        "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:54321/user/a/", "JUPYTERHUB_API_TOKEN": "secret",
    }  # fmt: skip
    told = asyncio.run(remotes.environment(micro, "af-a", env))
    assert (
        told["JUPYTERHUB_API_URL"] == f"http://127.0.0.1:{port}/hub/api"
        and told["AGENTFARM_URL"] == env["AGENTFARM_URL"]
    )
    assert told["JUPYTERHUB_ACTIVITY_URL"] == f"http://127.0.0.1:{port}/hub/api/users/a/activity"
    assert (
        told["JUPYTERHUB_SERVICE_URL"] == "http://127.0.0.1:8888/user/a/" and told["JUPYTERHUB_API_TOKEN"] == "secret"
    )
    assert "/here" not in told.values() and told["LANG"] == "C.UTF-8"
    assert len(way.led) == taken + 1 and state.microservers["m"]["back"] == {"127.0.0.1:8081": port}


def test_a_control_socket_whose_path_is_too_long_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="too long"):
        Files(tmp_path / ("x" * 90)).control("micro1")
