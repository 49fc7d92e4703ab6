"""An agent that is driven here, in this kernel: ledgered by the farm where there is one, else in a local file.

run = Agent("draft", prompt="You do sums.", tools=["calculator"]).run("What is 17*23?")
run.result, run.events(), run.verify(), run.replay()
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import copy
import threading
import uuid
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from . import settings
from .errors import Cancelled, Conflict, InDoubt, Invalid
from .farm import Farm
from .fold import Call, Fold
from .ledger import FarmLedger, Ledger
from .local import LocalLedger
from .localfile import LocalFile
from .loop import Loop
from .model import GatewayModel, Model, model_from_environment
from .prompts import render
from .protocol import Definition, Event, Limits, Mode, ModelSpec
from .replay import Replayed, replay
from .shown.markup import page
from .shown.runs import run_html
from .shown.story import Story
from .task import run_error
from .tools.context import Context
from .tools.registry import Tool, builtin, load, tool
from .waiting import within

T = TypeVar("T")
Json = dict[str, Any]


class Agent:
    """A prompt, tools and limits, tried in this kernel.

    tools: functions (with or without @tool) and names of built-in ones. model: None for the farm's default (outside a
    farm: the one that the environment names), a name, or a model that lives here, whose replies are reported. answer: a JSON
    Schema, or a type that has one. mode: `ask` (what only reads is done, each effect waits for a person) , `live`, or `simulate` (no effect is made: `simulate` says what answers, as in Farm.submit; in a farm only). ledger: the file for runs outside a farm; naming one keeps a run out of the farm.
    """

    def __init__(
        self,
        name: str,
        *,
        prompt: str = "",
        tools: Sequence[Tool | Callable[..., Any] | str] = (),
        model: str | Model | None = None,
        parameters: Json | None = None,
        limits: Limits | Json | None = None,
        answer: Any = None,
        mode: Mode = "ask",
        simulate: Json | None = None,
        tool_choice: str | list[str] = "auto",
        variables: dict[str, str] | None = None,
        workspace: Path | str | None = None,
        ledger: LocalFile | Path | str | None = None,
    ) -> None:
        self.name, self.mode, self._simulate = name, mode, simulate
        self.tools = {made.name: made for made in map(_tool, tools)}
        if len(self.tools) != len(tools):
            raise Invalid("two tools have the same name", hint="@tool(name=...) gives another")
        self._model = None if isinstance(model, str) else model
        self._answer = answer if isinstance(answer, type) else None
        self._workspace = Path(workspace) if workspace else settings.workspace()
        self._file = ledger
        self.definition = Definition(
            prompt=prompt,
            model=ModelSpec(name=model if isinstance(model, str) else "", parameters=parameters or {}),
            tools=[made.spec for made in self.tools.values()],
            limits=_limits(limits),
            tool_choice=tool_choice,
            answer=msgspec.json.schema(answer) if self._answer else answer,
            variables=variables or {},
        )

    def __repr__(self) -> str:
        return f"<Agent {self.name}: {', '.join(self.tools) or 'no tools'}>"

    def run(self, input: str, *, variables: dict[str, str] | None = None, timeout: float | None = None) -> Run:
        """Drive a run to its end, or to where it waits for a person; return it. `timeout` in seconds cancels it."""
        render(self.definition.prompt, self.definition.variables, variables or {}, input)  # a missing one is said now
        address = None if self._file is not None else settings.farm_address()
        run = self._in_farm(input, variables or {}, address) if address else self._here(input, variables or {})
        return run._drive(timeout)

    def take_up(self, run_id: str, *, timeout: float | None = None) -> Run:
        """Go on with a run of the local file that this process or a former one left."""
        return Run(self, run_id, file=_file(self._file))._drive(timeout)

    def _in_farm(self, input: str, variables: dict[str, str], address: settings.FarmAddress) -> Run:
        farm = Farm(address.url, address.token, socket=address.socket)
        body = {"name": self.name, "definition": msgspec.to_builtins(self.definition), "input": input, "mode": self.mode,
                "variables": variables}  # fmt: skip
        if self._simulate is not None:
            body["simulate"] = self._simulate
        bound = farm.again("POST", "/runs", body, {"Idempotency-Key": uuid.uuid4().hex})
        return Run(self, bound["run"], farm=farm, bound=bound)

    def _here(self, input: str, variables: dict[str, str]) -> Run:
        if self._model is None:
            model_from_environment()  # said before a run is begun
        file = _file(self._file)
        run = file.create(self.definition, input, mode=self.mode, name=self.name, variables=variables)
        return Run(self, run, file=file)


class Run:
    """A run that was driven here."""

    def __init__(self, agent: Agent, run_id: str, *, farm: Farm | None = None, bound: Json | None = None,
                 file: LocalFile | None = None) -> None:  # fmt: skip
        self.run_id = run_id
        self._agent, self._farm, self._bound, self._file = agent, farm, bound, file
        self._fold: Fold | None = None

    def __repr__(self) -> str:
        return f"<Run {self.run_id} {self.status}>"

    # -- what came of it -----------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """Return the events, as they are recorded."""
        if self._farm is not None:
            return list(self._farm.events(self.run_id))
        return self._local().events(self.run_id)

    def fold(self) -> Fold:
        """Return the state that the events make; read once for a run that has ended."""
        if self._fold is None or not self._fold.ended:
            self._fold = Fold().apply_all(self.events())
        return self._fold

    @property
    def status(self) -> str:
        return self.fold().status

    @property
    def result(self) -> Any:
        """Return the answer. Raises the run's error, Cancelled, InDoubt, or Conflict where it waits for a person."""
        fold = self.fold()
        if fold.status == "succeeded":
            kind = self._agent._answer
            result = self._farm.whole(self.run_id, fold.result) if self._farm is not None else fold.result
            return msgspec.convert(result, kind) if kind else result
        if fold.status == "failed":
            raise run_error(fold.error)
        if fold.status == "cancelled":
            raise Cancelled(f"run {self.run_id} was cancelled: {fold.cancel or 'no reason given'}")
        waiting = ", ".join(f"{call.call} ({call.tool})" for call in fold.open_calls)
        if fold.open_for == "question":
            asked = "; ".join(str(call.rest.get("question")) for call in self.waiting)
            raise Conflict(
                f"the run waits for an answer: {asked}", hint="run.decide(call, 'answer', result=…); run.resume()"
            )
        if any(call.state == "doubted" for call in fold.open_calls):
            hint = "run.decide(call, 'happened', result=…), 'not_happened' or 'give_up'; then run.resume()"
            raise InDoubt(f"nobody knows whether these calls took effect: {waiting}", hint=hint)
        raise Conflict(
            f"the run waits: {fold.waiting}: {waiting}", hint="run.decide(call, 'approve'); then run.resume()"
        )

    @property
    def waiting(self) -> list[Call]:
        """The calls that wait for a person."""
        calls = self.fold().open_calls
        return [call for call in calls if call.state in ("awaiting", "doubted") or call.rests_for == "question"]

    def verify(self) -> Json:
        """Check the chain: `{ok, events, head}`, or the first bad event and why."""
        return self._farm.verify(self.run_id) if self._farm is not None else self._local().verify(self.run_id)

    def replay(self, agent: Agent | None = None) -> Replayed:
        """Hold what was recorded against today's code (or another agent's). Raises Divergence."""
        today = agent or self._agent
        events = self.events()
        prompt = _said(events) if "{{" in today.definition.prompt else today.definition.prompt

        async def again(call: Call, values: Any) -> Any:
            ctx = Context(run=self.run_id, call=call.call, key=call.key, recorded=values, workspace=today._workspace)
            made = today.tools.get(call.tool) or await load(_spec(today, call.tool))
            return await made.invoke(ctx, msgspec.json.decode(call.arguments or "{}"))

        specs = {spec.name: spec for spec in today.definition.tools}
        return in_own_thread(replay(events, prompt, specs, again))

    def fork(
        self, step: int, *, prompt: str | None = None, input: str | None = None, timeout: float | None = None
    ) -> Run:
        """Begin a new run with this one's messages before reply number `step` (from 0), and drive it here.

        `prompt` stands in place of the old one, `input` is asked next; effects ask a person first (mode ask).
        Raises Invalid: there is no such step, or no gateway that could fold what another run said.
        """
        agent = copy.copy(self._agent)
        agent.mode = "ask"
        if prompt is not None:
            agent.definition = msgspec.structs.replace(agent.definition, prompt=prompt)
        if self._farm is None:
            run = self._local().fork(self.run_id, agent.definition, step, prompt, input, name=agent.name)
            return Run(agent, run, file=self._file)._drive(timeout)
        if agent._model is not None:
            raise Invalid(
                "a fork of a farm's run needs the farm's model", hint="make the agent without a model of its own"
            )
        fork = {"run": self.run_id, "step": step, "prompt": prompt is not None}
        body = {"name": agent.name, "definition": msgspec.to_builtins(agent.definition), "input": input, "mode": "ask",
                "variables": {}, "fork": fork}  # fmt: skip
        bound = self._farm.again("POST", "/runs", body, {"Idempotency-Key": uuid.uuid4().hex})
        return Run(agent, bound["run"], farm=self._farm, bound=bound)._drive(timeout)

    # -- what a person does --------------------------------------------------------------------------------------

    def decide(
        self, call: str, decision: str, *, reason: str = "", arguments: Json | None = None, result: Any = None
    ) -> Run:
        """Decide a waiting call: approve, refuse; happened, not_happened, give_up; answer. In a farm that is the inbox's."""
        self._local().decide(self.run_id, call, decision, reason=reason, arguments=arguments, result=result)
        return self

    def resume(self, timeout: float | None = None) -> Run:
        """Go on, in this kernel."""
        return self if self.fold().ended else self._drive(timeout)

    # -- driving -------------------------------------------------------------------------------------------------

    def _local(self) -> LocalFile:
        if self._file is None:
            raise Invalid("this run is the farm's", hint="agentfarm inbox list; agentfarm inbox resolve")
        return self._file

    def _drive(self, timeout: float | None) -> Run:
        """Lead the run to its next rest in a thread of its own; Ctrl-C cancels it first and stops waiting second."""
        self._fold = None
        driven = _Driven(self)
        in_own_thread(driven.run(timeout), interrupted=driven.cancel)
        return self

    def _parts(self) -> tuple[Ledger, Model]:
        agent = self._agent
        if self._farm is not None and self._bound is not None:
            address, bound = self._farm.address, self._bound
            ledger = FarmLedger(
                address.url, self.run_id, bound["fence"], bound["token"], socket=address.socket, renews=True, lease=bound["lease"]
            )  # fmt: skip
            return ledger, agent._model or GatewayModel(self.run_id, ledger.fence, ledger.request)
        return LocalLedger(self._local(), self.run_id), agent._model or model_from_environment()

    def _repr_html_(self) -> str:
        """Show the run in a notebook; every word of it is escaped."""
        return page(run_html(Story().apply_all(self.events()), self._farm.page if self._farm is not None else ""))


