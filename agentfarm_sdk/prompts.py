r"""Variables of prompts: {{name}} gets its value, \{{name}} stays as {{name}}. Pure.

A value is what the task gives as a variable, else the field of that name of an input that is an object, else the version's
default. What stands in a value is never filled itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from .errors import Invalid

_PLACE = re.compile(r"(\\?)\{\{\s*(\w+)\s*\}\}")


def render(prompt: str, defaults: Mapping[str, str], given: Mapping[str, str], input: Any = None) -> str:
    """Fill the variables of a prompt. Raises Invalid: some have no value; all of them are named."""
    fields = input if isinstance(input, dict) else {}
    values = {**defaults, **{name: _text(value) for name, value in fields.items()}, **given}
    missing = sorted({name for escape, name in _PLACE.findall(prompt) if not escape} - values.keys())
    if missing:
        raise Invalid(
            "the prompt needs " + ", ".join(missing), hint="give them as variables, or set defaults in the agent"
        )
    return _PLACE.sub(lambda found: found[0][1:] if found[1] else str(values[found[2]]), prompt)


def places(prompt: str) -> list[str]:
    """Return the names that a prompt has places for, in their order."""
    return list(dict.fromkeys(name for escape, name in _PLACE.findall(prompt) if not escape))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
