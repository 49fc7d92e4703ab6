"""A run, and the farm, as widgets: watched live, cancelled, paused, asked on. In JupyterLab, VS Code, wherever ipywidgets are.

RunView(task)     # or a run's id
FarmView()        # agents to ask, the latest tasks, and the chosen one's run

Plain ipywidgets controls: no code of ours runs in the browser, and nothing is fetched from a network.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .errors import AgentFarmError, Invalid
from .farm import Farm
from .protocol import ENDED
from .shown.live import Follower, Following, kept_by_cell
from .shown.markup import Html, el, joined, one_line, page, plain
from .shown.records import RunRecord
from .shown.runs import FIRST, LAST, folded, head, labelled, step_html, waits_for
from .shown.story import Story
from .shown.things import status_of, task_html
from .task import Task
from .watching import following_of

Json = dict[str, Any]
TASKS = 20  # of the list
MARKS = {"succeeded": "●", "failed": "✕", "cancelled": "–", "running": "▶", "waiting": "‖"}


def _widgets() -> Any:
    """Return ipywidgets. Raises Invalid: they are not installed."""
    try:
        import ipywidgets
    except ImportError as error:
        hint = "pip install 'jupyterhub-agentfarm[widgets]', then reload the page"
        raise Invalid("widgets are not installed here", hint=hint) from error
    return ipywidgets


class _View:
    """What both views share: a box of widgets, a line for what went wrong, an end."""

    def __init__(self) -> None:
        self._w = _widgets()
        self._message = self._w.HTML()
        self.widget: Any = None
        kept_by_cell(self)

    def _boxed(self, *children: Any) -> None:
        self.widget = self._w.VBox(list(children), layout={"max_width": "64rem"})
        self.widget.observe(self._unseen, "comm")

    def _unseen(self, change: Any) -> None:
        if change.new is None:  # the widget was closed by somebody else
            self.close()

    def _button(self, text: str, act: Callable[[], object], tip: str, style: str = "") -> Any:
        button = self._w.Button(description=text, tooltip=tip, button_style=style, layout={"width": "auto"})
        button.on_click(lambda _: self._do(act))
        return button

    def _do(self, act: Callable[[], object]) -> None:
        """Do what was asked; what goes wrong is a sentence below."""
        try:
            act()
        except AgentFarmError as error:
            self._tell(f"{error.detail}. {error.hint}".rstrip(". "), "afo-error")
        else:
            if self._message.value.find("afo-error") >= 0:
                self._message.value = ""

    def _tell(self, text: str, look: str = "afo-quiet") -> None:
        self._message.value = page(el("p", text, class_=look))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        return self.widget._repr_mimebundle_()

    def close(self) -> None:
        raise NotImplementedError


class RunView(_View):
    """A task's run, or a run, while it goes on: its steps, and what one can do about it.

    Steps stay unfolded as they were while others come. It is followed until it has ended, is closed, or its cell runs again.
    """

    def __init__(self, what: Task | RunRecord | str, farm: Farm | None = None) -> None:
        super().__init__()
        if isinstance(what, str):
            farm = farm or Farm()
            what = farm.task(what) if what.startswith("task-") else farm.run(what)
        assert isinstance(what._farm, Farm)
        self._farm, self._following = what._farm, following_of(what)
        if isinstance(what, RunRecord) and what.get("task_id"):
            self._following = Following(self._farm, self._farm.task(str(what["task_id"])).data)
        w = self._w
        self._head, self._foot, self._steps = w.HTML(), w.HTML(), w.VBox()
        self._of: dict[int, Any] = {}  # seq of a step's reply -> its widget
        self._pause = self._button("Pause", self.pause, "let it wait after its step")
        self._resume = self._button("Resume", self.resume, "let it go on")
        self._cancel = self._button("Cancel", self.cancel, "stop it", "danger")
        self._more = w.Text(placeholder="Ask on…", continuous_update=False, layout={"flex": "1", "min_width": "12rem"})
        self._ask = self._button("Ask", lambda: self.ask(self._more.value), "go on from what this run said")
        self._next: RunView | None = None
        self._later = w.VBox()
        bar = w.HBox([self._pause, self._resume, self._cancel, self._more, self._ask], layout={"flex_flow": "row wrap"})
        self._boxed(self._head, self._steps, self._foot, bar, self._message, self._later)
        self._following.read_once()
        self._draw("")
        self._follower = Follower(self._following.read, self._draw).start()

    @property
    def status(self) -> str:
        """What is shown as its status."""
        return self._following.status

    @property
    def next(self) -> RunView | None:
        """The view of what was asked on."""
        return self._next

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of what is shown."""
        return self._follower.wait(timeout)

    def close(self) -> None:
        """Stop following, and take the widgets away."""
        self._follower.close()
        if self._next is not None:
            self._next.close()
        if self.widget.comm is not None:
            self.widget.close()

    # -- what one can do -----------------------------------------------------------------------------------------

    def _task(self) -> Task:
        data = self._following.data
        if data is None:
            raise Invalid(
                "this run belongs to a notebook's kernel", hint="stop it there: Ctrl-C, or interrupt the kernel"
            )
        return Task(self._farm, data)

    def cancel(self) -> None:
        self._task().cancel("asked by its view in a notebook")

    def pause(self) -> None:
        self._task().pause("asked by its view in a notebook")

    def resume(self) -> None:
        self._task().resume()

    def ask(self, text: str) -> RunView | None:
        """Ask on: in its thread where it has one, else in a fork of the run, which asks before each effect."""
        if not text.strip():
            raise Invalid("there is nothing to ask", hint="write it into the line first")
        data, story = self._following.data or {}, self._following.story
        if thread := data.get("thread_id"):
            task = self._farm.submit(str(data["agent"] or data["target"]), text, thread=str(thread))
        else:
            if not story.fold.ended:
                raise Invalid("the run has not ended", hint="ask on when it has, or give it a thread")
            task = self._farm.fork(story.run_id, story.fold.steps, input=text)
        self._more.value = ""
        if self._next is not None:
            self._next.close()
        self._next = RunView(task)
        self._later.children = (self._next.widget,)
        return self._next

    # -- drawing -------------------------------------------------------------------------------------------------

    def _draw(self, trouble: str) -> int:
        following, address = self._following, self._farm.page
        with following.lock:
            story = following.story
            begun = story.fold.seq > 0
            self._head.value = page(_before(story, address) if begun else task_html(following.data or {}, address))
            drawn = self._draw_steps(story)
            self._foot.value = page(_after(story), el("p", trouble, class_="afo-note") if trouble else None)
            self._allow(story.fold.status if begun else str((following.data or {}).get("status")), story.fold.waiting)
        return drawn

    def _draw_steps(self, story: Story) -> int:
        """Draw the steps that changed; leave the others, and how they are folded, as they are."""
        count, drawn, shown = len(story.steps), 0, []
        for place, step in enumerate(story.steps):
            if FIRST <= place < count - LAST:
                if gone := self._of.pop(step.seq, None):
                    gone.close()
                continue
            value = el("div", el("ol", el("li", step_html(story, step)), style="margin:0;border:0"), class_="agentfarm")
            if step.seq not in self._of:
                self._of[step.seq] = self._w.HTML(layout={"margin": "0"})
            if self._of[step.seq].value != value:
                self._of[step.seq].value = value
                drawn += len(value)
            shown.append(self._of[step.seq])
        if list(self._steps.children) != shown:
            self._steps.children = shown
        return drawn

    def _allow(self, status: str, waiting: str | None) -> None:
        ended, task = status in ENDED, self._following.data is not None
        resumable = status == "waiting" and waiting in ("paused", "restored")
        for button, allowed in (
            (self._cancel, task and not ended), (self._pause, task and not ended and not resumable), (self._resume, task and resumable),
        ):  # fmt: skip
            button.layout.display = "" if allowed else "none"
        threaded = bool((self._following.data or {}).get("thread_id"))
        self._more.disabled = self._ask.disabled = not (ended or threaded)


