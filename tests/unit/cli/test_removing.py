"""`agentfarm microserver remove`: what lives there is not mistaken for what merely runs there."""

from __future__ import annotations

from typing import Any

import pytest

from agentfarm_sdk.errors import Conflict
from jupyterhub_agentfarm.cli import joining


class Farm:
    def __init__(self, *there: dict[str, Any]) -> None:
        self.there = list(there)

    def request(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert (method, path, body) == ("POST", "/microservers/micro1/drain", {"dry_run": True})
        return {"items": self.there}


def test_a_server_that_is_there_away_from_its_files_is_no_workspace() -> None:
    away, lives = {"user": "agent-away", "scratch": True}, {"user": "agent-lives", "scratch": False}
    joining._empty(Farm(away), "micro1", "/microservers/micro1")  # type: ignore[arg-type]
    with pytest.raises(Conflict, match=r"workspaces live on micro1: agent-lives$"):
        joining._empty(Farm(away, lives), "micro1", "/microservers/micro1")  # type: ignore[arg-type]
