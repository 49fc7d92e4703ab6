"""What tools a Python file holds, read off its text: nothing of it is executed, so types that only running it could tell are refused.

The function's signature and docstring are put together again, and the SDK's own `tool` makes the schema: it is the one that a kernel would make.
"""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import datetime
import decimal
import inspect
import operator
import typing
import uuid
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from agentfarm_sdk.protocol import ToolSpec
from agentfarm_sdk.tools import registry

from ..errors import AgentFarmError, Invalid
from .routes import Call, Route

MAX_SOURCE = 256 * 1024  # characters of one file
MAX_SOURCES = 4 * MAX_SOURCE  # of all together
TYPES: dict[str, Any] = {
    "int": int, "str": str, "float": float, "bool": bool, "bytes": bytes, "list": list, "dict": dict, "tuple": tuple, "set": set,
    "frozenset": frozenset, "object": Any, "Decimal": decimal.Decimal, "datetime": datetime.datetime, "date": datetime.date,
    "time": datetime.time, "timedelta": datetime.timedelta, "UUID": uuid.UUID, "Any": Any, "Optional": typing.Optional, "Union": typing.Union,
    "Literal": typing.Literal, "List": list, "Dict": dict, "Tuple": tuple, "Set": set, "Sequence": list, "Mapping": dict,
}  # fmt: skip
READABLE = "str, int, float, bool, Decimal, date, datetime, UUID, list[…], dict[…], Literal[…], … | None, and dataclasses and TypedDicts of the file"


