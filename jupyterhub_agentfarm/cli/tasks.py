"""`agentfarm task …`, `run …`: what was asked for, and what came of it."""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from agentfarm_sdk import replay
from agentfarm_sdk.errors import Conflict, Divergence, Invalid
from agentfarm_sdk.farm import Farm
from agentfarm_sdk.protocol import Event
from agentfarm_sdk.task import Task

from ..launcher.story import line_of, short
from . import batches, notebooks
from .show import Out, noun
from .sizes import add_needs, needs

TASKS = ("task_id", "target", "agent", "status", "waiting", "priority", "created_at", "input")
RUN = (
    "run_id", "task_id", "agent", "owner", "status", "waiting", "mode", "version", "definition_hash", "epoch", "seq",
    "head", "fence", "worker", "created_at", "ended_at",
)  # fmt: skip


def add(nouns: Any) -> None:
    _add_task(noun(nouns, "task", "tasks: what agents are asked for"))
    verb = noun(nouns, "run", "runs: what was done, event by event")
    verb("show", show_run, "one run").add_argument("run")
    events = verb("events", run_events, "the events of a run, as recorded")
    events.add_argument("run")
    events.add_argument("--follow", action="store_true", help="go on until the run has ended")
    events.add_argument("--after", type=int, default=0, metavar="SEQ", help="only those after this number")
    _add_again(verb)
    bundle = verb(
        "bundle", bundle_run, "save all that proves a run, in one file; check it by: agentfarm audit verify FILE"
    )
    bundle.add_argument("run")
    bundle.add_argument("-o", "--output", metavar="FILE", help="default: RUN.zip")
    notebook = verb("notebook", notebooks.write, "write it as a notebook whose cells replay it")
    notebook.add_argument("run", help="a run, or a bundle's file: then no farm is asked")
    notebook.add_argument("-o", "--output", metavar="FILE", help="default: RUN.ipynb")
    notebook.add_argument("--bundle", action="store_true", help="save the bundle beside it: it replays without a farm")
    notebook.set_defaults(offline=notebooks.offline)
    erase = verb("erase", erase_run, "erase bodies of an ended run's events; hashes stay, and who did it, and why")
    erase.add_argument("run")
    erase.add_argument("--seq", type=int, action="append", default=[], metavar="N", help="this event; may be repeated")
    erase.add_argument("--kind", action="append", default=[], metavar="KIND", help="all of this kind: tool.succeeded")
    erase.add_argument("--all", action="store_true", help="all words of people, models and tools")
    erase.add_argument("--memory", action="store_true", help="also what the agent remembers since")
    delete = verb("delete", delete_run, "delete an ended run; a tombstone with its last hash stays")
    delete.add_argument("run")
    for one in (erase, delete):
        one.add_argument("--reason", required=True, help="goes on record")


def _add_task(verb: Any) -> None:
    submit = verb("submit", submit_task, "ask an agent, or a pool, for something")
    submit.add_argument("target", help="an agent's name, or pool:NAME")
    submit.add_argument("input", help="what is asked; - reads it from standard input")
    submit.add_argument("--wait", action="store_true", help="show the steps, print the answer, fail if it fails")
    submit.add_argument("--timeout", type=float, metavar="SECONDS", help="wait no longer than this")
    submit.add_argument("--key", help="asking again with the same key asks only once")
    submit.add_argument("--priority", type=int, default=0, help="-100 to 100; a point is worth a minute of waiting")
    submit.add_argument("--deadline", type=float, metavar="SECONDS", help="cancel it when so many have passed")
    submit.add_argument(
        "--after", action="append", default=[], metavar="TASK", help="begin when that one has succeeded"
    )
    submit.add_argument("--after-any-end", action="store_true", help="… or has ended, however")
    submit.add_argument("--results", action="store_true", help="tell it the results of those before it")
    submit.add_argument("--retries", type=int, metavar="N", help="run it again, up to N times, where a run has failed")
    submit.add_argument(
        "--backoff", type=float, default=5.0, metavar="SECONDS", help="before the first; doubled each time"
    )
    submit.add_argument("--concurrency-key", metavar="KEY", help="one of your runs with this key at once")
    submit.add_argument("--concurrency", type=int, metavar="N", help="… or so many")
    submit.add_argument("--mode", choices=("live", "ask", "simulate"), help="ask: each effect needs approval")
    submit.add_argument("--stub", action="append", default=[], metavar="TOOL=JSON", help="simulate: the tool's answer")
    submit.add_argument("--recording", metavar="RUN", help="simulate: answer as in that run")
    submit.add_argument("--otherwise", choices=("person", "refuse"), help="simulate: calls without an answer")
    submit.add_argument(
        "--workspace", choices=("home", "none"), help="none: it needs no files of the agent's, and resumes anywhere"
    )
    submit.add_argument("--thread", help="go on in this conversation; new: begin one")
    submit.add_argument(
        "--policy", choices=("enqueue", "reject", "interrupt"), default="enqueue",
        help="of a new conversation: what a message meets while a run is active",
    )  # fmt: skip
    submit.add_argument(
        "--attach", action="append", default=[], metavar="FILE", help="an image or a file, for a model that takes them"
    )
    add_needs(submit)
    submit.add_argument("--var", action="append", default=[], metavar="NAME=VALUE", help="a {{NAME}} of the prompt")
    batches.add(verb)
    show_all = verb("list", list_tasks, "tasks, the newest first")
    show_all.add_argument("--status", help="only those with this status")
    show_all.add_argument("--agent", help="only those of this agent")
    show_all.add_argument("--limit", type=int, default=50)
    verb("show", show_task, "one task").add_argument("task")
    pause = verb("pause", pause_task, "let a task wait: a running one after its step")
    pause.add_argument("task")
    pause.add_argument("--reason", default="")
    verb("resume", resume_task, "let a paused or restored task go on").add_argument("task")
    rerun = verb("rerun", rerun_task, "submit the same input anew; lists what the old run did in the world")
    rerun.add_argument("task")
    rerun.add_argument("--yes", action="store_true", help="its effects are known, and may happen again")
    cancel = verb("cancel", cancel_task, "stop a task")
    cancel.add_argument("task")
    cancel.add_argument("--reason", default="")


