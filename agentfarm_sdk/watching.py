"""`watch(task)`: show what a task, a run or a batch does until it has ended."""

from __future__ import annotations

import sys
import time

from .batches import Batch
from .errors import Invalid
from .farm import Farm
from .shown.live import Following, Live, Progress, in_notebook, show
from .shown.records import RunRecord
from .task import Task


def watch(what: Task | RunRecord | Batch | str, *, timeout: float | None = None) -> None:
    """Show it in this cell while it goes on, and return at its end; in a terminal only what came of it is printed.

    what: a task, a run, a batch, or the id of a task or run. Ctrl-C stops watching, and nothing else.
    Raises TimeoutError: it has not ended after so many seconds.
    """
    if isinstance(what, str):
        what = _found(what)
    shown: Progress | Following
    if isinstance(what, Batch):
        shown = Progress(what)
        shown.ask()
    else:
        shown = following_of(what)
    if in_notebook():
        live = show(shown) if isinstance(shown, Following) else Live(shown.read, shown.bundle).start()
        wait_for(live, timeout)
        return
    until = None if timeout is None else time.monotonic() + timeout
    shown.read(lambda: until is not None and time.monotonic() > until, lambda: None)
    if not shown.ended:
        raise TimeoutError(f"it has not ended after {timeout} s")
    print(shown.bundle()["text/plain"], file=sys.stderr if isinstance(shown, Progress) else sys.stdout)


def following_of(what: Task | RunRecord) -> Following:
    if isinstance(what, Task):
        return Following(what._farm, {**what.data, "task_id": what.id})
    return Following(what._farm, run_id=what.id)


def wait_for(live: Live, timeout: float | None = None) -> None:
    """Wait for the end of what is shown. Raises TimeoutError, KeyboardInterrupt; then it is not followed any more."""
    try:
        if not live.wait(timeout):
            raise TimeoutError(f"it has not ended after {timeout} s")
    finally:
        live.close()


def _found(name: str) -> Task | RunRecord:
    if name.startswith("task-"):
        return Farm().task(name)
    if name.startswith("run-"):
        return Farm().run(name)
    raise Invalid(f"{name!r} is no task and no run", hint="task-… or run-…")
