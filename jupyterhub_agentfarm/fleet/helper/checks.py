"""What may be asked: each field of a request by name, its type and its bounds. Pure; everything else is refused."""

from __future__ import annotations

import json
import os
import re
from typing import Any, NamedTuple

from .egress import MOST, parse

VERSION = 3
MAX_REQUEST = 1 << 20
UNIT = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")
WORKSPACE = re.compile(r"[a-z][a-z0-9-]{0,40}|~[A-Za-z0-9_.@+%~-]{1,200}")  # an agent's, a person's
FARM = re.compile(r"[0-9a-f]{12}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
CURSOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9=;.]{0,399}")
LONGEST_LINE = 8192  # characters of a log's line
LONGEST_WAIT = 10  # seconds for lines to come
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # all but tab and newline
FIELDS = {
    "start": {"unit", "argv", "env", "workspace", "uid", "limits", "about", "egress", "gpus"},
    "stop": {"unit", "now"},
    "show": {"unit"},
    "list": set(),
    "logs": {"unit", "lines", "after", "wait"},
    "forget": {"unit"},
    "facts": {"python"},
    "disks": set(),
    "release": {"ports"},
    "walls": set(),
    "examine": set(),
    "measure": {"workspace", "brief"},
    "snapshot": {"workspace"},
    "restore": {"workspace", "uid", "bytes", "entries"},
    "discard": {"workspace"},
}


