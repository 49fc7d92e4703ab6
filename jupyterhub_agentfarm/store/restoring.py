"""Backups of the ledger, and what restoring one begins: a new epoch, in which nothing goes on without a person."""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, make_url

from agentfarm_sdk.audit import Leaf
from agentfarm_sdk.protocol import ENDED, header_hash, new_event

from ..errors import StoreError
from . import engines, latest, leading, leases, ledger, schema
from .db import Tx
from .tables import FARM_RUN, events, meta, runs

UNFINISHED = "restoring"  # in `meta` while a restore has not come to its end: the service refuses to start
LISTED = 1000


@dataclass(frozen=True)
class Restored:
    """What a restore came to. `ahead`: runs that an anchor saw further than the backup; `kept`: where the old ledger lies."""

    before: str  # epoch
    epoch: str
    waiting: list[str]  # unfinished runs
    ahead: list[str]
    kept: str = ""


def backup(url: str, file: Path) -> None:
    """Write a copy of the ledger while it is in use. Raises StoreError: it cannot be read or written, or `file` exists."""
    parsed = make_url(url)
    if file.exists():
        raise StoreError(f"{file} exists already", hint="name another file")
    try:
        if parsed.get_backend_name() == "sqlite":
            _vacuum_into(Path(parsed.database or ""), file)
        else:
            _run("pg_dump", parsed, "--format=custom", f"--file={file}")
        with file.open("rb") as made:
            os.fsync(made.fileno())
        file.chmod(0o600)
    except (OSError, sqlite3.Error) as error:
        file.unlink(missing_ok=True)
        raise StoreError(f"the backup {file} was not made: {error}", hint="check the place and its space") from error


def restore(url: str, file: Path, anchored: Iterable[Leaf] = ()) -> Restored:
    """Put a backup in the ledger's place and begin a new epoch. Killed at any moment, the old ledger or the new one stands.

    `anchored`: heads that the anchors outside the database hold.

    Raises:
        StoreError: it is no backup of a ledger, of a newer release, or a service uses the database.
    """
    if not file.is_file():
        raise StoreError(f"there is no file {file}", hint="name a file made by: agentfarm db backup")
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _restore_sqlite(Path(parsed.database or ""), file, list(anchored))
    return _restore_postgres(url, parsed, file, list(anchored))


# -- a new life ----------------------------------------------------------------------------------------------------


def begin_epoch(connection: Connection, anchored: list[Leaf], by: str) -> Restored:
    """Name a new epoch; let every unfinished run wait (`restored`), calls that may have taken effect in doubt."""
    before = str(connection.execute(sa.select(meta.c.value).where(meta.c.key == "epoch")).scalar_one())
    epoch = secrets.token_hex(8)
    tx = Tx(connection, {}, time.time(), connection.dialect.name == "sqlite")
    open_runs = ledger.select_runs(connection, runs.c.status.not_in([*ENDED, "chain"]))
    farther = _ahead(connection, anchored)
    connection.execute(meta.update().where(meta.c.key == "epoch").values(value=epoch))
    body = {"epoch": epoch, "before": before}
    for run in open_runs:
        fold = latest.of(connection, run)
        doubts = [
            leases.doubt(call, "the ledger was restored from a backup", None)
            for call in fold.open_calls
            if call.state == "started" and call.effect == "once"
        ]
        ledger.begin_life(tx, run.run_id, epoch)
        happened = [new_event("run.restored", body), *doubts, new_event("run.parked", {"reason": "restored"})]
        if run.bound:  # its kernel lived with the ledger that is gone
            error = {"type": "kernel-gone", "message": "the ledger was restored from a backup"}
            happened = [new_event("run.restored", body), new_event("run.failed", {"error": error})]
        ledger.record(tx, run.run_id, "service", happened)
    ledger.begin_life(tx, FARM_RUN, epoch)
    waiting = [run.run_id for run in open_runs if not run.bound]
    told = {**body, "waiting": waiting[:LISTED], "ahead": farther[:LISTED]}
    ledger.record(tx, FARM_RUN, by, [new_event("run.restored", told)])
    tx.flush()
    connection.execute(meta.delete().where(meta.c.key == UNFINISHED))
    return Restored(before, epoch, waiting, farther)


def _ahead(connection: Connection, anchored: list[Leaf]) -> list[str]:
    """Return the runs of which an anchor holds an event that is not here."""
    found = []
    for leaf in anchored:
        header = connection.execute(
            sa.select(events.c.header)
            .join(runs, runs.c.run_no == events.c.run_no)
            .where(runs.c.run_id == leaf.run, events.c.seq == leaf.seq)
        ).scalar()
        if header is None or header_hash(header) != leaf.head:
            found.append(leaf.run)
    return sorted(set(found))


def _begun(url: str, anchored: list[Leaf]) -> Restored:
    """Begin the epoch in the database at `url`, whose schema is brought to this release first."""
    schema.upgrade(url)
    writer, reader = engines.make(url)
    reader.dispose()
    lock = leading.Lock(writer)
    try:
        with lock.connect() as connection, connection.begin():
            return begin_epoch(connection, anchored, f"user:{_person()}")
    except sa.exc.SQLAlchemyError as error:
        raise engines.as_store_error(error) from error
    finally:
        lock.release()
        writer.dispose()


