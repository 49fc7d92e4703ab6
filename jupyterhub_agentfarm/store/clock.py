"""The farm's one clock: it goes evenly, whatever is done to the machine's; a jump is taken over in one step that is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Epoch seconds that start at `now` and go with the monotonic clock until they are moved. For several threads."""

    def __init__(self, now: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._begun = self._set = (now, monotonic())  # replaced whole: a reader in another thread sees both or neither

    def now(self) -> float:
        wall, since = self._set
        return wall + self._monotonic() - since

    def even(self) -> float:
        """Return the same without the jumps that were taken over: for what lasts so many seconds and no moment."""
        wall, since = self._begun
        return wall + self._monotonic() - since

    def move(self, seconds: float) -> None:
        self._set = (self.now() + seconds, self._monotonic())