def _add_again(verb: Any) -> None:
    fork = verb("fork", fork_run, "begin a new run with the messages of this one up to a step")
    fork.add_argument("run")
    fork.add_argument("--step", type=int, required=True, metavar="N", help="before which reply of the model, from 0")
    fork.add_argument("--prompt", metavar="TEXT", help="in place of the run's own")
    fork.add_argument("--input", metavar="TEXT", help="what is asked next")
    fork.add_argument("--version", metavar="N", help='a version of the agent, or "draft", in place of the run\'s own')
    fork.add_argument(
        "--mode", choices=("live", "ask", "simulate"), help="ask unless named: each effect needs approval"
    )
    fork.add_argument("--wait", action="store_true", help="show the steps, print the answer, fail if it fails")
    again = verb("replay", replay_run, "hold its record against the agent of today; show the first difference")
    again.add_argument("run")
    again.add_argument("--version", metavar="N", help='a version, or "draft"; the published one if left out')
    verb("effects", run_effects, "what it did in the world, or may have").add_argument("run")


def submit_task(farm: Farm, asked: argparse.Namespace, out: Out) -> int:
    text = sys.stdin.read() if asked.input == "-" else asked.input
    given = [text, *(farm.attach(file) for file in asked.attach)] if asked.attach else text
    if asked.thread == "new":
        asked.thread = farm.thread(asked.target, policy=asked.policy)
        print(asked.thread, file=sys.stderr)
    task = farm.submit(
        asked.target, given, priority=asked.priority, key=asked.key, mode=asked.mode, thread=asked.thread,
        variables=variables(asked.var) or None, simulate=simulated(asked),
        deadline=asked.deadline, after=asked.after, after_any_end=asked.after_any_end,
        results=asked.results, concurrency_key=asked.concurrency_key, concurrency=asked.concurrency,
        retry={"attempts": asked.retries + 1, "backoff": asked.backoff} if asked.retries else None, requirements=needs(asked) or None,
        workspace=asked.workspace,
    )  # fmt: skip
    if not asked.wait:
        out.line(f"{task.id}  {task.data.get('status', '')}".rstrip(), task.data)
        return 0
    if not out.as_json:
        print(task.id, file=sys.stderr)
        tell_steps(task.events(timeout=asked.timeout))
    task.wait(asked.timeout)
    return answer_of(task, out)


def simulated(asked: argparse.Namespace) -> dict[str, Any] | None:
    """Return what answers the calls of a simulated run, as the options say. Raises Invalid."""
    named = variables(asked.stub, "--stub")
    given = {
        "stubs": {name: parsed(f"--stub {name}", text) for name, text in named.items()},
        "recording": asked.recording,
        "otherwise": asked.otherwise,
    }
    return {name: value for name, value in given.items() if value} or None


def tell_steps(events: Iterable[Event]) -> None:
    """Print the steps as they come, to stderr: what goes to a pipe is the answer alone."""
    for event in events:
        if line := line_of(event):
            print(f"  {line}", file=sys.stderr, flush=True)


def answer_of(task: Task, out: Out) -> int:
    """Print what came of a task; 0 where it succeeded."""
    status, result = task.data.get("status"), task.data.get("result")
    if out.as_json:
        out.value(task.data)
    elif status == "succeeded":
        print(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False))
    else:
        error = task.data.get("error") or {}
        print(
            f"agentfarm: {task.id} {status}: {short(error.get('message') or error or '')}".rstrip(": "), file=sys.stderr
        )
    return 0 if status == "succeeded" else 1


def variables(given: list[str], option: str = "--var") -> dict[str, str]:
    """Read NAME=VALUE. Raises Invalid."""
    wrong = [one for one in given if "=" not in one]
    if wrong:
        raise Invalid(f"{option} {wrong[0]} has no value", hint=f"{option} NAME=VALUE")
    return dict(one.split("=", 1) for one in given)


