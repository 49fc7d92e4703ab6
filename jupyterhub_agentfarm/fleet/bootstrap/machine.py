"""What is done on a machine that joins or leaves the farm. Its text is sent there and run by root's Python (login.py); nothing of it stays.

    /opt/agentfarm/helper.pyz     what the farm's key may run
    /opt/agentfarm/helpers/<id>/  its modules, which Python keeps compiled there: in the one file they would be compiled at each question
    /opt/agentfarm/venvs/<id>/    a release's programs; `own`: the farm's own files; `complete`, when all is there: the id of its packages
    /opt/agentfarm/venv           -> venvs/<id>: what new servers start from; those that run keep theirs
    /opt/agentfarm/config         -> venv/agentfarm-config
    /opt/agentfarm/*.former*      helper and link as they were, from an `install` until it is settled or undone
    ~root/.ssh/authorized_keys    one line, for the farm's key

Every step may be done twice, or broken off. It stands alone: standard library, Python 3.9. A function's arguments and its answer cross as JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA: Any = None  # what comes behind the arguments: a stream of bytes (login.py sets it)
OPT, LIB, RUN = Path("/opt/agentfarm"), Path("/var/lib/agentfarm"), (Path("/run/agentfarm"), Path("/run/agentfarm-env"))
HELPER, VENV, VENVS, CONFIG = OPT / "helper.pyz", OPT / "venv", OPT / "venvs", OPT / "config"
HELPERS = OPT / "helpers"
FORMER_HELPER, FORMER_VENV = OPT / "helper.former.pyz", OPT / "venv.former"
COMMAND = f"/usr/bin/python3 -I {HELPER}"
ID = re.compile(r"[0-9a-f]{12}")
PROGRAM = re.compile(rb"#!/\S+/venvs/[0-9a-f]{12}/bin/python")
USER = re.compile(r"agentfarm-\d+")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WAIT_SECONDS = 120.0  # for another agentfarm at work there
BLOCK, BLOCKS, SYNCS = 4 << 20, 16, 16


class Failed(Exception):
    """What could not be done: one sentence, and the way out."""

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.hint = hint


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Work at /opt/agentfarm while nobody else does. Raises Failed."""
    os.umask(0o022)
    if os.geteuid() != 0:
        raise Failed("this needs root", "sign in as root, or as somebody who may use sudo")
    OPT.mkdir(parents=True, exist_ok=True)
    lock = os.open(OPT / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Failed(
                        "another agentfarm is at work on that machine", "wait for its end, then the same again"
                    ) from None
                time.sleep(0.2)
        yield
    finally:
        os.close(lock)


def command(*words: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Raises Failed: it has not ended in time."""
    environment = {"PATH": PATH, "LC_ALL": "C", "SYSTEMD_COLORS": "0"}
    try:
        return subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=seconds, check=False, env=environment, stdin=subprocess.DEVNULL
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        why = f"{Path(words[0]).name} has not ended in {seconds:.0f} s"
        raise Failed(why, "see the machine's load and disk; the same again goes on from there") from None


def write(path: Path, content: bytes, mode: int) -> None:
    """Put a file in its place at once, on the disk before it is there."""
    fresh = path.with_name(path.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as sink:
        os.fchmod(sink.fileno(), mode)
        sink.write(content)
        sink.flush()
        os.fsync(sink.fileno())
    os.replace(fresh, path)


def link(path: Path, to: str) -> None:
    """Let a link lead elsewhere at once."""
    if path.is_symlink() and os.readlink(path) == to:
        return
    if path.is_dir() and not path.is_symlink():  # of a hand's making: kept aside
        path.rename(path.with_name(f"{path.name}.former-{int(time.time())}"))
    fresh = path.with_name(path.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(to)
    os.replace(fresh, path)


# -- what is there -----------------------------------------------------------------------------------------------


def now() -> dict[str, Any]:
    return {"time": time.time()}


def state() -> dict[str, Any]:
    """Return {helper: its SHA-256, environment: id of what new servers start from, complete: {id: that of its packages}, units: [running]}."""
    helper = hashlib.sha256(HELPER.read_bytes()).hexdigest() if HELPER.is_file() else ""
    complete = {path.parent.name: path.read_text().strip() for path in sorted(VENVS.glob("*/complete"))}
    return {"helper": helper, "environment": environment_in_use(), "complete": complete, "units": units()}


def environment_in_use() -> str:
    return Path(os.readlink(VENV)).name if VENV.is_symlink() else ""


def units() -> list[str]:
    """Return the farm's units that run."""
    said = command(
        "systemctl",
        "list-units",
        "--no-legend",
        "--plain",
        "--state=active,activating,deactivating",
        "agentfarm-*.service",
    )
    return [line.split()[0] for line in said.stdout.splitlines() if line.strip()]


def measure() -> dict[str, float]:
    """Return {disk_write: bytes a second, fsync: seconds for a small durable write, cpu: seconds for a fixed piece of Python}."""
    with alone():
        LIB.mkdir(mode=0o711, parents=True, exist_ok=True)
        scratch, block = LIB / ".measured", os.urandom(BLOCK)
        try:
            with open(scratch, "wb", buffering=0) as sink:
                began = time.perf_counter()
                for _ in range(BLOCKS):
                    sink.write(block)
                os.fsync(sink.fileno())
                written = BLOCK * BLOCKS / (time.perf_counter() - began)
                took = []
                for _ in range(SYNCS):
                    began = time.perf_counter()
                    sink.write(block[:4096])
                    os.fdatasync(sink.fileno())
                    took.append(time.perf_counter() - began)
        finally:
            scratch.unlink()
    return {"disk_write": written, "fsync": sorted(took)[SYNCS // 2], "cpu": min(work() for _ in range(3))}


def work() -> float:
    """Do a fixed piece of work: mostly what a loop in Python does, on one core. Returns its seconds."""
    began, table, text = time.perf_counter(), dict.fromkeys(range(500), 0), b"agentfarm"
    for n in range(300_000):
        table[n % 500] += n * 7 % 13
        if n % 100 == 0:
            text = hashlib.sha256(text).digest()
    return time.perf_counter() - began


# -- joining -----------------------------------------------------------------------------------------------------


def unpack(environment: str, packages: str, base: str, sizes: list[int]) -> dict[str, Any]:
    """Make venvs/<id> of the archives in DATA, of these sizes: packages, and what is the farm's own; one that is complete stays as it is.

    base: an environment whose packages are the same; then the second archive comes alone. Raises Failed.
    """
    where = VENVS / checked(environment)
    with alone():
        if (where / "complete").exists():
            return {"new": False}
        shutil.rmtree(where, ignore_errors=True)
        VENVS.mkdir(exist_ok=True)
        made = command(sys.executable, "-I", "-m", "venv", "--without-pip", str(where))
        if made.returncode != 0:
            raise Failed(
                f"no virtual environment could be made: {last(made.stderr or made.stdout)}",
                "apt-get install python3-venv",
            )
        try:
            if base:
                share(VENVS / checked(base), where)
            own = [extract(size, where) for size in sizes][-1]
        except (tarfile.TarError, EOFError, OSError) as error:
            raise Failed(
                f"the environment did not arrive whole: {error}", "see disk and network, then the same again"
            ) from None
        name_python(where, where)
        (where / "own").write_text("\n".join(own))
        site = next(where.glob("lib/python3*/site-packages"))
        mine = {name.split("/")[4] for name in own if name.startswith("lib/python3")}
        to_compile = [str(site / name) for name in sorted(mine)] if base else [str(site)]
        command(
            "nice", str(where / "bin" / "python"), "-I", "-m", "compileall", "-q", "-j", "0", *to_compile, seconds=900
        )
        tried = command(str(where / "bin" / "jupyterhub-singleuser"), "--version")
        if tried.returncode != 0:
            raise Failed(
                f"its programs do not run: {last(tried.stderr)}", "is it the system that the checks have seen?"
            )
        os.sync()
        write(where / "complete", f"{packages}\n".encode(), 0o644)
    return {"new": True}


FILTER: dict[str, Any] = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}


def extract(size: int, where: Path) -> list[str]:
    """Unpack the next archive in DATA; return the names of its files. Raises Failed, TarError, EOFError, OSError."""
    stream, names = Counted(DATA, size), []
    source: Any = stream
    with tarfile.open(fileobj=source, mode="r|gz") as archive:
        for entry in archive:
            if entry.name.startswith("/") or ".." in entry.name.split("/"):
                raise Failed(f"the archive names {entry.name!r}", "make it anew: remove the cache of agentfarm")
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = "root"
            archive.extract(entry, where, **FILTER)
            names.append(entry.name)
    while stream.read(1 << 16):  # what stands behind an archive's end
        pass
    return names


def share(base: Path, where: Path) -> None:
    """Let an environment have another one's packages, as the same files on the disk, without what was the farm's own there."""
    own = set((base / "own").read_text().splitlines())
    compiled = {os.path.join(os.path.dirname(name), "__pycache__") for name in own}
    for top in ("lib", "etc", "share"):
        for folder, folders, names in os.walk(base / top):
            inner = os.path.relpath(folder, base)
            folders[:] = [name for name in folders if os.path.join(inner, name) not in compiled]
            (where / inner).mkdir(exist_ok=True)
            for name in names:
                if os.path.join(inner, name) not in own:
                    os.link(base / inner / name, where / inner / name)
    name_python(base, where)


def name_python(source: Path, where: Path) -> None:
    """Let an environment have the programs of another one, or its own, each started by its Python at the real path."""
    for path in sorted((source / "bin").iterdir()):
        first, _, rest = (b"", b"", b"") if path.is_symlink() else path.read_bytes().partition(b"\n")
        if PROGRAM.fullmatch(first):
            write(where / "bin" / path.name, f"#!{where}/bin/python\n".encode() + rest, 0o755)


class Counted:
    """A stream's next `left` bytes; its end before that is an error."""

    def __init__(self, source: Any, left: int) -> None:
        self.source, self.left = source, left

    def read(self, size: int) -> bytes:
        data: bytes = self.source.read(min(size, self.left)) if self.left else b""
        if not data and self.left:
            raise EOFError("the connection ended")
        self.left -= len(data)
        return data


def install(environment: str, release: str, key: str, size: int) -> dict[str, Any]:
    """Put the helper (DATA) of a release in its place, let new servers start from the environment, let the farm's key in. Returns what was there before."""
    where = VENVS / checked(environment)
    if not (where / "complete").exists():
        raise Failed(f"the environment {environment} is not there", "the same command again")
    helper = DATA.read(size)
    if len(helper) != size:
        raise Failed("the helper did not arrive whole", "the same command again")
    before = state()
    with alone():
        if HELPER.exists() and VENV.is_symlink() and not FORMER_VENV.is_symlink():  # else one was broken off: keep that
            write(FORMER_HELPER, HELPER.read_bytes(), 0o644)
            link(FORMER_VENV, os.readlink(VENV))
        keep_compiled(helper, release)
        write(HELPER, helper, 0o644)
        link(VENV, f"venvs/{environment}")
        link(CONFIG, "venv/agentfarm-config")
        authorize(key)
    return before


def keep_compiled(helper: bytes, release: str) -> None:
    """Unpack and compile the helper's modules in helpers/<release>. Those that were there last stay too: `back` may need them."""
    fresh, where, old = HELPERS / ".new", HELPERS / checked(release), HELPERS / ".old"
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    with zipfile.ZipFile(io.BytesIO(helper)) as archive:
        archive.extractall(fresh)
    command("/usr/bin/python3", "-I", "-m", "compileall", "-q", str(fresh))
    os.sync()
    if where.exists():
        where.rename(old)
    fresh.rename(where)
    shutil.rmtree(old, ignore_errors=True)
    for left in sorted(HELPERS.iterdir(), key=lambda path: path.stat().st_mtime)[:-2]:
        shutil.rmtree(left, ignore_errors=True)


def back() -> dict[str, Any]:
    """Undo what was installed since the last `settle`: the former helper, and the environment that was in use before."""
    with alone():
        if FORMER_VENV.is_symlink():
            if FORMER_HELPER.exists():
                os.replace(FORMER_HELPER, HELPER)
            link(VENV, os.readlink(FORMER_VENV))
            FORMER_VENV.unlink()
    return state()


def settle() -> dict[str, Any]:
    """Let what was installed stand. Returns {outdated: [units that run from another environment]}."""
    with alone():
        drop(FORMER_VENV, FORMER_HELPER)
    using, now = environments_used(), environment_in_use()
    return {"outdated": sorted({unit for made, found in using.items() if made != now for unit in found})}


def drop(*paths: Path) -> None:
    for one in paths:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            one.unlink()


def environments_used() -> dict[str, set[str]]:
    """Return what runs from which environment: {its id: {units}}; what is in no unit of the farm counts, but is not named."""
    using: dict[str, set[str]] = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit():
                words = Path(f"/proc/{entry}/cmdline").read_text(errors="replace")
                found = re.findall(
                    r"/(agentfarm-[^/]+\.service)", Path(f"/proc/{entry}/cgroup").read_text(errors="replace")
                )
                for made in re.findall(r"/opt/agentfarm/venvs/([0-9a-f]{12})/", words):
                    using.setdefault(made, set()).update(found)
    return using


def prune() -> dict[str, Any]:
    """Remove environments that neither new servers start from nor running ones use. Returns {removed: [ids]}."""
    with alone():
        used = {environment_in_use(), *environments_used()}
        removed = [path for path in VENVS.iterdir() if path.name not in used] if VENVS.is_dir() else []
        for path in removed:
            shutil.rmtree(path, ignore_errors=True)
    return {"removed": sorted(path.name for path in removed)}


def checked(environment: str) -> str:
    if not ID.fullmatch(environment):
        raise Failed(f"{environment!r} is no name of an environment")
    return environment


def keys_file() -> Path:
    return Path(pwd.getpwuid(0).pw_dir) / ".ssh" / "authorized_keys"


def authorize(key: str) -> None:
    """Let the farm's key run the helper, and forward; its line stands there once."""
    kind, blob = key.split()[:2]
    line = f'restrict,port-forwarding,command="{COMMAND}" {kind} {blob} agentfarm'
    path = keys_file()
    path.parent.mkdir(mode=0o700, exist_ok=True)
    old = path.read_text(errors="surrogateescape").splitlines() if path.exists() else []
    kept = [one for one in old if blob not in one.split()]
    if line not in old or len(kept) != len(old) - 1:
        write(path, "".join(f"{one}\n" for one in [*kept, line]).encode(errors="surrogateescape"), 0o600)


def last(said: str) -> str:
    return (said.strip().splitlines() or ["it said nothing"])[-1][:300]


# -- leaving -----------------------------------------------------------------------------------------------------


def leave(key: str, farm: str, workspaces: bool, force: bool) -> dict[str, Any]:
    """Remove all that the farm has put there; what another farm uses too stays.

    Returns {running: [units], because of which nothing was done} or {left: [what stays, in words]}.
    """
    own = [unit for unit in units() if farm_of(unit) in ("", farm)]
    if own and not force:
        return {"running": own, "left": []}
    with alone():
        blob, path = key.split()[1], keys_file()
        old = path.read_text(errors="surrogateescape").splitlines() if path.exists() else []
        kept = [one for one in old if blob not in one.split()]
        if len(kept) != len(old):
            write(path, "".join(f"{one}\n" for one in kept).encode(errors="surrogateescape"), 0o600)
            if not kept:
                path.unlink()  # it may be ours; and an empty one lets nobody in
        for unit in own:
            command("systemctl", "stop", unit)
            command("systemctl", "reset-failed", unit)
        others = sum(COMMAND in one for one in kept)
        if others:
            forget(farm)
            return {"running": [], "left": [f"{OPT}, {LIB}: another farm uses this machine"]}
        left = clear(workspaces)
    for folder in (LIB, OPT):
        with contextlib.suppress(OSError):
            folder.rmdir()
    return {"running": [], "left": left + ([f"{OPT}: {', '.join(sorted(os.listdir(OPT)))}"] if OPT.is_dir() else [])}


def farm_of(unit: str) -> str:
    """Return the id of the farm whose unit it is; "" where nobody says."""
    try:
        kept = json.loads((LIB / "units" / unit[len("agentfarm-") : -len(".service")] / "unit.json").read_text())
        return str(kept.get("farm", ""))
    except (OSError, ValueError):
        return ""


def forget(farm: str) -> None:
    """Forget the units of a farm that have ended."""
    for record in (LIB / "units").iterdir() if (LIB / "units").is_dir() else []:
        if farm_of(f"agentfarm-{record.name}.service") == farm:
            shutil.rmtree(record, ignore_errors=True)


def clear(workspaces: bool) -> list[str]:
    """Remove units, users and programs, and workspaces where asked to. Returns what stays, in words."""
    command("systemctl", "stop", "agentfarm.slice")
    if shutil.which("nft", path=PATH):
        command("nft", "delete", "table", "inet", "agentfarm")  # the walls; not there is fine
    for user in [one.pw_name for one in pwd.getpwall() if USER.fullmatch(one.pw_name)]:
        command("userdel", user)
        command("groupdel", user)  # where userdel leaves it
    found = sorted(one.name for one in (LIB / "workspaces").iterdir()) if (LIB / "workspaces").is_dir() else []
    for folder in (*RUN, LIB / "units", *([LIB / "workspaces"] if workspaces or not found else [])):
        shutil.rmtree(folder, ignore_errors=True)
    drop(HELPER, VENV, CONFIG, FORMER_HELPER, FORMER_VENV, OPT / ".lock")
    for folder in (VENVS, HELPERS):
        shutil.rmtree(folder, ignore_errors=True)
    return [f"{LIB / 'workspaces'}: {', '.join(found)}"] if found and not workspaces else []
