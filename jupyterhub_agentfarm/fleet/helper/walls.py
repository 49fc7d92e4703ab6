"""The network's walls: a table of the farm's own in the kernel's packet filter (nft), made anew from what is kept of the units.

It looks at what users of units send, and at nothing else; no other table is touched. Each unit's `wall.json` says where it may go ({egress,
farm}); null: wherever it likes, a person's. What is allowed: the farm (Hub and service, at their loopback ports), names (DNS), the tick store's
read-only port, the unit's list, and connections on loopback between processes of the same user. All else is refused at once.

A listener on loopback cannot be known by its port. So the answer to a connection is looked at: it must come from the user who began it.
Loaded whole and atomically, before a unit starts; it stays over the helper, the daemon and the line, and goes with the boot, as units do.
"""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import os
import pwd
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import egress
from .checks import UNIT, Refused, Start, invalid
from .processes import read_json, write_json
from .programs import PATH

PROGRAM = "nft"
RECORD = "wall.json"  # in a unit's folder: {uid, wall, at}
SECONDS = 15.0
LED_BACK = ("JUPYTERHUB_API_URL", "JUPYTERHUB_ACTIVITY_URL", "AGENTFARM_URL")  # what a server asks of the farm
PORTS = {"http": 80, "https": 443}
TICKS = 8812  # QuestDB's PGWire, on loopback
USER = re.compile(r"agentfarm-(\d+)")  # as the systemd backend makes them
RESOLVE_SECONDS = 3.0  # for all names together
KEEP_SECONDS = 3600.0  # for which an address that a name had is still its own: others were told it too
RESOLVER = Path("/etc/resolv.conf")
# A connection on loopback waits so long for its answer: longer than any pause between two tries of the kernel's.
BEGUN_SECONDS = 180
SYN, ANSWER = "tcp flags & 0x12 == 0x2", "tcp flags & 0x12 == 0x12"  # SYN alone; SYN and ACK
ADDRESSES = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}


# -- what there is -----------------------------------------------------------------------------------------------


