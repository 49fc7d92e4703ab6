"""Which member of a pool takes a task, which are started for it, and when a server is asked for again. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..store.pools import Busy

if TYPE_CHECKING:
    from .lifecycle import Attempts

AHEAD = 2  # runs that wait for one of the agent's kernels: more stay with the pool, where another member may be faster
BACKOFF = (2.0, 5.0, 10.0, 20.0, 40.0)  # seconds between two tries to start a server; the last repeats
ON_ITS_WAY = 4  # tries, 37 s, for which a server that was started is expected to come


def choose_member(listening: Sequence[str], busy: Mapping[str, Busy]) -> str | None:
    """Return the member that can take a task soonest, of those that listen: the least busy; None: none has room."""
    free = [name for name in listening if busy.get(name, Busy()).unclaimed < AHEAD]
    return min(free, key=lambda name: (busy.get(name, Busy()).load, name), default=None)


def to_start(stopped: Sequence[str], attempts: Mapping[str, Attempts], tasks: int) -> list[str]:
    """Return the members whose servers are wanted for so many tasks: those on their way, then those tried the least."""
    known = {name: attempts[name] for name in stopped if name in attempts}
    coming = [name for name, one in known.items() if not one.refused and one.tries <= ON_ITS_WAY]
    others = sorted(set(stopped) - set(coming), key=lambda name: (known[name].tries if name in known else 0, name))
    return [*coming, *others[: max(0, tasks - len(coming))]]


def next_try(tries: int) -> float:
    """Return the seconds to wait after the `tries`-th try (from 1)."""
    return BACKOFF[min(tries, len(BACKOFF)) - 1]
