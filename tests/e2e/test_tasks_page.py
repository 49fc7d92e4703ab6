"""Giving work and following it in a real browser: many tasks from a CSV, one that is stopped, and the proof of what was done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from browserkit import Desk
from farmkit import Farm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.parametrize("farm", ["sqlite"], indirect=True)]
MINUTES = 240_000  # ms for the embedded model: it shares two cores with other tests
SHEET = 'one;other;"of; whom"\n17;23;"Miller; sons"\n12;12;"say ""Ltd"""\n'


def an_agent(farm: Farm, owner: str, name: str) -> None:
    """Publish an agent of this person's; its server is not up yet."""
    with farm.person(owner).api() as api:
        templates = api.get("/templates").raise_for_status().json()["items"]
        (draft,) = (one["definition"] for one in templates if one["title"] == "Demo: analyst")
        made = api.post("/agents", json={"name": name, "draft": draft})
        assert made.status_code == 201, made.text
        api.post(f"/agents/{name}/publish", json={}).raise_for_status()


def test_work_is_given_by_csv_stopped_and_proven(desk: Callable[..., Desk], farm: Farm, tmp_path: Path) -> None:
    an_agent(farm, "tess", "tess-sums")
    tess = desk("tess")
    page = tess.at("tasks")
    page.get_by_text("Nothing was asked for yet.").wait_for()

    page.get_by_role("button", name="Many from a CSV").click()
    page.locator("select[name=target]").select_option("tess-sums")
    page.set_input_files("input[name=csv]", {"name": "sums.csv", "mimeType": "text/csv", "buffer": SHEET.encode()})
    words = page.locator("textarea[name=input]")
    words.fill("What is {{one}}*{{another}}?")
    page.get_by_text("The sheet has no column another.").wait_for()
    words.fill("What is {{one}}*{{other}}?")
    page.get_by_role("group", name="Preview").get_by_text("What is 12*12?").wait_for()
    page.locator("input[name=batch]").fill("sums of Miller")
    assert tess.axe() == []
    tess.shot("tasks-csv")
    page.get_by_role("button", name="Submit 2 tasks").click()
    page.get_by_role("heading", name="sums of Miller").wait_for()
    page.get_by_text("2 of 2 ended").wait_for(timeout=MINUTES)
    assert tess.axe() == []
    tess.shot("batch")
    page.get_by_role("row", name="What is 17*23?").get_by_text("391").wait_for()

    page.get_by_role("row", name="What is 17*23?").click()
    page.locator(".af-head [data-state=verified]").wait_for()
    page.get_by_role("group", name="Outcome").get_by_text("391").wait_for()
    assert tess.axe() == []
    tess.shot("run")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download evidence").click()
    saved.value.save_as(tmp_path / saved.value.suggested_filename)
    checked = farm.cli("audit", "verify", str(tmp_path / saved.value.suggested_filename))
    assert checked.returncode == 0 and saved.value.suggested_filename.startswith("run-"), (
        checked.stdout + checked.stderr
    )
    page.get_by_role("link", name="Its batch").click()
    page.get_by_text("2 of 2 ended").wait_for()


def test_a_task_rests_goes_on_ends_and_is_done_again(desk: Callable[..., Desk], farm: Farm) -> None:
    an_agent(farm, "theo", "theo-rests")
    theo = desk("theo", dark=True)
    page = theo.at("tasks?target=theo-rests")
    page.locator("textarea[name=input]").fill("What is 12*12?")
    page.get_by_text("More: priority").click()
    page.locator("input[name=priority]").fill("7")
    assert theo.axe() == []
    theo.shot("tasks-more-dark")
    page.get_by_role("button", name="Submit").click()
    head = page.locator(".af-head")
    page.get_by_role("button", name="Pause").click()  # long before the agent's server is up
    head.get_by_text("waiting: paused").wait_for(timeout=MINUTES)
    page.get_by_text("priority 7").wait_for()
    with farm.person("theo").api() as api:
        (first,) = api.get("/tasks", params={"agent": "theo-rests"}).raise_for_status().json()["items"]

    second = farm.person("theo").submit("theo-rests", "What is 17*23?", after=[first["task_id"]])
    theo.at(f"tasks/{second['task_id']}")
    head.get_by_text("waiting: after").wait_for()
    page.get_by_role("button", name="Cancel").click()
    head.locator("[data-state=cancelled]").wait_for()
    page.get_by_role("group", name="Outcome").get_by_text("at the panel").wait_for()
    assert theo.axe() == []
    theo.shot("run-cancelled-dark")
    page.get_by_role("button", name="Run again").click()
    head.locator("[data-state=cancelled]").wait_for(state="detached")

    theo.at(f"tasks/{first['task_id']}")
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("group", name="Outcome").get_by_text("144").wait_for(timeout=MINUTES)
    page.get_by_role("link", name="Tasks").click()
    page.get_by_role("button", name="cancelled 1").click()
    page.get_by_role("row", name="What is 17*23?").get_by_text("at the panel").wait_for()
    assert page.get_by_role("row").count() == 2, "the head, and the one that was cancelled"
    page.get_by_role("searchbox").fill("nobody said this")
    page.get_by_role("searchbox").press("Enter")
    page.get_by_text("No task is like that.").wait_for()
    assert theo.axe() == []
    theo.shot("tasks-none-dark")
    assert "status=cancelled" in page.url and "text=nobody" in page.url
    page.reload()  # the address holds what narrows the list
    page.get_by_text("No task is like that.").wait_for()
    assert page.get_by_role("searchbox").input_value() == "nobody said this"
    page.go_back()
    page.get_by_role("row", name="What is 17*23?").get_by_text("at the panel").wait_for()
    assert page.get_by_role("searchbox").input_value() == "" and page.get_by_role("row").count() == 2
