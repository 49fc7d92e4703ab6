"""Judges the runs of a trial, each once it has ended, and what reached the world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from . import checks, work
from .scratch import Scratch

Task = Mapping[str, Any]


class Judge:
    """`events`: the record of each run that was judged."""

    def __init__(self, farm: Scratch) -> None:
        self.farm = farm
        self.events: dict[str, list[dict[str, Any]]] = {}
        self._found: dict[str, list[str]] = {}

    def of_run(self, run: str, allowed: Collection[str]) -> list[str]:
        """Return what is wrong with the record of a run. `allowed`: types of errors that it may fail of. Raises TimeoutError."""
        if run not in self._found:
            events = self.events[run] = self._read(run)
            found = [
                *checks.of_record(run, events),
                *checks.of_end(run, events),
                *checks.of_failure(run, events, allowed),
            ]
            if not (verified := self.farm.asked_until("GET", f"/runs/{run}/verify"))["ok"]:
                found.append(f"{run}: event {verified['bad_seq']}: {verified['why']}")
            self._found[run] = found
        return self._found[run]

    def of_world(self, tasks: Iterable[Task], begun: str = "") -> list[str]:
        """Compare what reached the world for these tasks, which are judged, with their records.

        begun: what stands in every name of the trial, where the tasks are all of it: nothing else may have reached the world.
        """
        calls = {name: task["run_id"] for task in tasks for name in work.names(task["input"])}
        mine = [one for one in self.farm.requests() if one["name"] in calls or (begun and begun in one["name"])]
        return checks.of_world(mine, self.events, calls)

    def kinds(self) -> Counter[str]:
        return Counter(event["kind"] for told in self.events.values() for event in told)

    def _read(self, run: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            after = found[-1]["seq"] if found else 0
            page = self.farm.asked_until("GET", f"/runs/{run}/events?limit=500&after={after}")
            found += page["items"]
            if page["next"] is None:
                return found
