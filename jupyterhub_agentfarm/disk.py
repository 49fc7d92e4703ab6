"""Whether the ledger's disk has room for new runs. With little left nothing new is taken up, so that what is under way can end."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

log = logging.getLogger(__name__)
SHARE = 0.05  # of the disk
ENOUGH = 2 << 30  # bytes: with so many free a large disk may be as full as it is
LOOK_SECONDS = 1.0


def shortage(free: int, total: int) -> str:
    """Say that too little is free, "" where there is enough. Bytes. Pure."""
    if free >= min(total * SHARE, ENOUGH):
        return ""
    return f"{100 * free / max(1, total):.1f} % are free: nothing new is taken up until there is more, what is under way goes on"


class Disk:
    """The disk on which a folder is, looked at once a second at most."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._said, self._looked = "", -LOOK_SECONDS

    def full(self) -> str:
        """Return why nothing new may be taken up, "" where there is room."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked, before = now, self._said
            self._said = self._look()
            if self._said and not before:
                log.error("of the disk of %s only %s", self.folder, self._said)
            elif before and not self._said:
                log.info("the disk of %s has room again", self.folder)
        return self._said

    def _look(self) -> str:
        try:
            usage = shutil.disk_usage(self.folder)
        except OSError:  # it is gone: the database says so itself
            return ""
        return shortage(usage.free, usage.total)
