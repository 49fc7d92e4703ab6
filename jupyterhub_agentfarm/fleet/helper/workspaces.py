"""A workspace as a stream, and back: a tar archive whose last member says what it must come to, by a checksum over all of it.

    workspace, workspace/…      directories, files, links, in a fixed order; what else stands there (sockets, pipes) is left out
    snapshot.json               {"digest", "bytes", "entries", "changed": files that were written meanwhile}

What comes back is built beside the workspace, read again from the disk, compared, and put in its place by renaming: a stream that breaks off
changes nothing. The archive is trusted in nothing: it may come from a machine that agents have taken over.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import json
import os
import resource
import shutil
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from . import checks
from .checks import Refused, invalid

ROOT, LAST = "workspace", "snapshot.json"
CHUNK = 1 << 18
DEEPEST = 200  # folders in each other
LONGEST_HEADER = 1 << 16  # bytes of a name or of other words about a member
SLACK = 1 << 20  # bytes that may come beyond what was announced
MEMORY = 1 << 30  # bytes that restoring may take, whatever the archive says
TAKEN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE)
WORDS = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
BROKEN = (tarfile.TarError, EOFError, ValueError, ArithmeticError, MemoryError)
sent = False  # a stream has begun: from here on what goes wrong is said on stderr


class Entry(NamedTuple):
    """What stands in a workspace. path: "" for itself; fd: open, of a file."""

    path: str
    kind: str  # dir, file, link
    about: os.stat_result
    target: str
    fd: int


def walk(folder: Path) -> Iterator[Entry]:
    """Return all that stands in a workspace, in a fixed order, never through a link. Each file is open until the next one is asked for."""
    try:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise invalid("there is no such workspace here") from None
    try:
        about = os.fstat(top)
        yield Entry("", "dir", about, "", -1)
        yield from _below(top, "", about.st_uid, 1)
    finally:
        os.close(top)


def _below(folder: int, path: str, owner: int, depth: int) -> Iterator[Entry]:
    if depth > DEEPEST:
        raise invalid(f"{path[:100]!r} … is nested too deeply", f"at most {DEEPEST} folders in each other")
    for name in sorted(os.listdir(folder), key=os.fsencode):
        below = f"{path}/{name}" if path else name
        try:
            about = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:  # of one that works meanwhile
            continue
        if stat.S_ISDIR(about.st_mode):
            if (inner := _open(name, os.O_DIRECTORY, folder)) < 0:
                continue
            try:
                yield Entry(below, "dir", os.fstat(inner), "", -1)
                yield from _below(inner, below, owner, depth + 1)
            finally:
                os.close(inner)
        elif stat.S_ISLNK(about.st_mode):
            yield Entry(below, "link", about, os.readlink(name, dir_fd=folder), -1)
        elif stat.S_ISREG(about.st_mode) and (about.st_uid == owner or about.st_nlink == 1):  # no file of another's
            if (file := _open(name, os.O_NONBLOCK, folder)) < 0:
                continue
            try:
                yield Entry(below, "file", os.fstat(file), "", file)
            finally:
                os.close(file)


def _open(name: str, flags: int, folder: int) -> int:
    """Open what stands there, but no link; -1 where it is gone or another thing by now."""
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return -1
        raise


class Sum:
    """The checksum over a workspace: paths, kinds, rights, targets of links and contents, in the order of `walk`."""

    def __init__(self) -> None:
        self.whole, self.bytes, self.entries = hashlib.sha256(), 0, 0

    def add(self, one: Entry, size: int = 0, content: str = "") -> None:
        rights = 0 if one.kind == "link" else one.about.st_mode & 0o777
        line = json.dumps([one.path, one.kind, rights, one.target, size, content])
        self.whole.update(line.encode() + b"\n")
        self.bytes, self.entries = self.bytes + size, self.entries + 1

    def told(self) -> dict[str, Any]:
        return {"digest": self.whole.hexdigest(), "bytes": self.bytes, "entries": self.entries}


class _Hashed:
    """A file as it is read: exactly so many bytes, zeros where it has become shorter meanwhile."""

    def __init__(self, file: int, size: int) -> None:
        self.file, self.left, self.sum, self.short = file, size, hashlib.sha256(), False

    def read(self, count: int = CHUNK) -> bytes:
        wanted = min(count, self.left)
        data = b"" if self.short else os.read(self.file, wanted)
        while not self.short and len(data) < wanted:
            more = os.read(self.file, wanted - len(data))
            self.short, data = not more, data + more
        data += b"\0" * (wanted - len(data))
        self.left -= wanted
        self.sum.update(data)
        return data


def measure(root: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Return how large a workspace is: {bytes, entries}, {there: false} where there is none; `brief`: only whether it is there."""
    folder = root / checks.workspace(asked)
    if not os.path.lexists(folder):
        return {"there": False, "bytes": 0, "entries": 0}
    if asked.get("brief"):
        return {"there": True}
    found = [one.about.st_size if one.kind == "file" else 0 for one in walk(folder)]
    return {"there": True, "bytes": sum(found), "entries": len(found)}


