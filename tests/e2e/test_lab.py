"""Inside JupyterLab alone: the builder's way from a template to a task's result, and every view of the panel in both themes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from browserkit import PANEL, Desk
from farmkit import Farm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.parametrize("farm", ["sqlite"], indirect=True)]
MINUTES = 240_000  # ms for the embedded model: it shares two cores with other tests
SHOWN = ".jp-MainAreaWidget:not(.lm-mod-hidden) .jp-AgentFarm-main"
FIGURE = "#jp-bottom-panel .af-figure"


def command(page: Any, words: str) -> None:
    """Run a command by the palette."""
    page.keyboard.press("Control+Shift+C")
    page.locator("input.lm-CommandPalette-input").fill(words)
    page.locator(".lm-CommandPalette-item.lm-mod-active", has_text=words).wait_for()
    page.keyboard.press("Enter")


def write_the_prompt(lena: Desk, main: Any) -> None:
    """By the keyboard alone: a variable is completed, a slip undone, and Tab leads on."""
    page, prompt = lena.page, lena.prompt()
    prompt.click()
    page.keyboard.press("Control+End")
    page.keyboard.type(" You work for {{firm}} and sign with {{")
    offered = page.get_by_role("listbox").get_by_role("option", name="firm")
    offered.wait_for()
    lena.shot("lab-prompt-completion")
    page.keyboard.press("Enter")
    main.locator(".af-variable", has_text="{{firm}}").nth(1).wait_for()
    assert lena.prompted().endswith("You work for {{firm}} and sign with {{firm}}")
    page.keyboard.insert_text(" A slip.")
    page.keyboard.press("Control+z")
    assert lena.prompted().endswith("sign with {{firm}}")
    page.keyboard.press("Tab")
    main.get_by_label("firm", exact=True).fill("Miller Ltd")
    assert not prompt.evaluate("one => one.contains(document.activeElement)")


def test_a_builder_needs_nothing_but_lab(desk: Callable[..., Desk], farm: Farm) -> None:
    lena = desk("lena")
    page = lena.lab()
    main = page.locator(SHOWN)
    page.locator(".jp-LauncherCard", has_text="AgentFarm").click()
    main.get_by_role("button", name="New agent").click()
    main.get_by_role("button", name="Demo: analyst").click()
    main.locator("input[name=name]").fill("lena-sums")
    main.get_by_role("button", name="Create", exact=True).click()
    write_the_prompt(lena, main)
    main.locator("select[name=add-tool]").select_option("recall")
    main.get_by_role("button", name="Take away recall").click()
    main.locator("[data-state=draft-saved]").wait_for()
    lena.shot("lab-agent")

    main.get_by_role("button", name="Playground").click()
    main.locator("textarea[name=say]").fill("What is 17*23?")
    main.get_by_role("button", name="Send").click()
    main.get_by_role("region", name="Draft").locator("[data-kind=call]").get_by_text("391").wait_for(timeout=MINUTES)
    lena.shot("lab-playground")
    main.get_by_role("link", name="Edit the draft").or_(main.get_by_role("button", name="Edit the draft")).click()
    main.get_by_role("button", name="Publish …").click()
    main.get_by_role("button", name="Publish version 1").click()
    main.get_by_role("button", name="Give it a task").click()
    main.locator("textarea[name=input]").fill("What is 12*12?")
    main.get_by_role("button", name="Submit").click()
    main.locator("[data-kind='run.succeeded']").get_by_text("144").wait_for(timeout=MINUTES)
    lena.shot("lab-result")

    with page.expect_response(lambda one: "/api/workspaces" in one.url and one.request.method == "PUT"):
        command(page, "AgentFarm: Tasks")
        main.get_by_role("row", name="What is 12*12?").wait_for()
    page.reload()
    main.get_by_role("row", name="What is 12*12?").wait_for()
    page.locator(".lm-TabBar-tab", has_text="lena-sums").first.click()
    assert "{{firm}}" in lena.prompted()

    command(page, "JupyterLab Dark")
    page.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
    assert lena.axe(PANEL) == [] and lena.axe(SHOWN) == []
    lena.shot("lab-dark")
