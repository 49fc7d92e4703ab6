"""What changes while it is looked at: outputs of a notebook, updated in place; a line in a terminal.

An output is followed by two threads: one reads what the farm sends, one draws, a few times a second at most. Both end with what
they show, when it is closed, and when the cell that it stands in runs again.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from ..errors import AgentFarmError
from ..protocol import ENDED, Event
from .markup import el, page
from .runs import run_bundle
from .story import Story
from .things import batch_bundle, batch_counts, batch_line, task_bundle

Bundle = dict[str, str]
SLICE = 5.0  # seconds of a quiet stream after which one looks whether anybody still looks
LOOKS_OFTEN = 0.15  # seconds between two drawings
LARGE = 200_000  # characters of an output that is drawn more rarely


class Farm(Protocol):
    """What is asked of farm.Farm here."""

    @property
    def page(self) -> str: ...
    def request(self, method: str, path: str) -> Any: ...
    def events(self, run_id: str, after: int = 0, follow: bool = False, timeout: float | None = None) -> Iterator[Event]: ...  # fmt: skip


F = TypeVar("F", bound="Follower")
Read = Callable[[Callable[[], bool], Callable[[], None]], None]


class Closes(Protocol):
    def close(self) -> None: ...


def in_notebook() -> bool:
    """Say whether a kernel's front end shows what is displayed. (IPython is not imported for it.)"""
    return _shell() is not None


