"""Test cases of an agent: kept, tried with the draft and versions, and the verdicts, waited for by the farm's own stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from .errors import NotFound

Json = dict[str, Any]
Version = int | str  # a number, or "draft"


class Cases:
    """The test cases of one agent: `farm.cases("analyst")`. Iterating gives them by name."""

    def __init__(self, farm: Any, agent: str) -> None:
        self.farm, self.agent = farm, agent
        self._path = f"/agents/{quote(agent, safe='')}/cases"

    def __iter__(self) -> Iterator[Json]:
        return iter(list(self.farm.request("GET", self._path)["items"]))

    def add(self, name: str, expect: Sequence[Json] | Json, *, input: Any = None, **more: Any) -> Json:
        """Keep a case. `expect`: one check or several, e.g. `{"kind": "contains", "text": "391"}`.

        `from_run` takes input and answers of its calls from a run; also `variables`, `mode`, `simulate`.

        Raises Invalid, Conflict: the name is taken.
        """
        checks = [expect] if isinstance(expect, dict) else list(expect)
        given = {"input": input, **more}
        body = {"name": name, "expect": checks, **{key: value for key, value in given.items() if value is not None}}
        answer: Json = self.farm.request("POST", self._path, body)
        return answer

    def change(self, case: str, **parts: Any) -> Json:
        """Change parts of a case, named by its name or id; what is left out stays."""
        answer: Json = self.farm.request("PATCH", f"{self._path}/{self._id(case)}", parts)
        return answer

    def delete(self, case: str) -> None:
        self.farm.request("DELETE", f"{self._path}/{self._id(case)}")

    def run(
        self, *versions: Version, cases: Sequence[str] = (), mode: str | None = None, timeout: float | None = None
    ) -> Json:
        """Try the cases (all, or those named) with these versions (the draft), wait for the verdicts, and return the case run.

        Raises:
            TimeoutError: `timeout` seconds are over; the trial goes on, `show` tells how it stands.
        """
        body: Json = {"versions": list(versions) or ["draft"]}
        if cases:
            body["cases"] = [self._id(one) for one in cases]
        if mode:
            body["mode"] = mode
        begun: Json = self.farm.request("POST", f"{self._path}/run", body)
        return self.wait(str(begun["batch_id"]), timeout)

    def show(self, batch: str) -> Json:
        """Return how a trial of cases stands, case by case."""
        answer: Json = self.farm.request("GET", f"{self._path}/runs/{quote(batch, safe='')}")
        return answer

    def wait(self, batch: str, timeout: float | None = None) -> Json:
        """Wait until every verdict of a trial is there. Raises TimeoutError."""
        first = True
        for _id, event, data in self.farm.stream("/events?state=true&bodies=false", timeout=timeout):
            if event == "here":
                first = True  # the stream began, perhaps again: what came before it is read
            mine = event == "cases" and any(one["batch_id"] == batch for one in data["items"])
            if (event == "cases" and first) or mine:
                first = False
                shown = self.show(batch)
                if not any(total["pending"] for total in shown["totals"]):
                    return shown
        raise NotFound("the farm's stream ended")  # it never does by itself

    def _id(self, case: str) -> str:
        """Return the id of a case that is named by it or by its name. Raises NotFound."""
        for one in self:
            if case in (one["case_id"], one["name"]):
                return str(one["case_id"])
        raise NotFound(f"agent {self.agent} has no case {case!r}", hint=f"agentfarm case list {self.agent}")
