"""Reads `.env`: NAME=VALUE lines, for settings that one keeps out of the shell's history. The environment wins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def with_dotenv(env: Mapping[str, str], file: Path = Path(".env")) -> dict[str, str]:
    """Return the environment with what `.env` adds."""
    try:
        text = file.read_text()
    except OSError:
        return dict(env)
    return parse(text) | dict(env)


def parse(text: str) -> dict[str, str]:
    """Read NAME=VALUE lines; quotes around a value are taken off, `#` begins a comment line, `export ` is allowed."""
    read: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if not equals or name.startswith("#"):
            continue
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        read[name.strip()] = value
    return read
