"""`agentfarm microserver drain --wait`, while the farm comes and goes."""

from __future__ import annotations

from typing import Any

import pytest

from agentfarm_sdk.errors import NotFound, Transient
from jupyterhub_agentfarm.cli import draining
from jupyterhub_agentfarm.cli.show import Out

LEFT = {"name": "micro1", "state": "draining", "drain": {"left": 1, "of": 2, "moving": 1}}
DONE = {"name": "micro1", "state": "cordoned", "drain": None}


class Farm:
    """Answers one after the other."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def microservers(self) -> list[dict[str, Any]]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    def request(self, method: str, path: str) -> dict[str, Any]:
        """Say what is waited for, or that somebody is on the way."""
        assert (method, path) == ("GET", "/microservers/micro1/drain")
        return {
            "items": [
                {"user": "ann", "waits": "a person's own server", "moving": False},
                {"user": "agent-a", "waits": "", "moving": True},
            ]
        }


def waited(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> int | None:
    monkeypatch.setattr(draining, "LOOK_SECONDS", 0.0)
    return draining._wait(Farm(*answers), ["micro1"], Out())  # type: ignore[arg-type]


def test_a_service_that_starts_anew_ends_no_waiting_for_a_drain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away = Transient("the farm cannot be reached")
    assert waited(monkeypatch, [LEFT], away, away, [LEFT], away, [DONE]) is None
    told = capsys.readouterr()
    assert told.err.count("cannot be reached; it is asked again") == 2, "once for each time that it was away"
    assert told.out.splitlines() == [
        "micro1: 1 of 2 left, 1 on their way",
        "  ann: a person's own server",
        "micro1 is empty, and cordoned: agentfarm microserver uncordon micro1 lets it take servers again",
    ]


def test_a_microserver_that_was_removed_meanwhile_is_said_to_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="micro1 was removed"):
        waited(monkeypatch, [LEFT], [])


def test_a_drain_that_somebody_ended_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waited(monkeypatch, [LEFT], [{**DONE, "state": "ready"}]) == draining.FAILED
