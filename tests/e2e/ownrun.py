"""A run that a test drives as a notebook does: it appends what it wants, as fast as it wants."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
from farmkit import Person, until

from agentfarm_sdk.protocol import HEARTBEAT_SECONDS, moment


class OwnRun:
    """Bound to a person: no worker takes it. Its lease is renewed until it ends."""

    def __init__(self, person: Person) -> None:
        self.person = person
        with person.api() as api:
            body = {"definition": {}, "input": "Write down what I say.", "mode": "live"}
            self.bound = api.post("/runs", json=body).raise_for_status().json()
        self.run_id, self.n = self.bound["run"], 0
        self.url = f"{person.farm.ready['service_url']}/api/v1/runs/{self.run_id}"
        self.headers = {"Authorization": f"Bearer {self.bound['token']}", "Agentfarm-Protocol": "1"}
        self.ended = threading.Event()
        threading.Thread(target=self._renew, daemon=True).start()

    def _renew(self) -> None:
        while not self.ended.wait(HEARTBEAT_SECONDS / 2):
            try:
                httpx.post(
                    f"{self.url}/heartbeat", json={"fence": self.bound["fence"]}, headers=self.headers, timeout=30
                )
            except httpx.TransportError:
                continue  # the service is away: again soon

    def append(self, *events: dict[str, Any]) -> int:
        """Append, and return the number of the last event."""
        self.n += 1
        body = {"fence": self.bound["fence"], "n": self.n, "events": list(events)}

        def answered() -> httpx.Response | None:
            try:  # the same append again is only answered again
                answer = httpx.post(f"{self.url}/events", content=json.dumps(body), headers=self.headers, timeout=60)
            except httpx.TransportError:
                return None
            return None if answer.status_code == 503 else answer

        return int(until(answered, 30, "the service answers").raise_for_status().json()["seq"])

    def say(self, *values: str) -> int:
        return self.append(*({"kind": "value.recorded", "body": {"name": "said", "value": one}} for one in values))

    def end(self) -> None:
        self.append({"kind": "run.succeeded", "body": {"result": "done"}})
        self.ended.set()

    def moments(self) -> list[dict[str, Any]]:
        """Return of each event its number and when it was recorded, in milliseconds of the epoch."""
        return [
            {"seq": event["seq"], "ms": (moment(event["at"]) or 0) * 1000} for event in self.person.events(self.run_id)
        ]
