"""A PostgreSQL server for a trial, a test or a benchmark: in a folder and on a unix socket of its own, run by an unprivileged user."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import psutil

from . import room

SHORT = Path("/tmp")  # a socket's path has at most 107 bytes


def programs() -> Path | None:
    """Return the folder that holds initdb and pg_ctl, the newest one first; None where there is no PostgreSQL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    candidates = [*found, *([Path(on_path).parent] if on_path else [])]
    return next(
        (folder for folder in candidates if (folder / "pg_ctl").exists() and (folder / "initdb").exists()), None
    )


class Postgres:
    """A server that trusts whoever reaches its socket.

    megabytes: of a disk of its own, which can be full; `small` says whether it got one. parent: where its folder is made.
    """

    def __init__(self, programs: Path, megabytes: int = 0, parent: Path = SHORT) -> None:
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="afpg-", dir=parent))
        self.data = self.folder / "data"
        self.small = bool(megabytes) and room.mounted(self.folder, megabytes)
        self.user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        if os.getuid() == 0:
            try:
                entry = pwd.getpwnam("postgres")
            except KeyError:
                entry, self.user = pwd.getpwnam("nobody"), "nobody"
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        self._run(
            "initdb",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "-U",
            "farm",
            "-D",
            str(self.data),
            *(["--wal-segsize=1"] if self.small else []),
        )
        self.start()

    def _run(self, program: str, *args: str) -> None:
        """Raises CalledProcessError, with what the program said."""
        subprocess.run(
            [str(self.programs / program), *args], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, timeout=60, check=True, user=self.user if os.getuid() == 0 else None,
        )  # fmt: skip

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder}"
        options += " -c max_wal_size=8MB -c min_wal_size=2MB" if self.small else ""
        self._run("pg_ctl", "-D", str(self.data), "-l", str(self.folder / "log"), "-o", options, "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop")

    def kill(self) -> None:
        """Kill -9 every process of the server, and wait until they are gone."""
        first = psutil.Process(self._pid())
        first.suspend()  # it starts no more
        every = [*first.children(recursive=True), first]
        for one in every:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(every, timeout=10)

    def _pid(self) -> int:
        """Return the first process. Raises FileNotFoundError: it does not run."""
        return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])

    def runs(self) -> bool:
        try:
            return psutil.pid_exists(self._pid())
        except (FileNotFoundError, ValueError):
            return False

    def url(self, database: str) -> str:
        return f"postgresql://farm@/{database}?host={self.folder}"

    def create(self) -> str:
        """Return the URL of a new, empty database."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self._run("createdb", "-h", str(self.folder), "-U", "farm", name)
        return self.url(name)

    def tell(self, *statements: str) -> None:
        """Carry out statements, each by itself."""
        arguments = [part for one in statements for part in ("-c", one)]
        self._run("psql", "-h", str(self.folder), "-U", "farm", "-d", "postgres", *arguments)

    def remove(self) -> None:
        if (self.data / "postmaster.pid").exists():
            with contextlib.suppress(subprocess.CalledProcessError):  # it was killed
                self.stop()
        if self.small:
            room.unmount(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
