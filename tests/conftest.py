"""Real parts that tests ask for: a PostgreSQL server of their own, a database in SQLite and in PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from jupyterhub_agentfarm.chaos.postgres import Postgres, programs

pytest_plugins = ["fixtures_model"]
settings.register_profile("farm", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("farm")

# Labs that run at the same time share this machine's loopback: each process of tests has ports of its own for servers elsewhere.
# A worker has inherited those of the process that started it.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
_FIRST = 21_000 + 900 * (int((_WORKER or "gw12").removeprefix("gw")) % 13)
if _WORKER or "AGENTFARM_FORWARD_PORTS" not in os.environ:
    os.environ["AGENTFARM_FORWARD_PORTS"] = f"{_FIRST}-{_FIRST + 899}"

SKIPPED = "no PostgreSQL server here: install the package postgresql (make test does so as root on Debian and Ubuntu)"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    yield from served()


@pytest.fixture(scope="module")
def breakable() -> Iterator[Postgres]:
    """A server that a test may kill: nobody else waits for its recovery, which looks at the files of all databases."""
    yield from served()


def served() -> Iterator[Postgres]:
    found = programs()
    if found is None:
        pytest.skip(SKIPPED)
    server = Postgres(found)
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once in SQLite and once in PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/farm.sqlite"
    server: Postgres = request.getfixturevalue("postgres")
    return server.create()
