"""Lets model servers remember over a restart of the service what they have said that they do not take."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ..errors import Transient
from ..store import refusals
from ..store.db import Database
from .proxy import Upstreams
from .upstreams.openai_compatible import OpenAICompatible

log = logging.getLogger(__name__)


class Memory:
    """What servers refuse, by their addresses."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self._writing: set[asyncio.Task[None]] = set()

    async def remind(self, upstreams: Upstreams) -> None:
        """Tell servers what they said before, and note what they say from now on. Raises Transient."""
        known = await self.db.read(lambda c: refusals.read(c, self.db.now()))
        for one in (route.upstream for route in upstreams.routes):
            if isinstance(one, OpenAICompatible):
                one.lacks |= {model: set(parts) for model, parts in known.get(one.settings.url, {}).items()}
                one.refused = self._noting(one.settings.url)

    def _noting(self, server: str) -> Callable[[str, str], None]:
        def note(model: str, part: str) -> None:
            writing = asyncio.create_task(self._note(server, model, part))
            self._writing.add(writing)
            writing.add_done_callback(self._writing.discard)

        return note

    async def _note(self, server: str, model: str, part: str) -> None:
        try:
            await self.db.write(lambda tx: refusals.add(tx, server, model, part))
        except Transient as error:  # it is known until the next start, and costs one attempt then
            log.warning("what %s does not take is not written down: %s", server, error.detail)

    async def close(self) -> None:
        await asyncio.gather(*self._writing)
