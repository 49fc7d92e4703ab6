"""Files of the workspace. Every path is walked part by part below an open folder and never through a link (openat)."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from ..errors import ToolFailed
from .context import Context
from .registry import tool

MAX_READ = 256 * 1024
MAX_WRITE = 1024 * 1024
MAX_LISTED = 1000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@tool(effect="read")
def list_files(ctx: Context, path: str = ".") -> list[dict[str, Any]]:
    """List the files and folders in a folder of the workspace.

    Args:
        path: the folder, relative to the workspace
    """
    parts = _parts(path)
    with _folder(ctx, parts, path) as folder:
        names = sorted(os.listdir(folder))[:MAX_LISTED]
        return [_entry(folder, name) for name in names]


@tool(effect="read")
def read_file(ctx: Context, path: str, offset: int = 0) -> str:
    """Read a text file of the workspace.

    Args:
        path: relative to the workspace
        offset: the byte to begin at, for files that are longer than one answer
    """
    *above, name = _parts(path) or [""]
    if not name:
        raise ToolFailed(f"{path!r} is not a file")
    if offset < 0:
        raise ToolFailed("offset counts bytes from 0")
    with _folder(ctx, above, path) as folder, _told(path):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ToolFailed(f"{path} is not a plain file")
            file.seek(offset)
            text = file.read(MAX_READ).decode("utf-8", "replace")
    rest = status.st_size - offset - MAX_READ
    return text + (f"\n[{rest} more bytes: read on with offset={offset + MAX_READ}]" if rest > 0 else "")


@tool(effect="idempotent")
def write_file(ctx: Context, path: str, content: str) -> dict[str, Any]:
    """Write a text file of the workspace, whole; folders on the way are made, a file of that name is replaced.

    Args:
        path: relative to the workspace
        content: the whole text
    """
    data = content.encode()
    if len(data) > MAX_WRITE:
        raise ToolFailed(f"{len(data)} bytes; a file may have {MAX_WRITE}")
    *above, name = _parts(path) or [""]
    if not name:
        raise ToolFailed(f"{path!r} is not a file")
    draft = f".{name[:100]}.{(ctx.key or ctx.call)[:12]}.part"
    with _folder(ctx, above, path, make=True) as folder, _told(path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=folder)  # of an attempt that was cut off
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(draft, flags, 0o644, dir_fd=folder), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(draft, dir_fd=folder)
            raise
        os.fsync(folder)
    return {"path": "/".join([*above, name]), "size": len(data)}


def _parts(path: str) -> list[str]:
    pure = PurePosixPath(path)
    if "\0" in path or pure.is_absolute() or ".." in pure.parts:
        raise ToolFailed(f"{path!r} is outside the workspace: give a path relative to it, without ..")
    return list(pure.parts)


@contextlib.contextmanager
def _folder(ctx: Context, parts: list[str], path: str, make: bool = False) -> Iterator[int]:
    with _told(path):
        fd = os.open(ctx.workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=fd)
                below = os.open(part, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        linked = error.errno in (40, 20)  # ELOOP; ENOTDIR also where a part is a link
        why = "a part of it is a link or not a folder" if linked else os.strerror(error.errno or 0).lower()
        raise ToolFailed(f"{path}: {why}") from error


def _entry(folder: int, name: str) -> dict[str, Any]:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    return {"name": name, "kind": kinds.get(stat.S_IFMT(status.st_mode), "other"), "size": status.st_size}
