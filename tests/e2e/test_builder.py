"""The builder's way in a real browser, with the embedded model: template, prompt, tools, playground, publish, task, result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from browserkit import Desk
from farmkit import Farm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.parametrize("farm", ["sqlite"], indirect=True)]
ORDERS = """
from decimal import Decimal
from agentfarm_sdk import tool

@tool(approval="number(size) > 100")
def place_order(ctx, size: Decimal):
    "Place an order."

@tool
def plot(rows: np.ndarray): ...
"""
MINUTES = 240_000  # ms for the embedded model: it shares two cores with other tests


def saved(page: Any) -> None:
    page.locator("[data-state=draft-saved]").wait_for()


def test_from_a_template_to_the_result_of_a_task(desk: Callable[..., Desk], farm: Farm) -> None:
    bea = desk("bea")
    page = bea.at("agents")
    page.get_by_role("button", name="New agent").click()
    page.get_by_role("button", name="Demo: analyst").click()
    page.fill("input[name=name]", "bea-sums")
    page.get_by_role("button", name="Create", exact=True).click()
    prompt = bea.prompt()
    prompt.fill(bea.prompted().replace("an analyst", "an analyst of {{firm}}"))
    page.get_by_label("firm", exact=True).fill("Miller Ltd")
    page.locator("select[name=add-tool]").select_option("recall")
    recall = page.get_by_role("group", name="recall")
    recall.get_by_role("button", name="recall", exact=True).click()
    page.locator("select[name=approval-recall]").select_option("always")
    recall.get_by_text("approval of each call").wait_for()
    saved(page)
    assert bea.axe() == []
    bea.shot("agent-draft")
    page.get_by_role("button", name="Take away recall").click()
    saved(page)
    page.set_input_files(
        "input[name=tool-file]", {"name": "orders.py", "mimeType": "text/x-python", "buffer": ORDERS.encode()}
    )
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("group", name="place_order").get_by_text("approval if number(size) > 100").wait_for()
    dialog.get_by_role("group", name="plot").get_by_text("np.ndarray cannot be read").wait_for()
    assert bea.axe() == []
    bea.shot("tool-file")
    dialog.get_by_role("button", name="Add place_order").click()
    saved(page)
    order = page.get_by_role("group", name="place_order")
    order.get_by_role("button", name="place_order", exact=True).click()
    order.get_by_label("Escalated after, seconds").fill("600")
    saved(page)
    order.get_by_role("button", name="Show its source").click()
    dialog.get_by_text("def place_order(ctx, size: Decimal):").wait_for()
    dialog.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Take away place_order").click()
    saved(page)
    page.reload()
    assert "{{firm}}" in bea.prompted() and page.get_by_label("firm", exact=True).input_value() == "Miller Ltd"
    page.get_by_role("group", name="calculator").wait_for()
    assert recall.count() == 0

    page.get_by_role("button", name="Playground").click()
    page.locator("textarea[name=say]").fill("What is 17*23?")
    page.get_by_role("button", name="Send").click()
    talk = page.get_by_role("region", name="Draft")
    talk.locator("[data-state=succeeded]").wait_for(timeout=MINUTES)
    talk.locator("[data-kind=call]").get_by_text("391").wait_for()
    talk.get_by_text("ask before each effect").wait_for()
    assert bea.axe() == []
    bea.shot("playground")
    page.reload()
    talk.locator("[data-kind=call]").get_by_text("391").wait_for()  # the conversation is there again
    talk.locator("[data-kind=model]").last.get_by_role("button", name="Fork from here").click()
    bea.prompt().fill("You say the result of the calculator.")
    page.get_by_role("button", name="Begin the fork").click()
    forks = page.get_by_role("region", name="Forks")
    forks.locator("[data-state=succeeded]").wait_for(timeout=MINUTES)
    page.locator("textarea[name=say]").fill("Count from one to nine hundred.")
    page.locator("textarea[name=say]").press("Control+Enter")
    talk.get_by_role("article").nth(1).get_by_role("button", name="Stop").click()
    talk.locator("[data-state=cancelled]").wait_for(timeout=MINUTES)
    assert bea.axe() == []
    bea.shot("playground-forked-and-stopped")
    talk.get_by_role("article").first.get_by_role("button", name="Show steps").click()

    talk.get_by_role("button", name="Save as a test case").click()
    page.fill("input[name=case-name]", "a product")
    page.get_by_role("dialog").get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("link", name="Edit the draft").click()
    page.get_by_role("tab", name="Test cases").click()
    page.get_by_role("button", name="Try the cases").click()
    page.locator("[data-state=case-passed]").wait_for(timeout=MINUTES)
    page.get_by_role("button", name="Edit", exact=True).click()
    page.fill("input[name=case-name]", "the product of two numbers")
    page.get_by_role("button", name="One more check").click()
    page.get_by_role("group", name="Check 2").locator("textarea").fill("nobody says this")
    assert bea.axe() == []
    dialog.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("row", name="the product of two numbers").get_by_text("contains nobody says this").wait_for()
    page.get_by_role("button", name="Try the cases").click()
    came = page.get_by_role("table", name="What came of them")
    came.locator("[data-state=case-failed]").wait_for(timeout=MINUTES)  # told by the stream
    came.get_by_text("'nobody says this' does not stand in it").wait_for()
    came.get_by_role("button", name="the product of two numbers").click()
    assert bea.axe() == []
    bea.shot("test-cases")
    page.get_by_role("tab", name="Conversations").click()
    page.get_by_role("row", name="Playground: draft").click()
    page.get_by_role("region", name="Conversation", exact=True).get_by_text("What is 17*23?").wait_for()
    assert "tab=threads" in page.url and "thread=thread-" in page.url
    page.get_by_role("tab", name="Memory").click()
    page.get_by_text("It remembers nothing.").wait_for()
    assert bea.axe() == []
    page.get_by_role("button", name="Publish …").click()
    page.fill("textarea[name=note]", "for Miller Ltd")
    page.get_by_role("button", name="Publish version 1").click()
    page.get_by_role("button", name="Give it a task").click()
    page.locator("select[name=target] option[value=bea-sums]:checked").wait_for(state="attached")
    page.locator("textarea[name=input]").fill("What is 12*12?")
    page.get_by_role("button", name="Submit").click()
    page.locator(".af-head [data-state=succeeded]").wait_for(timeout=MINUTES)
    page.locator("[data-kind='run.succeeded']").get_by_text("144").wait_for()

    page.locator("[data-kind=model]").last.get_by_role("button", name="Exact request").click()
    page.get_by_role("dialog").get_by_text("as recorded").wait_for()
    page.get_by_role("dialog").get_by_text("Miller Ltd").wait_for()
    bea.shot("exact-request")
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.locator("[data-kind=model]").last.get_by_role("button", name="Fork from here").click()
    bea.prompt().fill("You say the result of the calculator.")
    page.get_by_role("button", name="Begin the fork").click()
    page.get_by_text("Forked before reply 2").wait_for(timeout=MINUTES)


def test_two_people_edit_one_draft_and_neither_loses_a_word(desk: Callable[..., Desk], farm: Farm) -> None:
    with farm.person("bea").api() as api:
        made = api.post(
            "/agents", json={"name": "bea-shared", "draft": {"prompt": "You are brief.", "tools": ["recall"]}}
        )
        assert made.status_code == 201, made.text
        farm.person("carl")
        api.post("/agents/bea-shared/shares", json={"person": "carl", "rights": "manage"}).raise_for_status()
    bea, carl = desk("bea"), desk("carl", dark=True)
    hers, his = bea.at("agents/bea-shared"), carl.at("agents/bea-shared")
    bea.prompt(), carl.prompt()
    held: list[Any] = []  # what Bea's browser saves reaches the farm after what Carl's saves
    hers.route(
        "**/agents/bea-shared",
        lambda route: held.append(route) if route.request.method == "PATCH" and not held else route.continue_(),
    )
    with hers.expect_request(lambda request: request.method == "PATCH"):
        hers.get_by_label("System prompt").fill("You are brief, says Bea.")
    his.get_by_label("What it does").fill("Answers in a few words.")
    his.get_by_label("System prompt").fill("You are brief, says Carl.")
    saved(his)
    held[0].continue_()
    clash = hers.get_by_role("alert", name="Two people edited this draft")
    clash.get_by_text("You are brief, says Carl.").wait_for()
    clash.get_by_text("You are brief, says Bea.").wait_for()
    clash.get_by_text("carl edited this draft too").wait_for()
    assert hers.get_by_label("What it does").input_value() == "Answers in a few words.", "what only he changed is there"
    assert bea.axe() == []
    bea.shot("two-people")
    hers.get_by_label("System prompt").fill("You are brief, say Bea and Carl.")
    clash.get_by_role("button", name="Save what stands below").click()
    saved(hers)
    hers.reload()
    assert bea.prompted() == "You are brief, say Bea and Carl."
    bea.refused_on_purpose()
    his.reload()
    assert carl.prompted() == "You are brief, say Bea and Carl."
    assert carl.axe() == []
    carl.shot("agent-dark")
