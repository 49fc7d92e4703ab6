"""Tools: a signature and a docstring become what the model is told; a pinned source becomes something to call."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import hashlib
import importlib
import importlib.metadata
import inspect
import re
import threading
import types
import typing
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import msgspec

from .. import conditions
from ..errors import Invalid, ToolFailed
from ..protocol import Effect, ToolSpec, content_hash, narrower
from .context import Context, Rest

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}\Z")
BUILTINS = {
    "calculator": "calculator",
    "list_files": "files",
    "read_file": "files",
    "write_file": "files",
    "run_python": "python",
    "http_request": "http",
    "remember": "memory",
    "forget": "memory",
    "recall": "memory",
    "wait_until": "rests",
    "ask_person": "rests",
    "delegate": "rests",
}


@dataclasses.dataclass(frozen=True)
class Probed:
    """What a probe found out about a call that was started and whose outcome nobody recorded."""

    answer: Literal["happened", "not_happened", "unknown"]
    result: Any = None


def happened(result: Any = None) -> Probed:
    """Say in a probe: the call took effect, and this is its result."""
    return Probed("happened", result)


def not_happened() -> Probed:
    """Say in a probe: the call took no effect, and never will by itself."""
    return Probed("not_happened")


@dataclasses.dataclass(frozen=True)
class Tool:
    """A function with what the farm has to know of it. Calling it calls the function."""

    spec: ToolSpec
    fn: Callable[..., Any]
    hints: dict[str, Any]
    takes_ctx: bool
    probe: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    @property
    def name(self) -> str:
        return self.spec.name

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """Turn JSON values into the parameters' types. Raises ToolFailed, which the model is told."""
        unknown = set(given) - set(self.hints)
        if unknown:
            raise ToolFailed(
                f"{self.name} has no parameter {', '.join(sorted(unknown))}; it has {', '.join(self.hints)}"
            )
        try:
            return {name: msgspec.convert(value, self.hints[name]) for name, value in given.items()}
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            raise ToolFailed(f"an argument of {self.name} does not fit: {error}") from error

    async def invoke(self, ctx: Context, given: dict[str, Any]) -> Any:
        """Call it with JSON values; return a JSON value. Plain functions run in a thread of their own."""
        return self._plain(await self._called(self.fn, ctx, given))

    async def ask_probe(self, ctx: Context, given: dict[str, Any]) -> Probed:
        """Ask whether the call with `ctx.key` took effect. Raises ToolFailed: it has no probe; and what the probe raises."""
        if self.probe is None:
            raise ToolFailed(f"{self.name} has no probe")
        said = await self._called(self.probe, ctx, given)
        if said is None:
            return Probed("unknown")
        if not isinstance(said, Probed):
            raise ToolFailed(
                f"the probe of {self.name} returned a {type(said).__name__}: happened(…), not_happened() or None"
            )
        return Probed(said.answer, self._plain(said.result))

    async def _called(self, fn: Callable[..., Any], ctx: Context, given: dict[str, Any]) -> Any:
        arguments = self.arguments(given)
        args = (ctx,) if self.takes_ctx else ()
        if inspect.iscoroutinefunction(fn):
            return await fn(*args, **arguments)
        result = await in_thread(lambda: fn(*args, **arguments))
        return await result if inspect.isawaitable(result) else result

    def _plain(self, result: Any) -> Any:
        try:
            return msgspec.json.decode(msgspec.json.encode(result))
        except (TypeError, ValueError, OverflowError) as error:
            raise ToolFailed(f"{self.name} returned a {type(result).__name__}, which JSON cannot hold") from error


