"""Whole farms, one for each database, and people who use them. A farm is started once and shared by what leaves it well."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import hands as tools
import msgspec
import pytest
from browserkit import FAILED, browser, desk  # noqa: F401
from farmkit import Counter, Farm, Person, clean_env, end_with_us, until
from ledgercheck import faults

from agentfarm_sdk.tools.registry import pinned

DATABASES = ["sqlite", "postgresql"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a desk know that its test failed: it keeps a picture."""
    report = yield
    if report.when == "call" and report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="session")
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for a unix socket's."""
    directory = Path(tempfile.mkdtemp(prefix="af-", dir="/tmp" if Path("/tmp").is_dir() else None))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def counter(short_directory: Path) -> Iterator[Counter]:
    counted = Counter(short_directory)
    yield counted
    counted.stop()


@pytest.fixture(scope="session")
def model(short_directory: Path) -> Iterator[str]:
    """The address of a model server that does what the task says."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterhub_agentfarm.chaos.model"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=end_with_us,
    )
    assert process.stdout
    yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    process.kill()
    process.wait(10)


def run_farm(request: pytest.FixtureRequest, directory: Path, *options: str, **env: str) -> Iterator[Farm]:
    """Run a farm as `agentfarm up` starts it; at the end its ledger is read by a stranger."""
    database: str = request.param
    url = f"sqlite:///{directory}/farm.sqlite"
    if database == "postgresql":
        url = env["DB_CONNECTION_STRING"] = request.getfixturevalue("postgres").create()
    made = Farm(directory, clean_env(**env), database=url, options=options)
    made.start()
    try:
        yield made
        until(lambda: not made.busy(), 90, "no run is under way any more")
    finally:
        made.stop()
    assert faults(made.database) == []
    until(lambda: made.leftovers() == [], 10, f"no process outlives the farm: {made.leftovers()}")


@pytest.fixture(scope="session", params=DATABASES)
def farm(request: pytest.FixtureRequest, short_directory: Path) -> Iterator[Farm]:
    """A farm with the embedded model."""
    yield from run_farm(request, short_directory / f"real-{request.param}")


@pytest.fixture(scope="session", params=DATABASES)
def scripted_farm(request: pytest.FixtureRequest, short_directory: Path, model: str) -> Iterator[Farm]:
    """A farm whose model does what the task says: for tests that kill."""
    env = {"HF_API_URL": model, "HUGGING_FACE_AUTH_TOKEN": "none-needed"}
    yield from run_farm(request, short_directory / f"kill-{request.param}", "--no-demo", **env)


@pytest.fixture(scope="session")
def hands(scripted_farm: Farm) -> dict[str, str]:
    """Two agents of Alice's with one tool each, driven by the scripted model; by the tool's name."""
    alice = scripted_farm.person("alice")
    with alice.api() as api:
        for name, tool in (("charge", tools.charge), ("store", tools.store)):
            spec, code = pinned(tool)
            draft = {
                "prompt": "Do what you are told.",
                "model": {"name": "scripted"},
                "tools": [msgspec.to_builtins(spec)],
            }
            files = {"hands.py": code.decode()}
            made = api.post("/agents", json={"name": f"hands-{name}", "draft": draft, "files": files})
            assert made.status_code == 201, made.text
            api.post(f"/agents/hands-{name}/publish", json={}).raise_for_status()
    return {"charge": "hands-charge", "store": "hands-store"}


@pytest.fixture
def alice(farm: Farm) -> Person:
    """A person who owns agents."""
    return farm.person("alice")


@pytest.fixture
def bob(farm: Farm) -> Person:
    """Another person, who owns none of hers."""
    return farm.person("bob")
