"""The fault matrix: agents work on three microservers without a pause, and whatever is done to the farm, every promise holds.

One farm walks through the faults one after the other; each strikes while a call with effect once is under way there, its effect
done, and is judged by itself. Every run of the tests has one fault, with three agents; AGENTFARM_FAULTS=all has all, with nine agents,
on PostgreSQL (`-k postgresql`: two services) and on SQLite (some ten minutes each), AGENTFARM_FAULTS=freeze,loss those.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from faultkit import Rig, away, lost, until
from labkit import Lab, skip_without_lab
from walkkit import Fault, NotHeld, Walk

from jupyterhub_agentfarm.chaos.postgres import programs
from jupyterhub_agentfarm.chaos.scratch import CLOCK

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ASKED = os.environ.get("AGENTFARM_FAULTS", "")
FEW = "cut-long"  # of every run
HOUR = 3600
HOSTS = 3
DATABASES = ["postgresql", "sqlite"] if ASKED and programs() else ["sqlite"]
Heal = Callable[[], None]


def nothing() -> None:
    """What heals by itself."""


def answered(address: str, port: int, patience: float = 3.0) -> float:
    """Return after how many seconds a machine answers to a first packet, by whatever; not within patience: infinity."""
    began = time.monotonic()
    try:
        socket.create_connection((address, port), patience).close()
    except ConnectionRefusedError:
        pass
    except OSError:
        return math.inf
    return time.monotonic() - began


def felt(rig: Rig, verb: str, host: int, *words: object) -> None:
    """Hold that a line is as it was made: else what is judged behind it would hold by itself."""
    address = rig.lab.address(host)
    if verb == "cut":
        assert answered(address, 22, 1.0) == math.inf
    elif verb == "slow":
        there_and_back = 1.5 * int(str(words[0])) / 1000
        until(lambda: answered(address, 22) > there_and_back, 10, f"packets to micro{host} are held")
    elif verb == "loss":
        with ThreadPoolExecutor(
            32
        ) as pool:  # a port that nobody has: the packet that is lost is sent again after a second
            assert max(pool.map(lambda _: answered(address, 9), range(32))) > 0.9
    elif verb == "freeze":
        with socket.create_connection((address, 22), 3) as wire, pytest.raises(TimeoutError):
            wire.settimeout(1)
            wire.recv(1)


def line(verb: str, host: int, *words: object) -> Callable[[Rig], Heal]:
    """Do something to the line of a host."""

    def strike(rig: Rig) -> Heal:
        rig.lab(verb, host, *words)
        felt(rig, verb, host, *words)

        def heal() -> None:
            rig.lab("thaw" if verb == "freeze" else "heal", host)
            rig.lab.hurt.pop(host, None)

        return heal

    return strike


def off(verb: str, host: int) -> Callable[[Rig], Heal]:
    """Take the power from a host (kill), or shut it down (stop)."""

    def strike(rig: Rig) -> Heal:
        rig.lab(verb, host)

        def heal() -> None:
            rig.lab("start", host)
            rig.lab.off.discard(host)

        return heal

    return strike


def killed(*parts: str) -> Callable[[Rig], Heal]:
    """Kill -9 processes of the hub machine; the launcher starts them again."""

    def strike(rig: Rig) -> Heal:
        for part in parts:
            if part in rig.farm.ready["pids"]:
                rig.farm.kill(part)
        return nothing

    return strike


def failover(rig: Rig) -> Heal:
    """Kill -9 the service that leads."""
    rig.farm.kill(rig.leader())
    return nothing


def hub_in_a_cut(host: int) -> Callable[[Rig], Heal]:
    """Kill the Hub while a host is away: the one that starts anew cannot reach the servers there."""

    def strike(rig: Rig) -> Heal:
        heal = line("cut", host)(rig)
        until(lambda: away(rig.micro(host)), 30, f"micro{host} is away")
        rig.farm.kill("hub")
        return heal

    return strike


def full_disk(host: int) -> Callable[[Rig], Heal]:
    def strike(rig: Rig) -> Heal:
        rig.lab("exec", host, "bash", "-c", "dd if=/dev/zero of=/var/lib/filler bs=1M 2>/dev/null; sync; true")
        assert rig.lab("exec", host, "df", "--output=avail", "/var/lib").split()[-1] == "0"
        return lambda: str(rig.lab("exec", host, "rm", "/var/lib/filler")) and None

    return strike


def another_key(host: int) -> Callable[[Rig], Heal]:
    """Give a host another key, as if it were another machine, and break its connection; an operator heals it."""

    def strike(rig: Rig) -> Heal:
        rig.lab("rekey", host)
        rig.lab("cut", host, "reset")
        until(lambda: away(rig.micro(host)), 30, f"micro{host} is away")
        rig.lab("heal", host)
        rig.lab.hurt.pop(host, None)
        return lambda: rig.register(host)

    return strike


def clock(host: int) -> Callable[[Rig], Heal]:
    """Let the clock of a host go wrong by an hour, as Python there is told it: all hosts have one kernel."""

    def strike(rig: Rig) -> Heal:
        def offset(seconds: int) -> None:
            rig.lab("exec", host, "bash", "-c", f"for at in /usr/lib/python3.*/; do echo {seconds} > $at/offset; done")

        offset(HOUR)
        said = rig.lab("exec", host, "python3", "-I", "-c", "import time; print(time.time())")
        assert float(said) > time.time() + HOUR / 2
        return lambda: offset(0)

    return strike


def refused(one: dict[str, object]) -> bool:
    """Say whether an operator is told that the host key is another one."""
    return away(one) and "host key is not the one" in f"{one.get('silent')} {one['reason']}"


def tainted(taint: str) -> Callable[[dict[str, object]], bool]:
    """Return who says whether an operator is told that a microserver is ill of that."""
    return lambda one: taint in dict(one["health"])  # type: ignore[call-overload]


FAULTS = [
    Fault("calm", lambda _: nothing, seconds=20.0),  # all holds where nothing is done; and how long tasks take
    Fault("daemon", killed("daemon")),
    Fault("cut-short", line("cut", 1), (1,), seconds=2.0, brief=True),
    Fault("hub", killed("hub")),
    Fault("cut-long", line("cut", 2), (2,), lost if ASKED else away, leases=2.5 if ASKED else 2.0, waits=bool(ASKED)),
    Fault("failover", failover),
    Fault("loss", line("loss", 3, 30), (3,), seconds=15.0),
    Fault("latency", line("slow", 1, 300), (1,), seconds=5.0, works=True),
    Fault("freeze", line("freeze", 2), (2,), away, leases=2.0),
    Fault("service", killed("service", "standby")),
    Fault("power-cut", off("kill", 3), (3,), lost, leases=1.0, ends=True, waits=True),
    Fault("reboot", off("stop", 1), (1,), away, ends=True),
    Fault("hub-in-cut", hub_in_a_cut(2), (2,), away, seconds=45.0),
    Fault("full-disk", full_disk(2), (2,), tainted("disk-full"), seconds=5.0),
    Fault("host-key", another_key(3), (3,), refused, leases=1.5),
    Fault("clock", clock(1), (1,), tainted("clock-off"), seconds=10.0, works=True),
]
CHOSEN = [one for one in FAULTS if ASKED == "all" or one.name in (ASKED or FEW).split(",")]


@pytest.fixture(scope="module", params=DATABASES)
def walk(booted: Lab, request: pytest.FixtureRequest) -> Iterator[Walk]:
    skip_without_lab()
    rig = Rig(booted, HOSTS, 9 if ASKED else 3, two=request.param == "postgresql", strict=bool(ASKED))
    try:
        for host in rig.hosts:  # before anything of the farm runs there
            if "clock" in {one.name for one in CHOSEN}:
                booted.inside(host, "/opt/clock.py").write_text(CLOCK)
                booted(
                    "exec",
                    host,
                    "bash",
                    "-c",
                    "for at in /usr/lib/python3.*/; do grep -qs offset $at/sitecustomize.py || cat /opt/clock.py >> $at/sitecustomize.py; done",
                )
        rig.start()
        made = Walk(rig)
        made.begin()
        yield made
    finally:
        rig.stop()


def test_whatever_is_done_to_a_fleet_every_promise_holds(walk: Walk) -> None:
    lines = []
    for fault in CHOSEN:
        if fault.name == "failover" and not walk.rig.postgres:
            continue  # no service stands by
        try:
            lines.append(walk.walk(fault))
        except NotHeld as error:
            pytest.fail("\n".join(map(str, lines)) + f"\nbefore {fault.name}: {error}")
        print(lines[-1], flush=True)
        walk.calm = lines[-1].took if fault.name == "calm" else walk.calm
    lines.append(walk.end())
    print(lines[-1])
    assert not [one for one in lines if one.broken], "\n".join(map(str, lines))
    assert sum(one.runs for one in lines) > len(walk.rig.agents), lines
