"""`make farm` before there is anything: what it says where it cannot, and that a step is done once, or again after a cut."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "setup.py"
NO_NETWORK = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_FIND_LINKS": "", "PIP_DEFAULT_TIMEOUT": "2",
    "PIP_CONFIG_FILE": os.devnull, "no_proxy": "*",
}  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What setting up needs of a clone, under a path with a space."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "package.json", "package-lock.json"):
        shutil.copy(ROOT / name, folder)
    for name in ("scripts", "requirements"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def script(checkout: Path) -> ModuleType:
    """The script as a module of that clone."""
    spec = importlib.util.spec_from_file_location("setup_of_a_clone", checkout / "scripts" / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    Path(module.CACHE).mkdir()
    Path(module.LOG).touch()
    return module


def make(checkout: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", f"PYTHON={sys.executable}", *argv]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PIP_"))}
    return subprocess.run(
        command, cwd=checkout, env=clean | env, capture_output=True, text=True, timeout=120, check=False
    )


def test_help_names_every_target(checkout: Path) -> None:
    done = make(checkout)
    assert done.returncode == 0
    for target in ("farm", "code-server", "test", "lint", "lock", "clean"):
        assert f"make {target} " in done.stdout


def test_without_a_network_it_says_so_and_goes_on_later_from_where_it_was(checkout: Path) -> None:
    first = make(checkout, "setup", **NO_NETWORK)
    assert first.returncode != 0
    assert "the package index is not reachable" in first.stderr and "Traceback" not in first.stderr
    assert "a virtual environment" in first.stdout
    again = make(checkout, "setup", **NO_NETWORK)
    assert again.returncode != 0 and "a virtual environment" not in again.stdout


def test_an_old_python_can_read_the_script_and_is_told_what_it_lacks(checkout: Path) -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 5))
    old = "import runpy, sys; sys.version_info = (3, 8, 2); sys.argv[1:] = ['farm']; runpy.run_path('scripts/setup.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", old], cwd=checkout, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0 and not (checkout / ".venv").exists()
    assert "this is Python 3.8, AgentFarm needs 3.10" in done.stderr and "PYTHON=" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_python_that_is_not_there_ends_with_an_error(checkout: Path) -> None:
    done = make(checkout, "setup", "PYTHON=python3.99")
    assert done.returncode != 0 and "python3.99" in done.stderr


def test_a_disk_without_room_is_refused_before_anything_is_made(script: ModuleType) -> None:
    script.NEEDED_MB = {"farm": 2**40}
    with pytest.raises(script.Failed, match="free some space"):
        script.main("farm")
    assert not Path(script.VENV).exists()


def test_a_half_made_environment_is_made_anew(script: ModuleType) -> None:
    (Path(script.VENV) / "bin").mkdir(parents=True)
    python = Path(script.PYTHON)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    script.make_venv()
    assert script.works()


def test_modules_are_compiled_once_and_readable_for_every_user(checkout: Path, script: ModuleType) -> None:
    site = Path(script.VENV) / "lib" / "python3" / "site-packages"
    own = checkout / "agentfarm_sdk"
    for folder in (site, own):
        folder.mkdir(parents=True)
        (folder / "good.py").write_text("NUMBER = 1\n")
    (site / "template.py").write_text("{{ no Python }}\n")
    left = own / "__pycache__"
    left.mkdir(mode=0o700)  # by a process of the farm, under its umask
    (left / "older.cpython-311.pyc").touch(mode=0o600)
    script.PYTHON = sys.executable
    script.compile_modules()
    for folder in (site, own):
        (compiled,) = (folder / "__pycache__").glob("good.*.pyc")
        assert [one.stat().st_mode & 0o077 for one in (compiled.parent, compiled)] == [0o055, 0o044]
    assert (left / "older.cpython-311.pyc").stat().st_mode & 0o077 == 0o044
    assert Path("agentfarm_sdk/good.py") in map(Path, script.compiled_from())


def test_a_step_is_done_again_only_when_what_it_depends_on_has_changed(script: ModuleType) -> None:
    Path(script.VENV).mkdir()
    done: list[str] = []
    step = script.Step("x", "a step", lambda: done.append("x"), ["requirements/farm.lock"])
    assert not step.done()
    step.run("")
    assert step.done()
    (Path(script.ROOT) / "requirements/farm.lock").write_text("another\n")
    assert not step.done() and done == ["x"]


def test_a_step_that_was_cut_short_leaves_no_stamp(script: ModuleType) -> None:
    Path(script.VENV).mkdir()

    def cut() -> None:
        raise KeyboardInterrupt

    step = script.Step("x", "a step", cut)
    with pytest.raises(KeyboardInterrupt):
        step.run("")
    assert not step.done()


def test_a_step_whose_result_was_removed_is_done_again(script: ModuleType) -> None:
    Path(script.VENV).mkdir()
    step = script.Step("x", "a step", lambda: (Path(script.ROOT) / "made").touch(), result="made")
    step.run("")
    assert step.done()
    (Path(script.ROOT) / "made").unlink()
    assert not step.done()


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("npm error code ENOSPC", "the disk is full"),
        ("Could not fetch: [Errno -3] Temporary failure in name resolution", "not reachable"),
        ("npm error network request failed, reason: getaddrinfo ENOTFOUND", "not reachable"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "do not use it"),
        ("ERROR: No matching distribution found for x==1", "no build for this Python or machine"),
        ("noise\nerror: something else went wrong\nhint: see above", "something else went wrong (exit code 7"),
        ("", "it said nothing (exit code 7"),
    ],
)
def test_the_reason_is_one_sentence_with_the_way_out(script: ModuleType, said: str, sentence: str) -> None:
    assert sentence in script.why(said, 7)


def test_a_program_that_fails_is_told_by_what_it_said_itself(script: ModuleType) -> None:
    Path(script.LOG).write_text("No space left on device, said an earlier step\n")
    with pytest.raises(script.Failed, match="the thing: error: quite another reason"):
        script.call(
            [sys.executable, "-c", "import sys; print('error: quite another reason'); sys.exit(3)"], "the thing"
        )


def test_without_root_the_programs_of_tests_are_asked_for_and_not_installed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    script.install_test_programs()
    assert "only root could install them" in capsys.readouterr().out


def test_the_locks_hold_hashes_and_no_addresses() -> None:
    for lock in (ROOT / "requirements").glob("*.lock"):
        text = lock.read_text()
        pinned = [line for line in text.splitlines() if "==" in line]
        assert pinned and "://" not in text and " @ " not in text, lock
        assert text.count("--hash=sha256:") >= len(pinned), lock
    assert '"resolved"' not in (ROOT / "package-lock.json").read_text()


def test_what_a_farm_is_locked_to_is_what_its_tests_are_locked_to() -> None:
    def pins(name: str) -> set[str]:
        lines = (ROOT / "requirements" / name).read_text().splitlines()
        return {line.split(" ")[0].rstrip("\\; ") for line in lines if "==" in line and not line.startswith(" ")}

    assert pins("farm.lock") | pins("node.lock") <= pins("test.lock")


def test_what_code_server_is_compiled_with_is_asked_for_by_name(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(script.shutil, "which", lambda name: None if name == "g++" else f"/usr/bin/{name}")
    with pytest.raises(script.Failed, match=r"apt-get install g\+\+"):
        script.install_code_server()
    assert not Path(script.CODE_SERVER).exists()


def test_a_wheel_holds_the_panel_and_the_farm_pages(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    if not (ROOT / "jupyterhub_agentfarm" / "pages" / "build" / "manifest.json").exists():
        pytest.skip("panel and pages are not built: make setup")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert any(name.endswith("share/jupyter/labextensions/jupyterhub-agentfarm/package.json") for name in names)
    assert any(re.search(r"jupyterhub_agentfarm/pages/build/farm\.[0-9A-Z]+\.js$", name) for name in names)
    assert not any("node_modules" in name for name in names)
