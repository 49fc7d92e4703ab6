"""Code that the model wrote, in a process of its own: no token, no network, no files but Python's, strict limits.

The walls are Linux namespaces (user, mount, network, pid, ipc, host name) around a small root of read-only binds. They are
probed once a process; where the kernel or a container refuses them, the tool is not offered and says why.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from typing import IO, Any

from ..errors import ToolFailed
from .context import Context
from .registry import tool

SECONDS = 30.0  # wall time
CPU_SECONDS = 20
MEMORY = 1024 * 1024 * 1024  # bytes of address space
OUTPUT = 64 * 1024  # bytes of each of stdout and stderr
MAX_CODE = 256 * 1024
PROBE = "print('walled in')"

# Runs as `python -I -c`, before any of the model's code: builds the walls, then becomes the interpreter inside them.
WALL = r"""
import ctypes, os, resource, signal, sys
cpu, memory, python, *binds = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
def must(result, what):
    if result:
        sys.stderr.write("refused: %s: %s" % (what, os.strerror(ctypes.get_errno())))
        os._exit(125)
uid, gid = os.getuid(), os.getgid()
NEW = 0x10000000 | 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x04000000
must(libc.unshare(NEW), "namespaces of its own")
try:
    for name, text in (("setgroups", "deny"), ("uid_map", "65534 %d 1" % uid), ("gid_map", "65534 %d 1" % gid)):
        with open("/proc/self/" + name, "w") as file:
            file.write(text)
except OSError as error:
    sys.stderr.write("refused: a user of its own: %s" % error.strerror)
    os._exit(125)
libc.prctl(1, signal.SIGKILL)
BIND, REC, PRIVATE, REMOUNT, RDONLY, NOSUID, NODEV = 4096, 16384, 1 << 18, 32, 1, 2, 4
must(libc.mount(b"none", b"/", None, REC | PRIVATE, None), "mounts of its own")
root = b"/tmp" if os.path.isdir("/tmp") else b"/mnt"
kept = [os.open(path, os.O_PATH) for path in binds]
must(libc.mount(b"tmpfs", root, b"tmpfs", NOSUID | NODEV, b"size=64m,mode=755"), "a root of its own")
for path, fd in zip(binds, kept):
    source, target = b"/proc/self/fd/%d" % fd, root + os.fsencode(path)
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    must(libc.mount(source, target, None, BIND | REC, None), "binding " + path)
    device = path.startswith("/dev/")
    if not device:
        class Attr(ctypes.Structure):
            _fields_ = [(n, ctypes.c_uint64) for n in ("set", "clear", "propagation", "userns")]
        attr = Attr(RDONLY | NOSUID, 0, 0, 0)
        if libc.syscall(442, -100, ctypes.c_char_p(target), 0x8000, ctypes.byref(attr), 32):
            must(libc.mount(None, target, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV, None), "read-only " + path)
    os.close(fd)
os.makedirs(root + b"/tmp", exist_ok=True)
pid = os.fork()
if pid:
    status = os.waitpid(pid, 0)[1]
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
libc.prctl(1, signal.SIGKILL)
os.chroot(root)
os.chdir("/tmp")
for what, limit in (("CPU", int(cpu)), ("AS", int(memory)), ("FSIZE", 1 << 26), ("NOFILE", 128), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + what), (limit, limit))
libc.prctl(38, 1, 0, 0, 0)
for capability in range(64):
    libc.prctl(24, capability, 0, 0, 0)
