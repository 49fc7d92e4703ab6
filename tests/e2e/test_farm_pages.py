"""The farm pages about the farm itself, in a real browser: an operator sees the whole of it, an owner their part."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Thread
from typing import Any

import psutil
import pytest
from browserkit import Desk
from farmkit import PATIENCE, Farm, Person, until

from jupyterhub_agentfarm.errors import NotFound, StartError
from jupyterhub_agentfarm.fleet.client import FleetClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.parametrize("farm", ["sqlite"], indirect=True)]
AGENT = "a-hen-house"  # by its name among the first: home shows no more than some


@pytest.fixture
def petra(farm: Farm) -> Person:
    """A person with one agent, and no more."""
    person = farm.person("petra")
    with person.api() as api:
        made = api.post("/agents", json={"name": AGENT, "draft": {"prompt": "Count the hens."}})
        assert made.status_code in (201, 409), made.text
    return person


def test_an_operator_sees_and_steers_the_whole_farm(desk: Callable[..., Desk], farm: Farm, petra: Person) -> None:
    admin = desk("admin", dark=True)
    page = admin.at()
    agents = page.get_by_role("region", name="Agents")
    agents.get_by_role("link", name=AGENT, exact=True).wait_for()
    with petra.api() as api:
        for said in api.get("/health").json()["problems"] or ["the farm is well"]:
            page.get_by_text(said).wait_for()
    admin.shot("home-dark")
    found = admin.axe()
    page.get_by_role("link", name="Microservers").click()
    machine = page.locator(".af-frame").first
    try:
        machine.get_by_role("button", name="Cordon").click()
        page.get_by_label("Reason").fill("its disk is old")
        page.get_by_role("dialog").get_by_role("button", name="Cordon").click()
        machine.locator("[data-state=cordoned]").wait_for()
        machine.get_by_text("its disk is old").wait_for()
        found += drained(admin, machine)
        page.get_by_label("Agent", exact=True).select_option(AGENT)
        page.get_by_text(f"No microserver can take the server of {AGENT} now.").wait_for()
        with farm.person("admin").api() as api:  # no disk is quite empty: a real taint, by real figures
            api.put("/placements/settings", json={"health": {"disk_free": 1, "calm_seconds": 0}}).raise_for_status()
        machine.get_by_text("tainted disk-full").wait_for()
        machine.get_by_text("of its disk is free").wait_for()
        fleet(farm, "register", "micro9", {"ssh": "root@127.0.0.1:1"})
        away = page.get_by_role("region", name="micro9")
        away.get_by_text("nothing listens on its SSH port").wait_for()
        away.locator("[data-state=silent], [data-state=lost]").wait_for()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            admin.shot(f"microservers-ill-{scheme}")
        found += admin.axe()
        hub = admin.tab()
        hub.goto(f"{farm.ready['public_url']}/hub/admin")
        row = hub.locator("#agentfarm-troubles tr", has_text="micro9")
        row.get_by_text("nothing listens on its SSH port").wait_for()
        hub.close()
        machine.get_by_role("button", name="Labels and taints").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Labels", exact=True).fill("zone=hen-house")
        found += admin.axe()
        dialog.get_by_role("button", name="Save").click()
        machine.get_by_text("zone=hen-house").wait_for()
        admin.shot("microservers-dark")
        found += admin.axe()
    finally:
        with farm.person("admin").api() as api:
            api.put("/placements/settings", json={"health": {"disk_free": None}}).raise_for_status()
            fleet(farm, "remove", "micro9", True)
            for one in api.get("/microservers").json()["items"]:
                api.post(f"/microservers/{one['name']}/uncordon", json={"reason": "it was a test"}).raise_for_status()
            machines = [one["name"] for one in api.get("/microservers").json()["items"]]
            for name in machines:
                api.patch(f"/microservers/{name}", json={"labels": {"zone": None}}).raise_for_status()
    page.get_by_text("tainted disk-full").wait_for(state="detached")
    with farm.person("admin").api() as api:
        api.put("/placements/settings", json={"health": {"calm_seconds": None}}).raise_for_status()
        noted = {"microserver.tainted", "microserver.untainted"}
        until(lambda: noted <= chained(api), 60 * PATIENCE, "the taint in the farm's chain")
    machine.locator("[data-state=ready]").wait_for()  # by the stream: nobody pressed anything here
    page = admin.at("agents/analyst?tab=server")  # its server has run since the farm began
    page.get_by_role("button", name="Log of the server").click()
    page.get_by_role("log").get_by_text("agentfarm").first.wait_for()
    admin.shot("server-log-dark")
    found += admin.axe()
    page = admin.at(f"agents/{AGENT}?tab=server")
    page.get_by_label("Memory (MiB)").fill("700")
    page.get_by_role("button", name="Save; it holds").click()
    page.get_by_text("700 MiB of memory").wait_for()
    admin.shot("resources-dark")
    found += admin.axe()
    page.get_by_label("Pool (may be empty)").fill("hens")
    page.get_by_role("region", name="Pool").get_by_role("button", name="Save").click()
    page.get_by_role("link", name="all pools").click()
    pool = page.get_by_role("region", name="hens")
    pool.get_by_text("0 of 1 servers are up").wait_for()
    pool.get_by_role("button", name="Change the rules").click()
    dialog.get_by_label("Servers at most").fill("1")
    dialog.get_by_label("Minutes after which an idle one is stopped").fill("20")
    found += admin.axe()
    dialog.get_by_role("button", name="Save").click()
    pool.get_by_text("1 at most. An idle one is stopped after 20 min.").wait_for()
    admin.shot("pools-dark")
    found += admin.axe()
    assert found == []


def test_the_hubs_own_pages_tell_where_a_server_runs_and_why_and_that_it_waits_for_its_turn(
    desk: Callable[..., Desk], farm: Farm
) -> None:
    zora, admin = desk("zora"), desk("admin")
    public, where = farm.ready["public_url"], re.compile("local: it is pinned there")  # people's servers are
    # None of them ever comes up: a line that is long enough for a page to be opened behind it, however slow that is.
    sleepers = [f"af-sleeper-{number}" for number in range(8 * psutil.cpu_count())]
    line = in_line(farm, sleepers)
    # Where the page leads when the server is up is JupyterLab, which is not looked at here.
    zora.page.route(re.compile("/user/zora/"), lambda route: route.fulfill(body="up"))
    zora.page.goto(f"{public}/hub/spawn/zora")
    zora.page.wait_for_url("**/hub/spawn-pending/**")
    told = zora.page.locator("#progress-log")
    waits = re.compile(r"Waiting for its turn: \d+ servers start on microserver local before it")
    told.get_by_text(waits).wait_for(state="attached")
    zora.shot("hub-spawn-pending")
    for unit in reversed(sleepers):
        fleet(farm, "stop", unit, True)
    line.join()
    told.get_by_text("Starting on microserver").filter(has_text=where).wait_for(state="attached")
    page = admin.page
    page.goto(f"{public}/hub/admin?name_filter=zora")
    page.get_by_test_id("user-row-zora").get_by_text(where).wait_for()
    admin.shot("hub-admin")
    assert admin.axe("#agentfarm-links") == []
    with farm.person("zora").hub() as hub:
        until(lambda: hub.get("/users/zora").json()["servers"].get("", {}).get("ready"), 60 * PATIENCE, "zora's server")
        hub.delete("/users/zora/server").raise_for_status()


def in_line(farm: Farm, units: list[str]) -> Thread:
    """Have these start on the farm's own microserver, in their turn, and return when the last one waits; until the thread ends they do."""
    small = {"memory": 16 << 20, "cpu": 0.01, "pin": "local"}

    async def start(client: FleetClient, unit: str) -> None:
        whose = {"user": unit.replace("af", "agent"), "server": "", "args": ["/bin/sleep", "600"], "env": {}}
        with suppress(StartError):  # it is stopped while it waits
            await client.start(unit, demand=small, turn=600, **whose)

    async def starts() -> None:
        client = FleetClient(farm.state / "fleet.sock")
        for unit in units:
            await client.place(unit, small)
        await asyncio.gather(*(start(client, unit) for unit in units))

    waiting = Thread(target=lambda: asyncio.run(starts()), daemon=True)
    waiting.start()
    until(lambda: fleet(farm, "before", units[-1]) is not None, 60 * PATIENCE, "the last one waits")
    return waiting


