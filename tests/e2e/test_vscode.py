"""An agent's server in VS Code: the extension's own requests against a real hub, proxy and spawner; a visit to a worker at work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from farmkit import PATIENCE, Counter, Farm, Held, Person, until
from vscodekit import Refused, VSCode

from jupyterhub_agentfarm.fleet.client import FleetClient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("scripted_farm", ["sqlite"], indirect=True),
]
SECONDS = 60.0


@pytest.fixture
def alice(scripted_farm: Farm) -> Person:
    return scripted_farm.person("alice")


@pytest.fixture
def agent(hands: dict[str, str]) -> str:
    return hands["charge"]


def connect(person: Person, agent: str) -> dict[str, Any]:
    """Ask until the server is up, as the dialog and the command line do."""

    def look() -> dict[str, Any] | None:
        with person.api() as api:
            answer = api.post(f"/agents/{agent}/connect", json={})
            assert answer.status_code in (200, 202), answer.text
            return dict(answer.json()) if answer.status_code == 200 else None

    return until(look, SECONDS, f"the server of {agent} is up", every=0.5)


def editor(given: dict[str, Any]) -> VSCode:
    return VSCode(given["url"], given["user"], given["token"])


def of_hub(given: dict[str, Any], seen: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Return what was asked of the Hub about the user, looking again left out, with `U` for the user's path."""
    user = f"/hub/api/users/{given['user']}"
    named = [(method, path.replace(user, "U"), status) for method, path, status in seen if path.startswith(user)]
    return [one for place, one in enumerate(named) if place == 0 or one != named[place - 1]]


def test_the_extension_s_requests_open_a_running_server_and_start_a_stopped_one(alice: Person, agent: str) -> None:
    given = connect(alice, agent)

    async def use(code: VSCode) -> None:
        await code.open()
        async with code.new_kernel() as kernel, code.attached(kernel) as ws:
            assert await code.execute(ws, "print(6*7)") == "42\n"
        assert code.asked[-1][::2] == ("DELETE", 204) and kernel not in str(await code.sessions())

    running = editor(given)
    asyncio.run(use(running))
    assert of_hub(given, running.asked) == [("GET", "U", 200)]
    with alice.api() as api:
        api.post(f"/agents/{agent}/stop", json={}).raise_for_status()
    stopped, end = editor(given), time.monotonic() + PATIENCE * SECONDS
    while True:  # a person tries again where ten seconds were not enough
        try:
            asyncio.run(use(stopped))
            break
        except Refused:
            assert time.monotonic() < end, stopped.asked
    starts = [status for method, path, status in stopped.asked if (method, path[-7:]) == ("POST", "/server")]
    assert starts and starts[0] in (201, 202)


def test_a_cell_runs_beside_a_run_in_its_worker_s_kernel_and_is_on_the_run_s_record(
    alice: Person, agent: str, counter: Counter
) -> None:
    held = Held(alice, agent, "charge", counter)
    held.reached()
    run = alice.task(held.task_id)["run_id"]
    code = "import agentfarm_sdk\nnow = agentfarm_sdk.current()\nprint(now, len(now.messages))"

    async def visit() -> str:
        code_ = await editor(connect_to).open()
        kernels = [one["kernel"]["id"] for one in await code_.sessions() if run in one["name"]]
        assert len(kernels) == 1, await code_.sessions()
        async with code_.attached(kernels[0]) as ws:
            return await code_.execute(ws, code)

    connect_to = connect(alice, agent)
    printed = asyncio.run(visit())
    assert run in printed and "doing charge" in printed and printed.split()[-1] == "3", printed
    assert len(counter.requests(held.name)) == 1 and alice.task(held.task_id)["status"] == "running"
    held.release()
    assert held.settled()["status"] == "succeeded" and counter.effects(held.name) == 1
    events = alice.events(run)
    assert [one["kind"] for one in events].count("run.leased") == 1, "the same worker went on"
    assert [one["body"]["code"] for one in events if one["kind"] == "person.executed"] == [code]
    with alice.api() as api:
        assert api.get(f"/runs/{run}/verify").json()["ok"]


