"""Takes the server's Hub token out of reach: of its kernels, its terminals, and other processes of the same user.

A process's environment is readable in /proc for every process of the same user, and children inherit it. So after
everything that needs the token has read it, it leaves os.environ, its bytes in the process's first environment are
overwritten, and the process is made non-dumpable (no ptrace, no /proc/<pid>/environ or /mem for others of its user).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

TOKENS = ("JUPYTERHUB_API_TOKEN", "JPY_API_TOKEN", "JUPYTER_TOKEN")
PR_SET_DUMPABLE = 4  # prctl(2)


def take_token(readers: Iterable[Any], env: MutableMapping[str, str] = os.environ) -> str:
    """Let each reader (objects with `hub_auth` or `token`) read its own, remove all tokens from `env`, return the Hub's ("")."""
    for reader in readers:
        for owner, name in ((getattr(reader, "hub_auth", None), "api_token"), (reader, "token")):
            getattr(owner, name, None)  # lazy defaults that read the environment when first asked
    found = [env.pop(name, "") for name in TOKENS]
    return found[0] or found[1]


def erase_first_environment(names: Iterable[str] = TOKENS) -> None:
    """Overwrite the values of the named variables in what /proc/<pid>/environ shows (Linux; proc(5): fields 50, 51).

    Removing a variable only forgets the pointer to it: the bytes stay where exec put them.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    for offset, entry in _entries(ctypes.string_at(start, end - start)):
        name, _, value = entry.partition(b"=")
        if name.decode(errors="replace") in names:
            ctypes.memset(start + offset + len(name) + 1, ord("x"), len(value))


def _entries(block: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    for entry in block.split(b"\0"):
        yield offset, entry
        offset += len(entry) + 1


def forbid_reading() -> None:
    """Make this process non-dumpable. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE, 0) was refused")
