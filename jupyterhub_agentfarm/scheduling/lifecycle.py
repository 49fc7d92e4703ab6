"""What is to be done for an agent whose runs wait. Pure: the scheduler acts on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .priority import next_try

ASSIGNED_SECONDS = 300.0  # how long an agent's server may take to come up and claim


@dataclass(frozen=True)
class Attempts:
    """How often a server was asked for, and when first and last (monotonic seconds)."""

    first: float
    last: float
    tries: int = 0
    why: str = ""  # what the latest try was answered
    refused: bool = False  # the latest try


Move = Literal["none", "start", "fail"]


def next_move(connected: bool, attempts: Attempts | None, now: float, deadline: float = ASSIGNED_SECONDS) -> Move:
    """Return what an agent with waiting runs needs: nothing (it listens, or its server is on the way), a start, an end."""
    if connected:
        return "none"
    if attempts is None or attempts.tries == 0:
        return "start"
    if now - attempts.first >= deadline:
        return "fail"
    return "start" if now - attempts.last >= next_try(attempts.tries) else "none"
