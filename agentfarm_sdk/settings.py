"""What the environment says, read when asked for (never at import), by the SDK alone."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import Invalid

API = "/api/v1"


@dataclass(frozen=True)
class FarmAddress:
    """How a farm is reached: `url` ends in /api/v1; `socket` is the server extension's unix socket, where there is one."""

    url: str
    token: str = ""
    socket: str = ""


def api_url(url: str) -> str:
    """Return the address of the API for the address of a farm, its service or its API."""
    url = url.rstrip("/")
    return url if url.endswith(API) else url + API


def farm_address(env: Mapping[str, str] = os.environ, start: Path | None = None) -> FarmAddress | None:
    """Return the farm that this process belongs to, or None.

    In order: AGENTFARM_SOCKET (kernels of people), AGENTFARM_URL with AGENTFARM_TOKEN, .farm/client.json upward from `start`.

    Raises:
        Invalid: the file is readable by others, or is not what `agentfarm up` writes.
    """
    if socket := env.get("AGENTFARM_SOCKET"):
        return FarmAddress(url=f"http://agentfarm{API}", socket=socket)
    if (url := env.get("AGENTFARM_URL")) and (token := env.get("AGENTFARM_TOKEN")):
        return FarmAddress(url=api_url(url), token=token)
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        file = folder / ".farm" / "client.json"
        if file.is_file():
            return _client_file(file)
    return None


def _client_file(file: Path) -> FarmAddress:
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise Invalid(f"{file} holds a token and can be read by others", hint=f"chmod 600 {file}")
    try:
        content = json.loads(file.read_text())
        return FarmAddress(url=api_url(str(content["url"])), token=str(content["token"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid(f"{file} does not say url and token", hint="start the farm again: agentfarm up") from error


def ledger_file(env: Mapping[str, str] = os.environ) -> Path:
    """Return where runs outside a farm are recorded."""
    if named := env.get("AGENTFARM_LEDGER"):
        return Path(named)
    base = env.get("XDG_DATA_HOME") or str(Path(env.get("HOME", "~")).expanduser() / ".local" / "share")
    return Path(base) / "agentfarm" / "ledger.sqlite"


def workspace(env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that the file tools are jailed to."""
    return Path(env.get("AGENTFARM_WORKSPACE") or Path.cwd())


def model_address(env: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """Return (url, key) of an OpenAI-compatible server for runs outside a farm, or None."""
    if url := env.get("AGENTFARM_MODEL_URL"):
        return url, env.get("AGENTFARM_MODEL_KEY", "")
    if key := env.get("HUGGING_FACE_AUTH_TOKEN"):
        return env.get("HF_API_URL") or "https://router.huggingface.co/v1", key
    if url := env.get("HF_API_URL"):
        return url, ""
    return None
