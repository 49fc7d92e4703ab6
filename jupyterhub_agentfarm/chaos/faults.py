"""What is done to a farm: each fault strikes, lasts, and is healed. The farm must live with it by itself."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

import psutil

from ..errors import StartError
from . import room
from .scratch import Scratch, alive

HOUR = 3600.0
Strike = Callable[[Scratch, Random], Callable[[], None]]  # returns what heals it


@dataclass(frozen=True)
class Fault:
    """`leases` and `seconds`: how long it lasts. `only`: the database that it needs. `process`: it kills one, with -9."""

    name: str
    strike: Strike
    seconds: float = 0.5
    leases: float = 0.0
    only: str = ""
    process: bool = False


def nothing() -> None:
    """What heals by itself."""


def kill(*processes: psutil.Process) -> None:
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)


def one_of(choose: Callable[[Scratch], list[psutil.Process]]) -> Strike:
    """Kill -9 one of several."""

    def strike(farm: Scratch, random: Random) -> Callable[[], None]:
        found = choose(farm)
        if found:
            kill(random.choice(sorted(found, key=lambda one: one.pid)))
        return nothing

    return strike


def part(name: str) -> Strike:
    """Kill -9 a process of the launcher's."""

    def strike(farm: Scratch, random: Random) -> Callable[[], None]:
        with contextlib.suppress(psutil.NoSuchProcess):
            kill(farm.process(name))
        return nothing

    return strike


def keepers(farm: Scratch) -> list[psutil.Process]:
    return [parent for server in farm.servers() if (parent := server.parent()) is not None and parent.pid > 1]


def model(farm: Scratch, random: Random) -> Callable[[], None]:
    farm.model.kill()
    farm.model.wait(10)
    return farm.model_again


def database(farm: Scratch, random: Random) -> Callable[[], None]:
    assert farm.postgres
    farm.postgres.kill()
    return farm.postgres.start


def everything(farm: Scratch, random: Random) -> Callable[[], None]:
    """Kill -9 the launcher and all its processes; agents' servers live."""
    parts = [psutil.Process(pid) for pid in farm.ready.get("pids", {}).values() if psutil.pid_exists(pid)]
    assert farm.launcher
    farm.launcher.kill()
    kill(*parts)
    farm.launcher.wait(10)
    return farm.launch


def cut(farm: Scratch, random: Random) -> Callable[[], None]:
    farm.wire.cut()
    return farm.wire.open


def silence(*directions: str) -> Strike:
    """Let nothing through between servers and service; with a direction, only that way."""

    def strike(farm: Scratch, random: Random) -> Callable[[], None]:
        farm.wire.silence(*directions)
        return farm.wire.open

    return strike


def limited(farm: Scratch, size: int) -> Callable[[], None]:
    """Let the service make no file longer than so many bytes (SQLite is written by it); return what lifts that."""
    writer, endless = farm.process("service"), resource.RLIM_INFINITY
    writer.rlimit(psutil.RLIMIT_FSIZE, (size, endless))

    def lift() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            writer.rlimit(psutil.RLIMIT_FSIZE, (endless, endless))

    return lift


def disk_full(farm: Scratch, random: Random) -> Callable[[], None]:
    """Fill the database's disk; where it could get none of its own, let what is there be overwritten, and nothing grow."""
    if farm.room:
        filler = room.fill(farm.room)

        def empty() -> None:
            filler.unlink(missing_ok=True)
            if farm.postgres and not farm.postgres.runs():  # it gives up where it cannot write its log
                farm.postgres.start()

        return empty
    if farm.postgres:
        raise StartError("PostgreSQL got no disk of its own", hint="run the trial as root, or leave disk-full away")
    log = farm.directory / "farm.sqlite-wal"
    return limited(farm, max(4096, log.stat().st_size + random.randrange(0, 65536) if log.exists() else 4096))


def read_only(farm: Scratch, random: Random) -> Callable[[], None]:
    if farm.postgres is None:
        return limited(farm, 0)
    server = farm.postgres
    server.tell("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    return lambda: server.tell("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")


def clock(seconds: float) -> Strike:
    """Move the wall clock of every process of the farm, and back again later: two jumps."""

    def strike(farm: Scratch, random: Random) -> Callable[[], None]:
        farm.offset.write_text(str(seconds))
        return lambda: farm.offset.unlink(missing_ok=True)

    return strike


def zombie(choose: Callable[[Scratch], list[psutil.Process]], below: bool = False) -> Strike:
    """Stop one of them (`below`: with all that it started) for longer than the lease: it wakes and does not know that time has passed."""

    def strike(farm: Scratch, random: Random) -> Callable[[], None]:
        found = sorted(choose(farm), key=lambda one: one.pid)
        if not found:
            return nothing
        chosen = random.choice(found)
        stopped = [chosen, *(chosen.children(recursive=True) if below else [])]
        _each(stopped, psutil.Process.suspend)
        return lambda: _each(stopped, psutil.Process.resume)

    return strike


def service(farm: Scratch) -> list[psutil.Process]:
    try:
        return [farm.process("service")]
    except psutil.NoSuchProcess:
        return []


def notebook(farm: Scratch, random: Random) -> Callable[[], None]:
    if farm.notebook and farm.notebook.poll() is None:
        farm.notebook.kill()
        farm.notebook.wait(10)
    return nothing


def _each(processes: Iterable[psutil.Process], do: Callable[[psutil.Process], None]) -> None:
    for one in processes:
        if alive(one):
            with contextlib.suppress(psutil.NoSuchProcess):
                do(one)


FAULTS = [
    Fault("service", part("service"), process=True),
    Fault("kernel", one_of(Scratch.drivers), process=True),
    Fault("disk-full", disk_full, seconds=2.0),
    Fault("zombie", zombie(Scratch.servers, below=True), seconds=2.0, leases=2.5),
    Fault("database", database, seconds=1.0, only="postgresql", process=True),
    Fault("hub", part("hub"), process=True),
    Fault("network-cut", cut, seconds=2.0),
    Fault("clock-forward", clock(HOUR), seconds=3.0),
    Fault("server", one_of(Scratch.servers), process=True),
    Fault("notebook", notebook, process=True),
    Fault("read-only", read_only, seconds=2.0),
    Fault("network-silent", silence(), leases=1.5),
    Fault("model", model, seconds=1.0, process=True),
    Fault("proxy", part("proxy"), process=True),
    Fault("zombie-server", zombie(Scratch.servers), seconds=2.0, leases=1.5),
    Fault("daemon", part("daemon"), process=True),
    Fault("clock-back", clock(-HOUR), seconds=3.0),
    Fault("zombie-service", zombie(service), leases=1.5),
    Fault("keeper", one_of(keepers), process=True),
    Fault("network-deaf", silence("up"), leases=1.5),
    Fault("zombie-kernel", zombie(Scratch.drivers), seconds=2.0, leases=1.5),
    Fault("network-mute", silence("down"), leases=1.5),
    Fault("everything", everything, seconds=0.5),
]
BY_NAME = {fault.name: fault for fault in FAULTS}
