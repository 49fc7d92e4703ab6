"""An agent from its first version to its end, by an owner who clicks, in a real browser against a real farm."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browserkit import Desk
from farmkit import Farm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.parametrize("farm", ["sqlite"], indirect=True)]
SERVER = 240_000  # ms for a server to start beside other tests
AGENT = "ines-keeper"


def two_versions(farm: Farm) -> None:
    """Make the agent of Ines's with a version about hens and one about geese."""
    with farm.person("ines").api() as api:
        made = api.post("/agents", json={"name": AGENT, "draft": {"prompt": "You keep hens.", "tools": ["recall"]}})
        assert made.status_code == 201, made.text
        api.post(f"/agents/{AGENT}/publish", json={"note": "hens"}).raise_for_status()
        draft = {"prompt": "You keep geese.\nYou count them.", "tools": ["recall"]}
        changed = api.patch(f"/agents/{AGENT}", json={"draft": draft}, headers={"If-Match": made.headers["ETag"]})
        assert changed.status_code == 200, changed.text
        api.post(f"/agents/{AGENT}/publish", json={"note": "geese"}).raise_for_status()


def test_an_agent_is_restored_carried_shared_bounded_connected_and_retired(
    desk: Callable[..., Desk], farm: Farm, tmp_path: Path
) -> None:
    two_versions(farm)
    farm.person("carl")
    ines = desk("ines")
    page = ines.at(f"agents/{AGENT}?tab=versions")
    found = restored_and_carried(ines, page, tmp_path)
    found += shared_and_refused(ines, page, desk)
    found += bounded(ines, page)
    found += connected(ines, page)
    page.get_by_role("button", name="Retire the agent …").click()
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("button", name="Retire it for good").is_disabled()
    dialog.get_by_label("Type its name to confirm").fill(AGENT)
    dialog.get_by_role("button", name="Retire it for good").click()
    page.get_by_text("This agent is retired: it takes no work, its record stays.").wait_for()
    assert page.get_by_role("button", name="Publish …").count() == 0
    ines.shot("agent-retired")
    assert found + ines.axe() == []


def restored_and_carried(ines: Desk, page: Any, tmp_path: Path) -> list[str]:
    """The first version becomes the draft again; the second is taken along as a file and becomes another agent."""
    page.get_by_role("row", name="hens").get_by_role("button", name="Make it the draft").click()
    differs = page.get_by_role("region", name="What differs")
    differs.get_by_text("You keep hens.").wait_for()
    ines.shot("agent-versions")
    found = ines.axe()
    with page.expect_download() as saved:
        page.get_by_role("row", name="geese").get_by_role("button", name="Export").click()
    assert saved.value.suggested_filename == f"{AGENT}-v2.yaml"
    saved.value.save_as(tmp_path / "geese.yaml")
    page.get_by_role("tab", name="Draft").click()
    assert ines.prompted() == "You keep hens."

    ines.at("new-agent")
    page.set_input_files("input[type=file]", tmp_path / "geese.yaml")
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("This agent is there already").wait_for()
    dialog.get_by_label("Name").fill("analyst")  # somebody else's
    dialog.get_by_role("button", name="Import", exact=True).click()
    dialog.get_by_role("alert").get_by_text("the name analyst is taken").wait_for()
    ines.refused_on_purpose()
    ines.shot("agent-import-refused")
    dialog.get_by_label("Name").fill("ines-second")
    dialog.get_by_role("button", name="Import", exact=True).click()
    page.get_by_role("heading", name="ines-second").wait_for()
    assert ines.prompted() == "You keep geese.\nYou count them."
    page.get_by_role("group", name="recall").wait_for()
    return found


def shared_and_refused(ines: Desk, page: Any, desk: Callable[..., Desk]) -> list[str]:
    """Whom the Hub does not know is refused; Carl may work with it until that ends."""
    ines.at(f"agents/{AGENT}?tab=people")
    page.get_by_text("Shared with nobody.").wait_for()
    page.get_by_label("Person", exact=True).fill("nobody-at-all")
    page.get_by_role("button", name="Share").click()
    page.get_by_role("alert").get_by_text("the Hub knows no person nobody-at-all").wait_for()
    page.get_by_label("Person", exact=True).fill("carl")
    page.get_by_label("They may").select_option("chat")
    page.get_by_role("button", name="Share").click()
    page.get_by_role("row", name="carl").get_by_text("give it work").wait_for()
    ines.shot("agent-people")
    found = ines.axe()
    carl = desk("carl", dark=True)
    carl.at(f"agents/{AGENT}")
    carl.page.get_by_text("You may read it: chat. It belongs to ines.").wait_for()
    assert carl.prompt().get_attribute("aria-readonly") == "true"
    assert carl.page.get_by_role("button", name="Publish …").count() == 0
    carl.shot("agent-shared-dark")
    found += carl.axe()
    page.get_by_role("row", name="carl").get_by_role("button", name="End").click()
    page.get_by_text("Shared with nobody.").wait_for()
    carl.refused_on_purpose()
    carl.page.reload()
    carl.page.get_by_role("alert").get_by_text(f"there is no agent {AGENT}").wait_for()
    carl.shot("agent-refused-dark")
    return found


def bounded(ines: Desk, page: Any) -> list[str]:
    """Its budget is set and taken away where the draft is."""
    ines.at(f"agents/{AGENT}")
    budget = page.get_by_role("region", name="Budget")
    budget.get_by_role("button", name="Budget").click()
    budget.get_by_label("Amount").fill("5")
    budget.get_by_role("button", name="Set the budget").click()
    budget.get_by_text("a month").filter(has_text="spent").wait_for()
    ines.shot("agent-budget")
    found = ines.axe()
    budget.get_by_role("button", name="Take away").click()
    budget.get_by_text("No budget").wait_for()
    return found


def connected(ines: Desk, page: Any) -> list[str]:
    """Its server is started, opened, reached by VS Code's way, closed to it again, and stopped."""
    page.get_by_role("tab", name="Server").click()
    page.get_by_role("button", name="Start", exact=True).click()
    page.locator(".af-head [data-state=ready]").wait_for(timeout=SERVER)
    with page.expect_popup() as opened:
        page.get_by_role("link", name="JupyterLab").click()
    workspace = f"/user/agent-{AGENT}/lab"
    opened.value.wait_for_url(re.compile(f"oauth2/authorize|{workspace}"), wait_until="commit", timeout=SERVER)
    if "oauth2/authorize" in opened.value.url:  # the Hub asks once whether this server may know who she is
        opened.value.get_by_role("button", name="Authorize").click(timeout=SERVER)
    opened.value.wait_for_url(f"**{workspace}**", wait_until="domcontentloaded", timeout=SERVER)
    opened.value.close()
    page.get_by_role("button", name="Connect", exact=True).click()
    dialog = page.get_by_role("dialog")
    token = dialog.get_by_label("Token")
    token.wait_for(timeout=SERVER)
    assert len(token.input_value()) >= 32 and dialog.get_by_label("User").input_value() == f"agent-{AGENT}"
    found = ines.axe()
    dialog.get_by_role("button", name="Close").click()
    kept = page.get_by_role("table", name="Connections")
    kept.get_by_text("ines").wait_for()
    ines.shot("agent-server")
    kept.get_by_role("button", name="Revoke").click()
    kept.wait_for(state="detached")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.locator(".af-head [data-state=stopped]").wait_for(timeout=SERVER)
    return found
