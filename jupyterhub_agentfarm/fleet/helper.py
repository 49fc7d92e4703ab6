"""The helper of a microserver: one request as JSON on stdin, one answer as JSON on stdout. Owns nothing that lasts.

One file that imports nothing of ours: it is copied to microservers as it is; on the local one it runs as a subprocess.
Here is the whitelist of what may be asked. This is the process backend, for machines without systemd: each server (unit)
has a keeper, a small detached process that starts it, reaps all its descendants, writes down how it ended, and takes the
server with it when it dies. What this backend cannot isolate it says in `facts`.

Request: {"v": 1, "op": "start" | "stop" | "show" | "list" | "facts" | "logs", ...}; answer: {"ok": {...}} or
{"error": {"type", "detail", "hint"}}.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VERSION = 1
UNIT = re.compile(r"^[a-z0-9][a-z0-9-]{0,99}$")
VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")
MAX_REQUEST = 1 << 20
MAX_LOG = 5 << 20
LOG_LOOK = 60.0  # seconds between looks at a log's size
STOP_GRACE = 8.0  # seconds from SIGTERM to SIGKILL
START_WAIT = 10.0
WAKING = (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
START_FIELDS = {"v", "op", "root", "unit", "argv", "env", "cwd", "uid", "tasks", "about"}
MARK = "AGENTFARM_UNIT"  # in the environment of everything that a unit starts: its folder


class Refused(Exception):
    """A request that is not carried out: `detail` says why, `hint` what to do."""

    def __init__(self, kind: str, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.kind, self.detail, self.hint = kind, detail, hint


# -- processes ---------------------------------------------------------------------------------------------------


def stat_of(pid: int) -> tuple[str, int, str] | None:
    """Return (state, parent, start time in ticks) of a process, or None. The start time tells a reused pid."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[1]), fields[19]


def alive(pid: int | None, start: str | None) -> bool:
    """Say whether that very process runs (a zombie does not)."""
    found = stat_of(pid) if pid else None
    return found is not None and found[2] == start and found[0] not in "ZX"


def descendants(root: int) -> list[int]:
    """Return the pids below a process, nearest first."""
    below: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := stat_of(int(entry))):
            below.setdefault(found[1], []).append(int(entry))
    found_pids, queue = [], [root]
    while queue:
        children = below.get(queue.pop(0), [])
        found_pids += children
        queue += children
    return found_pids


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def marked(folder: Path) -> list[int]:
    """Return the pids whose environment names this unit: also what lost its parents with a killed keeper."""
    mark, found = f"{MARK}={folder}".encode(), []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                if mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
            except OSError:  # it is gone, or another user's
                continue
    return found


def sweep(folder: Path) -> None:
    """End everything that still runs of a unit whose keeper is gone; what it starts meanwhile too."""
    deadline = time.monotonic() + STOP_GRACE
    while (left := [pid for pid in marked(folder) if (stat_of(pid) or ("Z",))[0] not in "ZX"]) and (
        time.monotonic() < deadline
    ):
        for pid in left:
            send(pid, signal.SIGKILL)
        time.sleep(0.02)


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


# -- units on disk -----------------------------------------------------------------------------------------------


def folder_of(root: Path, unit: Any) -> Path:
    if not isinstance(unit, str) or not UNIT.fullmatch(unit):
        raise Refused("invalid", f"{unit!r} is no name of a unit", "lowercase letters, digits and hyphens, at most 100")
    return root / unit


