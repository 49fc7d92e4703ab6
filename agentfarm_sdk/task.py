"""A submitted task: what it is now, what its run does, its result. `Farm.submit` and `Farm.task` give it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import quote

from .errors import AgentFarmError, Cancelled, from_problem
from .protocol import ENDED, Event
from .shown import live
from .shown.live import Following, in_notebook, show
from .shown.things import task_text

Json = dict[str, Any]


class Farm(live.Farm, Protocol):
    """What is asked of farm.Farm here."""

    def request(self, method: str, path: str, body: Any = None) -> Any: ...
    def tokens(self, run_id: str, timeout: float | None = None) -> Iterator[str]: ...
    def whole(self, run_id: str, result: Any) -> Any: ...


class Task:
    """A submitted task."""

    def __init__(self, farm: Farm, data: Json) -> None:
        self._farm, self.data = farm, data
        self.id: str = str(data.get("id") or data.get("task_id") or data.get("task"))
        self._path = f"/tasks/{quote(self.id, safe='')}"

    def __repr__(self) -> str:
        return task_text({**self.data, "task_id": self.id})

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        following = Following(self._farm, {**self.data, "task_id": self.id})
        return (following.read_once() if in_notebook() else following).bundle()

    def _ipython_display_(self) -> None:
        """Show it in this cell, and go on with what becomes of it."""
        if not in_notebook() or self.data.get("status") in ENDED:
            raise NotImplementedError  # nothing will change: the ordinary way shows it
        show(Following(self._farm, {**self.data, "task_id": self.id}))

    def refresh(self) -> Task:
        self.data = self._farm.request("GET", self._path)
        return self

    @property
    def status(self) -> str:
        """Ask the farm for the status."""
        return str(self.refresh().data["status"])

    @property
    def run_id(self) -> str | None:
        """The id of the task's run, once there is one."""
        found = self.data.get("run") or self.data.get("run_id")
        return str(found["id"] if isinstance(found, dict) else found) if found else None

    def events(self, follow: bool = True, timeout: float | None = None) -> Iterator[Event]:
        """Yield the events of the task's run, as they come."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.run_id is None:
            if self.refresh().data["status"] in ENDED:
                return
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"task {self.id} has no run after {timeout} s")
            if self.run_id is None:
                time.sleep(0.1)
        yield from self._farm.events(self.run_id, follow=follow, timeout=timeout)

    def tokens(self, timeout: float | None = None) -> Iterator[str]:
        if self.run_id is None:
            self.refresh()
        if self.run_id is not None:
            yield from self._farm.tokens(self.run_id, timeout)

    def wait(self, timeout: float | None = None) -> Task:
        """Wait for the end, also over further runs of the task. Raises TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.data.get("status") not in ENDED:
            before = self.run_id
            left = None if deadline is None else max(0.01, deadline - time.monotonic())
            for _ in self.events(timeout=left):
                pass
            self.refresh()
            if self.data.get("status") in ENDED:
                break
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"task {self.id} has not ended after {timeout} s")
            if self.run_id == before:  # the row of the task moves with its run; a stream may end a moment before
                time.sleep(0.05)
        return self

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result. Raises the run's error, Cancelled, or TimeoutError."""
        self.wait(timeout)
        if self.data["status"] == "succeeded":
            return self._farm.whole(self.run_id or "", self.data.get("result"))
        if self.data["status"] == "cancelled":
            why = (self.data.get("error") or {}).get("message")
            raise Cancelled(f"task {self.id} was cancelled" + (f": {why}" if why else ""))
        raise run_error(self.data.get("error"))

    def pause(self, reason: str = "") -> Task:
        """Let it wait: a running one after its step."""
        self.data = self._farm.request("POST", f"{self._path}/pause", {"reason": reason})
        return self

    def resume(self) -> Task:
        """Let a paused or restored task go on."""
        self.data = self._farm.request("POST", f"{self._path}/resume", {})
        return self

    def rerun(self, *, confirm: bool = False) -> Task:
        """Submit the same input anew. Raises Conflict: the old run had effects; `confirm` says that they are known."""
        return Task(self._farm, self._farm.request("POST", f"{self._path}/rerun", {"confirm": confirm}))

    def cancel(self, reason: str = "") -> Task:
        self.data = self._farm.request("POST", f"{self._path}/cancel", {"reason": reason}) or self.data
        return self


def run_error(error: Any) -> AgentFarmError:
    """Return what ended a run as the error that it stands for."""
    told = error if isinstance(error, dict) else {"message": str(error or "the run failed")}
    return from_problem({"type": told.get("type", ""), "detail": told.get("message", "the run failed")})
