"""Runs in the service's memory: what a leased run looks like between two of its worker's messages.

The only caller of `ledger.append`. Appends are folded when they arrive and written in order behind; a write that fails
drops the run from memory, so that the next use reads the ledger again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from agentfarm_sdk import schemas
from agentfarm_sdk.fold import Fold
from agentfarm_sdk.protocol import (
    LEASE_SECONDS,
    AdmittedCall,
    AppendAnswer,
    AppendRequest,
    Definition,
    Event,
    HeartbeatAnswer,
    HeartbeatRequest,
    NewEvent,
    Opened,
    Simulate,
    decode_events,
    new_event,
    roll,
)
from agentfarm_sdk.waiting import within

from .. import runtokens
from ..errors import Conflict, Fenced, Forbidden, Hole, Invalid
from ..records import Committed, Run
from ..store import definitions, inbox, latest, leases, ledger, threads
from ..store.db import Database, Tx
from . import admission, reports, simulation
from .budgets import size_of
from .decisions import Word, events_of
from .simulation import Answers, asked_for

log = logging.getLogger(__name__)
Secrets = Callable[[str, list[str]], Awaitable[dict[str, str]]]
Push = Callable[[str, list[Event]], None]
ARRIVAL_SECONDS = 10.0
RENEW_TOKEN_AFTER = 300.0
_TOLD = {"started": "admitted", "awaiting": "awaiting", "failed": "failed", "succeeded": "answered"}
ASIDE = frozenset({"model.requested", "model.failed"})  # they move nothing in a fold


class LiveRun:
    """One leased run: its fold, its definition, how far its worker is."""

    def __init__(self, run: Run, definition: Definition, fold: Fold) -> None:
        self.run, self.definition, self.fold = run, definition, fold
        self.validators = admission.validators(definition)
        self.fits = schemas.check(definition.answer) if definition.answer is not None else None
        self.attempts = 0  # at the present request, by this service and those before it
        self.fence, self.n = run.fence, run.last_n
        self.known_seq = fold.seq  # committed events up to here stand in the fold already
        self.inbox: list[Event] = []  # what others recorded since the worker's last answer
        self.calls_made = sum(1 for call in fold.calls.values() if call.attempts)
        self.writing = 0  # writes of ours that are under way
        self.digest, self.digested, self.size = "", 0, 0  # size: tokens of the messages, at most
        self.shown: dict[int, dict[str, Any]] = {}  # by place: messages with images and files, as the model sees them
        self.token_at = time.monotonic()
        self.loaded: list[Event] = []  # the events that it was made of, until it is opened
        self._arrival = asyncio.Event()
        self.answers: Answers | None = None  # in mode `simulate`: instead of tools
        self.parent = ""  # the run that delegated it
        self.delegated = False  # it has delegated something itself

    def apply(self, event: NewEvent | Event, by: str) -> None:
        """Fold an event in the order of its arrival."""
        self.loaded = []
        if event.kind == "model.replied":
            self.attempts = 0
        if event.kind == "child.submitted":
            self.delegated = True
        if event.kind == "context.compacted":
            self.digest, self.digested, self.size, self.shown = "", 0, 0, {}
        at = event.at if isinstance(event, Event) else ""  # it gets one when it is written
        self.fold.apply(
            Event(
                run=self.run.run_id,
                seq=self.fold.seq + 1,
                kind=event.kind,
                at=at,
                by=by,
                call=event.call,
                body=event.body,
            )
        )

    def arrived(self, n: int) -> None:
        self.n = n
        self.wake()

    def wake(self) -> None:
        """Let those who wait for an append look again."""
        self._arrival.set()
        self._arrival = asyncio.Event()

    async def arrival(self, seconds: float) -> None:
        """Wait until the worker's next append has arrived, or the run is dropped. Raises Hole."""
        try:
            await within(self._arrival.wait(), seconds)
        except asyncio.TimeoutError:
            raise Hole(
                f"append {self.n + 1} did not arrive", hint=f"append {self.n + 1} first", last_n=self.n
            ) from None

    def unseen_parts(self) -> dict[int, dict[str, Any]]:
        """Return the messages with images and files that no request has shown yet, by their place."""
        new = enumerate(self.fold.messages[self.digested :], self.digested)
        return {place: one for place, one in new if isinstance(one.get("content"), list) and place not in self.shown}

    def messages(self) -> list[dict[str, Any]]:
        """Return the messages as the model is shown them; those of the fold itself where none holds an image or a file."""
        if not self.shown:
            return self.fold.messages
        return [self.shown.get(place, one) for place, one in enumerate(self.fold.messages)]

    def roll_digest(self) -> str:
        """Return the rolling digest of the messages as the model is shown them; each is hashed once."""
        messages = self.fold.messages
        while self.digested < len(messages):
            message = self.shown.get(self.digested, messages[self.digested])
            raw = msgspec.json.encode(message)
            self.digest, self.size = roll(self.digest, raw), self.size + size_of(message, raw)
            self.digested += 1
        return self.digest

    def sized(self, messages: list[dict[str, Any]], own: bool) -> int:
        """Return how many tokens the messages have at most. own: the run's, which were sized with their digest.

        What the model itself counted with its latest reply, tools included, is not sized again: only what came since.
        """
        counted, upto = self.fold.counted
        if own and counted:
            return counted + sum(size_of(one, msgspec.json.encode(one)) for one in messages[upto:])
        if own:
            return self.size
        return sum(size_of(one, msgspec.json.encode(one)) for one in messages)

    def take_inbox(self) -> list[Event]:
        taken, self.inbox = self.inbox, []
        return taken


