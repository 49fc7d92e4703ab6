"""A child draws on its parent's limits: tokens and cost of a version bound a run together with all that it delegates.

Asked before each model request of a run that was delegated or has delegated; nothing of it concerns any other. What a family
has used is read from the ledger once and counted on in memory, until the run that bounds it has ended. What its requests under
way may use is reserved, so that side by side they overshoot a limit by no more than a single run does: by one reply.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from agentfarm_sdk.protocol import ENDED
from agentfarm_sdk.waiting import within

from ..errors import LimitReached
from ..records import Committed
from ..store import families
from ..store.db import Database
from ..store.families import Member, Used
from .budgets import Wish
from .live import LiveRun

_ENDS = frozenset(f"run.{end}" for end in ENDED)


class Families:
    def __init__(self, db: Database) -> None:
        self.db = db
        self._lines: dict[
            str, list[Member]
        ] = {}  # of each run that was asked about: itself, and those that it works for
        self._used: dict[str, Used] = {}  # by the run that bounds a family
        self._reading: dict[str, asyncio.Task[Used]] = {}
        self._late: dict[str, list[tuple[str, int, int, float]]] = {}  # counted while a family is being read
        self._asking: dict[
            str, dict[object, Wish]
        ] = {}  # by the run that bounds a family: its runs' requests under way
        self._changed = asyncio.Event()
        db.on_commit(self._heard)

    @asynccontextmanager
    async def turn(self, live: LiveRun, wish: Wish | None, still: Callable[[], None]) -> AsyncIterator[None]:
        """Hold what a request may use while the block lasts; wait for it while only requests under way stand in the way.

        wish: None, where the run has no family. `still` is asked meanwhile whether the run may go on. Raises LimitReached.
        """
        bounds: list[Member] = []
        while wish is not None:
            bounds = await self.check(live)
            if all(self._fits(one, wish) for one in bounds):
                break
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._changed.wait(), 1.0)
            still()
        key = object()
        for one in bounds:
            if wish is not None:
                self._asking.setdefault(one.run_id, {})[key] = wish
        try:
            yield
        finally:
            for one in bounds:
                del self._asking[one.run_id][key]
                if not self._asking[one.run_id]:
                    del self._asking[one.run_id]
            if bounds:
                self._changed.set()
                self._changed = asyncio.Event()

    def _fits(self, member: Member, wish: Wish) -> bool:
        """Say whether a request may go beside those under way: alone it may use more than is left, as any run's."""
        others, used = self._asking.get(member.run_id), self._used.get(member.run_id)
        if not others or used is None:
            return True
        every = [wish, *others.values()]
        sums = {unit: sum(one.amount(unit, one.tokens_out) for one in every) for unit in ("tokens", "usd")}
        tokens, cost = member.limits.tokens, member.limits.cost
        return (tokens is None or used.tokens + sums["tokens"] <= tokens) and (
            cost is None or used.cost + sums["usd"] <= cost
        )

    async def check(self, live: LiveRun) -> list[Member]:
        """Return the runs whose limits bound this one with others.

        Raises LimitReached where it, or one that it works for, has used with all it delegated what it may.
        """
        if not (live.parent or live.delegated):
            return []
        bounds, run_id = list[Member](), live.run.run_id
        if run_id not in self._lines:
            self._lines[run_id] = await self.db.read(lambda c: families.line(c, run_id))
        for place, member in enumerate(self._lines[run_id]):
            if (member.limits.tokens, member.limits.cost) == (None, None) or (place == 0 and not live.delegated):
                continue  # its own use alone is looked at anyway
            _within(member, await self._of(member.run_id), own=place == 0)
            bounds.append(member)
        return bounds

    async def _of(self, run_id: str) -> Used:
        if run_id not in self._used:
            if run_id not in self._reading:
                self._reading[run_id] = asyncio.create_task(self._read(run_id))
            return await asyncio.shield(self._reading[run_id])
        return self._used[run_id]

    async def _read(self, run_id: str) -> Used:
        self._late[run_id] = []
        try:
            found = await self.db.read(lambda c: families.used(c, run_id))
            for member, seq, tokens, cost in self._late[run_id]:
                if seq > found.seen.get(member, 0):
                    found.tokens, found.cost = found.tokens + tokens, found.cost + cost
            self._used[run_id] = found
            return found
        finally:
            del self._late[run_id], self._reading[run_id]

    def count(self, run_id: str, seq: int, tokens: int, cost: float) -> None:
        """Count a reply that was recorded as event `seq` of a run, for it and those that it works for."""
        for member in self._lines.get(run_id, ()):
            if (found := self._used.get(member.run_id)) is not None:
                found.tokens, found.cost = found.tokens + tokens, found.cost + cost
            elif member.run_id in self._late:
                self._late[member.run_id].append((run_id, seq, tokens, cost))

    def _heard(self, committed: list[Committed]) -> None:
        for one in committed:
            if one.events[-1].kind in _ENDS:
                self._lines.pop(one.run_id, None)
                self._used.pop(one.run_id, None)


def _within(member: Member, used: Used, *, own: bool) -> None:
    who = "this run" if own else f"run {member.run_id} of {member.agent}, which delegated this,"
    for name, limit, spent in (("tokens", member.limits.tokens, used.tokens), ("cost", member.limits.cost, used.cost)):
        if limit is not None and spent >= limit:
            raise LimitReached(
                f"{who} may use {limit:g} {'USD' if name == 'cost' else name} with all that it delegates",
                hint=f"raise limits.{name} of the agent {member.agent}, or give it less to do",
                limit=name,
            )
