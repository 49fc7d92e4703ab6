"""Many tasks at once: submitted so that asking again repeats nothing, their results streamed in order or as they come.

`Farm.map` and `Farm.submit_many` stand on it.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from .errors import AgentFarmError, Cancelled, Invalid, from_problem
from .shown.live import Live, Progress, in_notebook
from .shown.things import batch_bundle

Json = dict[str, Any]
AT_ONCE = 100  # tasks in one request: a transaction that others wait for
BYTES_AT_ONCE = 2_000_000


class Farm(Protocol):
    """What is asked of farm.Farm here."""

    def request(self, method: str, path: str, body: Any = None) -> Any: ...
    def again(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Any: ...
    def stream(self, path: str, after: int = 0, timeout: float | None = None) -> Iterator[tuple[int, str, Any]]: ...
    def whole(self, run_id: str, result: Any) -> Any: ...


@dataclass(frozen=True)
class Result:
    """What came of one input. `place`: which one it was, from 0."""

    place: int
    task_id: str
    status: str
    value: Any
    error: AgentFarmError | None

    def get(self) -> Any:
        """Return the value. Raises what ended the task, or Cancelled."""
        if self.error is not None:
            raise self.error
        return self.value


class Batch:
    """Tasks that were submitted together."""

    def __init__(self, farm: Farm, batch_id: str, size: int) -> None:
        self._farm, self.id, self.size = farm, batch_id, size

    def __repr__(self) -> str:
        return f"<Batch {self.id} of {self.size}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return batch_bundle(self.id, self.progress())

    def _ipython_display_(self) -> None:
        """Show how far it is in this cell, until it has ended."""
        if not in_notebook():
            raise NotImplementedError
        progress = Progress(self)
        progress.ask()
        Live(progress.read, progress.bundle).start()

    def progress(self) -> Json:
        """Ask how far it is: `{"tasks", "counts": {status: number}, …}`."""
        answer: Json = self._farm.request("GET", f"/batches/{quote(self.id, safe='')}")
        return answer

    def cancel(self, reason: str = "") -> Json:
        """Cancel all that has not ended; return the progress."""
        answer: Json = self._farm.request("POST", f"/batches/{quote(self.id, safe='')}/cancel", {"reason": reason})
        return answer

    def results(self, *, ordered: bool = True, timeout: float | None = None) -> Iterator[Result]:
        """Yield what came of each input, in their order or as they end, over cuts, until all have ended.

        Raises:
            TimeoutError: `timeout` seconds are over.
        """
        path = f"/batches/{quote(self.id, safe='')}/results?order={'input' if ordered else 'completion'}"
        for _, _, told in self._farm.stream(path, 0, timeout):
            yield _result(self._farm, told)

    def values(self, *, ordered: bool = True, errors: str = "raise", timeout: float | None = None) -> Iterator[Any]:
        """Yield the results' values. errors: `raise` at the first that failed, or `return` the error in its place."""
        for result in self.results(ordered=ordered, timeout=timeout):
            yield result.error if errors == "return" and result.error is not None else result.get()


def submit(farm: Farm, target: str, inputs: Iterable[Any], *, key: str, options: Json) -> Batch:
    """Submit a task for each input. The same `key` and inputs submit nothing twice, wherever the first try was cut off."""
    base = key or uuid.uuid4().hex
    tasks = [
        {"target": target, "input": one, "key": _key(base, place, one), **options} for place, one in enumerate(inputs)
    ]
    batch_id = ""
    for some in _portions(tasks):
        once = {"Idempotency-Key": hashlib.sha256(json.dumps(some).encode()).hexdigest()}
        answer = farm.again("POST", "/tasks", {"batch": base, "tasks": some}, once)
        batch_id = answer["batch_id"]
    if not tasks:
        raise Invalid("a batch needs at least one input", hint="give one, or do not ask")
    return Batch(farm, batch_id, len(tasks))


def _key(base: str, place: int, given: Any) -> str:
    text = given if isinstance(given, str) else json.dumps(given, sort_keys=True)
    return f"{base}-{place}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _portions(tasks: list[Json]) -> Iterator[list[Json]]:
    some, size = list[Json](), 0
    for task in tasks:
        more = len(json.dumps(task))
        if some and (len(some) >= AT_ONCE or size + more > BYTES_AT_ONCE):
            yield some
            some, size = [], 0
        some.append(task)
        size += more
    if some:
        yield some


def _result(farm: Farm, told: Json) -> Result:
    status, value, error = str(told["status"]), told.get("result"), None
    if status == "succeeded":
        value = farm.whole(str(told.get("run_id") or ""), value)
    else:
        problem = told.get("error") or {}
        message = f"{told['task_id']} {problem.get('message') or status}"
        error = (
            Cancelled(message)
            if status == "cancelled"
            else from_problem({"type": problem.get("type", ""), "detail": message})
        )
    return Result(int(told["place"]) - 1, str(told["task_id"]), status, value, error)