def nft(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run nft. Raises Refused where it does not answer."""
    program = shutil.which(PROGRAM, path=PATH) or PROGRAM
    try:
        return subprocess.run(
            [program, *words], input=text, capture_output=True, text=True, timeout=SECONDS, check=False, env={"PATH": PATH, "LC_ALL": "C"}
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Refused("os", "nft does not answer", "see the load of that machine") from None


def missing() -> str:
    """Say why there can be no such table here, or ""."""
    if os.geteuid() != 0:
        return "only root sets rules of nft"
    if shutil.which(PROGRAM, path=PATH) is None:
        return "nft is not installed"
    for pause in (0.1, 0.3, None):  # a listing may be broken off where another program changes rules meanwhile
        done = nft("list", "tables")
        if done.returncode == 0:
            return ""
        if pause is not None:
            time.sleep(pause)
    return f"nft is refused here ({done.stderr.strip()[-100:]})"


def wall_of(env: Mapping[str, str], listed: Sequence[str] | None) -> dict[str, Any] | None:
    """Return what a unit's record says of its wall: where its list lets it go, and where the farm is for it. Raises Refused."""
    if listed is None:
        return None
    farm = set()
    for name in LED_BACK:
        try:
            url = urlsplit(env.get(name, ""))
            if url.hostname and url.scheme in PORTS:
                host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
                text = f"{host}:{url.port or PORTS[url.scheme]}"
                egress.parse(text)
                farm.add(text)
        except ValueError:
            raise invalid(f"{name} is no address") from None
    return {"egress": list(listed), "farm": sorted(farm)}


# -- names -------------------------------------------------------------------------------------------------------


def resolvers() -> list[str]:
    """Return the addresses of the machine's name servers."""
    try:
        lines = [line.split() for line in RESOLVER.read_text().splitlines()]
    except OSError:
        return []
    return [
        words[1].partition("%")[0]
        for words in lines
        if len(words) > 1 and words[0] == "nameserver" and _address(words[1])
    ]


def _address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def look_up(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the addresses of names, of all at once; one that is slow or unknown is left out."""
    found: dict[str, list[str]] = {}

    def ask(name: str) -> None:
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        found[name] = sorted({str(one[4][0]).partition("%")[0] for one in answers})

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in sorted(set(names))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + RESOLVE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)


def renewed(
    known: Mapping[str, Mapping[str, float]], found: Mapping[str, list[str]], names: Iterable[str], now: float
) -> dict[str, dict[str, float]]:
    """Return of each name its addresses, and when each was seen last. Those of a while ago stay; all of them where it has none now. Pure."""
    kept = {}
    for name in sorted(set(names)):
        old, fresh = known.get(name, {}), found.get(name, [])
        still = {one: at for one, at in old.items() if not fresh or now - at < KEEP_SECONDS}
        kept[name] = {**still, **dict.fromkeys(fresh, now)}
    return kept


# -- the table ---------------------------------------------------------------------------------------------------


def table(
    name: str,
    walls: Mapping[int, Mapping[str, Any] | None],
    stale: Iterable[int],
    dns: Sequence[str],
    names: Mapping[str, Iterable[str]],
) -> str:
    """Return the table as nft reads it. Pure.

    walls: what each user id may do, null: all; stale: users of units that are no more: nothing; names: addresses.
    """
    walled = {uid: wall for uid, wall in walls.items() if wall is not None}
    stale = sorted(set(stale) - set(walls))
    ours = sorted({*walls, *stale})
    farm_ports = sorted({TICKS, *(port for wall in walled.values() for port in _farm_ports(wall))})
    verdicts = [*(f"{uid} : goto user_{uid}" for uid in sorted(walled)), *(f"{uid} : goto refused" for uid in stale)]
    lines = [f"table inet {name} {{"]
    for version, (_, kind) in ADDRESSES.items():
        ends = f"{kind} . inet_service . {kind} . inet_service"
        for called, key in ((f"begun{version}", ends), (f"mine{version}", f"uid . {ends}")):
            lines.append(
                f"  set {called} {{ type {key}; flags dynamic, timeout; timeout {BEGUN_SECONDS}s; size 65535; }}"
            )
    lines += _chain("refused", ["meta l4proto tcp reject with tcp reset", "reject with icmpx type admin-prohibited"])
    for version, (ip, _) in ADDRESSES.items():
        back = f"{ip} daddr . tcp dport . {ip} saddr . tcp sport"
        lines += _chain(f"answer{version}", [f"meta skuid . {back} @mine{version} accept", "reject with tcp reset"])
    if ours:  # who answers on loopback: never one of ours in the farm's place; and to one of ours only he himself
        shown = ", ".join(map(str, ours))
        answers = [f"meta skuid {{ {shown} }} tcp sport {{ {', '.join(map(str, farm_ports))} }} reject with tcp reset"]
        answers += [
            f"{ip} daddr . tcp dport . {ip} saddr . tcp sport @begun{v} goto answer{v}"
            for v, (ip, _) in ADDRESSES.items()
        ]
        lines += _chain("answers", answers)
    lines += _chain("common", _common())
    lines += _chain("public", _public())
    for uid, wall in sorted(walled.items()):
        lines += _chain(
            f"user_{uid}", [*_dns(dns), *_farm(wall, names), *_metadata(), *_listed(wall, names), "goto common"]
        )
    hook = ["type filter hook output priority 0; policy accept;"]
    if ours:
        hook.append(f'oifname "lo" {ANSWER} jump answers')
    if verdicts:
        hook.append(f"meta skuid vmap {{ {', '.join(verdicts)} }}")
    return "\n".join([*lines, *_chain("output", hook), "}", ""])


def _chain(name: str, rules: Sequence[str]) -> list[str]:
    return [f"  chain {name} {{", *(f"    {rule}" for rule in rules), "  }"]


def _common() -> list[str]:
    """What every walled user may do, at the end of his own chain."""
    ticks = [
        f'oifname "lo" {net} daddr {where} tcp dport {TICKS} accept'
        for net, where in (("ip", "127.0.0.1"), ("ip6", "::1"))
    ]
    begins = f'oifname "lo" {SYN}'
    notes = []
    for version, (ip, _) in ADDRESSES.items():
        ends = f"{ip} saddr . tcp sport . {ip} daddr . tcp dport"
        net = f"meta nfproto ipv{version}"
        notes.append(
            f"{begins} {net} update @mine{version} {{ meta skuid . {ends} }} update @begun{version} {{ {ends} }} accept"
        )
    return [*ticks, *notes, 'oifname "lo" tcp flags & 0x2 == 0 accept', f'oifname "lo" {ANSWER} accept', "goto refused"]


def _public() -> list[str]:
    return [
        f"ip daddr != {{ {', '.join(egress.PRIVATE_4)} }} accept",
        f"ip6 daddr {egress.PUBLIC_6} ip6 daddr != {{ {', '.join(egress.CARRIERS_6)} }} accept",
    ]


def _dns(servers: Sequence[str]) -> list[str]:
    return [f"{_ip(one)} daddr {one} meta l4proto {{ tcp, udp }} th dport 53 accept" for one in servers]


def _metadata() -> list[str]:
    return [
        f"ip daddr {{ {', '.join(egress.METADATA_4)} }} goto refused",
        f"ip6 daddr {{ {', '.join(egress.METADATA_6)} }} goto refused",
    ]


def _farm(wall: Mapping[str, Any], names: Mapping[str, Iterable[str]]) -> list[str]:
    """The Hub and the service: also at private addresses, for the farm itself named them."""
    found = []
    for text in wall["farm"]:
        entry = egress.parse(text)
        found += _rules(entry, [str(entry.net)] if entry.net else sorted(names.get(entry.name, ())))
    return found


def _farm_ports(wall: Mapping[str, Any]) -> list[int]:
    """The ports at which the farm stands on this machine's loopback."""
    entries = [egress.parse(text) for text in wall["farm"]]
    return [one.first for one in entries if one.name == "localhost" or (one.net is not None and one.net[0].is_loopback)]


def _listed(wall: Mapping[str, Any], names: Mapping[str, Iterable[str]]) -> list[str]:
    found = []
    for entry in map(egress.parse, wall["egress"]):
        if entry.net is not None:
            found += _rules(entry, [str(entry.net)])
        elif entry.name:
            found += _rules(entry, [one for one in sorted(names.get(entry.name, ())) if _public_text(one)])
        else:
            found.append(f"tcp dport {_ports(entry)} jump public")
    return found


def _rules(entry: egress.Entry, to: Sequence[str]) -> list[str]:
    rules = []
    for ip in ("ip", "ip6"):
        if mine := [one for one in to if _ip(one) == ip]:
            rules.append(f"{ip} daddr {{ {', '.join(mine)} }} tcp dport {_ports(entry)} accept")
    return rules


def _ports(entry: egress.Entry) -> str:
    return str(entry.first) if entry.first == entry.last else f"{entry.first}-{entry.last}"


def _ip(address: str) -> str:
    return "ip6" if ":" in address else "ip"


# -- keeping it in step ------------------------------------------------------------------------------------------


def guard(units: Path, name: str, spec: Start, users: bool = True) -> str:
    """Put the walls around a unit that is about to start. Returns why there are none here, or "". Raises Refused: they could not be set."""
    if spec.uid is None:
        return "it has no user of its own"
    write_json(units / spec.unit / RECORD, {"uid": spec.uid, "wall": wall_of(spec.env, spec.egress), "at": time.time()})
    if why := missing():
        return why
    sync(units, name, users, fresh=False)
    return ""


def drop(units: Path, name: str, unit: str, users: bool = True) -> None:
    """Take the walls of a unit down that has ended: its user reaches nothing any more. Raises Refused."""
    record = units / unit / RECORD
    if record.exists():
        record.unlink()
        if not missing():
            sync(units, name, users, fresh=False)


def sync(units: Path, name: str, users: bool = True, fresh: bool = True) -> dict[str, Any]:
    """Bring the kernel's table in line with what is kept of the units in this folder. Raises Refused: it could not be loaded.

    users: units have users of the machine's own list; those without a unit reach nothing. fresh: ask for all names anew, else for those
    that are new. Returns {unknown: {name: why it leads nowhere}}.
    """
    with _alone(units / "walls.lock"):
        walls = _walls(units)
        listed, farm = _names(walls, "egress"), _names(walls, "farm")
        wanted = listed | farm
        kept = read_json(units / "walls.json").get("names", {})
        known = renewed(kept, look_up(wanted if fresh else wanted - set(kept)), wanted, time.time())
        if known != kept:
            write_json(units / "walls.json", {"names": known})
        stale = _stale(walls) if users else []
        text = table(name, walls, stale, resolvers(), known)
        mark = "as_" + hashlib.sha256(text.encode()).hexdigest()[:24]
        if nft("list", "chain", "inet", name, mark).returncode != 0:
            load(name, f"{text}add chain inet {name} {mark}\n" if walls or stale else "")
    return {"unknown": {one: _why_not(known[one]) for one in sorted(listed) if not any(map(_public_text, known[one]))}}


def load(name: str, text: str) -> None:
    """Replace the table in one go; by nothing, it goes. Raises Refused."""
    done = nft("-f", "-", text=f"table inet {name} {{}}\ndelete table inet {name}\n{text}")
    if done.returncode != 0:
        raise Refused(
            "os",
            f"the walls around servers cannot be set: {done.stderr.strip()[-300:]}",
            "see nft and the kernel of that machine",
        )


def _walls(units: Path) -> dict[int, dict[str, Any] | None]:
    """Return the wall of each user id, as its latest start has it."""
    found: list[tuple[float, int, dict[str, Any] | None]] = []
    for entry in os.listdir(units):
        record = read_json(units / entry / RECORD) if UNIT.fullmatch(entry) else {}
        if type(record.get("uid")) is int:
            found.append((record["at"], record["uid"], record["wall"]))
    return {uid: wall for _, uid, wall in sorted(found, key=lambda one: one[0])}


def _names(walls: Mapping[int, Mapping[str, Any] | None], part: str) -> set[str]:
    """Return the names in the lists that say where they may go, or where the farm is."""
    return {entry.name for wall in walls.values() if wall for entry in map(egress.parse, wall[part]) if entry.name}


def _stale(walls: Mapping[int, Any]) -> list[int]:
    """Return the users that were made for units of which nothing is kept any more."""
    return [
        one.pw_uid
        for one in pwd.getpwall()
        if (found := USER.fullmatch(one.pw_name)) and int(found[1]) == one.pw_uid and one.pw_uid not in walls
    ]


def _public_text(address: str) -> bool:
    return egress.is_public(ipaddress.ip_address(address))


def _why_not(addresses: Iterable[str]) -> str:
    found = sorted(addresses)
    return f"it is {', '.join(found)}, a private address: list that" if found else "it has no address"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one helper at a time do this: the last one to load has seen all records."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
