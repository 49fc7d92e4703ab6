"""The SQLite file of runs outside a farm: begun, forked, read, verified, decided. local.py drives a run in it."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import sqlite3
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from . import effects, settings
from .errors import Conflict, Invalid, NotFound
from .fold import Fold, as_text
from .prompts import render
from .protocol import (
    GENESIS,
    Definition,
    Event,
    Header,
    Mode,
    NewEvent,
    body_hash,
    content_hash,
    header_hash,
    make_header,
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
