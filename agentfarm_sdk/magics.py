"""%agentfarm and %%agent: the farm by a line, an agent by a cell. What goes wrong is one sentence with the way out.

`%load_ext agentfarm_sdk` registers them (__init__.py).
"""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from .errors import AgentFarmError
from .farm import Farm
from .shown.live import Following, in_notebook, show
from .shown.markup import one_line, plain
from .shown.records import RunRecord
from .task import Task
from .watching import wait_for, watch

LINE = """%agentfarm status                        is the farm well, and where is its page
%agentfarm agents                        the agents that you may see
%agentfarm tasks [--agent A] [--status S] [-n 20]
%agentfarm task TASK                     one task, live while it goes on
%agentfarm inbox                         what waits for a person
%agentfarm budgets                       limits, and what was used
%agentfarm submit AGENT "text" [--mode ask|simulate|live] [--var k=v]
%agentfarm cancel TASK [reason]
%agentfarm run RUN                       a run, step by step, live while it goes on
%agentfarm watch TASK-or-RUN             the same, and the cell ends when it does
%agentfarm events RUN                    its events, as recorded
%agentfarm open RUN [-o FILE.ipynb]      write it as a notebook whose cells replay it"""
CELL = """%%agent NAME [--mode ask|simulate|live] [--wait | --no-wait] [--var k=v] [--out name]
The cell's text is the input. It is shown while it works; with --out the result is put into that variable (--no-wait: the task)."""


class Told(Exception):
    """A sentence for the person, with the way out."""


def said_in_a_sentence(magic: Callable[..., Any]) -> Callable[..., Any]:
    """Say what goes wrong as IPython says it of its own magics: one line, no traceback; the cell counts as failed."""

    @functools.wraps(magic)
    def wrapped(*args: Any) -> Any:
        from IPython.core.error import UsageError

        try:
            return magic(*args)
        except Told as error:
            told = str(error)
        except AgentFarmError as error:
            told = error.detail + (f" ({error.hint})" if error.hint else "")
        except TimeoutError as error:
            told = str(error)
        raise UsageError(plain(told))

    return wrapped


@said_in_a_sentence
def agentfarm(line: str) -> Any:
    """Look at the farm and ask it, from a cell. `%agentfarm help` lists what there is."""
    words = _words(line)
    name, rest = (words[0], words[1:]) if words else ("help", [])
    verb = VERBS.get(name)
    if verb is None:
        raise Told(f"%agentfarm has no {name!r}; it has {', '.join(VERBS)}")
    return verb(rest)


@said_in_a_sentence
def agent(shell: Any, line: str, cell: str) -> Any:
    """Give an agent the cell's text, and show what it does. `%%agent --help` says how."""
    words = _words(line)
    if not words or words[0] in ("help", "-h", "--help"):
        print(CELL)
        return None
    asked = _parse(_cell_options(), words, CELL)
    if asked.out and not asked.out.isidentifier():
        raise Told(f"--out {asked.out} is no name of a variable")
    if not cell.strip():
        raise Told("the cell is empty: its text is what the agent is asked")
    task = Farm().submit(asked.name, cell.strip(), mode=asked.mode, variables=_variables(asked.var) or None)
    if not asked.wait:
        if asked.out:
            shell.user_ns[asked.out] = task
        return task
    result = _result(task)
    if asked.out:
        shell.user_ns[asked.out] = result
    elif not in_notebook():
        print(plain(result))
    return None


def _result(task: Task) -> Any:
    """Show the task until it has ended; return its result. Raises Told, and what ended it."""
    try:
        if in_notebook():
            wait_for(show(Following(task._farm, {**task.data, "task_id": task.id})))
        return task.result()
    except KeyboardInterrupt:
        raise Told(f"not waited for any more; {task.id} goes on. %agentfarm cancel {task.id} stops it") from None


# -- %agentfarm's verbs ----------------------------------------------------------------------------------------------


def _help(words: list[str]) -> None:
    print(LINE)
    print()
    print(CELL)


