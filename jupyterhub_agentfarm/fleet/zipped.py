"""The helper as one file: what goes to microservers. The same code gives the same bytes, whose SHA-256 is its version.

Standard library of any Python from 3.9 on; stored, not packed, because zlib's versions differ in what they write.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "helper"
INTERPRETER = b"#!/usr/bin/env -S python3 -I\n"


@cache
def helper_file() -> bytes:
    """Return the content of helper.pyz."""
    sink = io.BytesIO()
    sink.write(INTERPRETER)
    with zipfile.ZipFile(sink, "a", zipfile.ZIP_STORED) as archive:
        for path in sorted(FOLDER.glob("*.py")):
            name = path.name if path.name == "__main__.py" else f"helper/{path.name}"
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    return sink.getvalue()


def helper_version() -> str:
    """Return what a microserver's helper says that it is, where it is this release's."""
    return hashlib.sha256(helper_file()).hexdigest()
