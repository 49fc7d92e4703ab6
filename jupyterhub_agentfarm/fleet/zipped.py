"""The helper as one file: what goes to microservers. The same code gives the same bytes, whose SHA-256 is its version.

Standard library of any Python from 3.9 on; stored, not packed, because zlib's versions differ in what they write. Its code is read once:
a daemon keeps its own release when another is put in its place on the disk.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "helper"
INTERPRETER = b"#!/usr/bin/env -S python3 -I\n"


@cache
def sources() -> dict[str, bytes]:
    """Return the helper's modules by the names of their files."""
    return {path.name: path.read_bytes() for path in sorted(FOLDER.glob("*.py"))}


@cache
def helper_release() -> str:
    """Return 12 hexadecimal digits that stand for the modules: the folder of that name may have them unpacked."""
    seen = hashlib.sha256()
    for name, content in sources().items():
        seen.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return seen.hexdigest()[:12]


@cache
def helper_file() -> bytes:
    """Return the content of helper.pyz."""
    sink = io.BytesIO()
    sink.write(INTERPRETER)
    with zipfile.ZipFile(sink, "a", zipfile.ZIP_STORED) as archive:
        for name, content in sources().items():
            if name == "__main__.py":
                content = content.replace(b'RELEASE = ""', f'RELEASE = "{helper_release()}"'.encode(), 1)
            else:
                name = f"helper/{name}"
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return sink.getvalue()


def helper_version() -> str:
    """Return what a microserver's helper says that it is, where it is this release's."""
    return hashlib.sha256(helper_file()).hexdigest()


def unpack(folder: Path) -> Path:
    """Put the modules under a folder of this machine, and return what `python -I` runs; what is there and is not as it should be is mended."""
    where = folder / helper_release() / "helper"
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name, content in sources().items():
        path = where / name
        if not path.exists() or path.read_bytes() != content:
            fresh = path.with_suffix(".new")
            fresh.write_bytes(content)
            os.replace(fresh, path)
    return where


def drop_others(folder: Path) -> None:
    """Remove what other releases have put under the folder."""
    for other in folder.iterdir():
        if other.name != helper_release():
            shutil.rmtree(other, ignore_errors=True)
