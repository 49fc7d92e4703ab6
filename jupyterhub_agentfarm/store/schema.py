"""Which schema a database has, and how it gets the one of this code: Alembic's migrations, nothing else."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import GENESIS

from ..errors import StoreError
from . import engines, leading
from .tables import FARM_RUN, meta, runs


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def wanted() -> str:
    """Return the revision of this code."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _check_known(revision: str) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision not in known:
        raise StoreError(
            "this database is of a newer release than this program",
            hint="install that release of AgentFarm, or restore a backup",
        )


def prepare(connection: Connection) -> None:
    """Give an empty database the schema; refuse an older or a newer one, or one that cannot be written.

    Raises StoreError, and SQLAlchemy's errors.
    """
    with connection.begin():
        current = _revision(connection)
        if current is None:
            if sa.inspect(connection).get_table_names():
                raise StoreError("this database holds something else than a ledger", hint="name an empty database")
            command.upgrade(_config(connection), "head")
            _begin_life(connection)
            return
        _check_known(current)
        if current != wanted():
            raise StoreError(
                "this database is of an older release", hint="make a backup, then run: agentfarm db upgrade"
            )
        if connection.execute(sa.select(meta.c.value).where(meta.c.key == "restoring")).scalar():
            raise StoreError("a backup was being restored and is not done", hint="run again: agentfarm db restore FILE")
        # A full disk or a standby shows only when something is written.
        connection.execute(meta.update().where(meta.c.key == "epoch").values(value=meta.c.value))


def upgrade(url: str) -> tuple[str, str]:
    """Bring the database to the schema of this code; return (revision before, revision now).

    Raises StoreError: it cannot be used, or a service is using it.
    """
    writer, reader = engines.make(url)
    reader.dispose()
    lock = leading.Lock(writer)
    try:
        with lock.connect() as connection:
            engines.check(connection)
            with connection.begin():
                before = _revision(connection) or ""
                if before:
                    _check_known(before)
                command.upgrade(_config(connection), "head")
                if not before:
                    _begin_life(connection)
            lock.release()
    except sa.exc.SQLAlchemyError as error:
        raise engines.as_store_error(error) from error
    finally:
        lock.release()
        writer.dispose()
    return before, wanted()


def _begin_life(connection: Connection) -> None:
    """Name the epoch and open the farm's own chain."""
    epoch = secrets.token_hex(8)
    connection.execute(meta.insert().values(key="epoch", value=epoch))
    connection.execute(
        runs.insert().values(
            run_id=FARM_RUN, agent="", owner="", definition_hash="", mode="live", epoch=epoch, status="chain",
            head=GENESIS, created_at=time.time(),
        )
    )  # fmt: skip
