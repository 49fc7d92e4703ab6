"""From what a person wrote to a definition: tools filled in and pinned, schemas checked; agents as YAML files. Pure.

Nothing of a tool's code is ever executed here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import yaml

from agentfarm_sdk import conditions, schemas
from agentfarm_sdk.protocol import Definition, Limits, ToolSpec, canonical, content_hash, narrower

from ..errors import Invalid

AGENT_NAME = re.compile(r"[a-z](?:-?[a-z0-9]){0,24}\Z")
TOOL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}\Z")
SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z")
PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!_-]+#[\w.]+:[\w.]+\Z")
PATH = re.compile(r"(.*?) - at `\$(.*)`\Z", re.DOTALL)
FORM = 1  # of the agent's file
MOST_APPROVERS = 16
LONGEST_WAIT = 366 * 86400.0  # seconds
HashIsKnown = Callable[[str], bool]


def check_name(name: str, what: str = "agent") -> str:
    """Return a name that may be one. Raises Invalid."""
    if not AGENT_NAME.match(name) or len(name) > 25:
        raise Invalid(
            f"{name!r} cannot name an {what}" if what[0] in "aeiou" else f"{name!r} cannot name a {what}",
            hint="a letter first; lowercase letters, digits and single hyphens; at most 25; no hyphen at the end",
        )
    return name


@dataclass(frozen=True)
class Draft:
    """A definition whose tools are pinned, and the files to be kept for them: name -> content."""

    definition: Definition
    files: dict[str, bytes] = field(default_factory=dict)


def settle(
    given: Mapping[str, Any],
    files: Mapping[str, str],
    builtins: Mapping[str, ToolSpec],
    known: HashIsKnown,
) -> Draft:
    """Return the definition that was written down, as the farm keeps it.

    A tool may be its name alone (a built-in one); `file:<name>` names one of `files`, `file@<sha256>` one already kept.

    Raises Invalid: where, and what was expected.
    """
    contents = {name: text.encode() for name, text in files.items()}
    named = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    tools = given.get("tools", [])
    if not isinstance(tools, list):
        raise Invalid("tools: expected a list - at `$.tools`", hint='e.g. ["calculator"]')
    filled = [_tool(tool, index, builtins, named, known) for index, tool in enumerate(tools)]
    _fields(Definition, given, "$")
    for part, kind in (("model", Definition().model), ("limits", Limits())):
        if isinstance(given.get(part), Mapping):
            _fields(type(kind), given[part], f"$.{part}")
    try:
        definition = msgspec.convert({**given, "tools": filled}, Definition)
    except msgspec.ValidationError as error:
        raise Invalid(str(error), hint="see the schema of Definition in /openapi.json") from error
    check(definition)
    return Draft(definition, contents)


def _fields(kind: type[msgspec.Struct], given: Mapping[str, Any], where: str) -> None:
    """Refuse fields that nobody would read: mostly a slip of the pen."""
    if unknown := sorted(set(map(str, given)) - set(kind.__struct_fields__)):
        raise Invalid(
            f"unknown field {unknown[0]!r} - at `{where}.{unknown[0]}`",
            hint="known are " + ", ".join(kind.__struct_fields__),
        )


def _tool(
    tool: Any, index: int, builtins: Mapping[str, ToolSpec], named: Mapping[str, str], known: HashIsKnown
) -> dict[str, Any]:
    """Return one tool in full."""
    where = f"$.tools[{index}]"
    values: dict[str, Any] = (
        {"name": tool} if isinstance(tool, str) else dict(tool) if isinstance(tool, Mapping) else {}
    )
    name = values.get("name")
    if not isinstance(name, str) or not TOOL_NAME.match(name):
        raise Invalid(f"a tool needs a name of letters, digits, _ and - - at `{where}.name`", hint="e.g. calculator")
    _fields(ToolSpec, values, where)
    source = str(values.get("source", "builtin"))
    if source == "builtin":
        return _builtin(name, values, where, builtins)
    if source.startswith("file:"):
        file = source.removeprefix("file:")
        if file not in named:
            raise Invalid(f"there is no file {file!r} - at `{where}.source`", hint="send its text under files")
        source = f"file@{named[file]}"
    elif source.startswith("file@"):
        digest = source.removeprefix("file@")
        if digest not in named.values() and not known(digest):
            raise Invalid(
                f"the farm has no file {digest[:12]}… - at `{where}.source`", hint="send its text under files"
            )
    elif not PACKAGE.match(source):
        raise Invalid(
            f"{source!r} is no source for a published tool - at `{where}.source`",
            hint="builtin, package==version#module:function, file@sha256, or file:<name> with the text under files",
        )
    schema = values.get("schema")
    if not isinstance(schema, Mapping):
        raise Invalid(
            f"tool {name} needs the JSON Schema of its arguments - at `{where}.schema`", hint='{"type": "object"}'
        )
    return {
        **values,
        "source": source,
        "schema_hash": _schema_hash(name, dict(schema), values.get("schema_hash"), where),
    }


def _builtin(name: str, values: dict[str, Any], where: str, builtins: Mapping[str, ToolSpec]) -> dict[str, Any]:
    spec = builtins.get(name)
    if spec is None:
        raise Invalid(f"there is no built-in tool {name!r} - at `{where}`", hint="built in are " + ", ".join(builtins))
    full = msgspec.to_builtins(spec) | {"effect": spec.effect, "source": "builtin", "schema": spec.schema}
    if values.get("effect", spec.effect) != spec.effect:
        raise Invalid(
            f"the effect of the built-in {name} cannot be changed - at `{where}.effect`",
            hint=f"leave effect out; it is {spec.effect}",
        )
    schema = values.get("schema", spec.schema)
    if not narrower(schema, spec.schema):
        raise Invalid(
            f"the schema of the built-in {name} can only be made narrower - at `{where}.schema`",
            hint="name the same arguments, with a pattern, an enum, a maximum … ; or leave schema out",
        )
    probe = (values.get("config") or {}).get("probe")
    if probe is not None and (name != "http_request" or "{key}" not in str(probe)):
        raise Invalid(
            f"the built-in {name} cannot be probed so - at `{where}.config.probe`",
            hint="http_request alone: an address with {key} in it, e.g. https://api.example.com/orders/{key}",
        )
    values = {**values, "probe": probe is not None}
    given = None if schema == spec.schema else values.get("schema_hash")
    return {**full, **values, "schema_hash": _schema_hash(name, dict(schema), given, where)}


def _schema_hash(name: str, schema: dict[str, Any], given: Any, where: str) -> str:
    if found := schemas.flaw(schema):
        raise Invalid(f"tool {name}: {found} - at `{where}.schema`", hint="a JSON Schema, 2020-12")
    if schema.get("type") != "object":
        raise Invalid(f"tool {name}: the schema's type is object - at `{where}.schema`", hint='{"type": "object", …}')
    digest = content_hash(schema)
    if given and given != digest:
        raise Invalid(
            f"tool {name}: the schema is not the one that was hashed - at `{where}.schema_hash`", hint="leave it out"
        )
    return digest


def check(definition: Definition) -> None:
    """Refuse what could only fail later. Raises Invalid."""
    seen: set[str] = set()
    for index, tool in enumerate(definition.tools):
        if tool.name in seen:
            raise Invalid(f"tool {tool.name} is there twice - at `$.tools[{index}]`", hint="give one another name")
        seen.add(tool.name)
        if not 0 < tool.timeout <= 3600:
            raise Invalid(f"a timeout of {tool.timeout:g} s - at `$.tools[{index}].timeout`", hint="over 0, up to 3600")
        if tool.probe and tool.effect != "once":
            raise Invalid(
                f"tool {tool.name} is {tool.effect} and has a probe - at `$.tools[{index}].probe`",
                hint="only calls that are made at most once are probed: effect once, or no probe",
            )
        _check_approval(tool, f"$.tools[{index}]")
        for secret in tool.secrets:
            if not SECRET_NAME.match(secret):
                raise Invalid(f"{secret!r} cannot name a secret - at `$.tools[{index}].secrets`", hint="e.g. API_KEY")
    for limit in Limits.__struct_fields__:
        value = getattr(definition.limits, limit)
        if value is not None and value <= 0:
            raise Invalid(f"a limit of {value:g} {limit} - at `$.limits.{limit}`", hint="more than 0, or null for none")
    choices = [definition.tool_choice] if isinstance(definition.tool_choice, str) else definition.tool_choice
    for choice in choices:
        if choice not in ("auto", "required", "none"):
            raise Invalid(
                f"tool_choice {choice!r} - at `$.tool_choice`", hint="auto, required or none, or a list of them"
            )
        if choice == "required" and not definition.tools:
            raise Invalid("tool_choice required, and no tool - at `$.tool_choice`", hint="give the agent a tool")
    if definition.answer is not None and (found := schemas.flaw(definition.answer)):
        raise Invalid(f"{found} - at `$.answer`", hint="a JSON Schema, 2020-12")


def _check_approval(tool: ToolSpec, where: str) -> None:
    """Refuse rules of approval that could not be kept. Raises Invalid."""
    try:
        conditions.check(tool)
    except Invalid as error:
        raise Invalid(f"tool {tool.name}: {error.detail} - at `{where}.approval`", hint=error.hint) from error
    if not 1 <= tool.approvers <= MOST_APPROVERS:
        raise Invalid(f"{tool.approvers} approvers - at `{where}.approvers`", hint=f"1 to {MOST_APPROVERS}")
    for name in ("approval_expires", "escalate_after"):
        seconds = getattr(tool, name)
        if seconds is not None and not 1 <= seconds <= LONGEST_WAIT:
            raise Invalid(f"{seconds:g} s - at `{where}.{name}`", hint="seconds, from 1 to a year's; or leave it out")
    if tool.escalate_to and tool.escalate_after is None:
        raise Invalid(f"escalate_to without a time - at `{where}.escalate_to`", hint="escalate_after: 600, in seconds")


# -- agents as files -----------------------------------------------------------------------------------------------


class AgentFile(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent's file says."""

    name: str
    pool: str | None
    definition: dict[str, Any]
    files: dict[str, str]


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, so that a diff shows lines."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def dump(
    name: str,
    pool: str | None,
    definition: Definition,
    files: Mapping[str, tuple[str, bytes]],
    builtins: Mapping[str, ToolSpec],
) -> str:
    """Write an agent as YAML. `files`: sha256 -> (name, content) of the tools' sources; they are written by name.

    What a built-in tool has by itself is left out; what the agent made of it (narrower arguments) is written.
    """
    content = msgspec.json.decode(canonical(definition))
    ordered = {one: content[one] for one in Definition.__struct_fields__ if one in content}
    names: dict[str, str] = {}
    for digest, (file, _) in sorted(files.items()):
        names[digest] = file if file not in names.values() else f"{digest[:8]}-{file}"
    for tool in ordered.get("tools", []):
        digest = str(tool.get("source", "")).removeprefix("file@")
        if digest in names:
            tool["source"] = f"file:{names[digest]}"
        if tool.get("source", "builtin") == "builtin":
            own = msgspec.to_builtins(builtins[tool["name"]]) if tool["name"] in builtins else {}
            tool.pop("schema_hash", None)  # made of the schema
            for told in ("schema", "effect", "description", "timeout"):
                if told in tool and tool[told] == own.get(told):
                    del tool[told]
    document: dict[str, Any] = {"agentfarm": FORM, "name": name}
    if pool:
        document["pool"] = pool
    document["definition"] = ordered
    if names:
        document["files"] = {names[digest]: files[digest][1].decode() for digest in sorted(names)}
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def load(text: str) -> AgentFile:
    """Read an agent's file. Raises Invalid: line and column, and what was expected there."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise Invalid("anchors and aliases are not read in an agent's file", hint="write the values out")
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise Invalid(
            f"{at}{error.problem or error.context}", hint="this is no YAML; mind indents and colons"
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise Invalid(f"this is no YAML: {error}", hint="see an exported agent for the form") from error
    if not isinstance(document, dict) or "agentfarm" not in document:
        raise Invalid(
            "line 1: expected `agentfarm: 1`", hint="see an exported agent for the form: agentfarm agent export"
        )
    if document["agentfarm"] != FORM:
        raise Invalid(f"this file has form {document['agentfarm']!r}, this farm reads {FORM}", hint="update the farm")
    values = {"pool": None, "files": {}, **{key: value for key, value in document.items() if key != "agentfarm"}}
    with located(text):
        _fields(AgentFile, values, "$")
        try:
            return msgspec.convert(values, AgentFile)
        except msgspec.ValidationError as error:
            raise Invalid(str(error), hint="see an exported agent for the form") from error


class located:
    """Puts line and column of a YAML text in front of an Invalid that names a path, `prefix` in front of the path."""

    def __init__(self, text: str, prefix: str = "") -> None:
        self.text, self.prefix = text, prefix

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if not isinstance(error, Invalid) or error.detail.startswith("line "):
            return
        found = PATH.match(error.detail)
        if found is None:
            return
        path = self.prefix + found[2]
        line, column = _place(self.text, path)
        raise Invalid(
            f"line {line}, column {column}: {path.lstrip('.')}: {found[1]}", hint=error.hint, line=line, column=column
        ) from error


def _place(text: str, path: str) -> tuple[int, int]:
    """Return line and column (from 1) of the deepest part of a path that stands in the YAML text."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        return 1, 1
    mark = node.start_mark
    for key, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path):
        if isinstance(node, yaml.MappingNode) and key:
            found = [(k, v) for k, v in node.value if k.value == key]
            if not found:
                break
            mark, node = found[0][0].start_mark, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and index and int(index) < len(node.value):
            node = node.value[int(index)]
            mark = node.start_mark
        else:
            break
    return mark.line + 1, mark.column + 1


def difference(old: Definition, new: Definition) -> list[dict[str, Any]]:
    """Return what differs: `{path, from, to}` for each part."""
    found: list[dict[str, Any]] = []

    def walk(path: str, one: Any, two: Any) -> None:
        if one == two:
            return
        if isinstance(one, dict) and isinstance(two, dict):
            for key in [*one, *(key for key in two if key not in one)]:
                walk(f"{path}.{key}" if path else key, one.get(key), two.get(key))
            return
        found.append({"path": path, "from": one, "to": two})

    walk("", _by_name(old), _by_name(new))
    return found


def _by_name(definition: Definition) -> dict[str, Any]:
    content = {field: msgspec.to_builtins(getattr(definition, field)) for field in definition.__struct_fields__}
    content["tools"] = {tool["name"]: tool for tool in content["tools"]}
    content["limits"] = msgspec.structs.asdict(definition.limits)
    content["model"] = msgspec.structs.asdict(definition.model)
    return content