def drained(admin: Desk, machine: Any) -> list[str]:
    """Drain the farm's only microserver by its dialog, which says before that nothing can leave it; return axe's findings."""
    machine.get_by_role("button", name="Drain").click()
    dialog = admin.page.get_by_role("dialog")
    row = dialog.get_by_role("row", name="analyst")
    row.get_by_text("stays").wait_for()
    row.get_by_text("it has nowhere to go: there is no other microserver").wait_for()
    dialog.get_by_label("A server is stopped").select_option("finish-run")
    dialog.get_by_label("Reason").fill("a new disk")
    row.wait_for()
    admin.shot("drain-dialog-dark")
    found = admin.axe()
    dialog.get_by_role("button", name="Drain").click()
    machine.locator("[data-state=draining]").wait_for()
    machine.get_by_text("Servers are stopped after the runs in hand.").wait_for()
    machine.get_by_role("row", name="analyst").get_by_text("nowhere to go").wait_for()
    return found


def chained(api: Any) -> set[str]:
    """Return what the service recorded in the farm's own chain."""
    events = api.get("/runs/farm/events?limit=1000").json()["items"]
    return {one["kind"] for one in events if one["by"] == "service"}


def fleet(farm: Farm, verb: str, *words: Any, **fields: Any) -> Any:
    """Ask the farm's fleet daemon, as `agentfarm microserver add` and `remove` do; None where it knows nothing of it."""
    with suppress(NotFound):
        return in_a_thread(lambda: asyncio.run(getattr(FleetClient(farm.state / "fleet.sock"), verb)(*words, **fields)))
    return None