class Refused(Exception):
    """A request that is not carried out: `detail` says why, `hint` what to do."""

    def __init__(self, kind: str, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.kind, self.detail, self.hint = kind, detail, hint


class Limits(NamedTuple):
    """What a unit may take at most. memory: bytes; cpu: cores; None: no limit of its own."""

    memory: int | None
    cpu: float | None
    tasks: int


class Start(NamedTuple):
    """A start request, each field of the type that it must have. egress: where it may go besides the farm; None: wherever it likes.

    gpus: the numbers of the device nodes of those that it may use.
    """

    unit: str
    argv: list[str]
    env: dict[str, str]
    workspace: str
    uid: int | None
    limits: Limits
    about: dict[str, Any]
    egress: list[str] | None
    gpus: tuple[int, ...] = ()


def invalid(detail: str, hint: str = "") -> Refused:
    return Refused("invalid", detail, hint)


def request(text: bytes) -> dict[str, Any]:
    """Return the request as an object whose fields its operation knows. Raises Refused."""
    if len(text) > MAX_REQUEST:
        raise Refused("too-large", f"the request is larger than {MAX_REQUEST} bytes")
    try:
        asked = json.loads(text, object_pairs_hook=_object, parse_int=_number, parse_constant=_constant)
    except (ValueError, RecursionError):
        raise invalid("the request is not JSON") from None
    if not isinstance(asked, dict) or type(asked.get("v")) is not int or asked["v"] != VERSION:
        raise Refused(
            "version",
            f"this helper speaks version {VERSION}",
            "install the helper of the farm's release: microserver add",
        )
    op = asked.get("op")
    if not isinstance(op, str) or op not in FIELDS:
        raise invalid("there is no such operation", "one of: " + ", ".join(FIELDS))
    if "farm" in asked and not (isinstance(asked["farm"], str) and FARM.fullmatch(asked["farm"])):
        raise invalid("farm must be the id of a farm", "twelve hexadecimal digits")
    if unknown := set(asked) - FIELDS[op] - {"v", "op", "farm"}:
        named = ", ".join(repr(name)[:40] for name in sorted(unknown)[:5])
        raise invalid(f"unknown fields: {named}", "only what the protocol names may be asked")
    return asked


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands twice")
    return made


def _number(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("too many digits")
    return int(digits)


def _constant(name: str) -> Any:
    raise ValueError(name)


def _text(value: Any, longest: int = 100_000) -> bool:
    """Say whether it is a text that can be handed on: UTF-8 without zero bytes."""
    if not isinstance(value, str) or len(value) > longest or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def unit(asked: dict[str, Any]) -> str:
    name = asked.get("unit")
    if not isinstance(name, str) or not UNIT.fullmatch(name):
        raise invalid(f"{str(name)[:100]!r} is no name of a unit", "lowercase letters, digits and hyphens, at most 80")
    return name


def workspace(asked: dict[str, Any]) -> str:
    name = asked.get("workspace")
    if not isinstance(name, str) or not WORKSPACE.fullmatch(name):
        raise invalid("workspace must be an agent's name, or ~ and a person's")
    return name


def uid(asked: dict[str, Any]) -> int | None:
    number = asked.get("uid")
    if number is not None and (type(number) is not int or not 10_000 <= number < 2**31):
        raise invalid("uid must be a number from 10000 on")
    return number


def announced(asked: dict[str, Any]) -> dict[str, int]:
    """How much a stream will bring: bytes of files, and entries."""
    found = {name: asked.get(name) for name in ("bytes", "entries")}
    if not all(type(value) is int and 0 <= value < 1 << 60 for value in found.values()):
        raise invalid("bytes and entries must be numbers from 0 on")
    return {name: int(value or 0) for name, value in found.items()}


def start(asked: dict[str, Any]) -> Start:
    argv, env = asked.get("argv"), asked.get("env")
    name = unit(asked)
    if not isinstance(argv, list) or not 1 <= len(argv) <= 500 or not all(_text(part) for part in argv):
        raise invalid("argv must be a list of texts")
    if not os.path.isabs(argv[0]) or ".." in argv[0].split("/"):
        raise invalid("the program must be an absolute path without ..")
    limits, about, egress = (
        _limits(asked.get("limits", {})),
        _about(asked.get("about", {})),
        _egress(asked.get("egress")),
    )
    return Start(
        name, argv, _env(env), workspace(asked), uid(asked), limits, about, egress, _gpus(asked.get("gpus", []))
    )


def _gpus(listed: Any) -> tuple[int, ...]:
    if (
        not isinstance(listed, list)
        or len(listed) > 64
        or not all(type(one) is int and 0 <= one < 255 for one in listed)
    ):
        raise invalid("gpus must be a list of the numbers of GPUs' device nodes, from 0 to 254")
    return tuple(listed)


def _egress(listed: Any) -> list[str] | None:
    if listed is None:
        return None
    if not isinstance(listed, list) or len(listed) > MOST or not all(isinstance(one, str) for one in listed):
        raise invalid(f"egress must be a list of at most {MOST} texts")
    try:
        for one in listed:
            parse(one)
    except ValueError as error:
        raise invalid(f"egress: {error}") from None
    return listed


def _env(env: Any) -> dict[str, str]:
    if not isinstance(env, dict) or len(env) > 1000:
        raise invalid("env must be an object of texts")
    for name, value in env.items():
        if not VARIABLE.fullmatch(name) or not _text(value):
            raise invalid("env must be an object of texts")
        if CONTROL.search(value):
            raise invalid(f"{name} holds control characters", "only tab and newline may stand in a value")
        if name.startswith(("LD_", "PYTHONSTARTUP")):
            raise invalid("LD_* and PYTHONSTARTUP may not be set")
    return dict(env)


def _limits(asked: Any) -> Limits:
    if not isinstance(asked, dict) or set(asked) - {"memory", "cpu", "tasks"}:
        raise invalid("limits is an object with memory, cpu and tasks")
    memory, cpu, tasks = asked.get("memory"), asked.get("cpu"), asked.get("tasks")
    if memory is not None and (type(memory) is not int or not 16 << 20 <= memory < 1 << 50):
        raise invalid("memory must be a number of bytes, at least 16 MiB")
    if cpu is not None and (type(cpu) not in (int, float) or not 0.01 <= cpu <= 10_000):
        raise invalid("cpu must be a number of cores, at least 0.01")
    if tasks is not None and (type(tasks) is not int or not 16 <= tasks <= 100_000):
        raise invalid("tasks must be a number from 16 to 100000")
    return Limits(memory, cpu, tasks or 512)


def _about(about: Any) -> dict[str, Any]:
    """What the daemon wants to be told again with the unit: whose it is, its port."""
    if not isinstance(about, dict) or len(about) > 20:
        raise invalid("about must be a small object of texts and numbers")
    for name, value in about.items():
        if not _text(name, 50) or not (type(value) is int or _text(value, 500)):
            raise invalid("about must be a small object of texts and numbers")
    return dict(about)


def lines(asked: dict[str, Any]) -> int:
    count = asked.get("lines", 50)
    if type(count) is not int or not 1 <= count <= 1000:
        raise invalid("lines must be a number from 1 to 1000")
    return count


def after(asked: dict[str, Any]) -> str:
    """Return behind which line a log is asked for; "": its end."""
    cursor = asked.get("after", "")
    if not isinstance(cursor, str) or (cursor and not CURSOR.fullmatch(cursor)):
        raise invalid("after must be a cursor as an answer gave it")
    return cursor


def wait(asked: dict[str, Any]) -> float:
    seconds = asked.get("wait", 0)
    if type(seconds) not in (int, float) or not 0 <= seconds <= LONGEST_WAIT:
        raise invalid(f"wait must be a number of seconds from 0 to {LONGEST_WAIT}")
    return float(seconds)


def ports(asked: dict[str, Any]) -> list[int]:
    found = asked.get("ports")
    if not isinstance(found, list) or len(found) > 50 or not all(type(p) is int and 1024 <= p < 65536 for p in found):
        raise invalid("ports must be a list of numbers from 1024 on")
    return found
