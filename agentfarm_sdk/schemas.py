"""JSON Schema (2020-12): what arguments and structured answers are held against, in the farm and outside it.

A builder's schema is data of a stranger: nothing that it refers to is fetched, and a pattern may try so often only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

BACKTRACKS = 10_000  # steps that a pattern may take; what needs more does not match
UNFOLDED = 20_000  # parts that a schema may have, each `$ref` replaced by what it names
_rs: Any = jsonschema_rs  # its types say other things in the last release for Python 3.10 than in later ones
_UNFIT: tuple[type[Exception], ...] = (_rs.ValidationError, _rs.ReferencingError, ValueError)
Check = Callable[[Any], str]  # a value -> where and why it does not fit; "" where it does


def flaw(schema: Any) -> str:
    """Say what is wrong with a schema itself; "" where it can be used."""
    try:
        _validator(schema)
    except _UNFIT as error:
        return _first_line(error)
    return _bomb(schema)


def _bomb(schema: Any) -> str:
    """Say why a schema could take for ever, or "". What a `$ref` names is counted each time, what leads back to itself once."""
    sizes: dict[str, int] = {}
    strange: list[str] = []

    def size(part: Any) -> int:
        if isinstance(part, list):
            return 1 + sum(map(size, part))
        if not isinstance(part, dict):
            return 1
        total = 1 + sum(map(size, part.values()))
        ref = part.get("$ref")
        if isinstance(ref, str):
            if ref not in sizes:
                sizes[ref] = 1  # under way
                sizes[ref] = size(_named(schema, ref)) if ref.startswith("#/") else 1
                strange.extend([] if ref == "#" or ref.startswith("#/") else [ref])
            total += sizes[ref]
        strange.extend(name for name in ("$dynamicRef", "$recursiveRef") if isinstance(part.get(name), str))
        return total

    try:
        parts = size(schema)
    except RecursionError:
        return "it is nested too deeply"
    if strange:
        return f"it refers to {strange[0]!r}: only to #/$defs/… of the same schema"
    return f"it unfolds into {parts} parts: at most {UNFOLDED}" if parts > UNFOLDED else ""


def _named(schema: Any, pointer: str) -> Any:
    """Return the part that a JSON pointer names; None where there is none."""
    part = schema
    for step in unquote(pointer).removeprefix("#/").split("/"):
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(part, dict):
            part = part.get(step)
        elif isinstance(part, list) and step.isdecimal() and int(step) < len(part):
            part = part[int(step)]
        else:
            return None
    return part


def check(schema: dict[str, Any]) -> Check:
    """Compile a schema. One that cannot be used fits nothing, and says so: a version of long ago may have it."""
    try:
        validator = _validator(schema)
    except _UNFIT as error:
        broken = f"the schema cannot be applied ({_first_line(error)}): its author must mend it"
        return lambda _value: broken

    def fits(value: Any) -> str:
        try:
            if validator.is_valid(value):
                return ""
            error = next(iter(validator.iter_errors(value)))
        except ValueError as odd:  # a value that JSON does not have
            return _first_line(odd)
        where = ".".join(str(part) for part in error.instance_path)
        return f"{f'at {where}: ' if where else ''}{error.message[:300]}"

    return fits


def answer(text: str, fits: Check) -> tuple[Any, str]:
    """Return the data that a model's structured answer stands for, and where it does not fit; "" where it does."""
    try:
        value = json.loads(_unfenced(text))
    except (ValueError, RecursionError) as error:
        return None, f"it is not JSON: {error}"
    return value, fits(value)


def _unfenced(text: str) -> str:
    """Take JSON out of a Markdown fence, which models like to put around it."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json")
    return text


def _validator(schema: Any) -> Any:
    if not isinstance(schema, dict | bool):
        raise ValueError("a schema is an object")
    return _rs.Draft202012Validator(
        schema, offline=True, pattern_options=_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS)
    )


def _first_line(error: Exception) -> str:
    at = "".join(f"[{one!r}]" for one in getattr(error, "instance_path", ()))
    return str(error).partition("\n")[0][:300] + (f" at {at}" if at else "")
