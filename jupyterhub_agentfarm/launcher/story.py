"""What the launcher tells the person at the terminal: where the farm is, how to sign in, what to try, the steps of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agentfarm_sdk.protocol import Event
from agentfarm_sdk.task import Task

from .state import State


@dataclass(frozen=True)
class Model:
    """Which model the farm asks: the embedded one, a `named` one, or none, `missing` for this reason."""

    embedded: bool = False
    named: str = ""
    missing: str = ""

    def told(self) -> str:
        if self.named:
            return f"The model is asked at {self.named}."
        what = (
            f"There is no model yet: {self.missing}."
            if self.missing
            else "The model is SmolLM2-135M-Instruct, embedded: real, and with 135 million parameters very small.\n"
            "  It does sums with its calculator, and knows next to nothing."
        )
        return what + (
            "\n  For a larger one put HUGGING_FACE_AUTH_TOKEN into .env, or HF_API_URL with the address of any"
            "\n  OpenAI-compatible server (vLLM, Ollama, llama.cpp), and start again. README: Another model."
        )


def welcome(state: State, version: str, model: Model, isolation: str, seconds: float) -> str:
    """Return the first screen."""
    passwords = json.loads((state.secrets / "passwords.json").read_text())
    admin, password = next(iter(passwords["admin"].items()))
    port, secrets = state.ports["public"], shown(state.secrets / "passwords.json")
    return f"""
AgentFarm {version} is up ({seconds:.0f} s).

  JupyterHub   {state.public_url}/
  AgentFarm    http://agentfarm--service.farm.localhost:{port}/services/agentfarm/
  sign in      {admin}   {password}
               any other name   {passwords["people"]}
               (kept in {secrets}, which only you can read)

  {model.told()}

  Isolation here: {isolation}.

Try next, in another terminal:
  .venv/bin/agentfarm task submit analyst "What is 17*23?" --wait
  .venv/bin/agentfarm agent list
  .venv/bin/agentfarm audit verify
Ctrl-C stops everything.
"""


def shown(path: Path) -> str:
    """Return a path as one would type it from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def tell(task: Task, timeout: float = 180.0) -> None:
    """Print the steps of a task's run as they come. Raises TimeoutError, and what the farm answers."""
    print(f"A first task for {task.data.get('target', 'an agent')}: {task.data.get('input', '')}", flush=True)
    for event in task.events(timeout=timeout):
        if line := line_of(event):
            print(f"  {line}", flush=True)
    print(flush=True)


def line_of(event: Event) -> str:
    """Return one line for the eye about an event; "" for what only a machine wants to know."""
    body: dict[str, Any] = msgspec.json.decode(event.body) or {}
    if event.kind == "model.replied":
        return _reply(body)
    if event.kind in {"tool.succeeded", "tool.resolved"}:
        return f"{event.call} -> {short(body.get('result'))}"
    if event.kind in {"tool.failed", "run.failed", "model.failed"}:
        error = body.get("error") or {}
        return f"{event.kind.replace('.', ' ')}: {short(error.get('message') or '')}".rstrip()
    if event.kind == "run.succeeded":
        return f"done: {short(body.get('result'))}"
    known = {
        "run.leased": "a worker has taken it",
        "run.requeued": f"queued again: {body.get('reason', '')}",
        "run.parked": f"waits: {body.get('reason', '')}",
        "run.cancelled": "cancelled",
        "tool.probed": f"{event.call}: the tool's probe says {body.get('answer', 'nothing')}",
        "approval.voted": f"{event.by} approves; more people must",
        "approval.expired": f"{event.call} was not made: {body.get('reason', '')}",
        "simulation.requested": f"{body.get('tool', 'a call')} waits for an answer: agentfarm inbox list",
        "tool.doubted": f"in doubt whether {event.call} took effect: agentfarm inbox list",
        "approval.requested": f"{body.get('tool', 'a call')} waits for a person: agentfarm inbox list",
    }
    return known.get(event.kind, "")


def _reply(body: dict[str, Any]) -> str:
    message = body.get("message") or {}
    calls = [call.get("function", {}) for call in message.get("tool_calls") or []]
    asked = ", ".join(f"{call.get('name')}({short(call.get('arguments'), 80)})" for call in calls)
    said = short(message.get("content") or "")
    return f"the model asks for {asked}" if asked else f"the model says: {said}"


def short(value: Any, length: int = 300) -> str:
    """Return a value as one line of at most so many characters."""
    if isinstance(value, dict) and "$blob" in value:
        return f"{short(value.get('preview', ''), length)} … ({value.get('size', '?')} bytes)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
