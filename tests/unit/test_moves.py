"""A run's row says what its events say: the store's `moves` and the SDK's fold agree over any history."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from test_fold import Raw, events, histories

from agentfarm_sdk.fold import Fold
from jupyterhub_agentfarm.records import Run
from jupyterhub_agentfarm.store.ledger import moves

QUEUED = Run(
    run_no=1, run_id="run-1", task_id="task-1", agent="a", owner="o", thread_id=None, version=1, definition_hash="h",
    mode="live", epoch="e", bound=False, status="queued", waiting=None, fence=0, last_n=0, seq=0, head="", worker=None,
    claim_id=None, lease_until=None, cancel=None, created_at=0.0, ended_at=None,
)  # fmt: skip


@given(histories, st.data())
def test_the_row_of_a_run_says_what_its_events_fold_to(history: list[Raw], data: Any) -> None:
    row, fold, whole = QUEUED, Fold(), events(history)
    while whole:  # however the events are batched
        size = data.draw(st.integers(1, len(whole)))
        batch, whole = whole[:size], whole[size:]
        row = replace(row, **moves(row, batch, 1.0))
        fold.apply_all(batch)
        assert (row.status, row.waiting, row.cancel) == (fold.status, fold.waiting, fold.cancel)
        row = replace(row, lease_until=1.0 if fold.held else None)  # what claiming writes beside the event
