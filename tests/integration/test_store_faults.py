"""The store when things go wrong: bad members, other writers, lost sessions, damaged and read-only files."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from test_store import VALUE, append, claimed, kinds, running, submitted

from jupyterhub_agentfarm.errors import Conflict, Deposed, Fenced, StoreError, TooLarge, Transient
from jupyterhub_agentfarm.store import blobs, engines, ledger, schema
from jupyterhub_agentfarm.store import db as store_db
from jupyterhub_agentfarm.store.db import Database, Tx
from jupyterhub_agentfarm.store.tables import meta, runs, threads


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database.open(database_url)
    yield database
    await database.close()


def elsewhere(url: str, statement: str) -> None:
    """Execute a statement as another program would, past the service."""
    writer, reader = engines.make(url)
    with reader.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql(statement)
    reader.dispose()
    writer.dispose()


async def test_a_member_that_gives_up_after_it_wrote_leaves_nothing_and_harms_nobody(db: Database) -> None:
    run = await running(db)
    row = {"thread_id": "t", "agent": "a", "owner": "o", "created_at": 1.0}

    def half(tx: Tx) -> None:
        tx.connection.execute(threads.insert(), row)  # not even by tx.execute
        raise Conflict("changed its mind")

    done = await asyncio.gather(
        append(db, run, 1, VALUE), db.write(half), append(db, run, 2, VALUE), return_exceptions=True
    )
    assert (
        isinstance(done[0], ledger.Appended) and isinstance(done[1], Conflict) and isinstance(done[2], ledger.Appended)
    )
    assert await db.read(lambda c: c.execute(sa.select(threads)).all()) == []
    assert (await db.read(lambda c: ledger.verify(c, run.run_id))).ok


@pytest.mark.parametrize("raised", [SystemExit, asyncio.CancelledError, StopIteration, KeyError, RecursionError])
async def test_the_writer_outlives_whatever_a_member_raises(db: Database, raised: type[BaseException]) -> None:
    run = await running(db)

    def bad(tx: Tx) -> None:
        raise raised("out of place")

    done = await asyncio.gather(
        append(db, run, 1, VALUE), db.write(bad), append(db, run, 2, VALUE), return_exceptions=True
    )
    assert isinstance(done[1], raised if raised in (KeyError, RecursionError) else RuntimeError)
    assert isinstance(done[0], ledger.Appended) and isinstance(done[2], ledger.Appended)
    assert (await append(db, run, 3, VALUE)).n == 3


async def test_a_row_that_another_hand_moved_is_noticed_in_the_writing_transaction(
    db: Database, database_url: str
) -> None:
    run = await running(db)
    await append(db, run, 1, VALUE)
    await submitted(db, agent="clerk")
    innocent = await claimed(db, "c9", agent="clerk")
    elsewhere(database_url, f"UPDATE runs SET fence = fence + 1 WHERE run_id = '{run.run_id}'")
    done = await asyncio.gather(
        append(db, innocent, 1, VALUE),
        append(db, run, 2, VALUE),
        append(db, innocent, 2, VALUE),
        return_exceptions=True,
    )
    assert isinstance(done[0], ledger.Appended) and isinstance(done[2], ledger.Appended)
    assert isinstance(done[1], Transient | Fenced)
    with pytest.raises(Fenced):
        await append(db, run, 2, VALUE)
    assert (await kinds(db, run.run_id)).count("value.recorded") == 1


async def test_a_lost_commit_forgets_the_heads_that_it_would_have_moved(db: Database, database_url: str) -> None:
    run = await running(db)

    def refuse(tx: Tx) -> None:
        ledger.record(tx, run.run_id, "service", [VALUE])
        raise RuntimeError("after a write")

    with pytest.raises(RuntimeError):
        await db.write(refuse)
    assert (await append(db, run, 1, VALUE)).seq == run.seq + 1
    assert (await db.read(lambda c: ledger.verify(c, run.run_id))).ok


async def test_after_closing_a_write_is_refused_and_closing_again_is_harmless(database_url: str) -> None:
    db = Database.open(database_url)
    run = await running(db)
    last = append(db, run, 1, VALUE)
    done, _ = await asyncio.gather(last, db.close())
    assert done.n == 1
    with pytest.raises(Transient):
        await append(db, run, 2, VALUE)
    await db.close()
    again = Database.open(database_url)
    assert (await append(again, run, 2, VALUE)).n == 2
    await again.close()


async def test_a_read_only_database_is_said_and_work_goes_on_when_it_is_writable(tmp_path: Path) -> None:
    db = Database.open(f"sqlite:///{tmp_path}/farm.sqlite")
    run = await running(db)
    await db.write(lambda tx: tx.driver.execute("PRAGMA query_only = 1") and None)
    with pytest.raises(Transient, match="read-only") as caught:
        await append(db, run, 1, VALUE)
    assert caught.value.hint
    assert (await append(db, run, 1, VALUE)).n == 1  # a new connection
    await db.close()


async def test_that_writes_are_taken_again_is_seen_where_nobody_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_db, "SURE_SECONDS", 0.2)
    db = Database.open(f"sqlite:///{tmp_path}/farm.sqlite")
    await db.write(lambda tx: tx.driver.execute("PRAGMA busy_timeout = 0") and None)
    another = sqlite3.connect(tmp_path / "farm.sqlite", isolation_level=None)
    another.execute("BEGIN IMMEDIATE")
    with pytest.raises(Transient, match="another program"):
        await db.sure()
    another.execute("ROLLBACK")
    await db.sure()
    assert db.last_error, "a look proves nothing: the disk may still be full"
    leading = asyncio.create_task(db.lead())
    for _ in range(3000):
        if db.last_error is None:
            break
        await asyncio.sleep(0.02)
    assert db.last_error is None
    leading.cancel()
    another.close()
    await db.close()


async def test_a_second_service_takes_over_only_when_the_first_has_lost_its_session(postgres: Any) -> None:
    url = postgres.create()
    first = Database.open(url)
    run = await running(first)
    with pytest.raises(StoreError, match="another service"):
        Database.open(url)
    elsewhere(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    second = Database.open(url)
    for _ in range(2):
        with pytest.raises(Transient):
            await append(first, run, 1, VALUE)
    assert (await append(second, run, 1, VALUE)).n == 1
    await second.close()
    with pytest.raises(Transient, match="another service has led"):  # what it knows of its runs is old
        await append(first, run, 1, VALUE)
    with pytest.raises(Deposed):
        await first.lead()
    await first.close()


async def test_a_refused_database_can_be_opened_once_it_is_right(database_url: str) -> None:
    await Database.open(database_url).close()
    elsewhere(database_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="newer release"):
        Database.open(database_url)
    elsewhere(database_url, f"UPDATE alembic_version SET version_num = '{schema.wanted()}'")
    await Database.open(database_url).close()


async def test_an_older_schema_names_the_command_that_upgrades_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Database.open(database_url).close()
    monkeypatch.setattr(schema, "wanted", lambda: "the next release's")
    with pytest.raises(StoreError, match="older release") as caught:
        Database.open(database_url)
    assert "agentfarm db upgrade" in caught.value.hint


async def test_upgrading_an_empty_database_begins_its_life_and_upgrading_again_changes_nothing(
    database_url: str,
) -> None:
    assert schema.upgrade(database_url) == ("", schema.wanted())
    db = Database.open(database_url)
    with pytest.raises(StoreError, match="another service"):
        schema.upgrade(database_url)
    epoch = db.epoch
    await db.close()
    assert schema.upgrade(database_url) == (schema.wanted(), schema.wanted())
    db = Database.open(database_url)
    assert db.epoch == epoch and (await db.read(lambda c: ledger.read_run(c, "farm"))).status == "chain"
    await db.write(lambda tx: ledger.record(tx, "farm", "service", [VALUE]))
    assert (await db.read(lambda c: ledger.verify(c, "farm"))).ok
    await db.close()


async def test_every_epoch_is_another(tmp_path: Path) -> None:
    epochs = set()
    for name in "ab":
        db = Database.open(f"sqlite:///{tmp_path}/{name}.sqlite")
        epochs.add(db.epoch)
        await db.close()
    assert len(epochs) == 2


async def test_a_damaged_file_is_said_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "farm.sqlite"
    db = Database.open(f"sqlite:///{path}")
    for _ in range(50):
        await submitted(db)
    await db.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\xff" * (len(raw) - 4096)
    path.write_bytes(raw)
    with pytest.raises(StoreError, match="damaged") as caught:
        Database.open(f"sqlite:///{path}")
    assert "backup" in caught.value.hint


@pytest.mark.parametrize("setting", ["fsync", "synchronous_commit", "full_page_writes"])
async def test_a_postgresql_that_would_forget_is_refused(postgres: Any, setting: str) -> None:
    url = postgres.create()
    writer, reader = engines.make(url)

    class Says:
        """A connection whose server says that the setting is off; the rest is the real one."""

        dialect = writer.dialect

        def __init__(self, real: sa.Connection) -> None:
            self.begin, self._real = real.begin, real

        def exec_driver_sql(self, statement: str) -> Any:
            return self._real.exec_driver_sql(
                f"SELECT 'off' WHERE '{statement}' <> ''" if setting in statement else statement
            )

    with reader.connect() as connection, pytest.raises(StoreError, match=f"{setting}=off") as caught:
        engines.check(Says(connection))  # type: ignore[arg-type]
    assert setting in caught.value.hint
    writer.dispose()
    reader.dispose()


def test_a_disk_that_takes_no_writes_is_refused_at_the_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/farm.sqlite"
    asyncio.run(Database.open(url).close())
    code = (
        "import resource, sys\n"
        "from jupyterhub_agentfarm.errors import StoreError\n"
        "from jupyterhub_agentfarm.store.db import Database\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try:\n    Database.open(sys.argv[1])\n"
        "except StoreError as error:\n    print(error.detail, '|', error.hint, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=60, check=False)
    assert "takes no writes | check its space" in done.stderr, done.stderr


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_file_system", lambda folder: "nfs4")
    with pytest.raises(StoreError, match="network file system"):
        Database.open(f"sqlite:///{tmp_path}/farm.sqlite")


async def test_durability_is_set_on_every_connection_of_the_writer(tmp_path: Path) -> None:
    db = Database.open(f"sqlite:///{tmp_path}/farm.sqlite")

    def settings(tx: Tx) -> list[Any]:
        return [tx.driver.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]

    assert await db.write(settings) == ["wal", 2]
    await db.write(lambda tx: tx.driver.execute("PRAGMA query_only = 1") and None)
    with pytest.raises(Transient):
        await db.write(lambda tx: tx.execute(meta.update().values(value=meta.c.value)) and None)
    assert await db.write(settings) == ["wal", 2]  # of the connection after it
    await db.close()


async def test_a_blob_over_the_limit_is_refused_before_the_database_sees_it(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "MAX_BLOB_BYTES", 10)
    with pytest.raises(TooLarge):
        await db.write(lambda tx: blobs.put(tx, "run-1", "0" * 64, b"x" * 11))


async def test_a_listener_that_fails_keeps_nothing_from_the_others(db: Database) -> None:
    heard: list[str] = []

    def broken(committed: Any) -> None:
        raise RuntimeError("a bug")

    db.on_commit(broken)
    db.on_commit(lambda committed: heard.extend(event.kind for one in committed for event in one.events))
    await running(db)
    assert heard == ["run.created", "message.added", "message.added", "run.leased"]


async def test_listeners_hear_nothing_of_what_was_rolled_back(db: Database) -> None:
    run = await running(db)
    heard: list[str] = []
    db.on_commit(lambda committed: heard.extend(one.run_id for one in committed))

    def half(tx: Tx) -> None:
        ledger.record(tx, run.run_id, "service", [VALUE])
        raise RuntimeError("after a write")

    await asyncio.gather(append(db, run, 1, VALUE), db.write(half), return_exceptions=True)
    assert heard == [run.run_id]


async def test_the_clock_that_judges_leases_is_the_databases(postgres: Any) -> None:
    db = Database.open(postgres.create())
    theirs = await db.read(lambda c: c.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    assert abs(db.now() - float(theirs)) < 1.0
    assert await db.read(lambda c: c.execute(sa.select(runs.c.run_id)).scalars().all()) == ["farm"]
    await db.close()