class LiveRuns:
    """All runs that have a worker. `push` tells a run's worker of events at once, where it listens."""

    def __init__(self, db: Database, key: bytes, secrets: Secrets, *, lease: float = LEASE_SECONDS) -> None:
        self.db, self.key, self.secrets, self.lease = db, key, secrets, lease
        self.push: Push = lambda _run, _events: None
        self._runs: dict[str, LiveRun] = {}
        self._loading: dict[str, asyncio.Task[LiveRun]] = {}
        self._meanwhile: dict[str, list[Committed]] = {}  # heard while a run is being read
        db.on_commit(self._heard)

    # -- in and out of memory ------------------------------------------------------------------------------------

    async def get(self, run_id: str, fence: int) -> LiveRun:
        """Return the run for the worker that holds it. Raises Fenced, NotFound, Transient."""
        live = self._runs.get(run_id)
        if live is None:
            live = await asyncio.shield(self._loading.get(run_id) or self._begin_to_load(run_id))
        if live.fence != fence:
            raise Fenced(
                f"run {run_id}: fence {fence} was replaced by {live.fence}", hint="stop: another worker has the run"
            )
        return live

    def knows(self, run_id: str) -> bool:
        """Say whether the run is in memory: then `get` does not wait."""
        return run_id in self._runs

    def expect(self, run_id: str) -> None:
        """Read a run whose worker is about to open it, while it is on its way there."""
        if run_id not in self._runs and run_id not in self._loading:
            self._begin_to_load(run_id).add_done_callback(lambda done: done.exception())  # who opens it reads it again

    def _begin_to_load(self, run_id: str) -> asyncio.Task[LiveRun]:
        self._loading[run_id] = asyncio.create_task(self._load(run_id))
        return self._loading[run_id]

    async def _load(self, run_id: str) -> LiveRun:
        """Read a run and keep it. What is committed while it is read is taken in too: a wish to stop must not be lost."""
        try:
            while True:
                heard = self._meanwhile[run_id] = []
                live = await self.db.read(lambda c: load(c, run_id, to_admit=True))
                if live.known_seq >= max((one.events[-1].seq for one in heard), default=0):
                    break  # it holds all that was heard of; else it is read again
            if live.run.lease_until is not None:
                self._runs[run_id] = live
            return live
        finally:
            self._meanwhile.pop(run_id, None)
            self._loading.pop(run_id, None)

    def drop(self, run_id: str) -> None:
        """Forget the run; the next use reads the ledger."""
        live = self._runs.pop(run_id, None)
        if live is not None:
            live.wake()

    async def arrived(self, run_id: str, fence: int, n: int) -> LiveRun:
        """Return the run once the worker's append `n` has arrived. Raises Hole, Fenced, NotFound, Transient."""
        deadline = time.monotonic() + ARRIVAL_SECONDS
        while (live := await self.get(run_id, fence)).n < n:
            await live.arrival(max(0.01, deadline - time.monotonic()))
        return live

    def current(self, live: LiveRun) -> LiveRun:
        """Return what stands in memory for this lease now; the run may have been read anew since."""
        found = self._runs.get(live.run.run_id)
        return found if found is not None and found.fence == live.fence and found.n >= live.n else live

    async def written(self, live: LiveRun, fn: Callable[[Tx], ledger.Appended]) -> ledger.Appended:
        """Write what this run's fold holds, or will at once."""
        live.writing += 1
        try:
            return await self.db.submit(fn)
        finally:
            live.writing -= 1

    def _heard(self, committed: list[Committed]) -> None:
        """Take in what others recorded: the service, people; a run that is nobody's any more is forgotten."""
        for one in committed:
            if one.run_id in self._meanwhile:
                self._meanwhile[one.run_id].append(one)
            live = self._runs.get(one.run_id)
            if live is None:
                continue
            new = [e for e in one.events if e.seq > live.known_seq and e.kind not in ASIDE]
            mine = f"worker:{live.fence}"
            others = [e for e in new if e.by not in (mine, "gateway")]
            live.known_seq = max(live.known_seq, one.events[-1].seq)
            strange = len(others) < len(new) and not live.writing  # begun before the run was read, written after it
            if strange or any(e.kind in ("run.leased", "run.requeued", "tool.doubted") for e in others):
                self.drop(one.run_id)
            else:
                for event in others:
                    live.apply(event, event.by)
                live.inbox += others
            if others:
                self.push(one.run_id, others)

    # -- the worker's messages -----------------------------------------------------------------------------------

    async def open(self, run_id: str, fence: int, files: Callable[[Definition], list[str]]) -> Opened:
        """Take a run up: its events, and the calls to do now.

        Where a `once` call of a former worker has a probe, that is asked first: nothing else is admitted before the
        run is opened again. Raises Fenced, NotFound, Transient.
        """
        if (known := self._runs.get(run_id)) and not known.loaded:  # else it was read for this, and stands still
            self.drop(run_id)
        live = await self.get(run_id, fence)
        events, live.loaded = live.loaded, []  # what the fold was made of need not be read twice
        _held(live)
        lost = [c for c in live.fold.open_calls if c.state == "started" and c.effect == "once" and c.fence != fence]
        verdicts = [] if lost else [
            admission.started(
                call.call, spec, admission.parse(call.arguments)[0], epoch=live.run.epoch, run=run_id, fence=fence, attempt=call.attempts + 1
            )
            for call in live.fold.open_calls
            if (spec := live.definition.tool(call.tool)) and not live.fold.cancel
            if call.state == "approved" or (call.state == "started" and call.fence != fence and call.effect != "once")
        ]  # fmt: skip
        if verdicts:
            await self._record(live, [verdict.event for verdict in verdicts])
        if verdicts or not events:
            last = events[-1].seq if events else 0
            events = [*events, *await self.db.read(lambda c: ledger.read_events(c, run_id, last))]
        calls = [
            AdmittedCall(
                call=call.call,
                tool=call.tool,
                arguments=admission.parse(call.arguments)[0],
                key=call.key,
                attempt=call.attempts,
                state="probe" if call in lost else "admitted",
            )
            for call in lost or live.fold.open_calls
            if call in lost or (call.state == "started" and call.fence == fence)
        ]
        return Opened(
            run=run_id, epoch=live.run.epoch, fence=fence, n=live.n, definition=live.definition, mode=live.run.mode,  # type: ignore[arg-type]
            events=events, calls=await self.with_secrets(live, calls), files=files(live.definition), task=live.run.task_id, agent=live.run.agent,
        )  # fmt: skip

    async def append(self, run_id: str, fence: int, request: AppendRequest) -> AppendAnswer:
        """Take the worker's next events. Raises Fenced, Hole, Conflict, Invalid, Forbidden, Transient."""
        try:
            events = decode_events(bytes(request.events))
        except msgspec.ValidationError as error:
            raise Invalid(str(error), hint='events are a list of {"kind", "call"?, "body": {…}}') from error
        if not events:
            raise Invalid("an append needs at least one event")
        live = await self.get(run_id, fence)
        also: list[NewEvent] = []
        verdicts: list[admission.Verdict] = []
        new = request.n > live.n
        if new:
            _held(live)
            if request.n != live.n + 1:
                raise Hole(f"append {request.n} came after {live.n}", hint=f"append {live.n + 1} first", last_n=live.n)
            reports.check(live.fold, live.fence, events, self.db.now())
            for event in events:
                live.apply(event, f"worker:{fence}")
            verdicts = self._admit_reported(live, events)
            also = [verdict.event for verdict in verdicts] + reports.left_in_doubt(live.fold, events)
            for event in also:
                live.apply(event, "gateway")
            live.arrived(request.n)
        try:
            done = await self.written(live, lambda tx: _append(tx, run_id, fence, request.n, events, also))
        except Exception:
            self.drop(run_id)
            raise
        if live.fold.ended or not live.fold.held:
            self.drop(run_id)
        told = [verdict.told for verdict in verdicts] if new else self.told_before(live, events)
        return AppendAnswer(
            n=done.n, seq=done.seq, head=done.head, admitted=await self.with_secrets(live, told), inbox=live.take_inbox(),
            token=self.fresh_token(live),
        )  # fmt: skip

    def _admit_reported(self, live: LiveRun, events: Iterable[NewEvent]) -> list[admission.Verdict]:
        for event in events:
            if event.kind == "model.reported":
                said = msgspec.json.decode(event.body).get("message") or {}
                return self.admit(live, said)
        return []

    def admit(self, live: LiveRun, said: dict[str, Any]) -> list[admission.Verdict]:
        """Decide the calls of a message, and count them."""
        verdicts = admission.admit(
            live.definition, live.validators, said, mode=live.run.mode, calls_before=live.calls_made, cancelled=live.fold.cancel is not None,
            epoch=live.run.epoch, run=live.run.run_id, fence=live.fence, answers=live.answers,
        )  # fmt: skip
        live.calls_made += sum(1 for verdict in verdicts if verdict.told.state != "failed")
        return verdicts

    @staticmethod
    def told_before(live: LiveRun, events: Iterable[NewEvent] = ()) -> list[AdmittedCall]:
        """Return what became of the latest reply's calls, from the fold: for an answer that is given again."""
        if events and not any(event.kind == "model.reported" for event in events):
            return []
        told = []
        for asked in (live.fold.last_reply or {}).get("tool_calls") or []:
            call = live.fold.calls[asked["id"]]
            state = _TOLD.get(call.state)
            if state:
                told.append(
                    AdmittedCall(
                        call=call.call, tool=call.tool, arguments=admission.parse(call.arguments)[0], state=state,  # type: ignore[arg-type]
                        key=call.key, attempt=max(1, call.attempts), error=call.outcome or "", result=call.outcome,
                    )
                )  # fmt: skip
        return told

    async def heartbeat(self, run_id: str, fence: int, request: HeartbeatRequest) -> HeartbeatAnswer:
        """Keep the lease, or report the worker dead: then the run goes on elsewhere at once. Raises Fenced."""
        if request.dead is not None:
            why = request.dead[:500] or "the kernel died"
            if not await self.db.write(lambda tx: leases.died(tx, run_id, fence, why)):
                raise Fenced(f"run {run_id}: fence {fence} holds nothing any more", hint="its death is known")
            return HeartbeatAnswer(lease=0.0, token="")
        await self.db.write(lambda tx: leases.renew(tx, run_id, fence, self.lease))
        live = await self.get(run_id, fence)
        wish = [new_event("run.cancel_requested", {"reason": live.fold.cancel})] if live.fold.cancel else []
        told = [Event(run=run_id, seq=0, kind=e.kind, at="", by="service", body=e.body) for e in wish]
        return HeartbeatAnswer(lease=self.lease, token=self.token(live), inbox=told)

    async def outcome(self, run_id: str, call: str, fence: int, event: NewEvent) -> ledger.Appended:
        """Take the outcome of a call that comes late, from the fence that started it, while nothing else stands.

        Raises Conflict: the call has an outcome. Forbidden: another worker started it.
        """
        if event.kind not in reports.OUTCOMES:
            raise Invalid("an outcome is tool.succeeded or tool.failed")

        def late(tx: Tx) -> ledger.Appended:
            known = latest.of(tx.connection, ledger.held(tx, run_id)).calls.get(call)
            if known is None or known.state not in ("started", "doubted"):
                raise Conflict(f"call {call} is not under way", hint="it has its outcome, or was never made")
            if known.fence != fence:
                raise Forbidden(f"call {call} was started under fence {known.fence}")
            events = [NewEvent(kind=event.kind, call=call, body=event.body)]
            return leases.go_on(tx, run_id, f"worker:{fence}", events, "the outcome came late")

        self.drop(run_id)
        return await self.db.write(late)

    # -- a person's decision -------------------------------------------------------------------------------------

    async def decide(
        self,
        inbox_id: str,
        decision: str,
        by: str,
        reason: str = "",
        arguments: Any = None,
        result: Any = None,
        force: bool = False,
    ) -> None:
        """Take a person's word on what waits (decisions.py); the run goes on where it waits for nothing else.

        Raises NotFound; Conflict: it is decided, or the worker may still be doing it; Invalid: no such decision here.
        """

        def decided(tx: Tx) -> None:
            item = inbox.show(tx.connection, inbox_id)
            if item["decided_at"] is not None:
                raise Conflict(f"this was decided by {item['decided_by']}: {item['decision']}", hint="reload the inbox")
            run = ledger.held(tx, item["run_id"])
            validators = admission.validators(definitions.get(tx.connection, run.definition_hash))
            word = Word(decision, f"user:{by}", reason, arguments, result, force)
            events = events_of(word, item, run, latest.of(tx.connection, run), validators)
            leases.go_on(tx, item["run_id"], f"user:{by}", events, "decided")

        await self.db.write(decided)

    # -- small things --------------------------------------------------------------------------------------------

    async def _record(self, live: LiveRun, events: list[NewEvent]) -> None:
        await self.written(live, lambda tx: ledger.record(tx, live.run.run_id, "gateway", events, fence=live.fence))
        for event in events:
            live.apply(event, "gateway")

    async def with_secrets(self, live: LiveRun, calls: list[AdmittedCall]) -> list[AdmittedCall]:
        """Add to each admitted call the secrets that its tool names."""
        told = []
        for call in calls:
            spec = live.definition.tool(call.tool)
            if call.state in ("admitted", "probe") and spec and spec.secrets:
                call = msgspec.structs.replace(call, secrets=await self.secrets(live.run.owner, spec.secrets))
            told.append(call)
        return told

    def token(self, live: LiveRun) -> str:
        live.token_at = time.monotonic()
        return runtokens.mint(self.key, epoch=live.run.epoch, run=live.run.run_id, fence=live.fence, now=self.db.even())

    def fresh_token(self, live: LiveRun) -> str:
        """Return a new run token where the last one is some minutes old, else ""."""
        return self.token(live) if time.monotonic() - live.token_at > RENEW_TOKEN_AFTER else ""