def _person() -> str:
    return os.environ.get("SUDO_USER") or os.environ.get("USER") or f"uid-{os.getuid()}"


# -- SQLite --------------------------------------------------------------------------------------------------------


def _vacuum_into(database: Path, file: Path) -> None:
    if not database.is_file():
        raise StoreError(f"there is no ledger at {database}", hint="name the state directory by --state")
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as source:
        source.execute("VACUUM INTO ?", (str(file),))
    _check_sqlite(file)


def _check_sqlite(file: Path) -> None:
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as copy:
            said = copy.execute("PRAGMA integrity_check").fetchone()[0]
            epoch = copy.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
    except sqlite3.Error as error:
        raise StoreError(
            f"{file} is not a backup of a ledger: {error}", hint="name a file made by: agentfarm db backup"
        ) from error
    if said != "ok" or epoch is None:
        raise StoreError(f"{file} is damaged: {said}", hint="take another backup")


def _restore_sqlite(database: Path, file: Path, anchored: list[Leaf]) -> Restored:
    _check_sqlite(file)
    database.parent.mkdir(parents=True, exist_ok=True)
    writer = sa.create_engine(URL.create("sqlite", database=str(database)))
    lock = leading.Lock(writer)  # no service uses it until we are done
    made = database.with_name(f"{database.name}.restoring")
    try:
        for leftover in (made, *_beside(made)):
            leftover.unlink(missing_ok=True)
        shutil.copyfile(file, made)
        made.chmod(0o600)
        done = _begun(f"sqlite:///{made}", anchored)
        _settle(made)
        kept = _put_aside(database)
        os.replace(made, database)
        _sync_folder(database.parent)
        return Restored(done.before, done.epoch, done.waiting, done.ahead, kept)
    except OSError as error:
        raise StoreError(
            f"the backup was not restored: {error.strerror}", hint="check the disk; nothing was changed"
        ) from error
    finally:
        lock.release()
        writer.dispose()
        made.with_name(f"{made.name}.lock").unlink(missing_ok=True)


def _beside(database: Path) -> list[Path]:
    return [database.with_name(f"{database.name}-{one}") for one in ("wal", "shm")]


def _settle(database: Path) -> None:
    """Bring all of a database into its one file, and onto the disk."""
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    with database.open("rb") as made:
        os.fsync(made.fileno())


def _put_aside(database: Path) -> str:
    """Keep the ledger that is there under another name; return it ("" where there is none)."""
    if not database.exists():
        return ""
    kept = database.with_name(f"{database.name}.before-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    try:
        _settle(database)  # else its log would be taken for the new file's
    except sqlite3.Error:
        for one in _beside(database):  # it is damaged: its log goes with it
            if one.exists():
                os.replace(one, kept.with_name(one.name.replace(database.name, kept.name)))
    os.link(database, kept)
    return str(kept)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


def _restore_postgres(url: str, parsed: URL, file: Path, anchored: list[Leaf]) -> Restored:
    writer, reader = engines.make(url)
    reader.dispose()
    lock = leading.Lock(writer)
    try:
        lock.connect().close()  # refused where a service uses it
    except sa.exc.SQLAlchemyError as error:
        raise engines.as_store_error(error) from error
    finally:
        lock.release()
        writer.dispose()
    script = _run("pg_restore", parsed, "--clean", "--if-exists", "--no-owner", "--file=-", str(file))
    mark = f"\nINSERT INTO public.meta (key, value) VALUES ('{UNFINISHED}', '1');\n"
    _run(
        "psql",
        parsed,
        "--quiet",
        "--no-psqlrc",
        "--single-transaction",
        "--set=ON_ERROR_STOP=1",
        feed=script + mark.encode(),
    )
    return _begun(url, anchored)


def _run(program: str, url: URL, *arguments: str, feed: bytes | None = None) -> bytes:
    """Run one of PostgreSQL's programs on the database; its password goes by the environment. Raises StoreError."""
    found = shutil.which(program) or next(
        iter(sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{program}")), reverse=True)), None
    )
    if found is None:
        raise StoreError(f"PostgreSQL's {program} is not installed here", hint="install postgresql-client")
    settings = {"PGHOST": url.host or _first(url.query.get("host")), "PGPORT": str(url.port or ""), "PGUSER": url.username, "PGPASSWORD": url.password, "PGDATABASE": url.database}  # fmt: skip
    env = {**os.environ, **{key: str(value) for key, value in settings.items() if value}}
    done = subprocess.run([found, *arguments], input=feed, capture_output=True, env=env, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise StoreError(f"{program}: {said[-1] if said else 'it failed'}", hint="nothing was changed")
    return done.stdout


def _first(value: Any) -> str:
    return str(value[0]) if isinstance(value, tuple) and value else str(value or "")