def test_the_token_opens_nothing_but_its_own_agent_s_server(
    scripted_farm: Farm, alice: Person, hands: dict[str, str]
) -> None:
    given, other = connect(alice, hands["charge"]), connect(alice, hands["store"])
    alice.server("alice")
    holder = Person(scripted_farm, given["user"], "", given["token"])

    def server(name: str) -> int:
        kernel = scripted_farm.kernels(name, given["token"])
        headers = {**holder.headers, "Host": kernel.host}
        return httpx.get(f"{kernel.base}api/kernels", headers=headers, timeout=30 * PATIENCE).status_code

    assert (server(given["user"]), server(other["user"]), server("alice")) == (200, 403, 403)
    with holder.api() as api:
        for method, path in (
            ("GET", "/agents"), ("GET", "/inbox"), ("POST", "/inbox/inbox-1"), ("POST", "/tasks"), ("POST", "/claims"),
            ("POST", f"/agents/{hands['charge']}/connect"), ("GET", "/events"), ("GET", "/tools"),
        ):  # fmt: skip
            answer = api.request(method, path, json={} if method == "POST" else None)
            assert answer.status_code == 403 and "no access" in answer.json()["detail"], (path, answer.text)
    with holder.hub() as hub:
        me = f"/users/{given['user']}"
        assert hub.get(me).json()["servers"][""]["ready"]
        tried = [
            hub.delete(f"{me}/server"), hub.post(f"{me}/tokens", json={}), hub.get(f"{me}/tokens"), hub.get("/users"),
            hub.post(f"{me}/servers/more"), hub.get("/users/alice"), hub.post("/users/alice/server"),
            hub.get(f"/users/{other['user']}"), hub.post(f"/users/{other['user']}/server"), hub.get("/services"),
        ]  # fmt: skip
        assert [one.status_code for one in tried if one.status_code not in (403, 404)] == [], tried
    assert scripted_farm.cli("agent", "list", token=given["token"]).returncode != 0


def test_a_revoked_token_opens_nothing_and_what_it_has_opened_is_closed(
    scripted_farm: Farm, alice: Person, agent: str
) -> None:
    given = connect(alice, agent)

    async def cut_off() -> VSCode:
        code = await editor(given).open()
        async with code.new_kernel() as kernel, code.attached(kernel) as ws:
            assert await code.execute(ws, "print(6*7)") == "42\n"
            revoke = ("agent", "connect", agent, "--revoke", given["connection_id"])
            said = await asyncio.to_thread(scripted_farm.cli, *revoke, token=alice.token)
            assert said.returncode == 0, said.stderr
            await asyncio.wait_for(ws.wait_closed(), PATIENCE * 30)
            assert ws.close_code == 1008
        return code

    code = asyncio.run(cut_off())
    assert code.asked[-1][::2] == ("DELETE", 403), "the server has forgotten the token too"
    with pytest.raises(Refused):
        asyncio.run(editor(given).open())


def test_a_person_s_own_server_opens_by_user_and_password_and_an_agent_s_does_not(
    scripted_farm: Farm, alice: Person, agent: str
) -> None:
    """Nothing else is told by the extension: why a server does not start, `connect` says."""
    public = scripted_farm.ready["public_url"]

    async def use() -> None:
        code = VSCode(public, alice.name, alice.password)
        end = time.monotonic() + PATIENCE * SECONDS
        while True:
            try:
                await code.open()
                break
            except Refused:
                assert time.monotonic() < end, code.asked
                await code.remove()
        assert ("POST", f"/hub/api/users/{alice.name}/tokens", 201) in code.asked
        async with code.new_kernel() as kernel, code.attached(kernel) as ws:
            assert await code.execute(ws, "print(6*7)") == "42\n"
        await code.remove()
        assert code.asked[-1][::2] == ("DELETE", 204)

    asyncio.run(use())
    for user, password in ((alice.name, "wrong"), (f"agent-{agent}", alice.password)):
        with pytest.raises(Refused, match="Invalid username or password"):
            asyncio.run(VSCode(public, user, password).open())


@pytest.fixture
def nothing_new(scripted_farm: Farm) -> Iterator[None]:
    """The farm's only microserver takes no server for the time of a test."""
    fleet = FleetClient(str(scripted_farm.state / "fleet.sock"))
    asyncio.run(fleet.cordon("local", "a test"))
    yield
    asyncio.run(fleet.uncordon("local"))


def test_a_server_that_cannot_start_says_why_instead_of_handing_out_a_token(
    scripted_farm: Farm, alice: Person, hands: dict[str, str], nothing_new: None
) -> None:
    with alice.api() as api:
        api.post(f"/agents/{hands['store']}/stop", json={}).raise_for_status()
    said = scripted_farm.cli("agent", "connect", hands["store"], token=alice.token)
    assert said.returncode != 0 and "cordoned" in said.stderr and "token" not in said.stdout, said
