"""An agent driven in this kernel: the loop runs here, in a thread of its own; the record is the farm's, or a local file's."""

from __future__ import annotations

import asyncio
import html
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from . import settings
from .errors import Invalid
from .farm import Farm, run_error
from .fold import Fold
from .ledger import FarmLedger, Ledger
from .local import LocalFile, LocalLedger
from .loop import Loop
from .model import GatewayModel, Model, model_from_environment
from .protocol import Definition, Event, Limits, Mode, ModelSpec, ToolSpec
from .replay import Replay, replay
from .tools.registry import Tool, builtin

T = TypeVar("T")


class Agent:
    """A definition that can be tried at once.

    tools: functions made with `@tool`, or names of built-in ones ("calculator"). model: a name that the farm knows, or a
    model of one's own (ScriptedModel, OpenAIModel). mode: `ask` (each effect needs a person), `live` or, in a farm,
    `simulate`. ledger: a file for the record outside a farm (default: AGENTFARM_LEDGER).
    """

    def __init__(
        self, name: str, *, prompt: str = "", tools: Sequence[Tool | str] = (), model: str | Model | None = None, limits: Limits | None = None,
        answer: dict[str, Any] | None = None, mode: Mode = "ask", tool_choice: str | list[str] = "auto", parameters: dict[str, Any] | None = None,
        variables: dict[str, str] | None = None, farm: Farm | None = None, ledger: Path | str | None = None,
    ) -> None:  # fmt: skip
        self.name, self.mode, self._ledger, self._farm = name, mode, ledger, farm
        self._model = None if isinstance(model, str) else model
        self.tools = {one.name: one for one in (builtin(t) if isinstance(t, str) else t for t in tools)}
        if not all(isinstance(one, Tool) for one in self.tools.values()):
            raise Invalid("tools are functions made with @tool, or names of built-in ones")
        self.definition = Definition(
            prompt=prompt,
            model=ModelSpec(name=model if isinstance(model, str) else "", parameters=parameters or {}),
            tools=[_here(one) for one in self.tools.values()],
            limits=limits or Limits(),
            tool_choice=tool_choice,
            answer=answer,
            variables=variables or {},
        )

    def __repr__(self) -> str:
        return f"Agent({self.name!r}, tools={list(self.tools)})"

    def run(self, input: Any, *, variables: Mapping[str, str] | None = None) -> Run:
        """Drive a run here until it rests; return it. Works where an event loop already runs (a notebook).

        Raises:
            Invalid: no farm and no model is named.  AgentFarmError: the farm cannot be reached or refuses.
        """
        farm = self._farm or (Farm() if self._ledger is None and settings.farm_address() else None)
        given = dict(variables or {})
        if farm is None:
            return self._run_locally(input, given)
        body = {
            "name": self.name, "definition": msgspec.to_builtins(self.definition), "input": input, "mode": self.mode, "variables": given,
        }  # fmt: skip
        bound = farm.request("POST", "/runs", body)
        run = Run(bound["run"], self, farm=farm)
        run._drive(lambda: self._farm_loop(farm, bound))
        return run

    def resume(self, run_id: str) -> Run:
        """Go on with a local run that rests (its process was killed, or a person decided)."""
        run = Run(run_id, self, file=LocalFile(self._ledger))
        run._drive(lambda: self._local_loop(run))
        return run

    def _run_locally(self, input: Any, variables: dict[str, str]) -> Run:
        if self._model is None:
            self._model = model_from_environment(self.definition.model.name)
        file = LocalFile(self._ledger)
        text = input if isinstance(input, str) else msgspec.json.encode(input).decode()
        run = Run(
            file.create(self.definition, text, mode=self.mode, name=self.name, variables=variables), self, file=file
        )
        run._drive(lambda: self._local_loop(run))
        return run

    def _farm_loop(self, farm: Farm, bound: dict[str, Any]) -> tuple[Loop, Ledger]:
        ledger = FarmLedger(
            farm.address.url, bound["run"], bound["fence"], bound["token"], socket=farm.address.socket, renews=True
        )
        model = self._model or GatewayModel(ledger.run, ledger.fence, ledger.request)
        return Loop(ledger, model, own=self.tools, workspace=settings.workspace(), parks=False), ledger

    def _local_loop(self, run: Run) -> tuple[Loop, Ledger]:
        assert run._file is not None
        ledger = LocalLedger(run._file, run.run_id)
        model = self._model or model_from_environment(self.definition.model.name)
        return Loop(ledger, model, own=self.tools, workspace=settings.workspace()), ledger


