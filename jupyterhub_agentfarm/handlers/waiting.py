"""Supervisors that listen for runs: woken at the commit that makes a run claimable, so nothing polls on the way.

Where one listens for the agent of a task that is just submitted, it looks in the same transaction: a run's creation and its
lease are one commit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from agentfarm_sdk.protocol import ENDED, Claim, ClaimRequest

from .. import runtokens
from ..errors import Conflict, Transient
from ..records import Committed, Run
from ..store import definitions, leases
from ..store.db import Database, Tx

MAX_WAIT = 60.0  # seconds that one claim may wait
SEEN_SECONDS = 5.0  # after a claim was answered its supervisor is still there, for so long
WAKES = frozenset({"run.created", "run.requeued", "run.resumed", *(f"run.{end}" for end in ENDED)})
Taken = tuple[Run, bool]  # the run, and whether its version wants a kernel of its own


class _Listener:
    """A claim that waits: it looks when it is told to, one look at a time, until it has found a run."""

    def __init__(self, submit: Callable[[], asyncio.Future[Taken | None]]) -> None:
        self._submit = submit
        self._looking = self._again = self._over = False
        self._answer: asyncio.Future[Taken | None] = asyncio.get_running_loop().create_future()

    def look(self) -> None:
        """Put a look into the writer's queue now; where one is there already, another one follows it."""
        if self._over or self._answer.done():
            return
        self._again = self._looking
        if self._looking:
            return
        try:
            self._submit().add_done_callback(self._looked)
        except Transient as error:  # the service stops
            self._answer.set_exception(error)
        else:
            self._looking = True

    def _looked(self, done: asyncio.Future[Taken | None]) -> None:
        self._looking = False
        error = None if done.cancelled() else done.exception()
        if self._answer.done():
            return  # nobody waits any more; the same claim, asked again, gets what was found
        if error is not None:
            self._answer.set_exception(error)
        elif self._over or done.result() is not None:
            self._answer.set_result(done.result())
        elif self._again:
            self.look()

    def _expire(self) -> None:
        self._over = True
        if not (self._looking or self._answer.done()):  # what is under way may find one
            self._answer.set_result(None)

    async def found(self, seconds: float) -> Taken | None:
        """Wait so long for a run, and for a look that is under way then. Raises what hindered a look."""
        timer = asyncio.get_running_loop().call_later(seconds, self._expire)
        try:
            return await self._answer
        finally:
            self._over = True
            timer.cancel()


class Claims:
    """Hands runs to the supervisors of their agents."""

    def __init__(
        self,
        db: Database,
        key: bytes,
        lease: float,
        handed: Callable[[str], None],
        full: Callable[[], str] = lambda: "",
    ) -> None:
        """`handed(run)` is told of each run that is given away: its worker is about to open it. `full()` says why none is now."""
        self.db, self.key, self.lease, self._handed, self.full = db, key, lease, handed, full
        self._waiting: dict[str, set[_Listener]] = {}
        self._connected: dict[str, int] = {}
        self._last: dict[str, float] = {}
        self._resting: set[str] = set()  # agents whose servers are about to be started anew
        self.held: dict[str, str] = {}  # agents that take no run for now, and why
        self.scratch: set[str] = set()  # agents whose servers are away from their files
        db.on_commit(self._heard)

    def _heard(self, committed: list[Committed]) -> None:
        for one in committed:
            if any(event.kind in WAKES for event in one.events):
                self.wake(one.agent)

    def wake(self, agent: str) -> None:
        """Have the agent's supervisors look again."""
        for listener in self._waiting.get(agent, ()):
            listener.look()

    @contextmanager
    def resting(self, agent: str) -> Iterator[None]:
        """Let the agent take no new run while the block lasts. Raises Conflict: somebody does that already."""
        if agent in self._resting:
            raise Conflict(f"the server of {agent} is being started anew", hint="wait a moment")
        self._resting.add(agent)
        try:
            yield
        finally:
            self._resting.discard(agent)
            self.wake(agent)

    def hold(self, agents: Mapping[str, str]) -> None:
        """Let these agents, and no others, take no new run for now; for each the reason."""
        freed, self.held = self.held.keys() - agents.keys(), dict(agents)
        for agent in freed:
            self.wake(agent)

    def expect(self, agents: Iterable[str]) -> None:
        """Have their supervisors look right behind the write that the caller is about to ask for: in its transaction."""
        for agent in agents:
            if agent in self._waiting:
                asyncio.get_running_loop().call_soon(self.wake, agent)

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
        (self.scratch.add if request.scratch else self.scratch.discard)(agent)
        listener = _Listener(lambda: self.db.submit(lambda tx: self._claim(tx, agent, request)))
        self._waiting.setdefault(agent, set()).add(listener)
        try:
            listener.look()
            taken = await listener.found(min(max(0.0, request.wait), MAX_WAIT))
        finally:
            self._last[agent] = time.monotonic()
            self._waiting[agent].discard(listener)
            if not self._waiting[agent]:
                del self._waiting[agent]
        if taken is None:
            return None
        run, fresh = taken
        asyncio.get_running_loop().call_soon(self._handed, run.run_id)  # when the answer is on its way
        token = runtokens.mint(self.key, epoch=run.epoch, run=run.run_id, fence=run.fence, now=self.db.even())
        return Claim(
            run=run.run_id, fence=run.fence, token=token, lease=self.lease, agent=agent, definition=run.definition_hash,
            fresh_kernel=fresh,
        )  # fmt: skip

    def _claim(self, tx: Tx, agent: str, request: ClaimRequest) -> Taken | None:
        new = not (self.full() or agent in self.held or agent in self._resting)
        run = leases.claim(tx, agent, request.worker, request.claim_id, self.lease, new=new, scratch=request.scratch)
        return (run, definitions.get(tx.connection, run.definition_hash).fresh_kernel) if run else None
