"""Strikes at the very moment: the ledger is read from outside, and what is wanted is done when a kind of event has just come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

from agentfarm_sdk.protocol import Event

from ..store import changes, engines

LOOK_SECONDS = 0.004


class Tail:
    """The newest events of a ledger, by its database: the service need not answer."""

    def __init__(self, url: str) -> None:
        writer, self._engine = engines.make(url)
        writer.dispose()
        with self._engine.connect() as connection:
            self.place = changes.latest(connection)

    def new(self) -> list[tuple[str, Event]]:
        """Return (agent, event) of what came since; nothing while the database is away."""
        try:
            with self._engine.connect() as connection:
                found, self.place = changes.after(connection, self.place, owner=None, agents=())
        except sa.exc.SQLAlchemyError:
            return []
        return [(str(one.run["agent"]), one.event) for one in found]

    def close(self) -> None:
        self._engine.dispose()


class Aim:
    """Waits in a thread of its own for an event of that kind and does `strike(agent, event)` at once. `done` is set behind it.

    `strike` returns what heals it, or None: not this one, the next.
    """

    def __init__(self, url: str, kind: str, strike: Callable[[str, Event], Callable[[], None] | None]) -> None:
        self.kind, self._strike, self._tail = kind, strike, Tail(url)
        self.done, self._given_up = threading.Event(), False
        self.event: Event | None = None
        self.heal: Callable[[], None] = lambda: None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        try:
            while not self._given_up:
                for agent, event in self._tail.new():
                    if event.kind == self.kind and (heal := self._strike(agent, event)) is not None:
                        self.event, self.heal = event, heal
                        return
                time.sleep(LOOK_SECONDS)
        except Exception as error:  # told to who waits
            self.error = error
        finally:
            self._tail.close()
            self.done.set()

    def stop(self) -> None:
        """Look no more, where the event has not come."""
        self._given_up = True
        self._thread.join()