def _before(story: Story, address: str) -> Html:
    return joined(
        head(story, address), folded("Prompt", story.prompt) if story.prompt else None, *(labelled("Input", said) for said in story.asked)
    )  # fmt: skip


def _after(story: Story) -> Html:
    fold = story.fold
    if fold.status == "succeeded":
        return labelled("Result", fold.result, "afo-result")
    if fold.status == "failed":
        return labelled("Error", (fold.error or {}).get("message") or "failed", "afo-error")
    if fold.status == "cancelled":
        return labelled("Cancelled", fold.cancel or "", "afo-error")
    return el("p", waits_for(story), class_="afo-note afo-part") if fold.status == "waiting" else Html("")


class FarmView(_View):
    """The farm in a cell: ask an agent, watch the latest tasks, look into one."""

    def __init__(self, farm: Farm | None = None) -> None:
        super().__init__()
        self._farm, w = farm or Farm(), self._w
        self._agent = w.Dropdown(description="Agent", options=self._agents())
        modes = [("as the agent says", ""), *((mode, mode) for mode in ("ask", "simulate", "live"))]
        self._mode = w.Dropdown(description="Mode", options=modes)
        self._input = w.Textarea(placeholder="What is asked", rows=3, layout={"width": "auto"})
        self._submit = self._button("Submit", self.submit, "give the agent this task", "primary")
        self._list = w.Select(options=[], rows=8, layout={"width": "auto"})
        self._list.observe(lambda change: self._do(self._chosen), "value")
        self._place = w.VBox()
        self.run: RunView | None = None
        self._shown: str | None = None
        self._rows: list[Json] = []
        self._lock = threading.RLock()
        self._moved = threading.Event()  # something has happened since the list was read
        asking = w.HBox([self._agent, self._mode, self._submit], layout={"flex_flow": "row wrap"})
        self._boxed(asking, self._input, self._list, self._message, self._place)
        self._fetch()
        self._draw("")
        self._follower = Follower(self._read, self._draw).start()

    def submit(self) -> None:
        """Give the agent what stands in the field."""
        if not self._input.value.strip():
            raise Invalid("there is nothing to ask", hint="write the task first")
        if not self._agent.value:
            raise Invalid("there is no agent to ask", hint="publish one: agentfarm agent publish NAME")
        task = self._farm.submit(self._agent.value, self._input.value, mode=self._mode.value or None)
        self._input.value = ""
        self._fetch()
        self._draw("")
        self._list.value = task.id

    def close(self) -> None:
        """Stop following, and take the widgets away."""
        self._follower.close()
        if self.run is not None:
            self.run.close()
        if self.widget.comm is not None:
            self.widget.close()

    def _agents(self) -> list[str]:
        may = {"owner", "manage", "chat", "operator"}
        return [str(one["name"]) for one in self._farm.agents() if one.get("published") and one.get("rights") in may]

    def _chosen(self) -> None:
        """Show the run of the task that was chosen."""
        if self._list.value == self._shown:
            return  # the list was only drawn anew
        self._shown = self._list.value
        if self.run is not None:
            self.run.close()
        self.run = RunView(self._farm.task(self._list.value)) if self._list.value else None
        self._place.children = (self.run.widget,) if self.run is not None else ()

    def _fetch(self) -> None:
        rows = list(self._farm.tasks(TASKS))
        with self._lock:
            self._rows = rows

    def _read(self, stopped: Callable[[], bool], changed: Callable[[], None]) -> None:
        """Look at the list when something in the farm has moved."""
        after = 0
        while not stopped():
            try:
                for seq, kind, _ in self._farm.stream("/events?bodies=false", after, 5.0):
                    after = max(after, seq)
                    if kind.startswith("run."):
                        self._moved.set()
                        changed()
                    if stopped():
                        return
            except TimeoutError:
                self._moved.set()  # what waits for a server has no events yet
                changed()

    def _draw(self, trouble: str) -> int:
        """Read the list where something has moved, once for all that did: drawn a few times a second at most."""
        if self._moved.is_set() and not trouble:
            self._moved.clear()
            try:
                self._fetch()
            except AgentFarmError as error:
                self._tell(error.detail, "afo-note")
        with self._lock:
            options = [(_row(one), str(one["task_id"])) for one in self._rows]
            if tuple(options) != tuple(self._list.options):
                chosen = self._list.value
                with self._list.hold_trait_notifications():
                    self._list.options = options
                    self._list.value = chosen if chosen in [name for _, name in options] else None
        if trouble:
            self._tell(trouble, "afo-note")
        return 0


def _row(task: Json) -> str:
    mark = MARKS.get(str(task.get("status")), "○")
    return plain(
        f"{mark} {status_of(task)}   {task.get('agent') or task.get('target')}   {one_line(task.get('input'), 70)}"
    )
