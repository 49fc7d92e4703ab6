"""Writes labextension/src/protocol.ts, what the browser may read and send, from the table of routes.

`.venv/bin/python scripts/protocol_ts.py` after a change of a view or a body; a test compares.
"""

from __future__ import annotations

import re
import sys
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "labextension" / "src" / "protocol.ts"
HEAD = "// Written by scripts/protocol_ts.py from the service's table of routes; changed there, never here.\n"


def name_of(schema: str) -> str:
    """Return the TypeScript name: `Listed_X_` is the generic one, a name that two modules have carries its module's."""
    if listed := re.fullmatch(r"Listed_(.+)_", schema):
        return f"Listed<{'unknown' if listed[1] == 'Any' else name_of(listed[1])}>"
    module, _, name = schema.rpartition(".")
    plain = name.rstrip("_")
    return plain if not module or module == "agentfarm_sdk.protocol" else module.rsplit(".", 1)[1].capitalize() + plain


def kind_of(schema: dict[str, Any]) -> str:
    """Return the TypeScript type of a JSON Schema as msgspec makes it."""
    if "$ref" in schema:
        return name_of(schema["$ref"].rsplit("/", 1)[1])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(kind_of(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return " | ".join("null" if one is None else f"'{one}'" for one in schema["enum"])
    if "const" in schema:
        return f"'{schema['const']}'"
    if schema.get("type") == "array":
        inner = kind_of(schema["items"]) if isinstance(schema.get("items"), dict) else "unknown"
        return f"({inner})[]" if " | " in inner else f"{inner}[]"
    if schema.get("type") == "object":
        more = schema.get("additionalProperties")
        return f"{{ [name: string]: {kind_of(more) if isinstance(more, dict) else 'unknown'} }}"
    return {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}.get(
        schema.get("type", ""), "unknown"
    )


def interface(name: str, schema: dict[str, Any]) -> str:
    """Return one interface; what need not be there is optional."""
    needed = set(schema.get("required", ()))
    lines = [
        f"  {key}{'' if key in needed else '?'}: {kind_of(one)};" for key, one in schema.get("properties", {}).items()
    ]
    said = schema.get("description", "").split("\n")[0]
    return "\n".join([*([f"/** {said} */"] if said else []), f"export interface {name} {{", *lines, "}"])


def closed(name: str, values: Any) -> str:
    return f"export type {name} = {' | '.join(repr(str(one)) for one in values)};"


def text() -> str:
    """Return the file: closed sets, the page of a list, then every struct by name."""
    from agentfarm_sdk import protocol
    from jupyterhub_agentfarm.handlers.operations import describe
    from jupyterhub_agentfarm.handlers.table import ROUTES

    sets = [closed(name, typing.get_args(getattr(protocol, name))) for name in ("Mode", "Status", "Waiting")]
    sets.append(closed("ToolEffect", typing.get_args(protocol.Effect)))
    listed = "/** A page of a list; `next` is the cursor of the following one. */\nexport interface Listed<T> {\n  items: T[];\n  next?: string | number | null;\n}"
    schemas = describe(ROUTES)["components"]["schemas"]
    named = sorted(
        ((name_of(key), one) for key, one in schemas.items() if not key.startswith("Listed_")), key=lambda one: one[0]
    )
    return "\n\n".join([HEAD + "\n" + "\n".join(sets), listed, *(interface(name, one) for name, one in named)]) + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    TARGET.write_text(text())