os.execve(python, [python, "-I", "-"], {"PYTHONIOENCODING": "utf-8", "HOME": "/tmp", "OPENBLAS_NUM_THREADS": "1"})
"""


@tool(effect="once", timeout=SECONDS + 10)
def run_python(ctx: Context, code: str) -> dict[str, Any]:
    """Run a Python program and return what it printed. It has no network and no files; print what you want to know.

    Args:
        code: the program
    """
    if reason := refusal():
        raise ToolFailed(f"run_python is not available on this machine: {reason}")
    if len(code.encode("utf-8", "replace")) > MAX_CODE:
        raise ToolFailed(f"the program is longer than {MAX_CODE} bytes")
    return run_walled(code, ctx.cancelled, SECONDS)


@functools.cache
def refusal() -> str:
    """Return why this machine cannot wall a process in, or "". Tried for real, once a process."""
    if sys.platform != "linux":
        return "it needs Linux namespaces"
    try:
        answer = run_walled(PROBE, threading.Event(), 20.0)
    except (OSError, ToolFailed) as error:
        return str(error)
    return "" if answer["stdout"].strip() == "walled in" else str(answer["stderr"]).strip()[-300:] or "the probe failed"


def run_walled(code: str, cancelled: threading.Event, seconds: float) -> dict[str, Any]:
    """Run a program behind the walls; return {stdout, stderr, exit_code, ended?}. Raises ToolFailed, OSError."""
    arguments = [sys.executable, "-I", "-c", WALL, str(CPU_SECONDS), str(MEMORY), sys.executable, *_binds()]
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={
            name: os.environ[name] for name in ("AGENTFARM_UNIT",) if name in os.environ
        },  # the wall's, not the program's
        cwd="/",
        close_fds=True,
        start_new_session=True,
    )
    assert process.stdin and process.stdout and process.stderr
    out, err = _Reader(process.stdout), _Reader(process.stderr)
    feeder = threading.Thread(target=_feed, args=(process.stdin, code.encode("utf-8", "replace")), daemon=True)
    feeder.start()
    ended = _wait(process, cancelled, time.monotonic() + seconds)
    stdout, stderr = out.text(), err.text()
    process.stdin.close() if not feeder.is_alive() else None
    if process.returncode == 125 and stderr.startswith("refused:"):
        raise ToolFailed(stderr)
    return {"stdout": stdout, "stderr": stderr, "exit_code": process.returncode, **({"ended": ended} if ended else {})}


def _wait(process: subprocess.Popen[bytes], cancelled: threading.Event, deadline: float) -> str:
    """Wait for the end; return why it was ended by us, or ""."""
    while True:
        try:
            process.wait(0.05)
            return ""
        except subprocess.TimeoutExpired:
            why = "cancelled" if cancelled.is_set() else "out of time" if time.monotonic() > deadline else ""
            if why:
                os.killpg(process.pid, signal.SIGKILL)  # its pid namespace dies with it
                process.wait()
                return why


class _Reader:
    """Reads a pipe to its end, so that the writer never blocks, and keeps the first OUTPUT bytes."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe, self._kept, self._all = pipe, bytearray(), 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while chunk := self._pipe.read1(65536):  # type: ignore[attr-defined]
            self._all += len(chunk)
            self._kept += chunk[: OUTPUT - len(self._kept)]

    def text(self) -> str:
        self._thread.join(5)
        self._pipe.close()
        cut = f"\n[cut: {self._all} bytes]" if self._all > OUTPUT else ""
        return self._kept.decode("utf-8", "replace") + cut


def _feed(pipe: IO[bytes], data: bytes) -> None:
    try:
        pipe.write(data)
        pipe.close()
    except BrokenPipeError:
        pass  # it ended before it read its program; what it printed says why


def _binds() -> list[str]:
    """Return what an interpreter needs to see: system libraries and Python's own folders, never a home or a workspace."""
    wanted = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom"]
    paths = sysconfig.get_paths()
    own = [paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"]]
    own += [os.path.join(sys.prefix, "pyvenv.cfg"), sys.executable, os.path.realpath(sys.executable)]
    own += [os.path.join(sys.base_prefix, "lib"), os.path.dirname(os.path.realpath(sys.executable))]
    chosen: list[str] = []
    for path in [*wanted, *own]:
        if os.path.exists(path) and not any(path == seen or path.startswith(seen + "/") for seen in chosen):
            chosen.append(path)
    return chosen
