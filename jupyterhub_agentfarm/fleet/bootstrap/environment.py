"""What servers need to run on another machine, as two archives that are unpacked into a bare virtual environment there: no network, no pip.

One has the packages, the other what is ours: a release that changes only that is a small one to send.

The packages are those of requirements/farm.lock. Where the machine's Python and system are like ours, they are taken from what this agentfarm
itself runs with; else wheels for that Python are fetched once, checked by the lock's hashes. Archives are kept in the cache: the same release
for the same kind of machine is packed once.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import agentfarm_sdk

from ...errors import StartError
from ..findings import Finding

PACKAGE = Path(__file__).parents[2]
CHECKOUT = PACKAGE.parent
LEFT_OUT = {"xllamacpp"}  # the hub's: the embedded model
VENVS_AT = "/opt/agentfarm/venvs"
WAY_OUT = (
    "pip needs an index here (PIP_INDEX_URL, HTTPS_PROXY), or a folder of wheels: PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER"
    " (docs/operate.md); or give that machine this Python"
)
KEPT = 8  # archives in the cache
PACKED = 1  # gzip's level: more takes longer than a usual line does
HUBS = ("bin/", "share/jupyterhub/static/components/")  # programs are made anew; the Hub's pages stay with the Hub
SKIPPED = {"__pycache__", "node_modules", ".git"}


@dataclass(frozen=True)
class Kind:
    """A kind of machine, as far as packages are concerned: its Python's version, architecture, glibc."""

    python: tuple[int, int, int]
    arch: str
    glibc: tuple[int, int]

    @property
    def short(self) -> str:
        return f"{self.python[0]}.{self.python[1]}"

    def __str__(self) -> str:
        return f"Python {self.short} on {self.arch}"


@dataclass(frozen=True)
class Pin:
    """A package of the lock. lines: as pip reads it, with its hashes."""

    name: str
    version: str
    lines: str


@dataclass(frozen=True)
class Environment:
    """A packed environment. id: 12 hexadecimal digits that stand for its content; packages: for that of the first archive, the other is ours."""

    id: str
    packages: str
    archives: tuple[Path, Path]


