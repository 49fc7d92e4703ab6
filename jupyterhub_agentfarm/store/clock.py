"""The farm's one clock: it goes evenly, whatever is done to the machine's; a jump is taken over in one step that is recorded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Clock:
    """Epoch seconds that start at `now` and go with the monotonic clock until they are moved. For several threads.

    A jump is written before it is heard of: the writer's clock leads by it until those who hear of it move along.
    """

    def __init__(self, now: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._begun = (now, monotonic())
        self._set = (*self._begun, 0.0)  # replaced whole: a reader in another thread sees all or none
        self._moving = threading.Lock()

    def now(self) -> float:
        wall, since, _ = self._set
        return wall + self._monotonic() - since

    def ahead(self) -> float:
        """Return the writer's time: now, with the jumps that are written and not yet heard of."""
        wall, since, lead = self._set
        return wall + self._monotonic() - since + lead

    def even(self) -> float:
        """Return the same without the jumps that were taken over: for what lasts so many seconds and no moment."""
        wall, since = self._begun
        return wall + self._monotonic() - since

    def lead(self, seconds: float) -> None:
        """Move the writer's time: the jump is written."""
        with self._moving:
            wall, since, lead = self._set
            self._set = (wall, since, lead + seconds)

    def follow(self, seconds: float) -> None:
        """Move everybody's time along with the writer's."""
        with self._moving:
            wall, since, lead = self._set
            self._set = (wall + seconds, since, lead - seconds)

    def move(self, seconds: float) -> None:
        """Move both at once."""
        with self._moving:
            wall, since, lead = self._set
            self._set = (wall + seconds, since, lead)