def snapshot(root: Path, asked: dict[str, Any]) -> None:
    """Write a workspace to stdout."""
    send(root / checks.workspace(asked), sys.stdout.buffer)


def send(folder: Path, sink: BinaryIO) -> dict[str, Any]:
    """Write a workspace as a stream; return what its last member says."""
    global sent
    total, changed = Sum(), 0
    form: dict[str, Any] = {"format": tarfile.PAX_FORMAT, "encoding": "utf-8", "errors": "surrogateescape"}
    form |= {"bufsize": CHUNK, "copybufsize": CHUNK}
    with tarfile.open(fileobj=sink, mode="w|", **form) as archive:
        for one in walk(folder):
            sent = True
            member = tarfile.TarInfo(f"{ROOT}/{one.path}" if one.path else ROOT)
            member.mode, member.mtime = one.about.st_mode & 0o777, one.about.st_mtime
            if one.kind == "file":
                member.size = one.about.st_size
                source = _Hashed(one.fd, member.size)
                archive.addfile(member, source)
                now = os.fstat(one.fd)
                changed += source.short or (now.st_size, now.st_mtime_ns) != (one.about.st_size, one.about.st_mtime_ns)
                total.add(one, member.size, source.sum.hexdigest())
                continue
            member.type = tarfile.DIRTYPE if one.kind == "dir" else tarfile.SYMTYPE
            member.linkname = one.target
            archive.addfile(member)
            total.add(one)
        last = {**total.told(), "changed": changed}
        words = json.dumps(last).encode()
        member = tarfile.TarInfo(LAST)
        member.size = len(words)
        archive.addfile(member, io.BytesIO(words))
    sink.flush()
    return last


# -- and back ----------------------------------------------------------------------------------------------------


class _Member(tarfile.TarInfo):
    """A member whose header is looked at before anything that it names is read."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        made = super().frombuf(buf, encoding, errors)
        if made.type in WORDS:
            if made.size > LONGEST_HEADER:
                raise invalid("the archive holds a name that is too long")
        elif made.type not in TAKEN:
            what = {tarfile.LNKTYPE: "a hard link", tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device"}
            raise invalid(f"the archive holds {what.get(made.type, 'a member of another kind')}: {made.name[:100]!r}")
        return made


def restore(root: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Read a stream from stdin, and put it in the place of the workspace. Answers {digest, bytes, entries}."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    name, uid = checks.workspace(asked), checks.uid(asked)
    if uid is not None and os.getuid() != 0:
        raise invalid("only root gives a workspace to a user")
    return receive(root, name, uid, checks.announced(asked), sys.stdin.buffer)


def receive(root: Path, name: str, uid: int | None, most: dict[str, int], source: BinaryIO) -> dict[str, Any]:
    """Build the workspace beside its place from a stream, compare it with what the stream says of itself, and put it there."""
    root.mkdir(mode=0o711, parents=True, exist_ok=True)
    built, aside = root / f".coming-{name}", root / f".gone-{name}"
    for left in (built, aside):
        shutil.rmtree(left, ignore_errors=True)
    if most["bytes"] > (free := shutil.disk_usage(root).free):
        raise Refused("room", f"{most['bytes']} bytes do not fit: {free} are free here", "make room on its disk")
    built.mkdir(mode=0o700)
    try:
        said = _Building(built, uid, most).take(source)
        written(root)
        found = summed(built)
        if found != {part: said.get(part) for part in found}:
            raise Refused("checksum", "what was restored is not what was saved: its checksum differs", "try again")
    except BaseException as error:
        shutil.rmtree(built, ignore_errors=True)
        if isinstance(error, BROKEN):
            raise invalid(f"the archive is none, or broke off: {type(error).__name__}") from error
        raise
    live = root / name
    if os.path.lexists(live):
        os.rename(live, aside)
    os.rename(built, live)
    written(root)
    shutil.rmtree(aside, ignore_errors=True)
    return found


def written(folder: Path) -> None:
    """Return when all that was written to the folder's file system is on its disk. Raises OSError."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(at) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(at)


def summed(folder: Path) -> dict[str, Any]:
    """Return the checksum of a workspace as it is on the disk."""
    total = Sum()
    for one in walk(folder):
        if one.kind != "file":
            total.add(one)
            continue
        source = _Hashed(one.fd, one.about.st_size)
        while source.left:
            source.read()
        total.add(one, one.about.st_size, source.sum.hexdigest())
    return total.told()


