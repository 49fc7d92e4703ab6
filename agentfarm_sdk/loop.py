"""The agent loop: ask the model, do what was admitted, tell what came of it, until there is an answer.

worker.py drives it in an agent's server, agent.py in a notebook. It knows a ledger, a model and tools; not where they are.
By the time a call is seen here, it stands in the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from . import compaction, effects, limits, schemas
from .errors import AgentFarmError, Cancelled, Fenced, Invalid, Parked, ToolFailed, Transient, Unauthenticated
from .fold import Fold
from .ledger import Ledger
from .model import REPLY_SECONDS, Model, Question, Reply, numbered
from .protocol import AdmittedCall, Definition, Event, NewEvent, moment, new_event
from .tools.context import Context, Rest
from .tools.registry import Tool, load
from .waiting import within

log = logging.getLogger("agentfarm")
Outcome = Literal["succeeded", "failed", "parked", "cancelled"]
TOLD = frozenset({  # what others write into a run that the loop acts on
    "run.cancel_requested", "run.interrupted", "run.paused", "message.added", "approval.given", "approval.refused", "approval.expired",
    "simulation.answered", "tool.resolved", "tool.succeeded", "tool.failed", "child.finished",
})  # fmt: skip
MODEL_ATTEMPTS = 5
LONGEST_PAUSE = 30.0  # seconds between attempts to ask the model
MIN_SECRET = 4  # shorter values are not looked for in what a tool returned


class Loop:
    """One run, led to its next rest.

    own: tools by name that live in this kernel. parks: whether a run that waits for a person ends here (the farm resumes
    it), or stays and waits. progress: told the seconds that the next step may take.
    """

    def __init__(
        self,
        ledger: Ledger,
        model: Model,
        *,
        own: Mapping[str, Tool] | None = None,
        workspace: Path | None = None,
        parks: bool = True,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.fold = Fold()
        self._ledger, self._model, self._own = ledger, model, dict(own or {})
        self._workspace, self._parks = workspace or Path.cwd(), parks
        self._progress = progress or (lambda seconds: None)
        self._definition = Definition()
        self._tools: dict[str, Tool] = {}
        self._done: set[tuple[str, int]] = set()  # (call, attempt) that this worker began
        self._opened = (0.0, time.monotonic())  # the time by the record, and by our own clock, when it was opened
        self._seen = 0  # seq of the latest event of others that was taken in
        self._news = asyncio.Event()
        self._flags: dict[str, threading.Event] = {}  # ctx.cancelled of the calls under way
        self._asking: asyncio.Future[Reply] | None = None

    async def run(self) -> Outcome:
        """Lead the run to an answer, a failure, or a rest. Raises Fenced, Unauthenticated: write nothing, stop."""
        await self._take_up()
        try:
            while True:
                if self.fold.cancel is not None:
                    return await self._cancelled()
                if self.fold.open_calls or self.fold.waiting == "paused":
                    if not await self._decided():
                        return await self._park()
                elif (final := self._final()) is not None:
                    return await self._end("run.succeeded", {"result": self._answer(final)})
                elif (
                    self.fold.interrupted is not None
                ):  # a later message of the thread came: the farm ends this run here
                    return await self._park("interrupted")
                else:
                    limits.check(self.fold, self._definition.limits, self._now())
                    await self.perform(await self._ask())
        except (Fenced, Unauthenticated):
            raise
        except Parked:  # the farm has written so: it decides when the run goes on
            return "parked"
        except (
            Cancelled
        ) as error:  # the model is asked no more: the farm knows of the wish before its event has come here
            self.cancel(str(error.extra.get("reason") or error.detail))
            return await self._cancelled()
        except AgentFarmError as error:
            return await self._end("run.failed", {"error": {"type": error.type, "message": _with_hint(error)}})
        except Exception as error:  # a bug of ours, or of a model that lives here: said aloud, never tried for ever
            log.exception("run %s met a bug", self._ledger.run)
            told = {"type": type(error).__name__, "message": f"a bug, not the task: {error}"}
            return await self._end("run.failed", {"error": told})

    def cancel(self, reason: str) -> None:
        """Note the wish to stop: no more calls are started. From the loop's thread only."""
        if self.fold.cancel is None:
            self._note("run.cancel_requested", {"reason": reason})
        for flag in self._flags.values():
            flag.set()
        if self._asking is not None and not self._model.attested:
            self._asking.cancel()
        self._news.set()

    async def record(self, event: NewEvent) -> None:
        """Append what a visitor did in this kernel."""
        await self._ledger.append([event])

    # -- one step ------------------------------------------------------------------------------------------------

    async def _ask(self) -> list[AdmittedCall]:
        """Ask the model once; return the calls of its reply. It is recorded, and its calls are admitted, when this returns."""
        await self._shorten()
        step = self.fold.steps
        question = Question(f"m{step}", self._ledger.n, step, self.fold.messages, self._definition)
        self._progress(REPLY_SECONDS)
        reply = await self._reply(question)
        if reply is None:
            return []
        if self._model.attested:
            self._note("model.replied", {"request": question.request, "message": reply.message, "usage": reply.usage})
            self._take(reply.inbox)
            return reply.calls
        message = numbered(reply.message, step)
        body = {"request": question.request, "message": message, "finish": reply.finish, "usage": reply.usage,
                "cost": reply.cost, "provenance": reply.provenance}  # fmt: skip
        recorded = await (await self._ledger.append([new_event("model.reported", body)]))
        self._note("model.reported", body)
        self._take(recorded.inbox)
        return recorded.admitted

    async def _shorten(self) -> None:
        """Let a model that lives here summarise the older messages; for the farm's models the gateway does so."""
        context = self._definition.model.context
        if self._model.attested or context is None:
            return
        fold, (tokens, counted) = self.fold, self.fold.counted
        tokens += compaction.size(fold.messages[counted:])
        plan = compaction.plan(fold.messages, len(fold.messages) - fold.inherited, tokens, context)
        if plan is None:
            return
        request = f"m{fold.steps}.summary"
        spec = msgspec.structs.replace(
            self._definition.model, parameters={**self._definition.model.parameters, "max_tokens": plan.longest}
        )
        asked = Question(request, self._ledger.n, fold.steps, plan.question, Definition(model=spec))
        if (reply := await self._reply(asked)) is None:
            return
        said = str(reply.message.get("content") or "")
        head = fold.messages[0]
        body = {"request": request, "message": {"role": "assistant", "content": said}, "finish": reply.finish,
                "usage": reply.usage, "cost": reply.cost, "provenance": reply.provenance, "purpose": "summary"}  # fmt: skip
        short = plan.body(said, str(head["content"]) if head["role"] == "system" else None, request)
        await self._ledger.append([new_event("model.reported", body), new_event("context.compacted", short)])
        self._note("model.reported", body)
        self._note("context.compacted", short)

    async def _reply(self, question: Question) -> Reply | None:
        """Ask until there is a reply; None where the run is to stop instead."""
        for attempt in range(1, MODEL_ATTEMPTS + 1):
            self._asking = asyncio.ensure_future(self._model.reply(question))
            try:
                return await self._asking
            except asyncio.CancelledError:
                if self.fold.cancel is None:
                    raise
                return None
            except Transient as error:
                if attempt == MODEL_ATTEMPTS:
                    raise
                limits.check(self.fold, self._definition.limits, self._now())
                pause = min(max(error.retry_after, 0.1) * 2 ** (attempt - 1), LONGEST_PAUSE)
                await self._news_within(pause)
                if self.fold.cancel is not None:
                    return None
            finally:
                self._asking = None
        return None

    async def perform(self, calls: list[AdmittedCall]) -> None:
        """Do the admitted calls side by side and send each outcome as soon as it is there."""
        begun = []
        for call in calls:
            if call.state == "awaiting":
                self._note("approval.requested", {"tool": call.tool, "key": call.key}, call.call)
            elif call.state == "answered":
                self._note("tool.succeeded", {"result": call.result}, call.call)
            elif call.state == "failed":
                self._note("tool.failed", {"error": {"message": call.error}}, call.call)
            elif (call.call, call.attempt) not in self._done:
                self._done.add((call.call, call.attempt))
                self._note(
                    "tool.started", {"key": call.key, "attempt": call.attempt, "fence": self._ledger.fence}, call.call
                )
                begun.append(self._do(call))
        await asyncio.gather(*begun)

    async def _probe(self, call: AdmittedCall) -> bool:
        """Ask the tool's probe what became of a former worker's call. False: nobody knows, and the run waits for a person."""
        await self._ledger.may_start()
        self._flags[call.call] = threading.Event()
        try:
            said = await self._within(call, self._context(call), probing=True)
            body = {"answer": said.answer, "result": said.result}
        except asyncio.TimeoutError:
            body = {"answer": "unknown", "reason": f"it took longer than {self._timeout(call):g} s"}
        except AgentFarmError as error:
            body = {"answer": "unknown", "reason": _with_hint(error)}
        except (Exception, Rest) as error:  # whatever the probe's own code raises
            body = {"answer": "unknown", "reason": f"{type(error).__name__}: {error}"}
        finally:
            del self._flags[call.call]
        event = await self._ledger.fit(_without_secrets(new_event("tool.probed", body, call.call), call.secrets))
        answer = await (await self._ledger.append([event]))
        self._take(answer.inbox)
        self._note("tool.probed", msgspec.json.decode(event.body), call.call)
        if self.fold.calls[call.call].state != "started":
            return True
        self._note("tool.doubted", {}, call.call)
        return False

    async def _do(self, call: AdmittedCall) -> None:
        """Make one call and send its outcome. What goes wrong in the tool is told to the model, not raised."""
        await self._ledger.may_start()
        began = time.perf_counter()
        self._flags[call.call] = threading.Event()
        ctx = self._context(call)
        kind, body = "tool.succeeded", dict[str, Any]()
        try:
            if self.fold.cancel is not None:
                raise Cancelled("the run was asked to stop before this call began")
            body["result"] = await self._within(call, ctx)
            await self._room(ctx)
        except Rest as rest:  # the call stays open, without a worker
            kind, body = rest.event.kind, rest.event_body()
            if kind == "child.submitted" and not self._ledger.delegates:
                told = "there is nobody to delegate to outside a farm; do it yourself"
                kind, body = "tool.failed", {"error": {"type": "no-farm", "message": told}}
        except asyncio.TimeoutError:
            ctx.cancelled.set()
            told = f"{call.tool} took longer than {self._timeout(call):g} s; it may have taken effect all the same"
            kind, body = "tool.failed", {"error": {"type": "timeout", "message": told}}
        except AgentFarmError as error:
            kind, body = "tool.failed", {"error": {"type": error.type, "message": _with_hint(error)}}
        except Exception as error:  # whatever the tool's own code raises
            kind, body = (
                "tool.failed",
                {"error": {"type": type(error).__name__, "message": str(error) or type(error).__name__}},
            )
        finally:
            del self._flags[call.call]
        body["seconds"] = round(time.perf_counter() - began, 6)
        if ctx.values:
            body["values"] = ctx.values
        event = await self._ledger.fit(_without_secrets(new_event(kind, body, call.call), call.secrets))
        kept = [] if kind == "tool.failed" else [_without_secrets(one, call.secrets) for one in ctx.events]
        await self._ledger.append([*kept, event])
        self._note(kind, msgspec.json.decode(event.body), call.call)

    async def _room(self, ctx: Context) -> None:
        """Raise ToolFailed where the agent's memory has no room for what the call wants to remember."""
        for event in ctx.events:
            if event.kind != "memory.remembered":
                continue
            key = msgspec.json.decode(event.body)["key"]
            found = await self._ledger.recall(key, "", 1)
            if not found["items"] and found["keys"] >= effects.MAX_KEYS:
                raise ToolFailed(f"{key} was not remembered: the memory is full with {found['keys']} keys; forget some")

    async def _within(self, call: AdmittedCall, ctx: Context, probing: bool = False) -> Any:
        if (tool := self._tools.get(call.tool)) is None:
            tool = self._tools[call.tool] = await self._load(call.tool)
        timeout = self._timeout(call)
        self._progress(timeout)
        doing = tool.ask_probe if probing else tool.invoke
        return await within(doing(ctx, call.arguments), timeout)

    async def _load(self, name: str) -> Tool:
        spec = self._definition.tool(name)
        if spec is None:
            raise ToolFailed(f"this version has no tool {name}")
        if spec.source == "kernel" and name in self._own:
            return self._own[name]
        try:
            return await load(spec, self._ledger.fetch_file)
        except AgentFarmError as error:
            raise ToolFailed(f"{name} cannot be loaded: {_with_hint(error)}") from error

    def _context(self, call: AdmittedCall) -> Context:
        spec = self._definition.tool(call.tool)
        return Context(
            run=self._ledger.run, call=call.call, key=call.key, attempt=call.attempt, workspace=self._workspace,
            secrets=call.secrets, config=spec.config if spec else None, cancelled=self._flags[call.call],
            recall=self._ledger.recall, loop=asyncio.get_running_loop(),
        )  # fmt: skip

    def _timeout(self, call: AdmittedCall) -> float:
        spec = self._definition.tool(call.tool)
        return spec.timeout if spec else 60.0

    # -- rests and ends ------------------------------------------------------------------------------------------

    async def _take_up(self) -> None:
        """Take the run up: ask the probes of calls whose outcome nobody recorded, then do what is to be done now."""
        calls = await self._open()
        while any(call.state == "probe" for call in calls):  # then they all are
            for call in calls:
                if not await self._probe(call):
                    return
            calls = await self._open()
        await self.perform(calls)

    async def _open(self) -> list[AdmittedCall]:
        self._ledger.on_inbox = self._take
        opened = await self._ledger.open()
        self._definition = opened.definition
        self.fold = Fold().apply_all(opened.events)
        self._opened = (moment(self.fold.at) or time.time(), time.monotonic())
        self._seen = self.fold.seq
        self._take(opened.inbox)
        return opened.calls

    async def _decided(self) -> bool:
        """Return True once there is something to do again; False where the run rests: for a person, or a time."""
        told = False
        while True:
            if self.fold.waiting == "paused":
                return False
            if self.fold.cancel is not None or not self.fold.open_calls:
                return True
            if any(call.state == "approved" for call in self.fold.open_calls):
                await self._ledger.drain()
                await self._take_up()
                return True
            if self._parks:
                return False
            if not told:
                waiting = ", ".join(f"{call.tool} ({call.call})" for call in self.fold.open_calls)
                log.warning("run %s waits (%s): %s", self._ledger.run, self.fold.open_for, waiting)
            told = True
            self._progress(REPLY_SECONDS)
            await self._news_within(REPLY_SECONDS / 2)

    async def _park(self, reason: str = "approval") -> Outcome:
        if self.fold.waiting == "paused" and self._parks:  # so that its lease ends now
            await self._ledger.append([new_event("run.parked", {"reason": "paused"})])
        elif self.fold.status != "waiting":
            await self._ledger.append([new_event("run.parked", {"reason": self.fold.open_for or reason})])
        await self._ledger.drain()
        return "parked"

    async def _cancelled(self) -> Outcome:
        if any(call.state == "doubted" for call in self.fold.open_calls):
            return await self._park()  # a call may have taken effect: a person decides first
        return await self._end("run.cancelled", {"reason": self.fold.cancel})

    async def _end(self, kind: str, body: dict[str, Any]) -> Outcome:
        await self._ledger.append([await self._ledger.fit(new_event(kind, body))])
        await self._ledger.drain()
        self._note(kind, body)
        ends: dict[str, Outcome] = {"run.succeeded": "succeeded", "run.failed": "failed", "run.cancelled": "cancelled"}
        return ends[kind]

    def _final(self) -> dict[str, Any] | None:
        """Return the reply that ends the run, if the last message is one."""
        last = self.fold.messages[-1] if self.fold.messages else {}
        return last if last.get("role") == "assistant" and not last.get("tool_calls") and self.fold.steps else None

    def _answer(self, message: dict[str, Any]) -> Any:
        """Return the text, or what it says where the version asks for a structured answer. Raises Invalid."""
        text = str(message.get("content") or "")
        if self._definition.answer is None:
            return text
        value, why = schemas.answer(text, schemas.check(self._definition.answer))
        if why:
            raise Invalid(
                f"the model's answer does not fit the schema: {why}", hint="simplify it, or use another model"
            )
        return value

    def _now(self) -> float:
        """Return the time by the clock of the run's events, whatever this machine's says, and whoever moves it."""
        at, since = self._opened
        return at + time.monotonic() - since

    # -- what is known of the run --------------------------------------------------------------------------------

    def _note(self, kind: str, body: Any, call: str | None = None) -> None:
        """Take in what this worker knows to stand in the ledger. Only the order counts here: the service alone gives seq."""
        raw = msgspec.Raw(msgspec.json.encode(body))
        self.fold.apply(
            Event(run=self._ledger.run, seq=self.fold.seq + 1, kind=kind, at="", by="", call=call, body=raw)
        )

    def _take(self, events: list[Event]) -> None:
        """Take in what others appended; an event may come twice, by an answer and by a push."""
        for event in events:
            if event.kind == "run.cancel_requested":  # a heartbeat's answer says it again, without a seq
                self.cancel(str(event.data().get("reason", "")))
            if event.seq <= self._seen or event.kind not in TOLD:
                continue
            self._seen = event.seq
            if event.kind != "run.cancel_requested":
                self._note(event.kind, event.data(), event.call)
        self._news.set()

    async def _news_within(self, seconds: float) -> None:
        self._news.clear()
        try:
            await within(self._news.wait(), seconds)
        except asyncio.TimeoutError:
            pass  # nothing new is an answer too


def _with_hint(error: AgentFarmError) -> str:
    return f"{error.detail} ({error.hint})" if error.hint else error.detail


def _without_secrets(event: NewEvent, secrets: Mapping[str, str]) -> NewEvent:
    """Return the outcome without the values of the call's secrets, should the tool have let one out."""
    body = bytes(event.body)
    for value in secrets.values():
        if len(value) >= MIN_SECRET:
            body = body.replace(msgspec.json.encode(value)[1:-1], b"***")
    return NewEvent(kind=event.kind, call=event.call, body=msgspec.Raw(body))
