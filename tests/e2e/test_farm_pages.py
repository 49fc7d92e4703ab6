"""The farm pages about the farm itself, in a real browser: an operator sees the whole of it, an owner their part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browserkit import Desk
from farmkit import Farm, Person

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.parametrize("farm", ["sqlite"], indirect=True)]
AGENT = "hen-house"


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
    agents.get_by_role("link", name="analyst").wait_for()
    agents.get_by_role("link", name=AGENT).wait_for()
    page.get_by_text("the farm is well").wait_for()
    admin.shot("home-dark")
    found = admin.axe()
    page.get_by_role("link", name="Microservers").click()
    machine = page.locator(".af-card").first
    try:
        machine.get_by_role("button", name="Cordon").click()
        page.get_by_label("Reason").fill("its disk is old")
        page.get_by_role("dialog").get_by_role("button", name="Cordon").click()
        machine.locator("[data-state=cordoned]").wait_for()
        machine.get_by_text("its disk is old").wait_for()
        page.get_by_label("Agent", exact=True).select_option(AGENT)
        page.get_by_text(f"No microserver can take the server of {AGENT} now.").wait_for()
        admin.shot("microservers-dark")
        found += admin.axe()
    finally:
        with farm.person("admin").api() as api:
            for one in api.get("/microservers").json()["items"]:
                api.post(f"/microservers/{one['name']}/uncordon", json={"reason": "it was a test"}).raise_for_status()
    machine.locator("[data-state=ready]").wait_for()  # by the stream: nobody pressed anything here
    assert found == []


def test_an_owner_sees_their_part_and_steers_no_machine(desk: Callable[..., Desk], petra: Person) -> None:
    own = desk("petra")
    page = own.at()
    page.get_by_role("region", name="Agents").get_by_role("link", name=AGENT).wait_for()
    assert page.get_by_role("link", name="analyst").count() == 0
    own.shot("home-light")
    found = own.axe()
    page.get_by_role("link", name="Microservers").click()
    page.get_by_text("Cordoning is for operators.").wait_for()
    page.locator(".af-card .af-meter").first.wait_for()
    assert page.get_by_role("button", name="Cordon").count() == 0
    own.shot("microservers-light")
    assert found + own.axe() == []
