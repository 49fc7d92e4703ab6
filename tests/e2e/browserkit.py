"""A real Chromium for the tests: people at their desks, with farm pages and JupyterLab open. conftest.py gives the fixtures.

`desk("alice")` signs Alice in. At the end of the test every desk is asked whether the browser's console held an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from farmkit import PATIENCE, ROOT, Farm

ARTEFACTS = ROOT / "test-artefacts"
AXE = ROOT / "labextension" / "node_modules" / "axe-core" / "axe.min.js"
PROGRAMS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
PANEL = "#agentfarm-panel"


class Desk:
    """One person's browser. `wrong`: errors of its console, which a test ends without."""

    def __init__(self, browser: Any, farm: Farm, name: str, *, dark: bool = False, size: tuple[int, int] = (1400, 900)):
        self.farm, self.name, self.wrong, self.lenient = farm, name, list[str](), False
        scheme = "dark" if dark else "light"
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        self.context.set_default_timeout(30_000 * PATIENCE)
        self.page = self.tab()
        self._sign_in()

    @property
    def pages(self) -> str:
        """The address of the farm pages."""
        public = str(self.farm.ready["public_url"]).rstrip("/")
        return public.replace("farm.localhost", "agentfarm--service.farm.localhost") + "/services/agentfarm/"

    def tab(self) -> Any:
        """Open one more page in this browser."""
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on(
            "console",
            lambda said: self.wrong.append(f"{said.text} {said.location.get('url')}") if said.type == "error" else None,
        )
        return page

    def _sign_in(self) -> None:
        password = self.farm.person(self.name).password
        self.page.goto(f"{self.farm.ready['public_url']}/hub/login?next=%2Fhub%2Fhome")
        self.page.fill("input[name=username]", self.name)
        self.page.fill("input[name=password]", password)
        self.page.click("input[type=submit], button[type=submit]")
        self.page.wait_for_url("**/hub/home")

    def at(self, route: str = "") -> Any:
        """Go to a farm page and wait until it is live. Returns playwright's page."""
        self.page.goto(self.pages + route)
        self.page.locator(".af-link [data-state=live]").wait_for()
        return self.page

    def lab(self) -> Any:
        """Open JupyterLab in this person's server (started where it is not up) with the panel shown. Returns the page."""
        self.page.goto(f"{self.farm.ready['public_url']}/hub/spawn/{self.name}")
        self.page.wait_for_url("**/lab**")
        tab = self.page.locator("[data-id=agentfarm-panel]")
        tab.wait_for()
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")
        if not self.page.locator(PANEL).is_visible():
            tab.click()
        self.page.locator(f"{PANEL} [data-state=live]").wait_for()
        return self.page

    def shot(self, name: str) -> Path:
        """Keep a picture of the page among the artefacts."""
        ARTEFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png")
        return ARTEFACTS / f"{name}.png"

    def prompt(self) -> Any:
        """Return the field of the system prompt that is in sight, when its editor has come."""
        code = self.page.locator("[data-editor=code]").filter(visible=True).last  # in a dialog: above the others
        code.wait_for()
        return code.get_by_label("System prompt")

    def prompted(self) -> str:
        """Return what stands in the system prompt."""
        found: list[str] = self.prompt().locator(".cm-line").all_text_contents()
        return "\n".join(found)

    def axe(self, within: str = "body") -> list[str]:
        """Return the serious and critical findings of axe-core, each with the elements that it is about."""
        if not AXE.exists():
            pytest.skip("axe-core is not here: make test, or npm ci --ignore-scripts in labextension/")
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("within => axe.run(within, {resultTypes: ['violations']})", within)["violations"]
        return [
            f"{one['id']}: {one['help']}: " + "; ".join(node["html"][:160] for node in one["nodes"][:5])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]

    def refused_on_purpose(self) -> None:
        """Let requests fail from here on, and before: the test provokes it. Other errors count."""
        self.lenient = True

    @property
    def errors(self) -> list[str]:
        return [one for one in self.wrong if not (self.lenient and one.startswith("Failed to load resource"))]

    def close(self) -> None:
        self.context.close()


@pytest.fixture  # for one test only: playwright's event loop would stand in the way of those that run one of their own
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    path = next((one for one in PROGRAMS if Path(one).exists()), None)
    if path is None:
        pytest.skip("no Chromium here: install the package chromium (make test does so as root on Debian and Ubuntu)")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def desk(browser: Any, farm: Farm, request: pytest.FixtureRequest) -> Iterator[Callable[..., Desk]]:
    """Sign people in: `desk("alice", dark=True)`. When the test is over no console may hold an error."""
    desks: list[Desk] = []

    def sit(name: str, **how: Any) -> Desk:
        desks.append(Desk(browser, farm, name, **how))
        return desks[-1]

    yield sit
    for one in desks:
        if request.node.stash.get(FAILED, False):
            one.shot(f"failed-{request.node.name[:60]}-{one.name}")
            for at, tab in enumerate(one.context.pages[1:], 2):
                tab.screenshot(path=ARTEFACTS / f"failed-{request.node.name[:60]}-{one.name}-{at}.png")
        one.close()
    wrong = [error for one in desks for error in one.errors]
    assert not wrong, wrong


FAILED = pytest.StashKey[bool]()
