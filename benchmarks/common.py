"""What the benchmarks share: floors of this machine's disk and drivers, a temporary PostgreSQL, counters, a table.

Figures mean something only beside the floor measured in the same run, as a ratio: machines and disks differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from jupyterhub_agentfarm.chaos.postgres import Postgres, programs

PAYLOAD = 1280  # bytes of a step's result, as in the peers' figures


# --- figures ------------------------------------------------------------------------------------------------------


def each(fn: Callable[[], object], times: int) -> list[float]:
    """Return the milliseconds of each of `times` calls."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        fn()
        taken.append((time.perf_counter() - begin) * 1000)
    return taken


def spread(taken: Sequence[float]) -> dict[str, float]:
    """Return median, mean and the 99th percentile of milliseconds."""
    ordered = sorted(taken)
    return {
        "p50": round(statistics.median(ordered), 3),
        "mean": round(statistics.fmean(ordered), 3),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 3),
    }


def late_over_early(taken: Sequence[float]) -> float:
    """Return the median of the last tenth over that of the first, without the ten steps that warm up."""
    warm = taken[10:] if len(taken) > 50 else taken
    tenth = max(1, len(warm) // 10)
    return round(statistics.median(warm[-tenth:]) / statistics.median(warm[:tenth]), 2)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Draw rows of equal keys for a terminal."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *[["" if row.get(name) is None else str(row[name]) for name in names] for row in rows]]
    wide = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in wide), *lines[1:]])


def machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2),
    }


# --- floors -------------------------------------------------------------------------------------------------------


def fsync_floor(directory: Path, times: int = 200) -> list[float]:
    """Append 8 kB and fdatasync: what one commit costs at least on this disk."""
    path = directory / "floor.bin"
    with path.open("ab", buffering=0) as file:

        def once() -> None:
            file.write(b"x" * 8192)
            os.fdatasync(file.fileno())

        taken = each(once, times)
    path.unlink()
    return taken


def sqlite_floor(directory: Path, times: int = 400) -> list[float]:
    """The bare driver: WAL, synchronous=FULL, one row of one payload in one commit per step."""
    path = directory / "floor.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("CREATE TABLE e (id INTEGER PRIMARY KEY, run INTEGER, seq INTEGER, body BLOB, UNIQUE (run, seq))")
        seq, body = iter(range(times)), os.urandom(PAYLOAD)

        def once() -> None:
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT INTO e (run, seq, body) VALUES (1, ?, ?)", (next(seq), body))
            db.execute("COMMIT")

        taken = each(once, times)
    for left in directory.glob("floor.sqlite*"):
        left.unlink()
    return taken


def postgres_floor(url: str, times: int = 400) -> list[float]:
    """The bare driver: one row of one payload per step, each in a commit of its own."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("CREATE TABLE floor (id bigserial PRIMARY KEY, run int, seq int, body bytea, UNIQUE (run, seq))")
        seq, body = iter(range(times)), os.urandom(PAYLOAD)
        taken = each(
            lambda: db.execute(
                "INSERT INTO floor (run, seq, body) VALUES (1, %s, %s)", (next(seq), body), prepare=True
            ),
            times,
        )
        db.execute("DROP TABLE floor")
    return taken


# --- a temporary PostgreSQL ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def postgres(parent: Path) -> Iterator[str]:
    """Run a server of its own in a folder of this one, durable as delivered; yields the URL of an empty database."""
    there = programs()
    if there is None:
        raise FileNotFoundError("PostgreSQL's initdb is not installed: apt-get install postgresql")
    server = Postgres(there, parent=parent)
    try:
        yield server.create()
    finally:
        server.remove()


# --- counters -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """Running totals of a store: bytes written (PostgreSQL: of its log; None: not known here), bytes stored."""

    written: int | None
    stored: int

    def since(self, earlier: Counted, steps: int) -> dict[str, Any]:
        """Return each as a figure per step."""

        def per_step(now: int | None, then: int | None) -> float | None:
            return None if now is None or then is None else round((now - then) / steps, 2)

        return {
            "written": per_step(self.written, earlier.written),
            "stored": per_step(self.stored, earlier.stored),
        }


def count_postgres(url: str) -> Counted:
    with psycopg.connect(url, autocommit=True) as db:
        wal = db.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')").fetchone()
        size = db.execute("SELECT pg_database_size(current_database())").fetchone()
    assert wal and size
    return Counted(int(wal[0]), size[0])


def postgres_syncs(url: str) -> int:
    """Return how often PostgreSQL has synced its log; waits until every session has told it."""
    time.sleep(10.5)  # an idle session tells its counters after at most ten seconds
    with psycopg.connect(url, autocommit=True) as db:
        found = db.execute("SELECT wal_sync FROM pg_stat_wal").fetchone()
    assert found
    return int(found[0])


def count_sqlite(path: Path, pid: int | None) -> Counted:
    """Count a SQLite file; `pid` is its writer, whose bytes written Linux counts. A checkpoint makes its size true."""
    written = None
    if pid is not None and (io := Path(f"/proc/{pid}/io")).exists():
        written = next(int(line.split()[1]) for line in io.read_text().splitlines() if line.startswith("write_bytes"))
    with contextlib.closing(sqlite3.connect(path)) as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0] * db.execute("PRAGMA page_size").fetchone()[0]
    return Counted(written, pages)


class Strace:
    """Count the syncs of a process with strace while the block runs; `calls` is None where strace is not allowed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.calls: int | None = None
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Strace:
        if not shutil.which("strace"):
            return self
        self.file = tempfile.NamedTemporaryFile("r", suffix=".strace")
        self.process = subprocess.Popen(
            ["strace", "-f", "-q", "-e", "trace=fsync,fdatasync", "-o", self.file.name, "-p", str(self.pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(0.5)  # strace says nothing when it has attached
        if self.process.poll() is not None:
            self.process = None
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.calls = sum("sync(" in line for line in self.file.read().splitlines())
            self.file.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def write_json(path: str | None, result: dict[str, Any]) -> None:
    if path:
        Path(path).write_text(json.dumps(result, indent=1) + "\n")
