"""Waiting with a limit, without losing a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(work: Awaitable[T], seconds: float | None) -> T:
    """Return what `work` comes to; cancel it after so many seconds (None: never). A future that is given is cancelled too.

    As asyncio.wait_for, which before Python 3.12 forgets that it was cancelled where `work` ends in the same moment: a loop
    around it then goes on for ever. Raises asyncio.TimeoutError, and what `work` raises.
    """
    doing = asyncio.ensure_future(work)
    try:
        await asyncio.wait({doing}, timeout=seconds)
    except asyncio.CancelledError:
        await _end(doing)
        raise
    if not doing.done():
        await _end(doing)
        if doing.cancelled():
            raise asyncio.TimeoutError
    return doing.result()


async def _end(doing: asyncio.Future[T]) -> None:
    doing.cancel()
    await asyncio.wait({doing})
    if not doing.cancelled():
        doing.exception()  # it was looked at