@overload
def tool(fn: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    effect: Effect = "once",
    approval: str = "never",
    approvers: int = 1,
    approval_expires: float | None = None,
    escalate_after: float | None = None,
    escalate_to: str = "",
    timeout: float = 60.0,
    secrets: Sequence[str] = (),
    probe: Callable[..., Any] | None = None,
    name: str = "",
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    probe: Callable[..., Any] | None = None,
    name: str = "",
    timeout: float = 60.0,
    secrets: Sequence[str] = (),
    **options: Any,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a function: `@tool` or `@tool(effect="read", …)`. Times in seconds.

    approval: never, always, or a condition on the arguments (conditions.py). approvers: so many people must approve.
    probe: called with the same parameters where a `once` call was started and nobody knows its outcome; it returns
    `happened(result)`, `not_happened()`, or None where it does not know either.

    Raises:
        Invalid: a parameter without a type, or of a type that JSON Schema cannot say; a wrong effect, name or approval.
    """

    def make(function: Callable[..., Any]) -> Tool:
        given = {**options, "timeout": float(timeout), "secrets": list(secrets), "probe": probe is not None}
        return dataclasses.replace(_tool(function, name or function.__name__, given), probe=probe)

    return make if fn is None else make(fn)


def _tool(fn: Callable[..., Any], name: str, given: dict[str, Any]) -> Tool:
    if given.get("effect", "once") not in typing.get_args(Effect):
        raise Invalid(f"tool {name}: effect {given['effect']!r}", hint="read, idempotent or once")
    if not NAME.match(name):
        raise Invalid(f"tool name {name!r}", hint="letters, digits, _ and -, at most 64, not a digit first")
    if not given["timeout"] > 0:
        raise Invalid(f"tool {name}: timeout {given['timeout']}", hint="seconds, more than 0")
    try:
        hints = typing.get_type_hints(fn, include_extras=True)
    except NameError as error:
        raise Invalid(f"tool {name}: {error}", hint="import the type at the top of the module") from error
    parameters = list(inspect.signature(fn).parameters.values())
    takes_ctx = bool(parameters) and parameters[0].name == "ctx"
    parameters = parameters[1:] if takes_ctx else parameters
    schema, types_ = _schema(name, fn, parameters, hints)
    pins: dict[str, Any] = {
        "name": name,
        "description": _summary(fn),
        "schema": schema,
        "schema_hash": content_hash(schema),
    }
    spec = ToolSpec(source="kernel", **pins, **given)
    try:
        conditions.check(spec)
    except Invalid as error:
        raise Invalid(f"tool {name}: {error.detail}", hint=error.hint) from error
    return Tool(spec, fn, types_, takes_ctx)


def _schema(
    tool_name: str, fn: Callable[..., Any], parameters: list[inspect.Parameter], hints: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON Schema of the arguments, and the parameters' types by name."""
    types_: dict[str, Any] = {}
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
            raise Invalid(
                f"tool {tool_name}: parameter {p}", hint="only named parameters: the model gives arguments by name"
            )
        if p.name not in hints:
            raise Invalid(f"tool {tool_name}: parameter {p.name} has no type", hint=f"write {p.name}: str, for example")
        types_[p.name] = hints[p.name]
    parts, defs = [], {}
    for name, kind in types_.items():
        try:
            (part,), more = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
        except (TypeError, NotImplementedError) as error:
            hint = "str, int, float, bool, Decimal, list, dict, Literal, Optional, a dataclass or a TypedDict"
            raise Invalid(f"tool {tool_name}: parameter {name} is a {kind}: {error}", hint=hint) from error
        parts.append(_plain(part))
        defs.update(_plain(more))
    described = _parameter_texts(fn)
    properties: dict[str, Any] = {}
    for p, part in zip(parameters, parts, strict=True):
        extra: dict[str, Any] = {"description": described[p.name]} if p.name in described else {}
        if p.default is not p.empty:
            extra["default"] = msgspec.to_builtins(p.default)
        properties[p.name] = {**part, **extra}
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required := [p.name for p in parameters if p.default is p.empty]:
        schema["required"] = required
    return {**schema, "$defs": defs} if defs else schema, types_


def _plain(part: Any) -> Any:
    """Let a Decimal be written as text or as a number: models do both."""
    if isinstance(part, dict):
        if part.get("format") == "decimal":
            return {**{k: v for k, v in part.items() if k != "format"}, "type": ["string", "number"]}
        return {key: _plain(value) for key, value in part.items()}
    return [_plain(one) for one in part] if isinstance(part, list) else part


def _summary(fn: Callable[..., Any]) -> str:
    text = inspect.getdoc(fn) or ""
    return re.split(r"\n\s*(?:Args|Arguments|Parameters|Returns|Raises)\s*:?\s*\n|\n\s*:param ", text)[0].strip()


def _parameter_texts(fn: Callable[..., Any]) -> dict[str, str]:
    """Read `Args:` (Google) and `:param name:` (Sphinx) from the docstring."""
    text = inspect.getdoc(fn) or ""
    found = {m[1]: " ".join(m[2].split()) for m in re.finditer(r":param (?:\w+ )?(\w+):\s*(.+)", text)}
    section = re.search(r"^(?:Args|Arguments|Parameters):\s*\n((?:[ \t]+.*\n?|\n)+)", text, re.MULTILINE)
    for m in re.finditer(
        r"^ {2,4}(\w+)(?: \([^)]*\))?:\s*(.+(?:\n {6,}.+)*)", section[1] if section else "", re.MULTILINE
    ):
        found[m[1]] = " ".join(m[2].split())
    return found


async def in_thread(fn: Callable[[], Any]) -> Any:
    """Run in a daemon thread of its own: one that never returns takes no place of another, and holds up no exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        elif isinstance(error, StopIteration):  # a future refuses it
            done.set_exception(RuntimeError("StopIteration"))
        else:
            done.set_exception(error)

    def work() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = context.run(fn)
        except (Exception, Rest) as raised:
            error = raised
        except BaseException as raised:  # sys.exit() in a tool ends the tool, not the kernel
            error = ToolFailed(f"the tool ended with {raised!r}")
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, daemon=True, name="agentfarm-tool").start()
    return await done


# --- pinned sources ---------------------------------------------------------------------------------------------


def builtin(name: str) -> Tool:
    """Return the built-in tool. Raises Invalid."""
    if name not in BUILTINS:
        raise Invalid(f"there is no built-in tool {name!r}", hint="built in are " + ", ".join(BUILTINS))
    module = importlib.import_module(f".{BUILTINS[name]}", __package__)
    made: Tool = getattr(module, name)
    return dataclasses.replace(made, spec=msgspec.structs.replace(made.spec, source="builtin", probe=False))


def builtin_specs() -> dict[str, ToolSpec]:
    """Return what a version pins of each built-in tool, by name."""
    return {name: builtin(name).spec for name in BUILTINS}


def unavailable() -> dict[str, str]:
    """Return the built-in tools that this machine cannot offer, each with the reason. Probed once a process."""
    from .python import refusal

    reason = refusal()
    return {"run_python": reason} if reason else {}


def pinned(made: Tool) -> tuple[ToolSpec, bytes]:
    """Return the tool pinned to the file that it stands in, and that file: what publishing copies into the farm.

    Raises:
        Invalid: it was typed into a notebook or a prompt; there is no file to pin.
    """
    try:
        file = inspect.getsourcefile(made.fn)
        code = Path(file).read_bytes() if file else b""
    except (OSError, TypeError):
        code = b""
    if not code:
        hint = "put the function into a .py file and import it from there"
        raise Invalid(f"tool {made.name} stands in no file that could be pinned", hint=hint)
    return msgspec.structs.replace(made.spec, source=f"file@{hashlib.sha256(code).hexdigest()}"), code


FetchFile = Callable[[str], Awaitable[bytes]]


async def load(spec: ToolSpec, fetch_file: FetchFile | None = None) -> Tool:
    """Return the tool that a version pins, checked against its source and its schema.

    Raises:
        Invalid: it is not what was pinned: another file, version, or schema; or it is in no source that we know.
    """
    kind, _, rest = spec.source.partition("@")
    if spec.source == "builtin":
        made = builtin(spec.name)
    elif kind == "file":
        made = _from_file(spec.name, rest, await fetch_file(rest) if fetch_file else b"")
    elif "==" in spec.source and "#" in spec.source:
        made = _from_package(spec)
    else:
        hint = "a kernel's own tools live only in the notebook that made them; publish the agent with a file instead"
        raise Invalid(f"tool {spec.name}: source {spec.source!r} cannot be loaded here", hint=hint)
    if spec.source == "builtin":
        fits = (
            made.spec.schema_hash == spec.schema_hash or not spec.schema_hash or narrower(spec.schema, made.spec.schema)
        )
    else:  # the code is pinned; the schema may be written by hand, but for these parameters
        named = set(spec.schema.get("properties", {}))
        fits = named <= set(made.hints) and set(made.spec.schema.get("required", [])) <= named
    if not fits:
        has = ", ".join(made.hints) or "no parameters"
        raise Invalid(
            f"the schema that the version pins for {spec.name} is not the tool's ({has})",
            hint="publish the agent again",
        )
    return dataclasses.replace(made, spec=spec)


def _from_file(name: str, sha256: str, code: bytes) -> Tool:
    if hashlib.sha256(code).hexdigest() != sha256:
        raise Invalid(f"tool {name}: its file is not the one that was pinned", hint=f"expected sha256 {sha256}")
    module = types.ModuleType(f"agentfarm_tool_{sha256[:12]}")
    exec(compile(code, f"<tool {sha256[:12]}>", "exec"), module.__dict__)
    found = [one for one in vars(module).values() if isinstance(one, Tool) and one.name == name]
    if not found:
        raise Invalid(f"the pinned file has no tool {name}", hint="decorate the function with @tool")
    return found[0]


def _from_package(spec: ToolSpec) -> Tool:
    wanted, _, place = spec.source.partition("#")
    package, _, version = wanted.partition("==")
    module, _, attribute = place.partition(":")
    try:
        have = importlib.metadata.version(package)
        made = getattr(importlib.import_module(module), attribute)
    except (importlib.metadata.PackageNotFoundError, ImportError, AttributeError) as error:
        raise Invalid(f"tool {spec.name}: {spec.source} is not here: {error}", hint=f"pip install {wanted}") from error
    if have != version:
        raise Invalid(f"tool {spec.name} is pinned to {wanted}; installed is {have}", hint=f"pip install {wanted}")
    return made if isinstance(made, Tool) else tool(name=spec.name, effect=spec.effect)(made)
