"""A ledger in an SQLite file, for runs outside a farm: the same events, chain, keys and write-ahead as the service's.

What the service decides there, is decided here from the same record: which calls may start, what is called again after a
crash, what is in doubt. A lock per run, held by the process that drives it, is the proof that a former one is dead.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from . import conditions, effects, schemas
from .errors import Conflict, Fenced, Invalid
from .fold import Call, Fold, settles
from .ledger import Inbox
from .localfile import LocalFile
from .protocol import (
    AdmittedCall,
    AppendAnswer,
    Definition,
    Mode,
    NewEvent,
    Opened,
    ToolSpec,
    call_key,
    moment,
    new_event,
)


class LocalLedger:
    """One run in a local file, driven by this process; the twin of FarmLedger."""

    delegates = False

    def __init__(self, file: LocalFile, run: str) -> None:
        self.run, self.fence, self.n = run, 0, 0
        self.on_inbox: Inbox | None = None
        self._file = file
        self._fold = Fold()
        self._definition = Definition()
        self._mode: Mode = "live"
        self._agent = ""
        self._lock = -1
        self._validators: dict[str, schemas.Check] = {}

    async def open(self) -> Opened:
        """Take the run up; decide from the record what of a former process is called again and what is in doubt.

        Raises:
            Conflict: another process drives it; or it has ended.
        """
        self._take_lock()
        with self._file.writing():
            fence, _, _, definition, self._mode = self._file.row(self.run)
            self._definition = msgspec.json.decode(definition, type=Definition)
            self._fold = Fold()
            events = self._file.events(self.run)
            self._agent = str(events[0].data()["agent"])
            self._fold.apply_all(events)
            if self._fold.ended:
                raise Conflict(f"run {self.run} has ended: {self._fold.status}")
            mine = self.fence == fence > 0  # taken up before, and not left since
            former = [] if mine else list(self._former())
            former += [("service", new_event("timer.fired", {}, call.call)) for call in self._due()]
            still = self._fold.open_calls
            left = [c for c in still if c.state == "started" and not (mine and c.fence == fence)]
            probes = [c for c in left if c.effect == "once" and self._probed(c)]
            again = [c for c in still if c.state == "approved" or (c in left and c.effect != "once")]
            gone = any(c.state == "doubted" or (c in left and c not in again and c not in probes) for c in still)
            calls: list[AdmittedCall] = []
            if not mine and (again or probes or not gone or self._fold.cancel):
                self.fence, self.n = fence + 1, 0
                self._file.db.execute("UPDATE runs SET fence = ? WHERE run_id = ?", (self.fence, self.run))
                former.append(
                    ("service", new_event("run.leased", {"fence": self.fence, "worker": f"pid {os.getpid()}"}))
                )
            if probes:  # they are asked first; then the run is opened again
                calls = [self._told(call, state="probe") for call in probes]
            elif self.fence > fence or mine:
                for call in again:
                    former += self._start(call, calls)
            written = self._file.write(self.run, former)
        self._fold.apply_all(written)
        return Opened(
            run=self.run, epoch=self._file.epoch, fence=self.fence, n=self.n, definition=self._definition,
            mode=self._mode, events=events + written, calls=calls,
        )  # fmt: skip

    def _former(self) -> Iterator[tuple[str, NewEvent]]:
        """Say what is known of the process that drove the run before."""
        if self._fold.status not in ("running", "cancelling") or not self._fold.fence:
            return
        proof = "the lock of the process that drove it is free"
        doubted = [
            call for call in self._fold.open_calls
            if call.state == "started" and call.effect == "once" and not self._probed(call)
        ]  # fmt: skip
        if not doubted:
            yield "service", new_event("run.requeued", {"reason": "its process is gone", "proof": proof})
        for call in doubted:
            yield "service", _doubt(call, "started, and nobody saw it end", proof)

    def _due(self) -> list[Call]:
        timers = [call for call in self._fold.open_calls if call.rests_for == "timer"]
        return [call for call in timers if (moment(call.rest["until"]) or 0.0) <= time.time()]

    def pause(self) -> float | None:
        """Return the seconds until the run goes on by itself; None where it waits for a person."""
        if self._fold.open_for != "timer":
            return None
        until = [moment(call.rest["until"]) or 0.0 for call in self._fold.open_calls]
        return max(0.0, min(until) - time.time())

    def _probed(self, call: Call) -> bool:
        return bool((spec := self._definition.tool(call.tool)) and spec.probe)

    async def fit(self, event: NewEvent) -> NewEvent:
        """Return the event as it is: a file holds results of any size."""
        return event

    async def append(self, events: list[NewEvent]) -> asyncio.Future[AppendAnswer]:
        """Write events, and admit the calls of a reported reply in the same transaction. Raises Fenced."""
        calls: list[AdmittedCall] = []
        seen = self._fold.seq
        with self._file.writing():
            fence, seq, _, _, _ = self._file.row(self.run)
            if fence != self.fence:
                raise Fenced(f"run {self.run}: fence {self.fence} was replaced by {fence}")
            others = self._file.events(self.run, seen) if seq > seen else []
            written: list[tuple[str, NewEvent]] = []
            for event in events:
                effects.check(event, time.time())
                written.append((f"worker:{self.fence}", event))
                if event.kind in effects.MEMORY and self._mode != "simulate":
                    self._file.remember(self._agent, event)
                if event.kind == "model.reported":
                    written += self._admit(msgspec.json.decode(event.body), calls)
                elif event.kind == "tool.probed" and (call := self._fold.calls.get(event.call or "")) and call.open:
                    said = msgspec.json.decode(event.body)
                    if not settles(call, said["answer"]):
                        why = f"the tool's probe was asked: {said.get('reason') or 'it does not know'}"
                        written.append(("service", _doubt(call, why, call.proof)))
            made = self._file.write(self.run, written)
        self.n += 1
        self._fold.apply_all([*others, *made])
        if others and self.on_inbox is not None:
            self.on_inbox(others)
        answer: asyncio.Future[AppendAnswer] = asyncio.get_running_loop().create_future()
        answer.set_result(
            AppendAnswer(n=self.n, seq=self._fold.seq, head=made[-1].hash if made else "", admitted=calls, inbox=others)
        )
        return answer

    def _admit(self, body: dict[str, Any], calls: list[AdmittedCall]) -> Iterator[tuple[str, NewEvent]]:
        """Decide each call of a reply: start it, ask a person, or tell the model why not."""
        made = len(self._fold.calls)
        for place, one in enumerate(body["message"].get("tool_calls") or []):
            call = Call(one["id"], one["function"]["name"], one["function"]["arguments"], self._fold.steps)
            spec = self._definition.tool(call.tool)
            limit = self._definition.limits.calls
            why = "" if limit is None or made + place < limit else f"the limit of {limit} calls is reached"
            if why := why or self._fault(spec, call):
                calls.append(AdmittedCall(call=call.call, tool=call.tool, state="failed", error=why))
                yield "service", new_event("tool.failed", {"error": {"type": "refused", "message": why}}, call.call)
            elif spec and (asks := conditions.asks(spec, _arguments(call), self._mode)):
                key = call_key(self._file.epoch, self.run, call.call)
                calls.append(AdmittedCall(call=call.call, tool=call.tool, state="awaiting", key=key))
                asked = {"tool": call.tool, "effect": spec.effect, "key": key, "why": asks}
                yield "service", new_event("approval.requested", asked, call.call)
            else:
                yield from self._start(call, calls)

    def _fault(self, spec: ToolSpec | None, call: Call) -> str:
        """Say why a call cannot be made, or ""."""
        if spec is None:
            return (
                f"there is no tool {call.tool}; there are {', '.join(t.name for t in self._definition.tools) or 'none'}"
            )
        try:
            arguments = msgspec.json.decode(call.arguments or "{}")
        except msgspec.DecodeError as error:
            return f"the arguments of {call.tool} are not JSON: {error}"
        if spec.name not in self._validators:
            self._validators[spec.name] = schemas.check(spec.schema or {"type": "object"})
        if found := self._validators[spec.name](arguments):
            return f"the arguments of {call.tool} do not fit: {found}"
        if self._mode == "simulate" and spec.effect != "read":
            return "this run is simulated: effects are not made"
        return "" if isinstance(arguments, dict) else f"the arguments of {call.tool} are not an object"

    def _start(self, call: Call, calls: list[AdmittedCall]) -> Iterator[tuple[str, NewEvent]]:
        spec = self._definition.tool(call.tool)
        if spec is None or (why := self._fault(spec, call)):
            why = why if spec else f"there is no tool {call.tool}"
            calls.append(AdmittedCall(call=call.call, tool=call.tool, state="failed", error=why))
            yield "service", new_event("tool.failed", {"error": {"type": "refused", "message": why}}, call.call)
            return
        key, attempt = call_key(self._file.epoch, self.run, call.call), call.attempts + 1
        body = {"tool": call.tool, "key": key, "effect": spec.effect, "attempt": attempt, "timeout": spec.timeout,
                "fence": self.fence}  # fmt: skip
        calls.append(msgspec.structs.replace(self._told(call), key=key, attempt=attempt))
        yield "service", new_event("tool.started", body, call.call)

    def _told(self, call: Call, state: Literal["admitted", "probe"] = "admitted") -> AdmittedCall:
        spec = self._definition.tool(call.tool)
        secret = {name: os.environ[name] for name in (spec.secrets if spec else ()) if name in os.environ}
        return AdmittedCall(
            call=call.call, tool=call.tool, arguments=_arguments(call), key=call.key, attempt=call.attempts, secrets=secret, state=state
        )  # fmt: skip

    async def drain(self) -> None:
        """Nothing is under way: every append is on disk when it returns."""

    async def may_start(self) -> None:
        """The lock is the lease: while this process lives, nobody else can hold it."""

    async def recall(self, key: str, query: str, limit: int) -> dict[str, Any]:
        return self._file.memory(self._agent, key, query, limit)

    async def fetch_file(self, sha256: str) -> bytes:
        raise Invalid("tools pinned to a file need a farm", hint="give the tool itself to Agent(tools=[...])")

    async def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> None:
        if self._lock >= 0:
            return
        folder = self._file.path.with_name(self._file.path.name + ".locks")
        folder.mkdir(exist_ok=True, mode=0o700)
        lock = os.open(folder / self.run, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise Conflict(
                f"run {self.run} is driven by another process", hint="wait for it, or end that process"
            ) from error
        self._lock = lock


def _doubt(call: Call, reason: str, proof: str | None) -> NewEvent:
    body = {
        "reason": reason,
        "proof": proof,
        "tool": call.tool,
        "effect": call.effect,
        "key": call.key,
        "arguments": call.arguments,
    }
    return new_event("tool.doubted", body, call.call)


def _arguments(call: Call) -> dict[str, Any]:
    """Return arguments that were found without fault."""
    given: dict[str, Any] = msgspec.json.decode(call.arguments or "{}")
    return given
