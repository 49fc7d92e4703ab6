"""Imports go down the ladder, never up: docs/architecture.md "Layers". Imports in functions and under TYPE_CHECKING count too.

A rung is a list of modules or packages; a name stands for all modules below it that no longer name claims. What
stands on one rung does not import its neighbours; a package may import its own modules.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FARM, SDK = "jupyterhub_agentfarm", "agentfarm_sdk"

# Each process its ladder, top rung first. Names without a dot in front are of jupyterhub_agentfarm, "sdk." of agentfarm_sdk.
LEAVES = [
    "runtokens dotenv codeserver scheduling.placement demands disk",
    "records",
    "errors fleet.helper.egress",
    "sdk.fold sdk.conditions sdk.audit sdk.effects sdk.compaction sdk.prompts",
    "sdk.protocol",
    "sdk.errors sdk.schemas sdk.parts sdk.waiting",
]
LADDERS: dict[str, list[str]] = {
    "service": [
        "app",
        "standby",
        "handlers scheduling monitoring",
        "gateway ticks demo",
        "store hub fleet.client sdk.tools",
        *LEAVES,
    ],
    "model server": ["gateway.embedded", *LEAVES],
    "hub": ["spawner", "hubconfig", "fleet.client", *LEAVES],
    "fleet": [
        "fleet.daemon",
        "fleet.moving",
        "fleet.snapshots",
        "fleet.remotes fleet.placing fleet.copying fleet.walling fleet.retired",
        "fleet.microserver",
        "fleet.connection fleet.zipped fleet.findings fleet",
        "fleet.mux fleet.nodelay",
        "fleet.helper",
        *LEAVES,
    ],
    "helper": ["fleet.helper"],
    "server extension": [
        "labserver",
        "records runtokens codeserver",
        "errors",
        "sdk.protocol",
        "sdk.errors sdk.waiting",
    ],
    "command line": [
        "cli",
        "chaos",
        "launcher",
        "fleet.bootstrap",
        "demo gateway.embedded store fleet.client fleet.connection fleet.zipped fleet.findings fleet sdk",
        "fleet.helper",
        "sdk.replay",
        "sdk.tools sdk.farm sdk.exports",
        "sdk.batches sdk.cases sdk.answers sdk.task",
        "sdk.shown",
        *LEAVES,
    ],
    "kernel": [
        "sdk.magics sdk.panel",
        "sdk.worker sdk.watching sdk.interop sdk.testing",
        "sdk.agent sdk.reopened",
        "sdk.loop",
        "sdk.replay",
        "sdk.tools sdk.limits sdk.local",
        "sdk.ledger sdk.model sdk.farm sdk.exports sdk.localfile",
        "sdk.batches sdk.cases sdk.answers sdk.task",
        "sdk.shown",
        "sdk.fold sdk.conditions sdk.audit sdk.effects sdk.compaction sdk.prompts sdk.heartbeats sdk.sockets",
        "sdk.settings sdk.protocol sdk.quirks",
        "sdk.errors sdk.schemas sdk.parts sdk.waiting",
    ],
}
# The packages' own __init__ files: the SDK's hands out the public names, the farm's hold nothing.
FRONT_DOORS = {SDK, FARM}


def full(name: str) -> str:
    return SDK if name == "sdk" else f"{SDK}.{name[4:]}" if name.startswith("sdk.") else f"{FARM}.{name}"


RUNGS = {process: [[full(name) for name in rung.split()] for rung in rungs] for process, rungs in LADDERS.items()}
PLACES = {name for rungs in RUNGS.values() for rung in rungs for name in rung}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in (FARM, SDK)
    for path in sorted((ROOT / package).rglob("*.py"))
    if "migrations" not in path.parts
}


def place(module: str) -> str | None:
    """Return the longest name of the ladders that stands for the module."""
    fitting = [name for name in PLACES if module == name or (module.startswith(name + ".") and name != SDK)]
    return max(fitting, key=len, default=None)


def imports(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """Yield each of our modules that this one imports, wherever the statement stands, with its line."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            named = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in named:
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name:
                yield name, node.lineno


def allowed(importer: str, imported: str) -> bool:
    """Say whether a ladder has `importer` above `imported` (both are places)."""
    for rungs in RUNGS.values():
        height = {name: number for number, rung in enumerate(rungs) for name in rung}
        if importer in height and imported in height and height[importer] < height[imported]:
            return True
    return importer == imported


def test_every_module_has_its_place_on_a_ladder() -> None:
    bare = {module for module, path in MODULES.items() if path.name == "__init__.py" and not path.read_text().strip()}
    homeless = [m for m in MODULES if place(m) is None and m not in FRONT_DOORS | bare]
    assert not homeless, f"say in tests/unit/test_layers.py which process runs {homeless}"


@pytest.mark.parametrize("module", [m for m in MODULES if m not in FRONT_DOORS])
def test_imports_go_down_the_ladder(module: str) -> None:
    here = place(module)
    wrong = []
    for imported, line in imports(module, MODULES[module]):
        there = place(imported)
        if imported == FARM or (here is not None and there is not None and allowed(here, there)):
            continue
        wrong.append(f"{MODULES[module].relative_to(ROOT)}:{line} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_the_helper_stands_alone_for_it_is_installed_as_one_file() -> None:
    package = f"{FARM}.fleet.helper"
    own = [(module, path) for module, path in MODULES.items() if module.startswith(package)]
    assert own and all(name.startswith(package) for module, path in own for name, _ in imports(module, path))


def test_the_sdk_never_imports_the_farm() -> None:
    wrong = [
        (m, i) for m, path in MODULES.items() if m.startswith(SDK) for i, _ in imports(m, path) if i.startswith(FARM)
    ]
    assert not wrong


def test_the_reader_of_imports_sees_functions_type_checking_and_relative_ones(tmp_path: Path) -> None:
    source = tmp_path / "loop.py"
    source.write_text(
        "from typing import TYPE_CHECKING\nfrom . import fold\n"
        "if TYPE_CHECKING:\n    from .protocol import Event\n"
        "def late():\n    import jupyterhub_agentfarm.store.tables\n    from jupyterhub_agentfarm import records\n"
    )
    seen = {name for name, _ in imports("agentfarm_sdk.loop", source)}
    assert seen == {
        "agentfarm_sdk.fold",
        "agentfarm_sdk.protocol",
        "jupyterhub_agentfarm.store.tables",
        "jupyterhub_agentfarm.records",
    }
    assert not allowed(full("sdk.loop"), full("store")) and not allowed(full("records"), full("store"))
    assert allowed(full("handlers"), full("store")) and not allowed(full("handlers"), full("scheduling"))
