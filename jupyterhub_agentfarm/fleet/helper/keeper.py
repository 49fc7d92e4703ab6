"""The keeper of a unit of the process backend: starts the server, reaps its descendants, writes down how it ended.

A small detached process. It takes the server with it when it dies. Where its environment holds secrets, they are in memory only.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

from .checks import Start
from .processes import boot_id, descendants, send, stat_of, write_json

MAX_LOG = 5 << 20
LOG_LOOK = 60.0  # seconds between looks at a log's size
STOP_GRACE = 8.0  # seconds from SIGTERM to SIGKILL
WAKING = (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38


def keep(folder: Path, spec: Start, cwd: Path, ready: int) -> None:
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
        if spec.uid:
            os.setgroups([])
            os.setgid(spec.uid)
            os.setuid(spec.uid)
            resource.setrlimit(resource.RLIMIT_NPROC, (spec.limits.tasks,) * 2)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # changing the user cleared it
            prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # no program of root's (sudo, at, crontab) acts for it

    try:
        server = subprocess.Popen(
            spec.argv,
            env=spec.env,
            cwd=cwd,
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
    kept = {"uid": spec.uid, "about": spec.about}
    write_json(folder / "unit.json", {**unit, **kept, "started_at": time.time(), "boot_id": boot_id()})
    os.write(ready, b"{}")
    os.close(ready)
    spec.env.clear()  # it holds tokens
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
