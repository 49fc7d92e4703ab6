"""Whole farms, one for each database, and people who use them. A farm is started once and shared by what leaves it well."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from farmkit import Counter, Farm, Person, clean_env, until
from ledgercheck import faults

DATABASES = ["sqlite", "postgresql"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one farm run in one worker, so that each farm is started once."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if "farm" in params:
            item.add_marker(pytest.mark.xdist_group(f"farm-{params['farm']}"))


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


@pytest.fixture(scope="session", params=DATABASES)
def farm(request: pytest.FixtureRequest, short_directory: Path) -> Iterator[Farm]:
    """A farm with the embedded model, as `agentfarm up` starts it; its ledger is read by a stranger at the end."""
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres").create()
    state = short_directory / request.param
    made = Farm(state, clean_env(**({"DB_CONNECTION_STRING": url} if url else {})))
    made.database = url or f"sqlite:///{state}/farm.sqlite"
    made.start()
    try:
        yield made
        settled = until(lambda: not made.busy() or None, 90, "no run is under way any more")
        assert settled
    finally:
        made.stop()
    assert faults(made.database) == []
    assert made.leftovers() == [], "processes of the farm outlive it"


@pytest.fixture(scope="session")
def alice(farm: Farm) -> Person:
    """A person who owns agents."""
    return farm.person("alice")


@pytest.fixture(scope="session")
def bob(farm: Farm) -> Person:
    """Another person, who owns none of hers."""
    return farm.person("bob")


@pytest.fixture(scope="session")
def admin(farm: Farm) -> Person:
    """The farm's first user, owner of the demo agents, who may decide what waits."""
    return farm.person("admin")
