"""Units as systemd services, started by root, each with a user, a socket's folder, a workspace and limits of its own.

    /run/systemd/transient/agentfarm-<unit>.service     transient: gone with the boot
    /run/agentfarm/<unit>/           its user's, 0700   server.sock (0600)
    /run/agentfarm-env/              root's, 0700       <unit>.env (0400) while the unit starts: in memory, never on a disk
    /var/lib/agentfarm/units/<unit>/ root's, 0700       unit.json: who it is; end.json: how it ended
    /var/lib/agentfarm/workspaces/   <workspace>, its user's, 0700

A user is made for each uid that the daemon names (useradd), so that a workspace keeps its owner over starts and moves; DynamicUser would
give it another one on each microserver. Properties are named here, one by one; a request brings values for a few of them.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import checks, disks, egress, facts, farms, gpus, journal, probe, sshd, walls, workspaces
from .cgroups import cpu_seconds, end_all, is_empty, oom_kills
from .checks import UNIT, Refused, Start
from .processes import boot_id, make_workspace, read_json, write_json
from .programs import PATH

LIB, RUN, SECRET = Path("/var/lib/agentfarm"), Path("/run/agentfarm"), Path("/run/agentfarm-env")
SLICE = "agentfarm.slice"
TABLE = "agentfarm"  # of nft
STOP_SECONDS = 8  # from SIGTERM to SIGKILL
STARTING_SECONDS = 60.0  # after which a start that was not told to be done has broken off
SOCKET_BYTES = 107
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # older systemds' words in the journal have them
# Of the machine's memory at most so much for one unit that names no limit.
MEMORY_SHARE = 0.5
# There is no MemoryHigh below MemoryMax (cgroup version 2): without swap, who takes more was held there for minutes instead of being
# killed, its whole server with it, and the machine's pressure showed it as ill. Page cache goes at MemoryMax as well.
FIXED = [
    "KillMode=control-group", "CPUAccounting=yes", f"TimeoutStopSec={STOP_SECONDS}", "OOMPolicy=continue", "CollectMode=inactive", "UMask=0077", "LimitCORE=0",
    "LimitNOFILE=65536", "NoNewPrivileges=yes", "PrivateTmp=yes", "PrivateDevices=yes", "ProtectSystem=strict", "ProtectHome=yes",
    "ProtectControlGroups=yes", "ProtectKernelModules=yes", "RestrictSUIDSGID=yes", "LockPersonality=yes", "RestrictRealtime=yes",
    "CapabilityBoundingSet=", "KeyringMode=private", "MemorySwapMax=0", "OOMScoreAdjust=100", "RuntimeDirectoryMode=0700", "SyslogLevel=info", "RemoveIPC=yes",
    "ProtectProc=invisible", "ProtectKernelTunables=yes", "ProtectKernelLogs=yes", "ProtectClock=yes", "ProtectHostname=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK", "SystemCallArchitectures=native",
    # run_python walls its programs in by namespaces and mounts of their own
    "RestrictNamespaces=user mnt net pid ipc uts", "SystemCallFilter=@system-service @mount", "SystemCallErrorNumber=EPERM",
    "InaccessiblePaths=-/var/lib/agentfarm/units -/run/agentfarm-env -/opt/agentfarm/helper.pyz -/opt/agentfarm/helpers -/etc/ssh",
    # who starts something elsewhere would outlive the unit: systemd, logind (lingering users), at, cron
    "InaccessiblePaths=-/run/dbus -/run/systemd/private -/var/spool",
]  # fmt: skip
SHOWN = ["Id", "LoadState", "ActiveState", "MainPID", "InvocationID", "MemoryCurrent", "CPUUsageNSec", "TasksCurrent"]
# What systemd runs as root when a unit has ended, while its cgroup is still there: $1 is the unit's name.
ENDED = """
umask 077
rm -f "/run/agentfarm-env/$1.env"
group="agentfarm.slice/agentfarm-$1.service" oom=0
for file in "/sys/fs/cgroup/$group/memory.events" "/sys/fs/cgroup/memory/$group/memory.oom_control"; do
  [ ! -r "$file" ] || oom=$(sed -n 's/^oom_kill //p' "$file")