def _status(words: list[str]) -> None:
    with Farm() as farm:
        found = farm.status()
    model = (found.get("model") or {}).get("name") or "no model"
    print(plain(f"{found['status']}: AgentFarm {found['version']}, {found['database']}, {model}"))
    for problem in found.get("problems") or []:
        print(plain(f"  {problem}"))
    if found.get("page"):
        print(plain(found["page"]))


def _tasks(words: list[str]) -> Any:
    options = _Options()
    options.add_argument("--agent")
    options.add_argument("--status")
    options.add_argument("-n", type=int, default=20)
    asked = _parse(options, words, LINE)
    given = {name: value for name, value in (("agent", asked.agent), ("status", asked.status)) if value}
    return Farm().tasks(asked.n, **given)


def _submit(words: list[str]) -> Task:
    options = _Options()
    options.add_argument("name")
    options.add_argument("text", nargs="+")
    options.add_argument("--mode", choices=("ask", "simulate", "live"))
    options.add_argument("--var", action="append", default=[])
    asked = _parse(options, words, LINE)
    return Farm().submit(asked.name, " ".join(asked.text), mode=asked.mode, variables=_variables(asked.var) or None)


def _cancel(words: list[str]) -> None:
    task = Farm().task(_one(words[:1], "cancel TASK")).cancel(" ".join(words[1:]))
    print(plain(f"{task.id} {task.data.get('status')}"))


def _run(words: list[str]) -> RunRecord:
    return Farm().run(_one(words, "run RUN"))


def _events(words: list[str]) -> None:
    with Farm() as farm:
        for event in farm.events(_one(words, "events RUN")):
            told = one_line(msgspec.json.decode(event.body), 160)
            print(plain(f"{event.seq:>5}  {event.at}  {event.by:<12}  {event.kind:<18}  {event.call or '':<6}  {told}"))


def _open(words: list[str]) -> None:
    options = _Options()
    options.add_argument("run")
    options.add_argument("-o", "--output")
    asked = _parse(options, words, LINE)
    file = Farm().run(asked.run).notebook(asked.output)
    print(f"{file} replays it: open it in the file browser")


VERBS: dict[str, Callable[[list[str]], Any]] = {
    "help": _help,
    "status": _status,
    "agents": lambda words: Farm().agents(),
    "tasks": _tasks,
    "task": lambda words: Farm().task(_one(words, "task TASK")),
    "inbox": lambda words: Farm().inbox(),
    "budgets": lambda words: Farm().budgets(),
    "submit": _submit,
    "cancel": _cancel,
    "run": _run,
    "events": _events,
    "open": _open,
    "watch": lambda words: watch(_one(words, "watch TASK-or-RUN")),
}


# -- reading what was typed ------------------------------------------------------------------------------------------


class _Options(argparse.ArgumentParser):
    """Says what is wrong instead of ending the process."""

    def __init__(self) -> None:
        super().__init__(prog="", add_help=False)

    def error(self, message: str) -> NoReturn:
        raise Told(message)


def _cell_options() -> _Options:
    options = _Options()
    options.add_argument("name")
    options.add_argument("--mode", choices=("ask", "simulate", "live"))
    options.add_argument("--wait", action="store_true", default=True)
    options.add_argument("--no-wait", dest="wait", action="store_false")
    options.add_argument("--var", action="append", default=[])
    options.add_argument("--out")
    return options


def _parse(options: _Options, words: list[str], usage: str) -> argparse.Namespace:
    try:
        return options.parse_args(words)
    except Told as error:
        way = next((line for line in usage.splitlines() if words and words[0] in line), usage.splitlines()[0])
        raise Told(
            f"{error}. Try: {' '.join(way.split())}" if usage is CELL else f"{error}. Try: %agentfarm help"
        ) from error


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise Told(f"the line cannot be read: {error}; put text with a quotation mark in double quotes") from error


def _one(words: list[str], usage: str) -> str:
    if len(words) != 1:
        raise Told(f"say which one: %agentfarm {usage}")
    return words[0]


def _variables(given: list[str]) -> dict[str, str]:
    wrong = [one for one in given if "=" not in one]
    if wrong:
        raise Told(f"--var {wrong[0]} has no value: --var name=value")
    return dict(one.split("=", 1) for one in given)
