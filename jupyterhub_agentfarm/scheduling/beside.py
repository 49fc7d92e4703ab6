"""Work done beside a loop: one thing at a time for each name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Beside:
    """What is under way, by name. What can be expected to fail is handled by the work itself; a mistake is raised by `check`."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._mistake: BaseException | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._tasks

    def begin(self, name: str, work: Callable[..., Coroutine[Any, Any, None]], *given: Any) -> None:
        """Begin `work(*given)`, unless some of that name is under way."""
        if name not in self._tasks:
            self._tasks[name] = asyncio.create_task(work(*given), name=name)
            self._tasks[name].add_done_callback(lambda task: self._over(name, task))

    def check(self) -> None:
        """Raise the mistake by which some work has ended: the loop ends too, loudly."""
        if self._mistake is not None:
            raise self._mistake

    async def stop(self) -> None:
        """Break off what is under way."""
        for one in (tasks := [*self._tasks.values()]):
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _over(self, name: str, task: asyncio.Task[None]) -> None:
        del self._tasks[name]
        if not task.cancelled():
            self._mistake = self._mistake or task.exception()