done
cd "/var/lib/agentfarm/units/$1" || exit 0
printf '{"invocation": "%s", "result": "%s", "code": "%s", "status": "%s", "oom_kills": %s, "ended_at": %s}\\n' \
  "$INVOCATION_ID" "$SERVICE_RESULT" "$EXIT_CODE" "$EXIT_STATUS" "${oom:-0}" "$(date +%s)" > end.new && mv end.new end.json
"""


def service(unit: str) -> str:
    return f"agentfarm-{unit}.service"


def group(unit: str) -> str:
    """Return the unit's cgroup: always the same, also where systemd has forgotten the unit."""
    return f"{SLICE}/{service(unit)}"


def runs(unit: str) -> bool:
    """Say whether anything of the unit runs."""
    return not is_empty(group(unit))


def socket_of(unit: str) -> Path:
    return RUN / unit / "server.sock"


def command(*words: str, seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run one of systemd's programs. Raises Refused where it does not answer."""
    environment = {"PATH": PATH, "LC_ALL": "C", "SYSTEMD_COLORS": "0"}
    try:
        return subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=seconds, check=False, env=environment, stdin=subprocess.DEVNULL
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Refused("os", f"{words[0]} does not answer", "see the load and the log of that machine") from None


# -- what there is -----------------------------------------------------------------------------------------------


def loaded(*units: str) -> dict[str, dict[str, str]]:
    """Return systemd's properties of these units, by unit; without names of all of ours."""
    names = [service(unit) for unit in units] or ["agentfarm-*.service"]
    said = command("systemctl", "show", "--no-pager", "-p", ",".join(SHOWN), "--", *names).stdout
    found = {}
    for block in said.split("\n\n"):
        known = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        name = known.get("Id", "")[len("agentfarm-") : -len(".service")]
        if UNIT.fullmatch(name) and known.get("LoadState") == "loaded":
            found[name] = known
    return found


def state_of(unit: str, known: dict[str, str] | None) -> dict[str, Any]:
    """Return the unit's state from what is kept of it and from what systemd says; {} where there is none.

    `exited` is said only when nothing of it is left in its cgroup (`empty`): that proves its death, however it came.
    """
    kept = read_json(LIB / "units" / unit / "unit.json")
    if not kept and known is None:
        return {}
    told = {
        "unit": unit,
        "pid": kept.get("pid", 0),
        "started_at": kept.get("started_at", 0.0),
        "uid": kept.get("uid"),
        "boot_id": kept.get("boot_id", ""),
        "about": kept.get("about", {}),
        "farm": kept.get("farm", ""),
        "socket": str(socket_of(unit)),
    }
    if known is not None and known["ActiveState"] not in ("inactive", "failed"):
        return {**told, "state": "running", "exit_code": None, "boot_id": boot_id(), **figures(unit, known)}
    if not is_empty(group(unit)):
        return {
            **told,
            "state": "running",
            "exit_code": None,
            "boot_id": boot_id(),
            "reason": "its main process has ended, others have not",
        }
    return {**told, "state": "exited", "empty": True, **ending(unit, kept)}


def figures(unit: str, known: dict[str, str]) -> dict[str, Any]:
    """Return what a running unit uses. memory: bytes, cpu_seconds."""
    told: dict[str, Any] = {"invocation": known.get("InvocationID", ""), "oom_kills": oom_kills(group(unit))}
    for name, key, unit_of in (
        ("MemoryCurrent", "memory", 1),
        ("CPUUsageNSec", "cpu_seconds", 1e-9),
        ("TasksCurrent", "tasks", 1),
    ):
        value = known.get(name, "")
        if value.isdigit() and int(value) < 2**63:  # else: not set
            told[key] = int(value) * unit_of
    if "cpu_seconds" not in told:
        told["cpu_seconds"] = cpu_seconds(group(unit))
    return told


def ending(unit: str, kept: dict[str, Any]) -> dict[str, Any]:
    """Return {exit_code (negative: signal), result, reason, invocation} of a unit's last life."""
    end = read_json(LIB / "units" / unit / "end.json")
    if end.get("invocation") and end["invocation"] == kept.get("invocation"):
        code = exit_code(str(end.get("code")), str(end.get("status")))
        oom = bool(end.get("oom_kills")) and code == -9
        result = "oom-kill" if oom else end.get("result", "")
        reason = "it was killed: it took more memory than it may" if oom else ""
        return {"exit_code": code, "result": result, "reason": reason, "invocation": end["invocation"]}
    away = bool(kept.get("boot_id")) and kept["boot_id"] != boot_id()
    reason = "the machine was restarted" if away else "how it ended is not known"
    if not away and "invocation" not in kept and time.time() - kept.get("started_at", 0.0) < STARTING_SECONDS:
        reason = ""  # it is just being started
    return {"exit_code": -9, "result": "unknown", "reason": reason, "invocation": kept.get("invocation", "")}


def exit_code(code: str, status: str) -> int:
    """Return a process's exit code from systemd's words: ("exited", "1"), ("killed", "KILL")."""
    if code == "exited" and status.isdigit():
        return int(status)
    number = getattr(signal, f"SIG{status}", None)
    return -int(number) if number is not None else -9


# -- what is done ------------------------------------------------------------------------------------------------


def start(asked: dict[str, Any]) -> dict[str, Any]:
    """Start a unit; one that runs is left as it is; what a former life of it left is ended."""
    spec = checks.start(asked)
    if spec.uid is None:
        raise checks.invalid("a server needs a user of its own: uid")
    if len(str(socket_of(spec.unit)).encode()) > SOCKET_BYTES:
        raise checks.invalid("the name of the unit is too long for its socket")
    farms.refuse_what_is_others(spec, farms.of_others(farms.of(asked), LIB, runs))
    known = state_of(spec.unit, loaded(spec.unit).get(spec.unit))
    if known.get("state") == "running" and not known.get("reason"):
        return known
    clear(spec.unit)
    user, home = make_user(spec.uid), LIB / "workspaces" / spec.workspace
    for folder, mode in ((LIB, 0o711), (LIB / "workspaces", 0o711), (LIB / "units", 0o700), (SECRET, 0o700)):
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        folder.chmod(mode)
    make_workspace(home, spec.uid)
    record = LIB / "units" / spec.unit
    shutil.rmtree(record, ignore_errors=True)
    record.mkdir(mode=0o700)
    kept = {**farms.record(spec, farms.of(asked)), "boot_id": boot_id(), "started_at": time.time()}
    write_json(record / "unit.json", kept)
    unwalled = walls.guard(LIB / "units", TABLE, spec)
    secret = SECRET / f"{spec.unit}.env"
    try:
        write_secret(secret, {**spec.env, "HOME": str(home)})
        done = command(
            "systemd-run",
            *properties(spec, user, home),
            *(addresses(spec) if unwalled else ()),
            "--",
            *(word.replace("$", "$$") for word in spec.argv),
        )
    finally:
        secret.unlink(missing_ok=True)  # systemd has read it, or will not
    now = loaded(spec.unit).get(spec.unit, {})
    invocation = now.get("InvocationID", "") or read_json(record / "end.json").get("invocation", "")
    write_json(record / "unit.json", {**kept, "invocation": invocation, "pid": int(now.get("MainPID", "0") or 0)})
    if done.returncode != 0:
        raise Refused(
            "start", f"the server could not be started: {reason_of(spec.unit, done.stderr)}", "see the unit's log"
        )
    return state_of(spec.unit, now or None)


def properties(spec: Start, user: str, home: Path) -> list[str]:
    """Return systemd-run's options for a unit: the fixed properties, and those with checked values."""
    limits = spec.limits
    memory = limits.memory or int(facts.meminfo()["MemTotal"] * MEMORY_SHARE)
    own = [
        f"User={user}", f"Group={user}", f"WorkingDirectory={home}", f"ReadWritePaths={home}", f"RuntimeDirectory=agentfarm/{spec.unit}",
        f"EnvironmentFile=-{SECRET / spec.unit}.env", f"MemoryMax={memory}", f"TasksMax={limits.tasks}", f"SyslogIdentifier={spec.unit}",
        f"ExecStopPost=+/bin/sh {SECRET}/ended {spec.unit}", *([f"CPUQuota={limits.cpu * 100:g}%"] if limits.cpu else []),
    ]  # fmt: skip
    write_secret(SECRET / "ended", ENDED)
    words = [
        f"--unit={service(spec.unit)}",
        f"--slice={SLICE}",
        "--service-type=exec",
        "--quiet",
        "--description=A server of the farm",
    ]
    return words + [f"--property={one}" for one in (*FIXED, *own, *gpus.properties(spec.gpus, LIB / "modprobe.lock"))]


def addresses(spec: Start) -> list[str]:
    """Return the unit's own list of addresses, where there is no nft: without ports, and on loopback everything. Needs control groups 2."""
    wall = walls.wall_of(spec.env, spec.egress)
    if wall is None:
        return []
    entries = [egress.parse(text) for text in (*wall["egress"], *wall["farm"])]
    found = walls.look_up(one.name for one in entries if one.name)
    allowed = ["localhost", *walls.resolvers(), *(str(one.net) for one in entries if one.net)]
    allowed += [one for addresses in found.values() for one in addresses]
    anywhere = any(not one.name and one.net is None for one in entries)
    denied = " ".join((*egress.PRIVATE_4, *egress.METADATA_4, *egress.METADATA_6, "fc00::/7")) if anywhere else "any"
    return [f"--property=IPAddressAllow={' '.join(allowed)}", f"--property=IPAddressDeny={denied}"]


def make_user(uid: int) -> str:
    """Return the name of the user with this id; it is made where it is not there."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"agentfarm-{uid}"
    done = command(
        "useradd", "--uid", str(uid), "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--no-log-init",
        "--shell", "/usr/sbin/nologin", "--comment", "a server of the farm", "-K", "UID_MAX=2147483647", "-K", "GID_MAX=2147483647", name,
    )  # fmt: skip
    if done.returncode != 0:
        raise Refused("os", f"no user with the id {uid} could be made: {done.stderr.strip()[-200:]}")
    return name


def write_secret(path: Path, content: str | dict[str, str]) -> None:
    """Write a file that only root reads, never readable by others for a moment. A dict: as systemd reads an EnvironmentFile."""
    text = (
        content
        if isinstance(content, str)
        else "".join(f'{name}="{escaped(value)}"\n' for name, value in content.items())
    )
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with open(
        os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400), "w", encoding="utf-8"
    ) as sink:
        sink.write(text)
    os.replace(fresh, path)


def escaped(value: str) -> str:
    """Return the text as it stands in double quotes of an EnvironmentFile."""
    for character in '\\"`$':
        value = value.replace(character, "\\" + character)
    return value


def reason_of(unit: str, said: str) -> str:
    lines = [line for line in said.strip().splitlines() if line and not line.startswith("See ")]
    tail = log_lines(unit, 3)
    return COLOURS.sub("", "; ".join([*lines[-1:], *tail]))[-500:] or "systemd did not say why"


def clear(unit: str) -> None:
    """End what is left of the unit's former life, and let its name be used again."""
    if unit in loaded(unit):
        command("systemctl", "stop", service(unit), seconds=STOP_SECONDS + 12)
        command("systemctl", "reset-failed", service(unit))
    end_all(group(unit))


def stop(asked: dict[str, Any]) -> dict[str, Any]:
    """Stop a unit with all its descendants; `now`: without grace. Answers when its cgroup is empty."""
    unit = checks.unit(asked)
    if is_others(asked):
        return {}
    if unit in loaded(unit):
        if asked.get("now"):
            command("systemctl", "kill", "--signal=SIGKILL", service(unit))
        command("systemctl", "stop", service(unit), seconds=STOP_SECONDS + 12)
    if not end_all(group(unit)):
        raise Refused(
            "os", f"{unit} does not end: the kernel holds a process of it", "it may wait for a disk: see that machine"
        )
    told = state_of(unit, loaded(unit).get(unit))
    command("systemctl", "reset-failed", service(unit))
    walls.drop(LIB / "units", TABLE, unit)
    return told


def show(asked: dict[str, Any]) -> dict[str, Any]:
    unit = checks.unit(asked)
    return {} if is_others(asked) else state_of(unit, loaded(unit).get(unit))


def is_others(asked: dict[str, Any]) -> bool:
    """Say whether the unit that is asked about is another farm's: it is not touched, and not told of."""
    return farms.are_others(read_json(LIB / "units" / checks.unit(asked) / "unit.json"), farms.of(asked))


def listed(asked: dict[str, Any]) -> dict[str, Any]:
    """Return all units of the farm: those that systemd runs, and those of which something is kept."""
    known, kept = loaded(), farms.records(LIB / "units")
    names = sorted(name for name in {*kept, *known} if not farms.are_others(kept.get(name, {}), farms.of(asked)))
    return {"items": [told for name in names if (told := state_of(name, known.get(name)))]}


def forget(asked: dict[str, Any]) -> dict[str, Any]:
    """Remove what is kept of a unit that has ended. Its workspace stays."""
    unit = checks.unit(asked)
    if is_others(asked):
        return {}
    if show(asked).get("state") == "running":
        raise checks.invalid(f"{unit} runs", "stop it first")
    shutil.rmtree(LIB / "units" / unit, ignore_errors=True)
    return {}


def logs(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the last lines that the unit wrote, and what systemd said of it; or those behind a cursor."""
    name, after = service(checks.unit(asked)), checks.after(asked)
    if is_others(asked):
        return {"lines": [], "cursor": after}
    return journal.read(name, checks.lines(asked), after, checks.wait(asked))


def log_lines(unit: str, count: int) -> list[str]:
    said = command("journalctl", "--no-pager", "--quiet", "-o", "cat", "-n", str(count), "-u", service(unit))
    return said.stdout.splitlines()


def about_here(asked: dict[str, Any]) -> dict[str, Any]:
    LIB.mkdir(mode=0o711, parents=True, exist_ok=True)
    systemd = command("systemctl", "--version").stdout.split()[1:2]
    version = 2 if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else 1
    unwalled = walls.missing()
    kind, words = "nft", ""
    if unwalled:
        kind = "addresses" if version == 2 else ""
        less = (
            "where servers may go is held by address alone, not by port, and on loopback not at all"
            if kind
            else "where servers may go is not held"
        )
        words = f"{less} ({unwalled}: install nftables)"
    own = {
        "backend": "systemd",
        "own_users": True,
        "isolation": words,
        "walls": kind,
        "systemd": "".join(systemd),
        "cgroup": version,
    }
    others = farms.of_others(farms.of(asked), LIB, runs)
    return {**facts.machine(LIB, LIB / "workspaces"), **own, "others": farms.room_of_others(others, runs)}


def about_disks(_asked: dict[str, Any]) -> dict[str, Any]:
    LIB.mkdir(mode=0o711, parents=True, exist_ok=True)
    return disks.told(LIB)


def keep_walls(_asked: dict[str, Any]) -> dict[str, Any]:
    """Bring the walls in step: somebody may have flushed the machine's rules, and names move."""
    return {"unknown": {}} if walls.missing() else walls.sync(LIB / "units", TABLE)


def admit(asked: dict[str, Any]) -> None:
    """Raises Refused: the workspace that is asked about is another farm's."""
    farms.refuse_workspace_of_others(checks.workspace(asked), farms.of_others(farms.of(asked), LIB, runs))


def operations() -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
    """Return what may be asked here. Raises Refused where systemd does not run, or this is not root."""
    if not os.path.isdir("/run/systemd/system"):
        raise Refused(
            "os", "systemd does not run here", "a microserver of a fleet needs systemd; one machine alone does not"
        )
    if os.geteuid() != 0:
        raise Refused("os", "the helper does not run as root", "it starts system units: install it for root's login")
    return {
        "start": start, "stop": stop, "show": show, "list": listed, "logs": logs, "forget": forget, "facts": about_here,
        "disks": about_disks, "release": sshd.release, "walls": keep_walls, "examine": lambda _asked: probe.examine(),
        **workspaces.operations(LIB / "workspaces", admit),
    }  # fmt: skip
