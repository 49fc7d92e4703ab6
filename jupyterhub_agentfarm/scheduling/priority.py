"""Which member of a pool takes a task, and when an agent's server is asked for again. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

BACKOFF = (2.0, 5.0, 10.0, 20.0, 40.0)  # seconds between two tries to start a server; the last repeats


def choose_member(members: Sequence[str], connected: Collection[str], load: Mapping[str, int]) -> str | None:
    """Return the member that can take a task soonest: connected first, then the least busy; None: the pool is empty."""
    return min(members, key=lambda name: (name not in connected, load.get(name, 0), name), default=None)


def next_try(tries: int) -> float:
    """Return the seconds to wait after the `tries`-th try (from 1)."""
    return BACKOFF[min(tries, len(BACKOFF)) - 1]
