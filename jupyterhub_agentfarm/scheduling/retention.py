"""Erases the bodies of old events by the operator's rules. Runs that have not ended are never touched, nor what their threads stand on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from ..errors import AgentFarmError, NotFound, StartError
from ..store import retention
from ..store.db import Database
from ..store.erasure import KEPT

log = logging.getLogger(__name__)
EACH = 3600.0  # seconds


def checked(rules: Mapping[str, object]) -> dict[str, float]:
    """Return the rules: kind -> days. Raises StartError."""
    found = {}
    for kind, days in rules.items():
        if not isinstance(days, int | float) or isinstance(days, bool) or not days > 0:
            raise StartError(f"c.AgentFarm.retention: {days!r} days for {kind}", hint="a number of days above 0")
        if kind in KEPT:
            raise StartError(f"c.AgentFarm.retention: bodies of {kind} are kept", hint="they hold no words of anybody")
        if kind != "*" and "." not in kind:
            raise StartError(f"c.AgentFarm.retention: {kind!r} is no kind of event", hint='"tool.succeeded", or "*"')
        found[kind] = float(days)
    return found


class Retention:
    """`rules`: kind of event, or "*" for every other -> days after the run's end. `now`: the clock, epoch seconds."""

    def __init__(
        self, db: Database, rules: Mapping[str, float], now: Callable[[], float] | None = None, each: float = EACH
    ) -> None:
        self.db, self.rules, self.now, self.each = db, dict(rules), now or db.now, each

    async def run(self) -> None:
        """Apply the rules for ever; a database that is away is waited for."""
        while True:
            await asyncio.sleep(min(self.each, 60.0))  # a farm that was just started has more urgent things to do
            try:
                if count := await self.apply():
                    log.info("retention: %d bodies erased", count)
            except AgentFarmError as error:
                log.warning("no retention now: %s", error.detail)
            await asyncio.sleep(max(0.0, self.each - 60.0))

    async def apply(self) -> int:
        """Erase what is due; return how many bodies went. Raises Transient."""
        done = await self.db.read(retention.progress)
        marks = dict(done.marks) if done.rules == self.rules else {}
        if not self.rules and not done.rules:
            return 0
        count = 0
        for kind, days in self.rules.items():
            erased, marks[kind] = await self._rule(kind, self.now() - days * retention.DAY, marks.get(kind, 0.0))
            count += erased
        now = retention.Progress(self.rules, marks)
        if now != done:
            await self.db.write(lambda tx: retention.keep(tx, now))
        return count

    async def _rule(self, kind: str, upto: float, above: float) -> tuple[int, float]:
        """Apply one rule; return how many bodies went, and up to which end all runs are done."""
        count, mark, after = 0, max(above, upto), (0.0, 0)
        while page := await self.db.read(lambda c, after=after: retention.due(c, above, upto, after)):  # type: ignore[misc]
            for one in page:
                if one.busy:
                    mark = min(mark, one.ended_at - 0.001)
                    continue
                try:
                    count += await self.db.write(
                        lambda tx, one=one: retention.erase(tx, one.run_id, kind, self.rules)  # type: ignore[misc]
                    )
                except NotFound:  # somebody deleted it meanwhile
                    continue
            after = (page[-1].ended_at, page[-1].run_no)
        return count, mark
