"""Tells JupyterHub's idle culler that an agent works, though nobody has a page open.

The hub reads `last_activity_times` of the server's settings every few minutes. Only a run that makes progress under a
live lease counts: a stuck agent looks as idle as it is. In a person's server it is the lease of a run in a notebook.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any


def mark(settings: dict[str, Any]) -> None:
    """Say that a run of this server's agent made progress just now."""
    settings["last_activity_times"]["agentfarm"] = datetime.now(timezone.utc)