def load(connection: Any, run_id: str, to_admit: bool = False) -> LiveRun:
    """Read a run from the ledger: row, definition, fold; `to_admit` calls also what answers those of a simulated run."""
    run = ledger.read_run(connection, run_id)
    events = ledger.read_events(connection, run_id)
    fold = Fold(history=lambda _run, _seq: threads.said_before(connection, events)).apply_all(events)
    live = LiveRun(run, definitions.get(connection, run.definition_hash), fold)
    live.loaded = events
    live.parent = next((str(event.data().get("parent") or "") for event in events[:1]), "")
    live.delegated = any(event.kind == "child.submitted" for event in events)
    for event in reversed(events):
        if event.kind == "model.replied":
            break
        live.attempts += event.kind == "model.requested"
    if to_admit and run.mode == "simulate":
        live.answers = _answers(connection, events[0], live.fold)
    return live


def _answers(connection: Any, created: Event, fold: Fold) -> Answers:
    """Return what a simulated run was given to be answered with when it was made."""
    given = msgspec.convert(created.data().get("simulate") or {}, Simulate)
    events = ledger.read_events(connection, given.recording) if given.recording else []
    return Answers(
        given, simulation.recorded(events, Fold(history=lambda _run, _seq: []).apply_all(events)), asked_for(fold)
    )


def _held(live: LiveRun) -> None:
    """Raise Fenced where nobody holds the run any more: it waits, queues or has ended."""
    if live.run.lease_until is None:
        raise Fenced(
            f"run {live.run.run_id}: fence {live.fence} holds nothing any more",
            hint="stop: it was taken from this worker",
        )


def _append(tx: Tx, run_id: str, fence: int, n: int, events: list[NewEvent], also: list[NewEvent]) -> ledger.Appended:
    """Append; a worker that parks for what was decided meanwhile goes on at once."""
    done = ledger.append(tx, run_id, fence, n, events, also)
    if not done.repeated and any(event.kind == "run.parked" for event in events):
        leases.go_on(tx, run_id, "service", [], "decided meanwhile")
    return done