class Run:
    """A run that this kernel drove. `status`: succeeded, failed, cancelled, or waiting for a person."""

    def __init__(self, run_id: str, agent: Agent, *, farm: Farm | None = None, file: LocalFile | None = None) -> None:
        self.run_id, self.agent = run_id, agent
        self._farm, self._file = farm, file
        self._fold: Fold | None = None

    def _drive(self, make: Any) -> None:
        """Run the loop in a thread of its own. Ctrl-C asks the run to stop, a second one leaves it."""
        held: dict[str, Any] = {}

        async def lead() -> None:
            loop, ledger = make()
            held.update(loop=loop, event_loop=asyncio.get_running_loop())
            try:
                await loop.run()
            finally:
                await ledger.close()

        thread = _Thread(lead())
        try:
            thread.join()
        except KeyboardInterrupt:
            if "loop" in held:
                held["event_loop"].call_soon_threadsafe(held["loop"].cancel, "interrupted in the notebook")
            thread.join()
        self._fold = None
        if thread.error is not None:
            raise thread.error

    @property
    def fold(self) -> Fold:
        """The state that the recorded events make."""
        if self._fold is None:
            self._fold = Fold(history=lambda _run, _seq: []).apply_all(self.events())
        return self._fold

    @property
    def status(self) -> str:
        return self.fold.status

    @property
    def result(self) -> Any:
        """The answer. Raises the run's error where it failed, Invalid where it has not ended."""
        if self.status == "succeeded":
            return self.fold.result
        if self.status == "failed":
            raise run_error(self.fold.error)
        raise Invalid(
            f"run {self.run_id} is {self.status}" + (f", waiting for {self.fold.waiting}" if self.fold.waiting else "")
        )

    def events(self) -> list[Event]:
        """Return what was recorded, from the ledger."""
        if self._file is not None:
            return self._file.events(self.run_id)
        assert self._farm is not None
        return list(self._farm.events(self.run_id))

    def verify(self) -> dict[str, Any]:
        """Check the run's chain: {ok, events, head, …}."""
        if self._file is not None:
            return self._file.verify(self.run_id)
        assert self._farm is not None
        return self._farm.verify(self.run_id)

    def replay(self) -> Replay:
        """Give the recorded replies to today's code of this agent. Raises Divergence where it now differs."""
        return in_own_thread(replay(self.events(), self.agent.definition, self.agent.tools, settings.workspace()))

    def decide(self, call: str, decision: str, **how: Any) -> Run:
        """Decide a call of a local run that waits (approve, refuse; happened, not_happened, given_up) and go on.

        In a farm this is done in the inbox, by a person.
        """
        if self._file is None:
            raise Invalid("calls of a farm's run are decided in the inbox", hint="agentfarm inbox list")
        self._file.decide(self.run_id, call, decision, **how)
        self._drive(lambda: self.agent._local_loop(self))
        return self

    def __repr__(self) -> str:
        return f"<Run {self.run_id} {self.status}>"

    def _repr_html_(self) -> str:
        """Show the run's end in a notebook; what a model wrote is text, never markup."""
        fold = self.fold
        told = fold.result if fold.status == "succeeded" else (fold.error or {}).get("message") or fold.waiting or ""
        text = told if isinstance(told, str) else msgspec.json.encode(told).decode()
        return f"<div><b>{html.escape(fold.status)}</b> <code>{html.escape(self.run_id)}</code><pre>{html.escape(text)}</pre></div>"


class _Thread(threading.Thread):
    """Runs a coroutine in an event loop of its own; `error` is what it raised."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        super().__init__(name="agentfarm-loop", daemon=True)
        self.error: BaseException | None = None
        self.value: Any = None
        self._work = work
        self.start()

    def run(self) -> None:
        try:
            self.value = asyncio.run(self._work)
        except BaseException as error:
            self.error = error


def in_own_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where an event loop already runs."""
    thread = _Thread(work)
    thread.join()
    if thread.error is not None:
        raise thread.error
    value: T = thread.value
    return value


def _here(tool: Tool) -> ToolSpec:
    """Return the tool's spec; one of this kernel says so."""
    return tool.spec if tool.spec.source == "builtin" else msgspec.structs.replace(tool.spec, source="kernel")
