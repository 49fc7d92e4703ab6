"""A ledger in an SQLite file, for runs outside a farm: the same events, chain, keys and write-ahead as the service's.

What the service decides there, is decided here from the same record: which calls may start, what is called again after a
crash, what is in doubt. A lock per run, held by the process that drives it, is the proof that a former one is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import getpass
import os
import secrets
import sqlite3
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from . import conditions, effects, schemas, settings
from .errors import Conflict, Fenced, Invalid, NotFound
from .fold import Call, Fold, as_text, settles
from .ledger import Inbox
from .prompts import render
from .protocol import (
    GENESIS,
    AdmittedCall,
    AppendAnswer,
    Definition,
    Event,
    Header,
    Mode,
    NewEvent,
    Opened,
    ToolSpec,
    body_hash,
    call_key,
    content_hash,
    header_hash,
    make_header,
    moment,
    new_event,
    read_event,
    timestamp,
)

COPIED = frozenset({
    "message.added", "model.replied", "model.reported", "tool.succeeded", "tool.failed", "tool.doubted", "tool.resolved", "tool.probed",
    "approval.requested", "approval.refused", "approval.expired", "context.compacted", "timer.set", "timer.fired",
    "question.asked", "question.answered", "question.refused", "question.expired",
})  # fmt: skip  # what a fork takes over: all that makes messages

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, fence INTEGER NOT NULL, seq INTEGER NOT NULL, head TEXT NOT NULL,
  definition BLOB NOT NULL, mode TEXT NOT NULL, created REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (run_id TEXT NOT NULL, seq INTEGER NOT NULL, header BLOB NOT NULL, salt BLOB NOT NULL,
  body BLOB, PRIMARY KEY (run_id, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS memory (agent TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, changed REAL NOT NULL,
  PRIMARY KEY (agent, key)) WITHOUT ROWID;
"""


