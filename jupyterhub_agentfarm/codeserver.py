"""Where code-server is, if it is installed: `make code-server` puts it beside this Python. Service and servers ask here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

PATH = "code-server"  # below a server's own address
FOLDER = "AGENTFARM_CODE_SERVER"  # another place for it


def program(env: Mapping[str, str]) -> Path | None:
    """Return code-server's script for Node, None where it is not installed whole."""
    folder = Path(env.get(FOLDER) or Path(sys.prefix) / "lib" / "code-server")
    found = folder / "node_modules" / "code-server" / "out" / "node" / "entry.js"
    return found if found.is_file() and node(found).is_file() else None


def node(script: Path) -> Path:
    """Return the Node that code-server was built with: it runs with no other version."""
    return script.parents[4] / "bin" / "node"