class ToRead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Python files by name, as they would be sent with a draft under `files`."""

    files: Annotated[
        dict[str, Annotated[str, msgspec.Meta(max_length=MAX_SOURCE)]], msgspec.Meta(min_length=1, max_length=20)
    ]


class FoundTool(msgspec.Struct, frozen=True):
    """`tool`: what a draft takes (its `source` names the file); null where it cannot be used: then `problem` and `hint` say why."""

    file: str
    line: int
    name: str
    tool: dict[str, Any] | None = None
    problem: str = ""
    hint: str = ""


class ReadTools(msgspec.Struct, frozen=True):
    items: list[FoundTool]


class Unread(Exception):
    """Something that the text alone does not tell."""

    def __init__(self, node: ast.AST, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.line, self.what, self.hint = int(getattr(node, "lineno", 1)), what, hint


async def read(call: Call) -> ReadTools:
    """Say which tools the files hold. Nothing is saved, nothing is executed."""
    files: dict[str, str] = call.body.files
    if sum(map(len, files.values())) > MAX_SOURCES:
        raise Invalid(f"the files are longer than {MAX_SOURCES} characters together", hint="choose fewer at a time")
    found = [await asyncio.to_thread(tools_of, name, text) for name, text in files.items()]  # a long one takes a while
    return ReadTools([one for some in found for one in some])


def tools_of(file: str, text: str) -> list[FoundTool]:
    """Return the tools of a file in their order, and what is wrong with it. Pure."""
    try:
        module = ast.parse(text)
    except SyntaxError as error:
        return [
            FoundTool(
                file,
                error.lineno or 1,
                "",
                None,
                f"this is no Python: {error.msg}",
                "mend the file, then choose it again",
            )
        ]
    except (ValueError, RecursionError, MemoryError) as error:
        said = str(error) or "it is nested too deeply"
        return [FoundTool(file, 1, "", None, f"this is no Python: {said}", "mend the file, then choose it again")]
    reader = _Reader(module)
    found = list(reader.tools(file))
    if not found:
        hint = "from agentfarm_sdk import tool; then @tool in front of a function"
        return [FoundTool(file, 1, "", None, "no function of this file is a tool", hint)]
    seen: set[str] = set()
    for at, one in enumerate(found):
        if one.name in seen:
            found[at] = _unusable(one, f"tool {one.name} is there twice", "give one of them another name")
        seen.add(one.name)
    return found


def _unusable(one: FoundTool, problem: str, hint: str) -> FoundTool:
    return FoundTool(one.file, one.line, one.name, None, problem, hint)


class _Reader:
    """One module's text: which names stand for the SDK's `tool`, and its classes."""

    def __init__(self, module: ast.Module) -> None:
        self.module = module
        self.decorators, self.modules = set[str](), set[str]()
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "agentfarm_sdk":
                self.decorators |= {one.asname or one.name for one in node.names if one.name == "tool"}
            elif isinstance(node, ast.Import):
                self.modules |= {one.asname or one.name for one in node.names if one.name == "agentfarm_sdk"}
        self.classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
        self.made: dict[str, Any] = {}

    def tools(self, file: str) -> Iterator[FoundTool]:
        for node in self.module.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for decorator in node.decorator_list:
                if self._is_tool(decorator):
                    yield self._found(file, node, decorator)

    def _is_tool(self, decorator: ast.expr) -> bool:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(target, ast.Attribute):
            return target.attr == "tool" and isinstance(target.value, ast.Name) and target.value.id in self.modules
        return isinstance(target, ast.Name) and target.id in self.decorators

    def _found(self, file: str, node: ast.FunctionDef | ast.AsyncFunctionDef, decorator: ast.expr) -> FoundTool:
        name = node.name
        try:
            options = self._options(decorator) if isinstance(decorator, ast.Call) else {}
            name = str(options.get("name") or name)
            spec = registry.tool(**options)(self._function(node)).spec
        except Unread as error:
            return FoundTool(file, error.line, name, None, error.what, error.hint)
        except RecursionError:
            return FoundTool(
                file, node.lineno, name, None, f"tool {name}: it is nested too deeply to be read", READABLE
            )
        except AgentFarmError as error:
            return FoundTool(file, node.lineno, name, None, error.detail, error.hint)
        except (TypeError, ValueError) as error:  # an option that `tool` does not have, a default of another type
            return FoundTool(file, node.lineno, name, None, f"tool {name}: {error}", "see docs/write-tools.md")
        return FoundTool(file, node.lineno, spec.name, _told(spec, f"file:{file}"))

    def _options(self, decorator: ast.Call) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for keyword in decorator.keywords:
            if keyword.arg == "probe":
                options["probe"] = None if _is_none(keyword.value) else lambda: None  # only whether there is one
            elif keyword.arg is None or decorator.args:
                raise Unread(decorator, "the options of @tool cannot be read", 'write each by its name: effect="read"')
            else:
                options[keyword.arg] = _literal(keyword.value, f"@tool's {keyword.arg}")
        return options

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Any:
        """Return a function that does nothing, with the signature, types and docstring of this one."""
        given, parameters, annotations = node.args, list[inspect.Parameter](), dict[str, Any]()
        kind = inspect.Parameter
        positional = [*given.posonlyargs, *given.args]
        first = len(positional) - len(given.defaults)  # the first one that has a default
        rows: list[tuple[ast.arg, ast.expr | None, Any]] = [
            (one, given.defaults[at - first] if at >= first else None, kind.POSITIONAL_ONLY if one in given.posonlyargs else kind.POSITIONAL_OR_KEYWORD)
            for at, one in enumerate(positional)
        ]  # fmt: skip
        rows += [(one, None, kind.VAR_POSITIONAL) for one in [given.vararg] if one]
        rows += [
            (one, value, kind.KEYWORD_ONLY) for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)
        ]
        rows += [(one, None, kind.VAR_KEYWORD) for one in [given.kwarg] if one]
        for at, (one, default, how) in enumerate(rows):
            shown = kind.empty if default is None else _literal(default, f"the default of {one.arg}")
            parameters.append(kind(one.arg, how, default=shown))
            if one.annotation is not None and not (at == 0 and one.arg == "ctx"):
                annotations[one.arg] = self._type(one.annotation)

        def stand_in() -> None:
            """Stands for the function of the file."""

        stand_in.__name__, stand_in.__doc__ = node.name, ast.get_docstring(node, clean=False)
        stand_in.__annotations__ = annotations
        stand_in.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return stand_in

    def _type(self, node: ast.expr) -> Any:
        """Return the type that an annotation names. Raises Unread."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                return self._type(ast.parse(node.value, mode="eval").body)
            except SyntaxError as error:
                raise Unread(node, f"{node.value!r} is no type", READABLE) from error
        if _is_none(node):
            return None
        written = ast.unparse(node)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            node = ast.copy_location(ast.Name(node.attr), node)  # typing.Literal, decimal.Decimal
        if isinstance(node, ast.Name):
            if node.id in self.classes:
                return self._class(self.classes[node.id])
            if node.id in TYPES:
                return TYPES[node.id]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return operator.getitem(typing.Union, (self._type(node.left), self._type(node.right)))
        if isinstance(node, ast.Subscript):
            return self._subscript(node)
        raise Unread(node, f"the type {written} cannot be read without running the file", READABLE)

    def _subscript(self, node: ast.Subscript) -> Any:
        name = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
        inside = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name == "Annotated":
            return self._type(inside[0])
        outer = self._type(node.value)
        if name == "Literal":
            return outer[tuple(_literal(one, "a Literal") for one in inside)]
        try:
            parts = tuple(
                Ellipsis if isinstance(one, ast.Constant) and one.value is ... else self._type(one) for one in inside
            )
            return operator.getitem(outer, parts if len(parts) > 1 else parts[0])
        except TypeError as error:
            raise Unread(node, f"{ast.unparse(node)}: {error}", READABLE) from error

    def _class(self, node: ast.ClassDef) -> Any:
        """Return a dataclass or TypedDict of the file. Raises Unread."""
        if node.name in self.made:
            return self.made[node.name]
        bases = {base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases}
        marks = [one.func if isinstance(one, ast.Call) else one for one in node.decorator_list]
        marked = {one.attr if isinstance(one, ast.Attribute) else getattr(one, "id", "") for one in marks}
        rows = [one for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
        if bases == {"TypedDict"}:
            total = not any(one.arg == "total" and ast.unparse(one.value) == "False" for one in node.keywords)
            fields = {one.target.id: self._type(one.annotation) for one in rows}  # type: ignore[union-attr]
            self.made[node.name] = typing.TypedDict(node.name, fields, total=total)  # type: ignore[operator]
        elif "dataclass" in marked and not bases:
            self.made[node.name] = dataclasses.make_dataclass(
                node.name, [self._field(one) for one in rows], kw_only=True
            )
        else:
            raise Unread(node, f"the class {node.name} cannot be read without running the file", READABLE)
        return self.made[node.name]

    def _field(self, one: ast.AnnAssign) -> Any:
        name, kind = ast.unparse(one.target), self._type(one.annotation)
        if one.value is None:
            return name, kind
        if isinstance(one.value, ast.Call):  # field(default_factory=…): it may be left out
            return name, kind, dataclasses.field(default_factory=lambda: None)
        value = _literal(one.value, f"the default of {name}")
        return name, kind, dataclasses.field(default=value)


def _told(spec: ToolSpec, source: str) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(spec, source=source))
    return {"effect": spec.effect, "approval": spec.approval, **told}


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _literal(node: ast.expr, what: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise Unread(
            node, f"{what} cannot be read without running the file: {ast.unparse(node)}", "write the value out"
        ) from error


ROUTES = [
    Route("POST", "/tools/read", read, "Which tools a Python file holds", who="person", body=ToRead, answer=ReadTools, keeps=False),
]  # fmt: skip
