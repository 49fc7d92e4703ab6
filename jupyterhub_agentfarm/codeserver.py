"""Where code-server is, if it is installed: `make code-server` puts it beside this Python. Service and servers ask here."""

from __future__ import annotations

import sys
from pathlib import Path

PATH = "code-server"  # below a server's own address


def program(prefix: str = sys.prefix) -> Path | None:
    """Return code-server's script for Node, None where it is not installed whole."""
    found = Path(prefix) / "lib" / "code-server" / "node_modules" / "code-server" / "out" / "node" / "entry.js"
    return found if found.is_file() else None