def in_a_thread(act: Callable[[], Any]) -> Any:
    """Playwright has an event loop in this one."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(act).result(60)


def test_an_owner_sees_their_part_and_steers_no_machine(desk: Callable[..., Desk], petra: Person) -> None:
    own = desk("petra")
    page = own.at()
    page.get_by_role("region", name="Agents").get_by_role("link", name=AGENT, exact=True).wait_for()
    assert page.get_by_role("link", name="analyst", exact=True).count() == 0
    own.shot("home-light")
    found = own.axe()
    page.get_by_role("link", name="Microservers").click()
    page.get_by_text("Cordoning is for operators.").wait_for()
    page.locator(".af-frame .af-meter").first.wait_for()
    assert page.get_by_role("button", name="Cordon").count() == 0
    own.shot("microservers-light")
    assert found + own.axe() == []


def test_owners_set_limits_of_their_agents_and_operators_of_the_whole_farm(
    desk: Callable[..., Desk], farm: Farm, petra: Person
) -> None:
    own = desk("petra")
    page = own.at("budgets")
    page.get_by_label("Amount").fill("20000")
    page.get_by_role("button", name="Set", exact=True).click()
    mine = page.get_by_role("row").filter(has_text=AGENT)
    mine.get_by_text("20,000 tokens a day").wait_for()
    assert page.get_by_label("Of", exact=True).count() == 0, "the farm's limits are not for owners"
    own.shot("budgets-light")
    found = own.axe()
    admin = desk("admin", dark=True)
    theirs = admin.at("budgets")
    theirs.get_by_label("Of", exact=True).select_option("farm")
    theirs.get_by_label("Amount").fill("900000000")
    theirs.get_by_role("button", name="Set", exact=True).click()
    whole = theirs.get_by_role("row").filter(has_text="the whole farm")
    whole.get_by_text("900,000,000 tokens a day").wait_for()
    theirs.get_by_role("row").filter(has_text=AGENT).get_by_text("20,000 tokens a day").wait_for()
    admin.shot("budgets-dark")
    found += admin.axe()
    whole.get_by_role("button", name="End the limit of the farm").click()
    whole.get_by_role("button", name="End it").click()
    whole.wait_for(state="detached")
    mine.get_by_role("button", name=f"End the limit of {AGENT}").click()
    mine.get_by_role("button", name="End it").click()
    page.get_by_text("No budget is set").wait_for()
    theirs.get_by_role("tab", name="Usage").click()
    theirs.get_by_label("By", exact=True).select_option("agent")
    theirs.get_by_text("Nothing was used").or_(theirs.get_by_role("table", name="Usage by agent")).first.wait_for()
    admin.shot("usage-dark")
    assert found + admin.axe() == []


def test_operators_check_the_whole_record_and_see_who_has_what(
    desk: Callable[..., Desk], farm: Farm, petra: Person
) -> None:
    admin = desk("admin")
    page = admin.at("audit")
    page.get_by_role("list", name="What happened to the farm").get_by_text(f"agent {AGENT}").first.wait_for()
    page.get_by_role("button", name="Verify now").click()
    page.locator("[data-state=verified]").wait_for()
    admin.shot("audit-light")
    found = admin.axe()
    page.get_by_role("link", name="People").click()
    page.get_by_role("row", name=re.compile("^petra")).get_by_role("link", name=AGENT, exact=True).wait_for()
    page.get_by_role("row", name=re.compile("^admin")).get_by_role("link", name="analyst", exact=True).wait_for()
    admin.shot("people-light")
    found += admin.axe()
    own = desk("petra", dark=True)
    mine = own.at("audit")
    mine.get_by_text("The whole farm is checked by operators.").wait_for()
    assert mine.get_by_role("button", name="Verify now").count() == 0
    assert mine.get_by_role("link", name="Audit").count() == 0, "what is for operators is not in their navigation"
    own.shot("audit-dark")
    found += own.axe()
    mine.get_by_role("link", name="People").click()
    mine.get_by_role("row", name=re.compile("^petra")).get_by_role("link", name=AGENT, exact=True).wait_for()
    assert mine.get_by_role("link", name="analyst", exact=True).count() == 0
    own.shot("people-dark")
    assert found + own.axe() == []
