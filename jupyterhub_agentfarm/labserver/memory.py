"""Memory of a server: its kernels die of its lack before the server does, and it is said what they died of.

Linux kills one process of those that share a limit, by their size and `oom_score_adj` (proc(5), 0 to 1000: thousandths of the limit that are
added to the size). How often it has done so is counted by their control group, and by the whole system where there is none.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from jupyter_server.services.kernels.kernelmanager import ServerKernelManager

FIRST = 500  # more than what the server itself has
GROUPS, PROC = Path("/sys/fs/cgroup"), Path("/proc")
SAID = "it was killed for want of memory: its server may take no more; agentfarm agent resources AGENT --memory gives it more"


def dies_first(pid: int, proc: Path = PROC) -> None:
    """Let a process, and what it starts from now on, be killed for memory before this one. Where that may not be said it stays."""
    with contextlib.suppress(OSError, ValueError):
        ours = int((proc / "self" / "oom_score_adj").read_text())
        (proc / str(pid) / "oom_score_adj").write_text(str(min(1000, max(0, ours) + FIRST)))


class DiesFirst(ServerKernelManager):
    """Manages a kernel that dies before its server, also when it is started anew."""

    async def start_kernel(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        started = await super().start_kernel(*args, **options)
        self._mark()
        return started

    async def restart_kernel(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        started = await super().restart_kernel(*args, **options)
        self._mark()
        return started

    def _mark(self) -> None:
        process = getattr(self.provisioner, "process", None)
        if process is not None:  # a provisioner of an operator's may have none here
            dies_first(process.pid)


class Kills:
    """Counts processes that were killed for memory where this server is."""

    def __init__(self, groups: Path = GROUPS, proc: Path = PROC) -> None:
        self._places = [*_places(groups, proc), proc / "vmstat"]
        self._seen = self._count()

    def fresh(self) -> bool:
        """Say whether there was one since the last question."""
        before, self._seen = self._seen, self._count()
        return self._seen > before

    def _count(self) -> int:
        for path in self._places:
            with contextlib.suppress(OSError, ValueError):
                for line in path.read_text().splitlines():
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        return 0


def _places(groups: Path, proc: Path) -> list[Path]:
    """Return where the control group of this process counts, by version 1 or 2."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "memory":
            found.append(groups / "memory" / group.lstrip("/") / "memory.oom_control")
        elif not controllers:
            found.append(groups / group.lstrip("/") / "memory.events")
    return found
