"""The events of a run's latest step, and its row, say of its open calls what all of its events say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from test_fold import Raw, event, events, histories
from test_moves import QUEUED

from agentfarm_sdk.fold import Fold
from agentfarm_sdk.protocol import Event
from jupyterhub_agentfarm.records import Run
from jupyterhub_agentfarm.store import latest
from jupyterhub_agentfarm.store.ledger import moves


def fences(history: list[Raw]) -> list[Raw]:
    """Number the leases as the store does."""
    told, fence = list[Raw](), 0
    for kind, call, body in history:
        fence += kind == "run.leased"
        told.append((kind, call, {**body, "fence": fence} if kind == "run.leased" else body))
    return told


def row(whole: list[Event], fold: Fold) -> Run:
    moved = replace(QUEUED, **moves(QUEUED, whole, 1.0))
    return replace(moved, seq=fold.seq, fence=fold.fence, lease_until=1.0 if fold.held else None)


def step(whole: list[Event]) -> list[Event]:
    begins = [place for place, one in enumerate(whole) if one.kind in latest.REPLIES]
    return whole[begins[-1] if begins else 0 :]


@given(histories)
def test_the_latest_step_says_of_the_open_calls_what_the_whole_says(history: list[Raw]) -> None:
    whole = events(fences(history))
    fold = Fold().apply_all(whole)
    found = latest.fold(row(whole, fold), step(whole))
    alike: dict[str, Any] = {"step": 0}
    assert [replace(one, **alike) for one in found.open_calls] == [replace(one, **alike) for one in fold.open_calls]
    assert (found.open_for, found.status, found.waiting) == (fold.open_for, fold.status, fold.waiting)
    assert (found.held, found.cancel, found.fence, found.seq) == (fold.held, fold.cancel, fold.fence, fold.seq)
    follows = event(fold.seq + 1, "run.requeued", {"proof": "dead"})
    found.apply(follows)
    fold.apply(follows)
    assert [one.proof for one in found.open_calls] == [one.proof for one in fold.open_calls], (
        "a worker's death is its calls'"
    )