def _shell() -> Any:
    """Return the kernel's shell; None in a terminal and outside IPython."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None


# -- outputs -------------------------------------------------------------------------------------------------------


class Output:
    """One output of a cell, which can be drawn again, from any thread."""

    def __init__(self, bundle: Bundle) -> None:
        self._id = uuid.uuid4().hex
        self._display(bundle, update=False)

    def update(self, bundle: Bundle) -> None:
        self._display(bundle, update=True)

    def _display(self, bundle: Bundle, update: bool) -> None:
        from IPython.display import display

        show_now: Any = display  # IPython has no types for it
        show_now(bundle, raw=True, display_id=self._id, update=update)


class Follower:
    """Draws whenever what is shown has changed, until that has ended, or nobody looks any more.

    `read(stopped, changed)` blocks: it keeps up to date what `draw(trouble)` draws, and returns at the end; draw returns how many
    characters it drew, `trouble` says why nothing is followed any more.
    """

    def __init__(self, read: Read, draw: Callable[[str], int]) -> None:
        self._read, self._draw = read, draw
        self._closed, self._changed, self.over = threading.Event(), threading.Event(), threading.Event()
        self._trouble = ""
        kept_by_cell(self)

    def start(self: F) -> F:
        for work, name in ((self._reading, "agentfarm-reads"), (self._drawing, "agentfarm-draws")):
            threading.Thread(target=work, name=name, daemon=True).start()
        return self

    def close(self) -> None:
        """Stop looking: it is drawn once more, and stays so."""
        self._closed.set()
        self._changed.set()

    def wait(self, timeout: float | None = None) -> bool:
        return self.over.wait(timeout)

    def _reading(self) -> None:
        try:
            self._read(self._closed.is_set, self._changed.set)
        except AgentFarmError as error:
            self._trouble = f"this is not followed any more: {error.detail}. {error.hint}".rstrip(". ")
        finally:
            self.close()

    def _drawing(self) -> None:
        try:
            last = False
            while not last:
                self._changed.wait()
                self._changed.clear()
                last = self._closed.is_set()
                size = self._draw(self._trouble)
                self._closed.wait(LOOKS_OFTEN if size < LARGE else 1.0)
        finally:
            self.over.set()


class Live(Follower):
    """An output of a cell that is followed."""

    def __init__(self, read: Read, bundle: Callable[[], Bundle]) -> None:
        output = Output(bundle())

        def draw(trouble: str) -> int:
            drawn = bundle()
            if trouble:
                drawn = {**drawn, "text/html": drawn["text/html"] + page(el("p", trouble, class_="afo-note"))}
            output.update(drawn)
            return len(drawn["text/html"])

        super().__init__(read, draw)


# -- which cell an output stands in ----------------------------------------------------------------------------------

_of_cells: dict[str, weakref.WeakSet[Closes]] = {}  # what has ended leaves by itself
_watched: list[Any] = []  # the shell whose cells are watched


def kept_by_cell(thing: Closes) -> None:
    """Close a thing when the cell that shows it now runs again."""
    shell = _shell()
    if shell is None:
        return
    if shell not in _watched:
        _watched[:] = [shell]
        shell.events.register("pre_run_cell", _runs_again)
    if cell := _cell(shell):
        _of_cells.setdefault(cell, weakref.WeakSet()).add(thing)


def _cell(shell: Any) -> str:
    parent = shell.kernel.get_parent()
    return str((parent.get("metadata") or {}).get("cellId") or "") if isinstance(parent, Mapping) else ""


def _runs_again(info: Any) -> None:
    for thing in list(_of_cells.pop(str(getattr(info, "cell_id", None) or ""), ())):
        thing.close()


# -- a task or a run, followed ---------------------------------------------------------------------------------------


class Following:
    """A task (`data`) or one run, kept up to date by its events; whoever draws it takes the lock."""

    def __init__(self, farm: Farm, data: Mapping[str, Any] | None = None, run_id: str = "") -> None:
        self._farm, self.data = farm, dict(data) if data is not None else None
        self.story = Story(run_id)
        self.lock = threading.RLock()

    def read(self, stopped: Callable[[], bool], changed: Callable[[], None]) -> None:
        """Follow until it has ended, over further runs of the task too."""
        while not stopped():
            run = str((self.data or {}).get("run_id") or "") or self.story.run_id
            if run:
                self._follow(run, stopped, changed)
                if self.data is None:
                    return
            if stopped() or (self.ended and self.story.fold.ended):
                return
            self._refresh()
            changed()
            if self.ended:
                return
            time.sleep(0.1)  # it waits for a run; or its row moves in a moment

    def _follow(self, run: str, stopped: Callable[[], bool], changed: Callable[[], None]) -> None:
        if self.story.run_id not in ("", run):  # a retry
            self.story = Story(run)
        while not stopped() and not self.story.fold.ended:
            try:
                for event in self._farm.events(run, self.story.fold.seq, True, SLICE):
                    with self.lock:
                        self.story.apply(event)
                    changed()
                    if stopped():
                        return
                return
            except TimeoutError:
                continue  # nothing new, and somebody still looks

    def _refresh(self) -> None:
        data = self._farm.request("GET", f"/tasks/{(self.data or {})['task_id']}")
        with self.lock:
            self.data = data

    def read_once(self) -> Following:
        """Read what there is now."""
        if run := str((self.data or {}).get("run_id") or "") or self.story.run_id:
            self.story = Story(run).apply_all(self._farm.events(run))
        return self

    @property
    def ended(self) -> bool:
        """Whether the task has ended; of a run alone: whether the run has."""
        return self.story.fold.ended if self.data is None else str(self.data.get("status")) in ENDED

    @property
    def status(self) -> str:
        return self.story.status if self.story.fold.seq or self.data is None else str(self.data.get("status"))

    def bundle(self) -> Bundle:
        with self.lock:
            address = self._farm.page
            if self.story.fold.seq:
                return run_bundle(self.story, address)
            return task_bundle(self.data or {}, address)


def show(following: Following) -> Live:
    """Show a task or a run in this cell, and go on showing what becomes of it."""
    following.read_once()
    return Live(following.read, following.bundle).start()


# -- how far a batch is ----------------------------------------------------------------------------------------------


class Batch(Protocol):
    id: str

    def progress(self) -> dict[str, Any]: ...


class Progress:
    """How far a batch is: asked for again and again, less often the longer it takes."""

    def __init__(self, batch: Batch) -> None:
        self._batch, self._began = batch, time.monotonic()
        self.told: dict[str, Any] = {}
        self._first: int | None = None  # what was done when this began: the batch may be an old one

    def ask(self) -> dict[str, int]:
        self.told = self._batch.progress()
        counts = batch_counts(self.told)
        if self._first is None:
            self._first = counts["done"] + counts["failed"]
        return counts

    @property
    def ended(self) -> bool:
        return not batch_counts(self.told)["left"]

    def eta(self, counts: Mapping[str, int]) -> float | None:
        """Return the seconds that it takes on, by its pace so far; None: nobody knows yet."""
        return remaining(counts, self._first or 0, time.monotonic() - self._began)

    def read(self, stopped: Callable[[], bool], changed: Callable[[], None]) -> None:
        pause = 0.2
        while not stopped():
            left = self.ask()["left"]
            changed()
            if not left:
                return
            until = time.monotonic() + pause
            while time.monotonic() < until and not stopped():
                time.sleep(0.05)
            pause = min(2.0, pause * 1.2)

    def bundle(self) -> Bundle:
        counts = batch_counts(self.told)
        return batch_bundle(self._batch.id, self.told, self.eta(counts) if self._first is not None else None)

    def line(self) -> str:
        counts = batch_counts(self.told)
        share = (counts["done"] + counts["failed"]) / max(1, counts["size"])
        return f"{'█' * round(20 * share):░<20} {batch_line(counts, self.eta(counts))}"


def remaining(counts: Mapping[str, int], first: int, seconds: float) -> float | None:
    """Return the seconds left at the pace since `first` tasks were over, `seconds` ago; None: none has ended since."""
    since = counts["done"] + counts["failed"] - first
    return counts["left"] * seconds / since if since > 0 else None


@contextlib.contextmanager
def progress_of(batch: Batch, wanted: bool = True) -> Iterator[None]:
    """Show how far a batch is while the block lasts: in a notebook as a bar, in a terminal as a line, else not at all."""
    if wanted and in_notebook():
        progress = Progress(batch)
        with contextlib.suppress(AgentFarmError):
            progress.ask()
        live = Live(progress.read, progress.bundle).start()
        try:
            yield
        finally:
            with contextlib.suppress(AgentFarmError):  # the results say what went wrong; this is for the eye alone
                progress.ask()
            live.close()  # which draws once more
            live.wait(5)
    elif wanted and sys.stderr is not None and sys.stderr.isatty():
        line = _Line(Progress(batch))
        try:
            yield
        finally:
            line.end()
    else:
        yield


class _Line:
    """A line of a terminal that is written over."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._over = progress, threading.Event()
        self._thread = threading.Thread(target=self._work, name="agentfarm-progress", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        with contextlib.suppress(AgentFarmError):
            self._progress.read(self._over.is_set, self._write)

    def _write(self) -> None:
        sys.stderr.write("\r\x1b[K" + self._progress.line())
        sys.stderr.flush()

    def end(self) -> None:
        self._over.set()
        self._thread.join(5)
        with contextlib.suppress(AgentFarmError):
            self._progress.ask()
            self._write()
        sys.stderr.write("\n")