def write_json(path: Path, value: Any) -> None:
    """Write atomically and durably."""
    temporary = path.with_suffix(".new")
    with open(temporary, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as sink:
        json.dump(value, sink)
        sink.flush()
        os.fsync(sink.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def state_of(folder: Path) -> dict[str, Any]:
    """Return {unit, state: running | exited, exit_code, pid, started_at, boot_id, uid, about}; {} where there is none."""
    unit = read_json(folder / "unit.json")
    if not unit:
        return {}
    told = {
        "unit": folder.name,
        "pid": unit["pid"],
        "started_at": unit["started_at"],
        "uid": unit.get("uid"),
        "boot_id": unit["boot_id"],
        "about": unit.get("about", {}),
    }
    if unit["boot_id"] == boot_id() and alive(unit["pid"], unit["start"]):
        return {**told, "state": "running", "exit_code": None}
    ended = read_json(folder / "exit.json")
    same = ended.get("pid") == unit["pid"] and ended.get("start") == unit["start"]
    why = "" if same else ("the machine was restarted" if unit["boot_id"] != boot_id() else "its keeper was killed")
    return {**told, "state": "exited", "exit_code": ended.get("code", -9) if same else -9, "reason": why}


# -- the keeper --------------------------------------------------------------------------------------------------


def keep(folder: Path, spec: dict[str, Any], ready: int) -> None:
    """Start the server and stay with it until it and all its descendants are gone. Never returns."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKING)  # wait_for takes them
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    log = os.open(folder / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    keeper = os.getpid()

    def become_server() -> None:  # between fork and exec, in the child
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WAKING)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)
        os.umask(0o077)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold tokens
        if spec.get("uid"):
            os.setgroups([])
            os.setgid(spec["uid"])
            os.setuid(spec["uid"])
            resource.setrlimit(resource.RLIMIT_NPROC, (spec.get("tasks") or 512,) * 2)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # changing the user cleared it

    try:
        server = subprocess.Popen(
            spec["argv"],
            env=spec["env"],
            cwd=spec["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=become_server,
        )
    except (OSError, subprocess.SubprocessError) as error:
        os.write(ready, json.dumps({"error": str(error)}).encode())
        os._exit(1)
    found = stat_of(server.pid)
    start = found[2] if found else ""
    unit = {"pid": server.pid, "start": start, "keeper": keeper, "keeper_start": (stat_of(keeper) or ("", 0, ""))[2]}
    kept = {"uid": spec.get("uid"), "about": spec.get("about", {})}
    write_json(folder / "unit.json", {**unit, **kept, "started_at": time.time(), "boot_id": boot_id()})
    os.write(ready, b"{}")
    os.close(ready)
    spec.clear()  # the environment holds tokens
    code = wait_for(server.pid, log, folder / "log.1")
    clear_descendants(keeper)
    write_json(folder / "exit.json", {"pid": server.pid, "start": start, "code": code, "ended_at": time.time()})
    os._exit(0)


def rotate(log: int, older: Path) -> None:
    """Move a grown log aside. The server keeps its open file (O_APPEND): so the text is copied and the file cut."""
    if os.fstat(log).st_size <= MAX_LOG:
        return
    try:
        with open(f"/proc/self/fd/{log}", "rb") as source, open(older, "wb") as target:
            shutil.copyfileobj(source, target)
    except OSError:  # the disk is full: what is lost is the oldest part of a log
        older.unlink(missing_ok=True)
    os.ftruncate(log, 0)


def wait_for(pid: int, log: int, older: Path) -> int:
    """Reap until the server has ended; SIGTERM is passed on, with SIGKILL after the grace, SIGUSR1 kills at once.

    Returns the server's exit code (negative: signal). Its log is kept short meanwhile.
    """
    kill_at: float | None = None
    while True:
        try:
            done, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return -9
        if done == pid:
            return os.waitstatus_to_exitcode(status)
        if done:
            continue
        rotate(log, older)
        wake = signal.sigtimedwait(WAKING, LOG_LOOK if kill_at is None else max(0.0, kill_at - time.monotonic()))
        if wake is not None and wake.si_signo == signal.SIGTERM and kill_at is None:
            send(pid, signal.SIGTERM)
            kill_at = time.monotonic() + STOP_GRACE
        elif (wake is None and kill_at is not None) or (wake is not None and wake.si_signo == signal.SIGUSR1):
            send(pid, signal.SIGKILL)
            kill_at = time.monotonic() + 1.0


def clear_descendants(keeper: int) -> None:
    """End what the server left behind: kernels, terminals, their children."""
    deadline = time.monotonic() + 3.0
    while left := descendants(keeper):
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid in left:
            send(pid, number)
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.02)
            except ChildProcessError:
                return


# -- what may be asked -------------------------------------------------------------------------------------------


def start(root: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Start a unit; one that runs is left as it is."""
    if unknown := set(asked) - START_FIELDS:
        raise Refused(
            "invalid", f"unknown fields: {', '.join(sorted(unknown))}", "only what the protocol names may be asked"
        )
    folder = folder_of(root, asked.get("unit"))
    spec = checked(asked)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = state_of(folder)
    if known.get("state") == "running":
        return known
    sweep(folder)
    spec["env"][MARK] = str(folder)
    (folder / "exit.json").unlink(missing_ok=True)
    log = folder / "log"
    make_workspace(Path(spec["cwd"]), spec.get("uid"))
    receive, ready = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        detach(receive, ready)
        try:
            keep(folder, spec, ready)
        finally:
            os._exit(1)
    os.close(ready)
    os.wait()
    answer = read_answer(receive)
    if answer is None or "error" in answer:
        raise Refused(
            "start",
            f"the server could not be started: {(answer or {}).get('error', 'its keeper died')}",
            f"see {log.name} of the unit",
        )
    return state_of(folder)


def checked(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a start request, each of the type that it must have."""
    argv, env, cwd, uid = asked.get("argv"), asked.get("env"), asked.get("cwd"), asked.get("uid")
    if not isinstance(argv, list) or not argv or not all(isinstance(part, str) and "\0" not in part for part in argv):
        raise Refused("invalid", "argv must be a list of texts")
    if not os.path.isabs(argv[0]):
        raise Refused("invalid", "the program must be an absolute path")
    if not isinstance(env, dict) or not all(
        VARIABLE.fullmatch(str(k)) and isinstance(v, str) and "\0" not in v for k, v in env.items()
    ):
        raise Refused("invalid", "env must be an object of texts")
    if any(name.startswith(("LD_", "PYTHONSTARTUP")) for name in env):
        raise Refused("invalid", "LD_* and PYTHONSTARTUP may not be set")
    if not isinstance(cwd, str) or not os.path.isabs(cwd) or ".." in Path(cwd).parts:
        raise Refused("invalid", "cwd must be an absolute path without ..")
    if uid is not None and (type(uid) is not int or not 10_000 <= uid < 2**31):
        raise Refused("invalid", "uid must be a number from 10000 on")
    if uid is not None and os.getuid() != 0:
        raise Refused("invalid", "only root gives a server a user of its own")
    tasks = asked.get("tasks")
    if tasks is not None and (type(tasks) is not int or not 16 <= tasks <= 100_000):
        raise Refused("invalid", "tasks must be a number from 16 to 100000")
    about = asked.get("about", {})
    if not isinstance(about, dict) or not all(isinstance(v, str | int) for v in about.values()):
        raise Refused("invalid", "about must be an object of texts and numbers")
    return {"argv": argv, "env": dict(env), "cwd": cwd, "uid": uid, "tasks": tasks, "about": about}


def make_workspace(path: Path, uid: int | None) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if uid is None or path.stat().st_uid == uid:
        return
    for folder, _folders, files in os.walk(path):
        os.chown(folder, uid, uid)
        for name in files:
            os.chown(os.path.join(folder, name), uid, uid, follow_symlinks=False)


def detach(*keep_open: int) -> None:
    """Let go of whoever asked: no file of theirs stays open, or they would wait for us."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    for entry in os.listdir("/proc/self/fd"):
        number = int(entry)
        if number > 2 and number not in keep_open:
            try:
                os.close(number)
            except OSError:
                continue
    os.chdir("/")


def read_answer(receive: int) -> dict[str, Any] | None:
    with os.fdopen(receive, "rb") as source:
        text = source.read()
    return json.loads(text) if text else None


def stop(root: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Stop a unit with all its descendants; `now`: without grace. Answers when it is gone."""
    folder = folder_of(root, asked.get("unit"))
    unit = read_json(folder / "unit.json")
    if not unit or unit["boot_id"] != boot_id():
        sweep(folder)
        return state_of(folder)
    if alive(unit["keeper"], unit["keeper_start"]):
        send(unit["keeper"], signal.SIGUSR1 if asked.get("now") else signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE + 6
        while alive(unit["keeper"], unit["keeper_start"]) and time.monotonic() < deadline:
            time.sleep(0.02)
    for pid, begun in ((unit["keeper"], unit["keeper_start"]), (unit["pid"], unit["start"])):
        if alive(pid, begun):
            for below in reversed(descendants(pid)):
                send(below, signal.SIGKILL)
            send(pid, signal.SIGKILL)
    while alive(unit["pid"], unit["start"]):
        time.sleep(0.02)
    sweep(folder)
    return state_of(folder)


def show(root: Path, asked: dict[str, Any]) -> dict[str, Any]:
    return state_of(folder_of(root, asked.get("unit")))


def listed(root: Path, _asked: dict[str, Any]) -> dict[str, Any]:
    names = sorted(entry for entry in os.listdir(root) if UNIT.fullmatch(entry)) if root.is_dir() else []
    return {"items": [state for name in names if (state := state_of(root / name))]}


def logs(root: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the last lines of a unit's log."""
    folder = folder_of(root, asked.get("unit"))
    count = asked.get("lines", 50)
    if type(count) is not int or not 1 <= count <= 1000:
        raise Refused("invalid", "lines must be a number from 1 to 1000")
    try:
        with open(folder / "log", "rb") as source:
            source.seek(max(0, os.fstat(source.fileno()).st_size - 200_000))
            lines = source.read().decode("utf-8", "replace").splitlines()[-count:]
    except OSError:
        lines = []
    return {"lines": lines}


def facts(root: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Return what the machine has: bytes, cores, load; and what this backend cannot isolate, in words."""
    memory = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        memory[name] = int(value.split()[0]) * 1024
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    disk = shutil.disk_usage(root)
    flags = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), ""
    ).split()
    python = asked.get("python")
    own_users = os.getuid() == 0 and (not python or can_use(str(python), str(root.parent)))
    missing = "memory, CPU and network of servers are not limited (no systemd here)"
    if not own_users:
        reach = (
            "all servers run as root: each can reach everything of the farm"
            if os.getuid() == 0
            else "all servers run as one user: each can reach the others' files and the farm's own"
        )
        missing = f"agents are not isolated ({reach}); {missing}"
    return {
        "backend": "process", "boot_id": boot_id(), "cpus": os.cpu_count() or 1, "load": os.getloadavg()[0], "memory": memory["MemTotal"],
        "memory_free": memory["MemAvailable"], "disk": disk.total, "disk_free": disk.free, "own_users": own_users, "isolation": missing,
        "uptime": float(Path("/proc/uptime").read_text().split()[0]), "avx2": "avx2" in flags, "time": time.time(), "version": VERSION,
    }  # fmt: skip


def can_use(program: str, folder: str) -> bool:
    """Say whether another user could run the program and reach the folder: tried in a child that is one."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(61_000)
            os.setuid(61_000)
            done = subprocess.run(
                [program, "-c", "import jupyterhub, agentfarm_sdk"],
                cwd="/",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            os._exit(0 if done.returncode == 0 and os.access(folder, os.X_OK) else 1)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


OPS = {"start": start, "stop": stop, "show": show, "list": listed, "facts": facts, "logs": logs}


def answer_to(text: bytes) -> dict[str, Any]:
    """Carry out one request; whatever it is, the answer is JSON."""
    try:
        if len(text) > MAX_REQUEST:
            raise Refused("too-large", "the request is too large")
        try:
            asked = json.loads(text)
        except (ValueError, RecursionError):
            raise Refused("invalid", "the request is not JSON") from None
        if not isinstance(asked, dict) or asked.get("v") != VERSION:
            raise Refused(
                "version", f"this helper speaks version {VERSION}", "install the helper of the farm's release"
            )
        op = OPS.get(asked["op"]) if isinstance(asked.get("op"), str) else None
        root = asked.get("root")
        if op is None:
            raise Refused("invalid", "there is no such operation", "one of: " + ", ".join(OPS))
        if not isinstance(root, str) or not os.path.isabs(root) or ".." in Path(root).parts or "\0" in root:
            raise Refused("invalid", "root must be an absolute path without ..")
        return {"ok": op(Path(root), asked)}
    except Refused as refused:
        return {"error": {"type": refused.kind, "detail": refused.detail, "hint": refused.hint}}
    except OSError as error:
        return {
            "error": {
                "type": "os",
                "detail": f"{type(error).__name__}: {error.strerror}",
                "hint": "see disk and rights of the units' folder",
            }
        }


def main() -> None:
    sys.stdout.write(json.dumps(answer_to(sys.stdin.buffer.read(MAX_REQUEST + 1))))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