class _Building:
    """Makes members below a folder that is nobody else's yet; never through a link, never over what is there."""

    def __init__(self, folder: Path, uid: int | None, most: dict[str, int]) -> None:
        self.folder, self.uid, self.most = folder, uid, most
        self.entries = self.bytes = 0
        self.folders: list[tuple[str, int, float]] = []  # their rights come last: some may not be written to

    def take(self, source: BinaryIO) -> dict[str, Any]:
        """Make all members; return what the last one says."""
        with tarfile.open(
            fileobj=source, mode="r|", tarinfo=_Member, encoding="utf-8", errors="surrogateescape", bufsize=CHUNK
        ) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.name == LAST:
                    return self._end(archive, member)
                self._count(member)
                parts = _parts(member.name)
                if parts or not member.isdir():
                    self._make(archive, member, parts)
                else:
                    self.folders.append(("", member.mode & 0o777, member.mtime))
        raise invalid("the archive is none, or broke off: its end is missing")

    def _count(self, member: tarfile.TarInfo) -> None:
        self.entries, self.bytes = self.entries + 1, self.bytes + max(0, member.size)
        if self.entries > self.most["entries"] + 1000 or self.bytes > self.most["bytes"] + SLACK:
            raise invalid("the archive holds more than was announced")

    def _end(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
        content = archive.extractfile(member) if member.isreg() and member.size <= LONGEST_HEADER else None
        said = json.loads(content.read()) if content else None
        if not isinstance(said, dict):
            raise invalid("the archive's end says nothing")
        for path, mode, mtime in reversed(self.folders):
            folder = self._open(path.split("/") if path else [])
            try:
                self._give(folder, mode, mtime)
            finally:
                os.close(folder)
        return said

    def _give(self, file: int, mode: int, mtime: float) -> None:
        if self.uid is not None:
            os.fchown(file, self.uid, self.uid)
        os.utime(file, (mtime, mtime))
        os.fchmod(file, mode)

    def _open(self, parts: list[str]) -> int:
        """Return the folder, opened one step after the other: a link on the way is refused."""
        at = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        for part in parts:
            try:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            except OSError:
                raise invalid("the archive leads through what is no folder: " + "/".join(parts)[:100]) from None
            finally:
                os.close(at)
            at = below
        return at

    def _make(self, archive: tarfile.TarFile, member: tarfile.TarInfo, parts: list[str]) -> None:
        if not parts:
            raise invalid("the archive's workspace is no folder")
        folder = self._open(parts[:-1])
        try:
            self._put(archive, member, parts, folder)
        except FileExistsError:
            raise invalid("the archive holds a name twice: " + "/".join(parts)[:100]) from None
        finally:
            os.close(folder)

    def _put(self, archive: tarfile.TarFile, member: tarfile.TarInfo, parts: list[str], folder: int) -> None:
        name = parts[-1]
        if member.isdir():
            os.mkdir(name, 0o700, dir_fd=folder)
            self.folders.append(("/".join(parts), member.mode & 0o777, member.mtime))
        elif member.issym():
            if "\0" in member.linkname or not member.linkname:
                raise invalid("the archive holds a link to nothing")
            os.symlink(member.linkname, name, dir_fd=folder)
            if self.uid is not None:
                os.chown(name, self.uid, self.uid, dir_fd=folder, follow_symlinks=False)
            os.utime(name, (member.mtime, member.mtime), dir_fd=folder, follow_symlinks=False)
        else:
            content = archive.extractfile(member)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(name, flags, 0o600, dir_fd=folder), "wb") as sink:
                left = member.size
                while content and left and (data := content.read(min(CHUNK, left))):
                    sink.write(data)
                    left -= len(data)
                if left:
                    raise invalid("the archive broke off")
                sink.flush()
                self._give(sink.fileno(), member.mode & 0o777, member.mtime)


def _parts(name: str) -> list[str]:
    """Return the steps of a member's path below the workspace. Raises Refused: it leads elsewhere."""
    first, *parts = name.split("/")
    if first != ROOT or any(part in ("", ".", "..") or "\0" in part for part in parts) or len(parts) > DEEPEST:
        raise invalid(f"the archive holds a name that leads elsewhere: {name[:100]!r}")
    return parts


def discard(root: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Remove a workspace, and what a restore that broke off left of it. Again is harmless."""
    name = checks.workspace(asked)
    for left in (name, f".coming-{name}", f".gone-{name}"):
        if os.path.lexists(root / left):
            shutil.rmtree(root / left)
    return {}


def takes_stream(text: bytes) -> bool:
    """Say whether behind this first line of a request comes a stream."""
    try:
        asked = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(asked, dict) and asked.get("op") == "restore"


def operations(root: Path, admit: Callable[[dict[str, Any]], None]) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Return what may be asked of the workspaces in this folder. `admit` raises Refused for one that is another farm's."""
    known = {"measure": measure, "snapshot": snapshot, "restore": restore, "discard": discard}

    def of(op: Callable[[Path, dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
        def admitted(asked: dict[str, Any]) -> Any:
            admit(asked)
            return op(root, asked)

        return admitted

    return {name: of(op) for name, op in known.items()}
