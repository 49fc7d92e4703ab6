"""What the loop itself costs a step: an instant model, a tool that returns at once, a ledger that keeps nothing.

    python benchmarks/loop.py [STEPS]
Prints the median milliseconds of a step in the first and in the last tenth of the run.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from typing import Any

from agentfarm_sdk.loop import Loop
from agentfarm_sdk.model import Question, Reply
from agentfarm_sdk.protocol import (
    AdmittedCall,
    AppendAnswer,
    Definition,
    Event,
    Limits,
    NewEvent,
    Opened,
    new_event,
)
from agentfarm_sdk.tools.registry import tool


@tool(effect="read")
async def note(text: str) -> str:
    """Return the text."""
    return text


DEFINITION = Definition(tools=[note.spec], limits=Limits(steps=None, calls=None, tokens=None, seconds=None))


class Nowhere:
    """A ledger that answers at once and keeps nothing."""

    run, fence, n, on_inbox = "run-x", 1, 0, None
    delegates = False

    async def open(self) -> Opened:
        bodies: list[tuple[str, Any]] = [
            ("run.created", {}), ("message.added", {"role": "user", "content": "go"}), ("run.leased", {"fence": 1})
        ]  # fmt: skip
        made = [(kind, new_event(kind, body).body) for kind, body in bodies]
        events = [
            Event(run=self.run, seq=seq, kind=kind, at="2026-01-01T00:00:00.000000Z", by="service", body=body)
            for seq, (kind, body) in enumerate(made, 1)
        ]
        return Opened(run=self.run, epoch="e", fence=1, n=0, definition=DEFINITION, events=events)

    async def fit(self, event: NewEvent) -> NewEvent:
        return event

    async def append(self, events: list[NewEvent]) -> asyncio.Future[AppendAnswer]:
        self.n += 1
        done: asyncio.Future[AppendAnswer] = asyncio.get_running_loop().create_future()
        done.set_result(AppendAnswer(n=self.n, seq=self.n, head=""))
        return done

    async def drain(self) -> None: ...

    async def may_start(self) -> None: ...

    async def fetch_file(self, sha256: str) -> bytes:
        raise FileNotFoundError(sha256)

    async def recall(self, key: str, query: str, limit: int) -> dict[str, Any]:
        return {"items": [], "keys": 0}

    async def close(self) -> None: ...


class Instant:
    """A model that asks for one call a step, and notes when it was asked."""

    attested = True

    def __init__(self, steps: int) -> None:
        self.steps, self.asked = steps, list[float]()

    async def reply(self, question: Question) -> Reply:
        self.asked.append(time.perf_counter())
        if question.step == self.steps:
            return Reply({"role": "assistant", "content": "done"})
        call = f"c{question.step}-0"
        asked = {"id": call, "type": "function", "function": {"name": "note", "arguments": '{"text":"x"}'}}
        message = {"role": "assistant", "content": None, "tool_calls": [asked]}
        return Reply(message, calls=[AdmittedCall(call=call, tool="note", arguments={"text": "x"}, key="k")])


def measure(steps: int) -> list[float]:
    """Return the milliseconds of each step."""
    model = Instant(steps)
    outcome = asyncio.run(Loop(Nowhere(), model, own={"note": note}).run())
    assert outcome == "succeeded"
    return [(after - before) * 1000 for before, after in zip(model.asked, model.asked[1:], strict=False)]


if __name__ == "__main__":
    taken = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
    tenth = max(1, len(taken) // 10)
    early, late = statistics.median(taken[:tenth]), statistics.median(taken[-tenth:])
    figures = {"steps": len(taken), "early_ms": early, "late_ms": late, "late_to_early": late / early}
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