def list_tasks(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    found = farm.tasks(asked.limit, status=asked.status, agent=asked.agent)
    out.rows(found, TASKS, 'there is no such task: agentfarm task submit AGENT "…"')


def show_task(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    out.record(farm.task(asked.task).data)


def cancel_task(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    task = farm.task(asked.task).cancel(asked.reason)
    word = "has ended before" if task.data.get("status") in {"succeeded", "failed"} else "is being cancelled"
    out.line(f"{task.id} {'is cancelled' if task.data.get('status') == 'cancelled' else word}", task.data)


def show_run(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    out.record(farm.run(asked.run), () if out.as_json else RUN)


def run_events(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    """One event a line, also as JSON: a stream may be long."""
    for event in farm.events(asked.run, asked.after, asked.follow):
        if out.as_json:
            print(msgspec.json.encode(event).decode(), flush=True)
        else:
            told = short(msgspec.json.decode(event.body), 160)
            print(
                f"{event.seq:>5}  {event.at}  {event.by:<12}  {event.kind:<18}  {event.call or '':<6}  {told}",
                flush=True,
            )


def parsed(name: str, text: str | None) -> Any:
    """Read JSON from an option. Raises Invalid."""
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise Invalid(f"{name} is no JSON: {error}", hint=f'{name} \'{{"key": "value"}}\'') from error


def bundle_run(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    file = Path(asked.output or f"{asked.run}.zip")
    content = farm.bundle(asked.run)
    try:
        file.write_bytes(content)
    except OSError as error:
        raise Invalid(f"{file} cannot be written: {error.strerror}", hint="name another file by -o") from error
    out.line(f"{file}  {len(content)} bytes", {"file": str(file), "bytes": len(content)})


def erase_run(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    done = farm.erase(
        asked.run, asked.reason, seqs=asked.seq, kinds=asked.kind, everything=asked.all, memory=asked.memory
    )
    said = [f"{asked.run}: {done['bodies']} bodies and {done['blobs']} blobs erased"]
    said += [f"not reached: {one['what']} {one['where']}: {one['why']}" for one in done["left"]]
    out.line("\n".join(said), done)


def delete_run(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    stone = farm.delete_run(asked.run, asked.reason)
    out.line(f"{asked.run} is deleted: its {stone['seq']} events ended with {stone['head']}", stone)


EFFECTS = ("call", "tool", "state", "arguments", "key")


def fork_run(farm: Farm, asked: argparse.Namespace, out: Out) -> int:
    task = farm.fork(
        asked.run, asked.step, prompt=asked.prompt, input=asked.input, mode=asked.mode, version=_version(asked.version)
    )
    if not asked.wait:
        out.line(f"{task.id}  {task.run_id or ''}".rstrip(), task.data)
        return 0
    if not out.as_json:
        tell_steps(task.events())
    task.wait()
    return answer_of(task, out)


def replay_run(farm: Farm, asked: argparse.Namespace, out: Out) -> int:
    try:
        found = asyncio.run(replay.replay_run(farm, asked.run, _version(asked.version)))
    except Divergence as error:
        then, now = (
            json.dumps(error.extra[side], indent=2, ensure_ascii=False).splitlines() for side in ("recorded", "today")
        )
        if out.as_json:
            out.value(error.problem())
        else:
            print(error.detail.partition(": recorded")[0])
            print("\n".join(difflib.unified_diff(then, now, "recorded", "today", lineterm="")))
        return 1
    told = f"the same: {found.steps} steps, {found.again} calls made again, {found.kept} taken as recorded"
    out.line(told, msgspec.to_builtins(found))
    return 0


def run_effects(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    out.rows(farm.effects(asked.run), EFFECTS, "none: a second run would do nothing twice")


def rerun_task(farm: Farm, asked: argparse.Namespace, out: Out) -> int:
    try:
        task = Task(farm, {"task_id": asked.task}).rerun(confirm=asked.yes)
    except Conflict as error:
        if "effects" not in error.extra or out.as_json:
            raise
        print(error.detail.partition(":")[0] + ":", file=sys.stderr)
        out.rows(error.extra["effects"], EFFECTS)
        print("run it again all the same: agentfarm task rerun --yes", file=sys.stderr)
        return 2
    out.line(f"{task.id}  {task.data.get('status', '')}".rstrip(), task.data)
    return 0


def _version(given: str | None) -> int | str | None:
    if given is None or given == "draft":
        return given
    if not given.isdigit():
        raise Invalid(f"{given!r} is no version", hint='a number, or "draft"')
    return int(given)


def pause_task(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    task = farm.request("POST", f"/tasks/{asked.task}/pause", {"reason": asked.reason})
    out.line(f"{asked.task}  {task['status']}", task)


def resume_task(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    task = farm.request("POST", f"/tasks/{asked.task}/resume", {})
    out.line(f"{asked.task}  {task['status']}", task)
