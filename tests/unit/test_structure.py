"""What must hold of the whole tree: what it names, what it imports, and that the docs know every word of the protocol."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentfarm_sdk import errors as sdk_errors
from agentfarm_sdk.fold import _HANDLERS
from agentfarm_sdk.protocol import WORKER_KINDS
from jupyterhub_agentfarm import errors as farm_errors

ROOT = Path(__file__).parents[2]
LISTED = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
TRACKED = [ROOT / name for name in LISTED.split("\0") if name]
LOCKS = {".lock", ".svg", ".png", ".ico", ".woff2"}  # made by tools

FORBIDDEN = {
    # Written in two halves, so that this file passes its own test.
    "a path of somebody's machine": r"(?<![\w.])/(?:work|home/\w+|root|Users)/" + r"\w",
    "a package registry's host": r"(?:pypi\.|files\.python"
    + r"hosted|registry\.npm|index\.crates|proxy\.gol|repo1\.maven|deb\.deb)",
    "a private key": "-----BEGIN [A-Z ]*PRIVATE" + " KEY",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "a key of a model provider": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a forge's token": r"\bgh[pousr]_[A-Za-z0-9]{30,}",
}


@pytest.mark.skipif(not TRACKED, reason="not a git checkout: there are no tracked files to look at")
@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_holds(what: str) -> None:
    pattern, found = re.compile(FORBIDDEN[what]), []
    for path in TRACKED:
        if path.suffix in LOCKS or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_no_function_and_no_file_of_the_packages_grows_out_of_sight() -> None:
    """One place to look at everything on a page; raise the bar for one by name, with the reason."""
    long = []
    for package in ("agentfarm_sdk", "jupyterhub_agentfarm"):
        for path in (ROOT / package).rglob("*.py"):
            if "migrations" in path.parts:
                continue
            text = path.read_text()
            if text.count("\n") > 600:
                long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    if lines > 80:
                        long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert not long, "\n".join(long)


NOT_OURS = {"job", "jobs", "journal", "journals"}  # task, ledger


def test_names_are_those_of_the_glossary() -> None:
    """One word for one thing: a class or function of ours is called by the glossary's word."""
    wrong = []
    for package in ("agentfarm_sdk", "jupyterhub_agentfarm"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    words = re.findall(r"[A-Z]?[a-z]+", node.name)
                    if NOT_OURS & {word.lower() for word in words}:
                        wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not wrong, "\n".join(wrong)


# --- errors -----------------------------------------------------------------------------------------------------


def classes(module: object) -> list[type[sdk_errors.AgentFarmError]]:
    found = [
        cls for _, cls in inspect.getmembers(module, inspect.isclass) if issubclass(cls, sdk_errors.AgentFarmError)
    ]
    return [cls for cls in found if cls.__module__ == getattr(module, "__name__", "")]


def test_every_error_that_crosses_a_border_is_drawn_in_the_tree_and_found_by_its_type() -> None:
    for cls in classes(sdk_errors):
        assert cls.__name__ in (sdk_errors.__doc__ or ""), cls
        if cls is not sdk_errors.AgentFarmError:
            assert sdk_errors.BY_TYPE[cls.type] is cls
    for cls in classes(farm_errors):
        assert cls.__name__ in (farm_errors.__doc__ or ""), cls


def test_no_two_errors_share_a_type() -> None:
    types = [cls.type for cls in classes(sdk_errors) + classes(farm_errors)]
    assert len(types) == len(set(types))


def test_every_error_drawn_with_a_status_has_it() -> None:
    for name, status in re.findall(r"([A-Z]\w+)\s+(\d{3})", sdk_errors.__doc__ or ""):
        assert getattr(sdk_errors, name).status == int(status), name


def test_errors_of_the_farm_s_own_processes_are_known_to_the_place_that_answers_http() -> None:
    for cls in classes(farm_errors):
        error = cls({"local": "full"}) if cls is farm_errors.NoMicroserverFits else cls("x")
        problem = error.problem()
        assert {"type", "title", "status", "detail", "hint"} <= problem.keys() and 400 <= problem["status"] < 600


# --- kinds ------------------------------------------------------------------------------------------------------

KIND = re.compile(r"^[a-z]+\.[a-z_]+$")


def documented_kinds() -> set[str]:
    """Read the table of bodies: `tool.succeeded, tool.failed`, and `approval.requested, .given`."""
    kinds: set[str] = set()
    table = (ROOT / "docs/architecture.md").read_text().partition("## Bodies of events")[2].partition("\n## ")[0]
    for row in re.findall(r"^\| ([a-z][^|]*) \|", table, re.MULTILINE):
        noun = ""
        for word in re.split(r",\s*", row):
            noun = word.partition(".")[0] or noun
            kinds.add(word.strip() if not word.startswith(".") else noun + word.strip())
    return {kind for kind in kinds if KIND.match(kind)}


def test_every_kind_that_the_fold_or_a_worker_knows_is_documented() -> None:
    assert set(_HANDLERS) | WORKER_KINDS <= documented_kinds()


def test_every_kind_that_our_code_writes_is_documented() -> None:
    written: dict[str, str] = {}
    for package in ("agentfarm_sdk", "jupyterhub_agentfarm"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                    kind = node.args[0].value
                    if name == "new_event" and isinstance(kind, str):
                        written[kind] = f"{path.relative_to(ROOT)}:{node.lineno}"
    assert not {kind: where for kind, where in written.items() if kind not in documented_kinds()}


# --- the SDK stands alone ---------------------------------------------------------------------------------------


def test_the_sdk_imports_where_neither_hub_nor_store_nor_service_is_installed() -> None:
    probe = """
import importlib, pkgutil, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"jupyterhub", "sqlalchemy", "alembic", "tornado", "aiohttp", "psutil", "psycopg",
                                  "traitlets", "jupyterhub_agentfarm", "jupyter_server", "cryptography", "prometheus_client"}:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)
sys.meta_path.insert(0, Absent())
import agentfarm_sdk
for module in pkgutil.walk_packages(agentfarm_sdk.__path__, "agentfarm_sdk."):
    if ".interop" not in module.name:
        importlib.import_module(module.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_a_module_does_nothing() -> None:
    """No output, no file, no thread, no socket: each module in a fresh interpreter without a home to write to."""
    probe = """
import importlib, pkgutil, sys, threading
import agentfarm_sdk, jupyterhub_agentfarm
def audit(event, args):
    if event == "subprocess.Popen" and "ldconfig" in str(args[0]):  # ctypes.util, in a library
        return
    if event in {"socket.bind", "socket.connect", "subprocess.Popen", "os.mkdir"} or (
        event == "open" and args[1] and set(str(args[1])) & set("wax+") and not str(args[0]).endswith((".pyc", "null"))
        and ".pyc." not in str(args[0])
    ):
        sys.stderr.write(f"{current}: {event} {args}\\n"); raise SystemExit(3)
for package in (agentfarm_sdk, jupyterhub_agentfarm):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if any(part in module.name for part in (".migrations", ".interop", "__main__", ".embedded")):
            continue
        importlib.import_module(module.name.rpartition(".")[0])
sys.addaudithook(audit)
for package in (agentfarm_sdk, jupyterhub_agentfarm):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if any(part in module.name for part in (".migrations", ".interop", "__main__", ".embedded")):
            continue
        current = module.name
        importlib.import_module(module.name)
assert threading.active_count() == 1, threading.enumerate()
"""
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=90, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_no_two_files_of_tests_have_the_same_name() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}  # pytest could collect only one of them
