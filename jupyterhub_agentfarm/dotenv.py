"""Reads `.env`: NAME=value lines, for settings that one keeps out of the shell's history. The environment wins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# Only these are taken from the file, and only the service gets them: an agent's server must not see a model's key.
NAMES = ("DB_CONNECTION_STRING", "HF_API_URL", "HUGGING_FACE_AUTH_TOKEN", "QUESTDB_CONF")


def with_dotenv(env: Mapping[str, str], file: Path = Path(".env")) -> dict[str, str]:
    """Return the environment with what `.env` adds."""
    try:
        text = file.read_text()
    except OSError:
        return dict(env)
    return parse(text) | {name: value for name, value in env.items() if value or name not in NAMES}


def parse(text: str) -> dict[str, str]:
    """Read NAME=value lines; quotes around a value are taken off, `#` begins a comment line, `export ` is allowed."""
    read: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if equals and name in NAMES:
            quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
            read[name] = value[1:-1] if quoted else value
    return read
