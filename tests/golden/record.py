"""Records the golden ledger of a release: every kind of event that is known, and what it folds to.

    python tests/golden/record.py 0.1

Done once for each release, never again: what one release wrote, every later one must read (tests/unit/test_golden.py).
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from agentfarm_sdk.audit import BundledEvent
from agentfarm_sdk.fold import _HANDLERS, Fold
from agentfarm_sdk.protocol import (
    GENESIS,
    Event,
    NewEvent,
    batch_digest,
    body_hash,
    header_hash,
    make_header,
    read_event,
)

HERE = Path(__file__).parent
AT = "2026-11-21T12:00:{:02d}.{:06d}Z"
EPOCH, LATER = "0123456789abcdef", "fedcba9876543210"
KEY = "5b" * 32


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A line: one run."""

    run: str
    epoch: str
    seq: int
    head: str
    events: list[BundledEvent]
    folded: dict[str, Any]


def reply(step: int, *calls: tuple[str, str], content: str = "", **more: Any) -> dict[str, Any]:
    asked = [
        {"id": f"c{step}-{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(calls)
    ]
    said = {"role": "assistant", "content": content, **({"tool_calls": asked} if asked else {})}
    return {"request": f"r{step}", "message": said, "finish": "stop", "usage": {"input": 20, "output": 5, "estimated": False}, "cost": 0.001, **more}  # fmt: skip


def started(tool: str, effect: str = "once", fence: int = 1, attempt: int = 1) -> dict[str, Any]:
    return {"tool": tool, "key": KEY, "effect": effect, "attempt": attempt, "timeout": 60.0, "fence": fence}


def created(**more: Any) -> tuple[str, str, None, dict[str, Any]]:
    body = {"task": "task-1", "agent": "analyst", "version": 1, "definition": "d" * 64, "mode": "live", "thread": None, "parent": None, "owner": "ann", "bound": False}  # fmt: skip
    return ("service", "run.created", None, {**body, **more})


def said(role: str, content: Any) -> tuple[str, str, None, dict[str, Any]]:
    return ("service", "message.added", None, {"role": role, "content": content})


def leased(fence: int) -> tuple[str, str, None, dict[str, Any]]:
    return ("service", "run.leased", None, {"fence": fence, "worker": f"w{fence}"})


OK = {"result": {"sum": 391}, "seconds": 0.01, "values": [{"name": "now", "value": "2026-11-21T12:00:00Z"}]}
PARKED = ("worker:1", "run.parked", None, {"reason": "approval"})
RUNS: dict[str, list[tuple[str, str, str | None, Any]]] = {
    "run-plain": [
        created(), said("system", "Du rechnest. ✓"), said("user", "What is 17*23?"), leased(1),
        ("gateway", "model.requested", None, {"request": "r0", "attempt": 1, "model": "m", "upstream": "u", "upto": 4, "digest": "d"}),
        ("gateway", "model.failed", None, {"request": "r0", "attempt": 1, "error": {"type": "busy", "message": "429", "status": 429}, "retry_in": 1.0}),
        ("gateway", "model.replied", None, reply(0, ("calculator", '{"expression":"17*23"}'), ("look", "{}"))),
        ("gateway", "tool.started", "c0-0", started("calculator", "read")), ("gateway", "tool.started", "c0-1", started("look", "idempotent")),
        ("worker:1", "tool.failed", "c0-1", {"error": {"type": "ValueError", "message": "no"}}), ("worker:1", "tool.succeeded", "c0-0", OK),
        ("worker:1", "value.recorded", None, {"name": "n", "value": 1}), ("worker:1", "person.executed", None, {"code": "1+1"}),
        ("gateway", "model.replied", None, reply(9, content="a summary", purpose="summary")),
        ("gateway", "context.compacted", None, {"request": "r9", "summary": "so far", "system": "Du rechnest.", "keep": 0, "replaced": 3}),
        ("gateway", "model.replied", None, reply(1, content="391")), ("worker:1", "run.succeeded", None, {"result": "391"}),
    ],
    "run-approvals": [
        created(mode="ask"), said("user", [{"type": "text", "text": "pay"}]), leased(1),
        ("worker:1", "model.reported", None, reply(0, ("pay", '{"n":1}'), ("pay", '{"n":2}'), ("pay", '{"n":3}'))),
        *[("gateway", "approval.requested", f"c0-{n}", {"tool": "pay", "effect": "once", "key": KEY, "arguments": {"n": n + 1}, "approvers": 2}) for n in range(3)],
        PARKED, ("user:ann", "approval.voted", "c0-0", {"reason": ""}), ("user:bob", "approval.voted", "c0-0", {"reason": "", "arguments": {"n": 7}}),
        ("user:bob", "approval.given", "c0-0", {"arguments": {"n": 7}, "reason": "less"}), ("user:ann", "approval.refused", "c0-1", {"reason": "no"}),
        ("service", "approval.escalated", "c0-2", {"to": "operators", "after": 60}), ("service", "approval.expired", "c0-2", {"reason": "too late"}),
        ("service", "run.requeued", None, {"reason": "decided", "proof": None}), leased(2), ("gateway", "tool.started", "c0-0", started("pay", fence=2)),
        ("service", "run.requeued", None, {"reason": "the worker died", "proof": "kernel exited with -9"}),
    ],
    "run-doubts": [
        created(), said("user", "pay"), leased(1), ("gateway", "model.replied", None, reply(0, ("pay", "{}"), ("pay", "{}"), ("pay", "{}"))),
        *[("gateway", "tool.started", f"c0-{n}", started("pay")) for n in range(3)],
        *[("service", "tool.doubted", f"c0-{n}", {"reason": "silent", "proof": None, "tool": "pay", "effect": "once", "key": KEY, "arguments": "{}"}) for n in range(3)],
        ("service", "worker.died", None, {"fence": 1, "proof": "unit gone", "calls": ["c0-0"]}),
        ("service", "clock.jumped", None, {"seconds": 3600.0}),
        ("user:ann", "tool.resolved", "c0-0", {"decision": "happened", "result": "paid", "reason": "bank"}),
        ("user:ann", "tool.resolved", "c0-1", {"decision": "not_happened", "reason": "bank"}),
        ("user:ann", "tool.resolved", "c0-2", {"decision": "given_up", "reason": "enough"}),
        ("service", "run.requeued", None, {"reason": "decided", "proof": None}), leased(2), ("gateway", "tool.started", "c0-1", started("pay", fence=2, attempt=2)),
        ("service", "run.requeued", None, {"reason": "died", "proof": "x"}), leased(3), ("worker:3", "tool.probed", "c0-1", {"answer": "happened", "result": "paid"}),
        ("worker:3", "run.failed", None, {"error": {"type": "limit-reached", "message": "enough"}}),
    ],
    "run-rests": [
        created(), ("service", "thread.continued", None, {"run": "run-plain", "seq": 17, "head": "h"}), said("user", "wait"), leased(1),
        ("gateway", "model.replied", None, reply(0, ("wait_until", "{}"), ("delegate", "{}"), ("ask_person", "{}"), ("ask_person", "{}"), ("ask_person", "{}"), ("remember", "{}"))),
        *[("gateway", "tool.started", f"c0-{n}", started(tool, "idempotent")) for n, tool in enumerate(("wait_until", "delegate", "ask_person", "ask_person", "ask_person", "remember"))],
        ("worker:1", "memory.remembered", "c0-5", {"key": "k", "value": 1}), ("worker:1", "tool.succeeded", "c0-5", {"result": "kept"}),
        ("worker:1", "timer.set", "c0-0", {"until": "2026-11-21T13:00:00Z"}), ("worker:1", "child.submitted", "c0-1", {"target": "b", "input": "x"}),
        ("worker:1", "question.asked", "c0-2", {"question": "?"}), ("worker:1", "question.asked", "c0-3", {"question": "?"}), ("worker:1", "question.asked", "c0-4", {"question": "?"}),
        ("worker:1", "run.parked", None, {"reason": "timer"}), ("service", "timer.fired", "c0-0", {}),
        ("service", "child.finished", "c0-1", {"task": "task-2", "run": "run-2", "status": "succeeded", "result": "y"}),
        ("user:ann", "question.answered", "c0-2", {"result": "yes", "reason": ""}), ("user:ann", "question.refused", "c0-3", {"reason": "no"}),
        ("service", "question.expired", "c0-4", {"reason": "late"}), ("service", "run.requeued", None, {"reason": "timer", "proof": None}),
        ("user:ann", "run.paused", None, {"reason": "lunch"}), ("user:ann", "run.resumed", None, {}), leased(2),
        ("user:ann", "run.interrupted", None, {"reason": "a later message", "task": "task-3"}), ("worker:2", "run.cancelled", None, {"reason": "interrupted"}),
    ],
    "run-others": [
        created(mode="simulate", simulate={"stubs": {}}), ("service", "run.forked", None, {"run": "run-plain", "seq": 3, "head": "h", "step": 0, "prompt": "Other."}),
        leased(1), ("gateway", "budget.reached", None, {"budget": "b", "why": "spent"}), ("worker:1", "run.parked", None, {"reason": "budget"}),
        ("user:ann", "budget.allowed", None, {"budget": "b", "reason": "go"}), ("service", "run.requeued", None, {"reason": "decided", "proof": None}), leased(2),
        ("gateway", "model.replied", None, reply(0, ("pay", "{}"))), ("gateway", "simulation.requested", "c0-0", {"tool": "pay", "effect": "once", "key": KEY, "arguments": {}}),
        ("worker:2", "run.parked", None, {"reason": "approval"}), ("user:ann", "simulation.answered", "c0-0", {"result": "as if", "reason": ""}),
        ("service", "body.erased", None, {"seqs": [[9, 9]], "reason": "privacy", "blobs": []}),
        ("service", "run.restored", None, {"epoch": LATER, "before": EPOCH}), ("user:ann", "run.resumed", None, {}),
        ("user:ann", "run.cancel_requested", None, {"reason": "enough"}), ("service", "a.kind_of_later", None, {"new": True}), ("service", "run.cancelled", None, {"reason": "enough"}),
    ],
}  # fmt: skip


def history(run: str, seq: int) -> list[dict[str, Any]]:
    return [{"role": "system", "content": f"of {run}"}, {"role": "user", "content": f"up to {seq}"}]


def recorded(run: str, wanted: list[tuple[str, str, str | None, Any]]) -> Recorded:
    prev, epoch, events, numbers = GENESIS, EPOCH, [], dict[str, int]()
    for seq, (by, kind, call, value) in enumerate(wanted, 1):
        epoch = LATER if kind == "run.restored" else epoch
        body, salt = msgspec.json.encode(value), os.urandom(16)
        header = make_header(epoch=epoch, run=run, seq=seq, kind=kind, at=AT.format(seq, seq), by=by, call=call, body=body_hash(salt, body), prev=prev)  # fmt: skip
        n, digest = None, None
        if by.startswith("worker:"):
            n = numbers[by] = numbers.get(by, 0) + 1
            digest = batch_digest([NewEvent(kind=kind, call=call, body=msgspec.Raw(body))]).hex()
        events.append(
            BundledEvent(seq=seq, header=header.decode(), salt=salt.hex(), body=body.decode(), n=n, digest=digest)
        )
        prev = header_hash(header)
    if run == "run-others":  # its reply's body is erased, as a later event says
        events[8] = msgspec.structs.replace(events[8], salt=None, body=None)
    return Recorded(run=run, epoch=epoch, seq=len(events), head=prev, events=events, folded=folded(events))


def folded(events: list[BundledEvent]) -> dict[str, Any]:
    """Return what the events come to, as plain values."""
    read: list[Event] = [read_event(e.header.encode(), None if e.body is None else e.body.encode()) for e in events]
    fold = Fold(history=history).apply_all(read)
    state = {
        one.name: getattr(fold, one.name)
        for one in dataclasses.fields(fold)
        if one.name not in ("history", "allowed", "calls")
    }
    state |= {
        "allowed": sorted(fold.allowed),
        "calls": {name: dataclasses.asdict(call) for name, call in fold.calls.items()},
    }
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(state))
    return {name: value for name, value in found.items() if not name.startswith("_")}


def main(release: str) -> None:
    kinds = {kind for wanted in RUNS.values() for _, kind, _, _ in wanted}
    if missing := set(_HANDLERS) - kinds:
        sys.exit(f"the fold knows kinds that no run here has: {', '.join(sorted(missing))}")
    file = HERE / f"{release}.jsonl"
    if file.exists():
        sys.exit(f"{file} is there: what a release wrote is never written anew")
    file.write_bytes(b"".join(msgspec.json.encode(recorded(run, wanted)) + b"\n" for run, wanted in RUNS.items()))


if __name__ == "__main__":
    main(sys.argv[1])
