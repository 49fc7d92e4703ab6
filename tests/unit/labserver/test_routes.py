"""Which calls go through a person's server: what the panel in JupyterLab asks for does, what is for the farm's own page does not."""

from __future__ import annotations

import re
from pathlib import Path

from jupyterhub_agentfarm.labserver.routes import KERNEL, PANEL, passes

VIEWS = Path(__file__).parents[3] / "labextension" / "src"
ADDRESS = re.compile(r"""(['`])/((?:(?!\1).)*)\1""")
AT_THE_PAGE = {"audit/verify", "audit/anchors"}  # views that JupyterLab does not show
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def asked() -> set[str]:
    """Return the paths that stand in the views' code, each variable part as `x`."""
    found = set()
    for file in [*VIEWS.glob("views/**/*.tsx"), *VIEWS.glob("components/*.tsx"), VIEWS / "panel.tsx"]:
        for line in file.read_text().splitlines():
            if "refresh(" not in line and not line.startswith("import "):
                found |= {re.sub(r"\$\{[^}]*\}", "x", one[1]).split("?")[0] for one in ADDRESS.findall(line)}
    return found


def test_what_the_panel_asks_for_goes_through_a_server() -> None:
    paths = asked()
    assert len(paths) > 40, "the views' code is written in another way: this test finds no addresses in it"
    refused = {path for path in paths if not any(passes(method, path, PANEL) for method in METHODS)}
    assert refused == AT_THE_PAGE


def test_decisions_secrets_and_the_farms_administration_do_not() -> None:
    calls = {
        "POST": ["inbox/inbox-1", "runs/run-1/erase", "microservers/m/cordon", "microservers/m/drain"],
        "PUT": ["secrets", "budgets", "placements/settings", "pools/analysts", "agents/a/resources"],
        "PATCH": ["microservers/m"],
        "DELETE": ["runs/run-1"],
    }
    went = [
        (method, path)
        for method, paths in calls.items()
        for path in paths
        for table in (PANEL, KERNEL)
        if passes(method, path, table)
    ]
    assert went == []
