"""The panel in JupyterLab and the farm pages, in a real browser against a real farm: live, whole over cuts, for everybody."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browserkit import PANEL, Desk
from farmkit import Farm
from ownrun import OwnRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.parametrize("farm", ["sqlite"], indirect=True)]
MANY = 10_000


def test_the_panel_is_in_lab_follows_a_run_and_comes_back_after_a_reload(desk: Callable[..., Desk], farm: Farm) -> None:
    run = OwnRun(farm.person("petra"))
    run.say("first words")
    petra = desk("petra")
    page = petra.lab()
    page.locator(PANEL).get_by_role("button", name="Tasks").click()
    page.get_by_role("row", name="Write down what I say.").click()
    page.get_by_text("first words").wait_for()
    run.say("<b>later words</b> [a link](javascript:alert(1))")
    page.get_by_text("<b>later words</b> [a link](javascript:alert(1))").wait_for()
    assert page.locator(".jp-AgentFarm-main b", has_text="later words").count() == 0
    petra.shot("lab-run")
    assert petra.axe(PANEL) == [] and petra.axe(".jp-AgentFarm-main:not(.lm-mod-hidden)") == []
    page.reload()
    page.locator(f"{PANEL} [data-state=live]").wait_for()
    page.get_by_text("first words").wait_for()
    run.end()
    page.locator(".jp-AgentFarm-main:not(.lm-mod-hidden) .af-head [data-state=succeeded]").wait_for()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_farm_pages_can_be_read_by_everybody(desk: Callable[..., Desk], farm: Farm, dark: bool) -> None:
    farm.person("admin").submit("analyst", "What is 2*3?")
    admin = desk("admin", dark=dark)
    page = admin.at("agents")
    page.get_by_role("row", name="analyst").get_by_text("version 1").wait_for()
    found = admin.axe()
    admin.shot(f"agents-{'dark' if dark else 'light'}")
    page.get_by_role("link", name="Tasks").click()
    page.get_by_role("table", name="Tasks").wait_for()
    found += admin.axe()
    admin.shot(f"tasks-{'dark' if dark else 'light'}")
    page.get_by_role("row").nth(1).focus()
    page.keyboard.press("Enter")
    page.get_by_role("list", name="Steps").wait_for()
    found += admin.axe()
    assert found == []


def test_a_run_of_ten_thousand_events_is_whole_and_scrolls(desk: Callable[..., Desk], farm: Farm) -> None:
    run = OwnRun(farm.person("petra"))
    last = 0
    for begin in range(0, MANY, 1000):
        last = run.say(*(f"word {at}" for at in range(begin, begin + 1000)))
    petra = desk("petra")
    page = petra.at(f"runs/{run.run_id}")
    page.locator(f"[data-seq='{last}']").wait_for()
    assert page.locator(".af-step").count() < 120, "only what is in sight is drawn"
    steps = page.get_by_role("list", name="Steps")
    for part, word in ((0.5, None), (0, "Input"), (1, f"word {MANY - 1}")):
        steps.evaluate("(list, part) => { list.scrollTop = part * list.scrollHeight }", part)
        if word:
            page.get_by_text(word, exact=True).wait_for()
        assert 0 < page.locator(".af-step").count() < 120
    run.say("and one more")
    page.get_by_text("and one more").wait_for()
    run.end()
    page.locator(f"[data-seq='{last + 2}']").wait_for()


def test_nothing_is_missed_when_the_service_dies_in_mid_run(desk: Callable[..., Desk], farm: Farm) -> None:
    run = OwnRun(farm.person("petra"))
    petra = desk("petra")
    page = petra.at(f"runs/{run.run_id}")
    run.say("before the cut")
    page.get_by_text("before the cut").wait_for()
    farm.kill("service")
    run.say("while nobody listened", "and more")
    run.end()
    page.get_by_text("while nobody listened").wait_for()
    page.locator(".af-head [data-state=succeeded]").wait_for()
    page.locator(".af-link [data-state=live]").wait_for()
    seen = page.locator(".af-step").evaluate_all("all => all.map(one => Number(one.dataset.seq))")
    assert sorted(seen) == list(range(1, max(seen) + 1))
    petra.refused_on_purpose()


def test_an_expired_login_says_so_and_keeps_what_was_typed(desk: Callable[..., Desk], farm: Farm) -> None:
    admin = desk("admin")
    page = admin.at("tasks")
    words = page.locator("textarea[name=input]")
    words.fill("half a thought")
    admin.context.clear_cookies(domain="agentfarm--service.farm.localhost")
    page.get_by_role("button", name="Submit").click()
    banner = page.get_by_role("alert").filter(has_text="Your login has expired")
    banner.wait_for()
    assert words.input_value() == "half a thought"
    admin.shot("signed-out")
    with page.expect_popup() as tab:
        banner.get_by_role("button", name="Sign in").click()
    tab.value.locator(".af-link [data-state=live]").wait_for()
    tab.value.close()
    page.bring_to_front()
    page.evaluate("window.dispatchEvent(new Event('focus'))")  # a headless window has no focus to get
    page.locator(".af-link [data-state=live]").wait_for()
    banner.wait_for(state="detached")
    assert words.input_value() == "half a thought"
    page.get_by_role("link", name="Agents").click()
    page.get_by_role("row", name="analyst").wait_for()
    admin.refused_on_purpose()


def test_the_pages_allow_no_script_but_their_own_and_are_kept_by_name(desk: Callable[..., Desk], farm: Farm) -> None:
    petra = desk("petra")
    with petra.page.expect_response(lambda one: one.url.endswith(".js") and "agentfarm/static" in one.url) as script:
        answer = petra.page.goto(petra.pages + "agents")
        petra.page.locator(".af-link [data-state=live]").wait_for()
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy and "default-src 'none'" in policy
    assert "immutable" in script.value.headers["cache-control"] and "javascript" in script.value.headers["content-type"]
    nothing = petra.page.goto(petra.pages + "api/v1/nothing")
    assert nothing.status == 404 and nothing.headers["content-type"].startswith("application/problem")
    petra.refused_on_purpose()
