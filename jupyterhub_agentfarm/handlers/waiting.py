"""Supervisors that listen for runs: woken at the commit that makes a run claimable, so nothing polls on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from agentfarm_sdk.protocol import ENDED, Claim, ClaimRequest

from .. import runtokens
from ..records import Committed, Run
from ..store import definitions, leases
from ..store.db import Database, Tx

MAX_WAIT = 60.0  # seconds that one claim may wait
SEEN_SECONDS = 5.0  # after a claim was answered its supervisor is still there, for so long
WAKES = frozenset({"run.created", "run.requeued", "run.resumed", *(f"run.{end}" for end in ENDED)})


class Claims:
    """Hands runs to the supervisors of their agents."""

    def __init__(self, db: Database, key: bytes, lease: float) -> None:
        self.db, self.key, self.lease = db, key, lease
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._connected: dict[str, int] = {}
        self._last: dict[str, float] = {}
        db.on_commit(self._heard)

    def _heard(self, committed: list[Committed]) -> None:
        for one in committed:
            if any(event.kind in WAKES for event in one.events):
                self.wake(one.agent)

    def wake(self, agent: str) -> None:
        """Have the agent's supervisors look again."""
        for waiter in self._waiting.get(agent, ()):
            waiter.set()

    def seen(self, agent: str) -> bool:
        """Say whether a supervisor of the agent listens now, or did a moment ago."""
        return (
            agent in self._waiting
            or agent in self._connected
            or (time.monotonic() - self._last.get(agent, -1e9) < SEEN_SECONDS)
        )

    @contextmanager
    def connected(self, agent: str) -> Iterator[None]:
        """Count a supervisor's WebSocket while the block lasts."""
        self._connected[agent] = self._connected.get(agent, 0) + 1
        try:
            yield
        finally:
            self._connected[agent] -= 1
            if not self._connected[agent]:
                del self._connected[agent]

    async def take(self, agent: str, request: ClaimRequest) -> Claim | None:
        """Give the next run of the agent to a worker, waiting for one up to `wait` seconds; None: there was none."""
        deadline = time.monotonic() + min(max(0.0, request.wait), MAX_WAIT)
        mine = asyncio.Event()
        self._waiting.setdefault(agent, set()).add(mine)
        try:
            while True:
                mine.clear()
                if (claim := await self._try(agent, request)) is not None:
                    return claim
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                try:
                    await asyncio.wait_for(mine.wait(), left)
                except asyncio.TimeoutError:
                    return None
        finally:
            self._last[agent] = time.monotonic()
            self._waiting[agent].discard(mine)
            if not self._waiting[agent]:
                del self._waiting[agent]

    async def _try(self, agent: str, request: ClaimRequest) -> Claim | None:
        def claim(tx: Tx) -> tuple[Run, bool] | None:
            run = leases.claim(tx, agent, request.worker, request.claim_id, self.lease)
            return (run, definitions.get(tx.connection, run.definition_hash).fresh_kernel) if run else None

        taken = await self.db.write(claim)
        if taken is None:
            return None
        run, fresh = taken
        token = runtokens.mint(self.key, epoch=run.epoch, run=run.run_id, fence=run.fence, now=self.db.even())
        return Claim(
            run=run.run_id, fence=run.fence, token=token, lease=self.lease, agent=agent, definition=run.definition_hash,
            fresh_kernel=fresh,
        )  # fmt: skip