class _Driven:
    """A drive under way, so that another thread can cancel it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._loop: asyncio.AbstractEventLoop | None = None
        self._driving: Loop | None = None
        self._resting: asyncio.Event | None = None  # set: stop resting

    async def run(self, timeout: float | None) -> None:
        """Drive; a run outside a farm that rests until a time goes on here when it has come."""
        self._loop = asyncio.get_running_loop()
        late = None if timeout is None else self._loop.call_later(timeout, self._stop, f"not done in {timeout:g} s")
        try:
            while (pause := await self._drive()) is not None:
                self._resting = asyncio.Event()
                with contextlib.suppress(asyncio.TimeoutError):
                    await within(self._resting.wait(), pause)
                self._resting = None
        finally:
            if late is not None:
                late.cancel()

    async def _drive(self) -> float | None:
        """Lead the run to its next rest; return the seconds until it goes on by itself, None where it does not."""
        ledger, model = self._run._parts()
        agent = self._run._agent
        self._driving = Loop(ledger, model, own=agent.tools, workspace=agent._workspace, parks=self._run._farm is None)
        try:
            parked = await self._driving.run() == "parked"
            return ledger.pause() if parked and isinstance(ledger, LocalLedger) else None
        finally:
            await ledger.close()

    def cancel(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop, "interrupted")

    def _stop(self, reason: str) -> None:
        if self._resting is not None:  # nobody drives it: the wish is written, and the next drive ends it
            self._run._local().cancel(self._run.run_id, reason)
            self._resting.set()
        elif self._driving is not None:
            self._driving.cancel(reason)


def in_own_thread(work: Coroutine[Any, Any, T], interrupted: Callable[[], None] | None = None) -> T:
    """Run a coroutine in a thread with an event loop of its own: a notebook's main thread has one that runs already.

    The first KeyboardInterrupt calls `interrupted` and waits on; the second travels up.
    """
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    context = contextvars.copy_context()

    def drive() -> None:
        try:
            done.set_result(context.run(asyncio.run, work))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=drive, name="agentfarm-run", daemon=True).start()
    try:
        return done.result()
    except KeyboardInterrupt:
        if interrupted is None or done.done():
            raise
        interrupted()
        return done.result()


def _tool(given: Tool | Callable[..., Any] | str) -> Tool:
    if isinstance(given, str):
        return builtin(given)
    return given if isinstance(given, Tool) else tool(given)


def _limits(given: Limits | Json | None) -> Limits:
    try:
        return given if isinstance(given, Limits) else msgspec.convert(given or {}, Limits, strict=True)
    except msgspec.ValidationError as error:
        raise Invalid(f"limits: {error}", hint="steps, calls, tokens, seconds, cost") from error


def _file(given: LocalFile | Path | str | None) -> LocalFile:
    return given if isinstance(given, LocalFile) else LocalFile(given)


def _spec(agent: Agent, name: str) -> Any:
    spec = agent.definition.tool(name)
    if spec is None:
        raise Invalid(f"agent {agent.name} has no tool {name}")
    return spec


def _said(events: Sequence[Event]) -> str:
    """A prompt with variables is compared as it was rendered then: the values are not today's code."""
    return str(
        next((e.data()["content"] for e in events if e.kind == "message.added" and e.data()["role"] == "system"), "")
    )
