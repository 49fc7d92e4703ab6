"""Real parts that tests ask for: a PostgreSQL server of their own, a database in SQLite and in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from jupyterhub_agentfarm.chaos.postgres import Postgres, programs

pytest_plugins = ["fixtures_model"]
settings.register_profile("farm", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("farm")

SKIPPED = "no PostgreSQL server here: install the package postgresql (make test does so as root on Debian and Ubuntu)"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
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
