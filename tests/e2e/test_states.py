"""Every view while it loads, with nothing in it, and where the farm refuses: said in words, readable, kept as pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from browserkit import Desk
from farmkit import Farm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.parametrize("farm", ["sqlite"], indirect=True)]
SOME = "0" * 32
LISTS = {
    "home": "", "agents": "agents", "new-agent": "new-agent", "tasks": "tasks", "inbox": "inbox", "microservers": "microservers",
    "pools": "pools", "budgets": "budgets", "audit": "audit", "people": "people",
}  # fmt: skip
ONES = {
    "agent": "agents/nobody-knows", "playground": "agents/nobody-knows/playground", "task": f"tasks/task-{SOME}", "run": f"runs/run-{SOME}",
    "batch": f"batches/batch-{SOME}", "inbox-item": f"inbox/inbox-{SOME}",
}  # fmt: skip
AWAY = {
    "type": "about:blank",
    "title": "The farm is busy",
    "detail": "Its database did not answer",
    "hint": "Try again in a minute.",
}


class Held:
    """Requests of the page that wait until they are refused; the stream goes on."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.routes: list[Any] | None = []
        page.route(
            "**/api/v1/**",
            lambda route: route.continue_() if "/api/v1/events" in route.request.url else self.hold(route),
        )

    def hold(self, route: Any) -> None:
        if self.routes is None:
            self.refuse_one(route)
        else:
            self.routes.append(route)

    def refuse(self) -> None:
        waiting, self.routes = self.routes, None
        for route in waiting or []:
            self.refuse_one(route)

    def refuse_one(self, route: Any) -> None:
        route.fulfill(status=503, content_type="application/problem+json", body=json.dumps(AWAY))

    def end(self) -> None:
        self.page.unroute("**/api/v1/**")


def pictures(desk: Desk, name: str) -> list[str]:
    """Keep a picture in light and one in dark; return what axe finds in the dark."""
    for scheme in ("light", "dark"):
        desk.page.emulate_media(color_scheme=scheme)
        desk.shot(f"state-{name}-{scheme}")
    return [f"{name}: {one}" for one in desk.axe()]


def test_every_view_says_that_it_loads_that_it_is_empty_and_what_went_wrong(
    desk: Callable[..., Desk], farm: Farm
) -> None:
    nell = desk("nell")
    nell.refused_on_purpose()
    page = nell.at()
    found = []
    for name, route in {**LISTS, **ONES}.items():
        nell.at(route)
        page.locator("#app:not(:has(.af-loading))").wait_for()
        if name in ONES:
            page.get_by_role("alert").first.wait_for()
        found += pictures(nell, f"{name}-{'unknown' if name in ONES else 'empty'}")
        held = Held(page)
        page.goto(nell.pages + route)
        page.locator(".af-loading").first.wait_for()
        found += pictures(nell, f"{name}-loading")
        held.refuse()
        page.get_by_role("alert").get_by_text("Its database did not answer").first.wait_for()
        page.get_by_role("button", name="Try again").first.wait_for()
        assert page.get_by_text("Its database did not answer").count() == 1, f"{name} says it once"
        found += pictures(nell, f"{name}-error")
        held.end()
    assert found == []