class LocalFile:
    """The file: opened where it is needed, one connection for each. Times are epoch seconds."""

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = Path(path) if path else settings.ledger_file()
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self.db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=FULL")
            self.db.executescript(SCHEMA)
            self.db.execute("INSERT OR IGNORE INTO meta VALUES ('epoch', ?)", (secrets.token_hex(8),))
            os.chmod(self.path, 0o600)
            self.epoch: str = self.db.execute("SELECT value FROM meta WHERE key='epoch'").fetchone()[0]
        except (sqlite3.Error, OSError) as error:
            hint = "set AGENTFARM_LEDGER to a file that can be written"
            raise Invalid(f"the ledger {self.path} cannot be used: {error}", hint=hint) from error

    def close(self) -> None:
        self.db.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction; on disk when it is left."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def create(self, definition: Definition, input: str, *, mode: Mode = "live", name: str = "local",
               variables: dict[str, str] | None = None) -> str:  # fmt: skip
        """Begin a run; return its id."""
        events = []
        if prompt := render(definition.prompt, definition.variables, variables or {}, input):
            events.append(new_event("message.added", {"role": "system", "content": prompt}))
        events.append(new_event("message.added", {"role": "user", "content": input}))
        return self._begin(definition, events, mode, name)

    def _begin(self, definition: Definition, events: list[NewEvent], mode: Mode, name: str) -> str:
        run = f"run-{uuid.uuid4().hex[:20]}"
        created = {"task": None, "agent": name, "version": None, "definition": content_hash(definition), "mode": mode,
                   "thread": None, "parent": None, "owner": _person(), "bound": True}  # fmt: skip
        with self.writing():
            self.db.execute(
                "INSERT INTO runs VALUES (?, 0, 0, ?, ?, ?, ?)",
                (run, GENESIS, msgspec.json.encode(definition), mode, time.time()),
            )
            self.write(run, [("service", event) for event in [new_event("run.created", created), *events]])
        return run

    def fork(self, run: str, definition: Definition, step: int, prompt: str | None, input: str | None, *,
             name: str = "local") -> str:  # fmt: skip
        """Begin a run in mode ask with copies of what `run` recorded before reply number `step`; return its id.

        Raises Invalid: there is no such step, or a call before it has no outcome.
        """
        fold, copies = Fold(), []
        for event in self.events(run):
            if event.kind in ("model.replied", "model.reported") and fold.steps == step:
                break
            fold.apply(event)
            if event.kind in COPIED:
                copies.append(event)
        if not 0 <= step <= fold.steps or fold.open_calls:
            raise Invalid(f"run {run} cannot be forked at step {step}", hint=f"a step from 0 to {fold.steps}")
        if input is not None and step == 0:
            copies = [one for one in copies if one.data().get("role") == "system"]
        if prompt is not None:
            copies = [one for one in copies if one.data().get("role") != "system"]
        body = {"run": run, "seq": fold.seq, "head": "", "step": step, "prompt": prompt, "copied": True}
        events = [new_event("run.forked", body)]
        if prompt:
            events.append(new_event("message.added", {"role": "system", "content": prompt}))
        events += [NewEvent(kind=one.kind, call=one.call, body=one.body) for one in copies]
        if input is not None:
            events.append(new_event("message.added", {"role": "user", "content": input}))
        return self._begin(definition, events, "ask", name)

    def write(self, run: str, events: list[tuple[str, NewEvent]]) -> list[Event]:
        """Chain events, each with who says it, inside the transaction that the caller opened."""
        seq, prev = self.row(run)[1:3]
        written = []
        for by, event in events:
            seq, salt, body = seq + 1, secrets.token_bytes(16), bytes(event.body)
            header = make_header(
                epoch=self.epoch, run=run, seq=seq, kind=event.kind, at=timestamp(time.time()), by=by,
                call=event.call, body=body_hash(salt, body), prev=prev,
            )  # fmt: skip
            self.db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", (run, seq, header, salt, body))
            prev = header_hash(header)
            written.append(read_event(header, body))
        self.db.execute("UPDATE runs SET seq = ?, head = ? WHERE run_id = ?", (seq, prev, run))
        return written

    def row(self, run: str) -> tuple[int, int, str, bytes, Mode]:
        """Return (fence, seq, head, definition, mode). Raises NotFound."""
        row = self.db.execute("SELECT fence, seq, head, definition, mode FROM runs WHERE run_id = ?", (run,)).fetchone()
        if row is None:
            raise NotFound(f"there is no run {run} in {self.path}")
        return tuple(row)

    def events(self, run: str, after: int = 0) -> list[Event]:
        self.row(run)
        query = "SELECT header, body FROM events WHERE run_id = ? AND seq > ? ORDER BY seq"
        rows = self.db.execute(query, (run, after))
        return [read_event(header, body) for header, body in rows]

    def fold(self, run: str) -> Fold:
        return Fold().apply_all(self.events(run))

    def runs(self) -> list[str]:
        """Return the ids of all runs, the latest first."""
        return [row[0] for row in self.db.execute("SELECT run_id FROM runs ORDER BY created DESC")]

    def verify(self, run: str) -> dict[str, Any]:
        """Check the chain: `{ok, events, head}`, or with `bad` (the first bad seq) and `why`."""
        _, last, head, _, _ = self.row(run)
        prev, seq = GENESIS, 0
        rows = self.db.execute("SELECT seq, header, salt, body FROM events WHERE run_id = ? ORDER BY seq", (run,))
        for at, header, salt, body in rows:
            seq += 1
            if why := _fault(header, salt, body, run=run, seq=seq, prev=prev):
                return {"ok": False, "events": seq - 1, "head": prev, "bad": at, "why": why}
            prev = header_hash(header)
        if (seq, prev) != (last, head):
            return {"ok": False, "events": seq, "head": prev, "bad": seq + 1, "why": "events are missing at the end"}
        return {"ok": True, "events": seq, "head": head}

    def decide(self, run: str, call: str, decision: str, *, reason: str = "", arguments: dict[str, Any] | None = None,
               result: Any = None) -> None:  # fmt: skip
        """Decide a call that waits: approve, refuse; for one in doubt happened, not_happened, give_up (which ends the run);

        for a question answer (with its result), refuse.

        Raises:
            Conflict: it does not wait for that. Invalid: the result does not answer the question.
        """
        with self.writing():
            found = self.fold(run).calls.get(call)
            state = found.state if found else "unknown"
            if state == "awaiting" and decision in ("approve", "refuse"):
                kind = "approval.given" if decision == "approve" else "approval.refused"
                body: dict[str, Any] = {"reason": reason} | ({"arguments": arguments} if arguments is not None else {})
            elif state == "doubted" and decision in ("happened", "not_happened", "give_up"):
                said = "given_up" if decision == "give_up" else decision
                kind, body = "tool.resolved", {"decision": said, "reason": reason}
                body |= {"result": result} if decision == "happened" else {}
            elif found and found.rests_for == "question" and decision in ("answer", "refuse"):
                if decision == "answer" and (flaw := effects.answer_flaw(found.rest, result)):
                    raise Invalid(f"this does not answer the question: {flaw}", hint="give it as result=…")
                kind = "question.answered" if decision == "answer" else "question.refused"
                body = {"reason": reason} | ({"result": result} if decision == "answer" else {})
            else:
                hint = "awaiting calls: approve, refuse; in doubt: happened, not_happened, give_up; questions: answer, refuse"
                raise Conflict(f"call {call} is {state}; it cannot be decided with {decision!r}", hint=hint)
            events = [new_event(kind, body, call)]
            if decision == "give_up":
                error = {"type": "given-up", "message": reason or "given up while a call was in doubt"}
                events.append(new_event("run.failed", {"error": error}))
            self.write(run, [(f"user:{_person()}", event) for event in events])

    def remember(self, agent: str, event: NewEvent) -> None:
        """Do what an event of the agent's memory says, inside the transaction that the caller opened."""
        body = msgspec.json.decode(event.body)
        self.db.execute("DELETE FROM memory WHERE agent = ? AND key = ?", (agent, body["key"]))
        if event.kind == "memory.remembered":
            value = msgspec.json.encode(body["value"]).decode()
            self.db.execute("INSERT INTO memory VALUES (?, ?, ?, ?)", (agent, body["key"], value, time.time()))

    def memory(self, agent: str, key: str = "", query: str = "", limit: int = 1000) -> dict[str, Any]:
        """Return what an agent remembers: `{items: [{key, value, changed_at}], keys}`, the latest first."""
        rows = self.db.execute("SELECT key, value, changed FROM memory WHERE agent = ? ORDER BY changed DESC", (agent,))
        words, items, keys = query.casefold().split(), list[dict[str, Any]](), 0
        for name, text, changed in rows:
            keys, value = keys + 1, msgspec.json.decode(text)
            told = f"{name} {as_text(value)}".casefold()
            if len(items) < limit and key in ("", name) and all(word in told for word in words):
                items.append({"key": name, "value": value, "changed_at": timestamp(changed)})
        return {"items": items, "keys": keys}

    def cancel(self, run: str, reason: str = "") -> None:
        """Ask a run to stop; one that nobody drives is cancelled when it is taken up."""
        with self.writing():
            self.write(run, [(f"user:{_person()}", new_event("run.cancel_requested", {"reason": reason}))])


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


def _fault(header: bytes, salt: bytes, body: bytes | None, *, run: str, seq: int, prev: str) -> str:
    try:
        said = msgspec.json.decode(header, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"its header cannot be read: {error}"
    if (said.run, said.seq, said.prev) != (run, seq, prev):
        return "its header does not follow the event before it"
    if body is not None and (not isinstance(body, bytes) or body_hash(salt, body) != said.body):
        return "its body is another one than was recorded"
    return ""


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