def cache() -> Path:
    """Return the folder for what can be made again."""
    named = os.environ.get("AGENTFARM_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentfarm"


def kind_of(python: list[int], arch: str, libc: str) -> Kind:
    """Return the kind of a machine by what helper/probe.py found: [3, 11, 2], x86_64, glibc-2.36."""
    found = re.fullmatch(r"glibc-(\d+)\.(\d+).*", libc)
    return Kind((python[0], python[1], python[2]), arch, (int(found[1]), int(found[2])) if found else (2, 17))


def ours() -> Kind:
    return kind_of(
        list(sys.version_info[:3]), platform.machine(), (os.confstr("CS_GNU_LIBC_VERSION") or "").replace(" ", "-")
    )


def outlook(kind: Kind) -> Finding:
    """Say, before anything is done, how the packages for such machines are come by."""
    pins = wanted(lock().read_text(), kind)
    _, others = at_hand(kind, pins)
    if not others or archive_of(digest(kind, pins, [])).exists():
        return Finding("packages", "ok", f"for {kind}: here")
    return Finding(
        "packages",
        "warn",
        f"for {kind}: {len(others)} of {len(pins)} are fetched first, once: this machine runs {ours()}",
        WAY_OUT,
    )


def archive_of(packages: str) -> Path:
    return cache() / "environments" / f"{packages}.packages.tar.gz"


def prepared(kind: Kind, say: Callable[[str], None]) -> Environment:
    """Return this release's environment for such machines, packed now or before. Raises StartError."""
    pins = wanted(lock().read_text(), kind)
    packages, made = digest(kind, pins, []), digest(kind, pins, own())
    folder = cache() / "environments"
    archives = archive_of(packages), folder / f"{made}.own.tar.gz"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as waiting:
        fcntl.flock(waiting, fcntl.LOCK_EX)
        for broken_off in folder.glob("packing-*"):
            shutil.rmtree(broken_off, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="packing-", dir=folder) as scratch:
            fresh = Path(scratch) / "archive"
            if not archives[0].exists():
                here, others = at_hand(kind, pins)
                say(
                    f"packing what servers need, for {kind}: {len(here)} packages as they run here"
                    + (f", fetching {len(others)} by the lock's hashes" if others else "")
                )
                pack(fresh, packages, kind, [*installed(here), *fetched(kind, others, Path(scratch) / "packages")])
                fresh.rename(archives[0])
            if not archives[1].exists():
                pack(fresh, made, kind, own(), config=True)
                fresh.rename(archives[1])
        for archive in archives:
            archive.touch()
        for old in sorted(folder.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink()
    return Environment(made, packages, archives)


# -- which packages ----------------------------------------------------------------------------------------------


def lock() -> Path:
    """Return the lock: a checkout's, or that of an installed wheel. Raises StartError."""
    for path in (CHECKOUT / "requirements" / "farm.lock", PACKAGE / "farm.lock"):
        if path.exists():
            return path
    raise StartError(
        "this agentfarm has no requirements/farm.lock", hint="install it from a checkout, or from its wheel"
    )


def wanted(text: str, kind: Kind) -> list[Pin]:
    """Return the packages of a lock that such a machine needs. Markers are read for that machine, not for this one."""
    full, short = ".".join(map(str, kind.python)), kind.short
    there = {
        "python_version": short, "python_full_version": full, "implementation_version": full, "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "platform_machine": kind.arch, "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix",
        "extra": "",
    }  # fmt: skip
    pins = []
    for entry in re.split(r"\n(?=[A-Za-z0-9])", text.strip()):
        first, _, hashes = entry.partition(" \\\n")
        requirement = Requirement(first)
        if requirement.name in LEFT_OUT or (requirement.marker and not requirement.marker.evaluate(there)):
            continue
        version = next(iter(requirement.specifier)).version
        pins.append(Pin(requirement.name, version, f"{requirement.name}=={version} \\\n{hashes}"))
    return pins


def at_hand(kind: Kind, pins: list[Pin]) -> tuple[list[Pin], list[Pin]]:
    """Return the packages that this agentfarm itself runs with and that run there too, and those that have to be fetched."""
    same = ours()
    if kind.python[:2] != same.python[:2] or kind.arch != same.arch or kind.glibc < same.glibc:
        return [], pins
    here = [pin for pin in pins if _version(pin.name) == pin.version]
    return here, [pin for pin in pins if pin not in here]  # a lock may name others for 3.11.2 than for 3.11.7


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def digest(kind: Kind, pins: list[Pin], ours: Iterable[tuple[str, Path]]) -> str:
    """Return the id of what is packed: same kind, packages and files of ours, same id."""
    seen = hashlib.sha256(repr((kind.python[:2], kind.arch, [(pin.name, pin.version) for pin in pins])).encode())
    for name, path in sorted(ours):
        seen.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return seen.hexdigest()[:12]


# -- their files: (name in the environment, where it is here); site: is its site-packages -------------------------

Files = Iterator[tuple[str, Path]]


def installed(pins: Iterable[Pin]) -> Files:
    """Return the files of packages as they are installed here; programs are left out, they are made anew."""
    for pin in pins:
        distribution = metadata.distribution(pin.name)
        for file in distribution.files or []:
            name, path = file.as_posix(), Path(str(distribution.locate_file(file)))
            above = re.match(r"(\.\./)+", name)
            name = name[above.end() :] if above else f"site/{name}"
            if not name.startswith(HUBS) and path.is_file():
                yield name, path


def fetched(kind: Kind, pins: list[Pin], folder: Path) -> Files:
    """Fetch wheels for another Python into the folder, and return their files. Raises StartError."""
    if not pins:
        return
    listed = folder.with_suffix(".txt")
    listed.write_text("".join(f"{pin.lines}\n" for pin in pins))
    glibcs = [f"manylinux_{kind.glibc[0]}_{minor}_{kind.arch}" for minor in range(kind.glibc[1], 4, -1)]
    platforms = [*glibcs, *(f"manylinux{old}_{kind.arch}" for old in ("2014", "2010", "1")), f"linux_{kind.arch}"]
    abi = f"cp{kind.python[0]}{kind.python[1]}"
    words = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--retries", "2", "--disable-pip-version-check", "--no-compile", "--no-deps", "--require-hashes",
        "--only-binary", ":all:", "--implementation", "cp", "--python-version", kind.short, "--target", str(folder), "--requirement", str(listed),
        *(word for tag in (abi, "abi3", "none") for word in ("--abi", tag)), *(word for tag in platforms for word in ("--platform", tag)),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()[-300:]]
        raise StartError(
            f"packages for {kind} could not be fetched: {lines[-1][:300]}",
            hint=f"this machine runs {ours()}: for another kind of machine, {WAY_OUT}",
        )
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(HUBS):
            yield (name if name.startswith(("share/", "etc/")) else f"site/{name}"), path


def own() -> Files:
    """Return AgentFarm's own files: a checkout's, or an installed wheel's."""
    for package in (Path(agentfarm_sdk.__file__).parent, PACKAGE):
        yield from (
            (f"site/{package.name}/{name}", path)
            for name, path in below(package)
            if not name.startswith(("labextension/", "pages/build/"))
        )
    config = PACKAGE / "labserver" / "config" / "jupyter_server_config.d"
    yield from ((f"etc/jupyter/jupyter_server_config.d/{name}", path) for name, path in below(config))
    for name, places in {
        "etc/ipython/ipython_kernel_config.py": [CHECKOUT / "scripts" / "ipython_kernel_config.py"],
        "share/jupyter/labextensions/jupyterhub-agentfarm": [PACKAGE / "labextension"],
    }.items():
        there = next((path for path in (*places, Path(sys.prefix) / name) if path.exists()), None)
        if there is not None:
            yield from (
                [(name, there)] if there.is_file() else [(f"{name}/{inner}", path) for inner, path in below(there)]
            )


def below(folder: Path) -> Files:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(one for one in folders if one not in SKIPPED)
        for name in sorted(names):
            path = Path(where) / name
            if not name.endswith(".pyc") and path.is_file():
                yield path.relative_to(folder).as_posix(), path


# -- the archive -------------------------------------------------------------------------------------------------


def pack(archive: Path, made: str, kind: Kind, files: Iterable[tuple[str, Path]], config: bool = False) -> None:
    """Write the files, programs for their entry points, and (`config`) the link to the servers' configuration."""
    site = f"lib/python{kind.short}/site-packages"
    points: list[str] = []
    seen: set[str] = set()
    with tarfile.open(archive, "w:gz", compresslevel=PACKED) as sink:
        for name, path in files:
            name = f"{site}/{name[5:]}" if name.startswith("site/") else name
            if name in seen:
                continue
            seen.add(name)
            entry = sink.gettarinfo(str(path), name)
            if not entry.isreg():  # hard links among ours are files of their own there
                entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", path.stat().st_size
            entry.mode = 0o755 if entry.mode & 0o100 else 0o644
            with open(path, "rb") as source:
                sink.addfile(entry, source)
            if name.endswith(".dist-info/entry_points.txt"):
                points.append(path.read_text())
        for program, text in programs(points, made):
            _add(sink, f"bin/{program}", text.encode(), 0o755)
        if config:
            link = tarfile.TarInfo("agentfarm-config")
            link.type, link.linkname = tarfile.SYMTYPE, f"{site}/jupyterhub_agentfarm/labserver/config"
            sink.addfile(link)


def _add(sink: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    sink.addfile(entry, io.BytesIO(content))


def programs(points: Iterable[str], made: str) -> Iterator[tuple[str, str]]:
    """Return the programs of packages' entry points, each started by the environment's own Python at its real path (`unpack` there names it).

    So a server that runs keeps what it was started with, while new ones start from another release.
    """
    for text in points:
        parser = ConfigParser(delimiters=("=",), interpolation=None, strict=False)
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read_string(text)
        for name, point in parser.items("console_scripts") if parser.has_section("console_scripts") else []:
            module, _, attribute = point.split("[")[0].strip().partition(":")
            first = attribute.split(".")[0]
            yield (
                name,
                f"#!{VENVS_AT}/{made}/bin/python\nimport sys\n\nfrom {module} import {first}\n\nsys.exit({attribute}())\n",
            )
