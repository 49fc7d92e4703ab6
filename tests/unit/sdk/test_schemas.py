"""Schemas are data of a stranger: none may keep the service from its other work."""

from __future__ import annotations

from typing import Any

import pytest

from agentfarm_sdk import schemas


def doubling(times: int, anchors: bool = False) -> dict[str, Any]:
    """A small schema that unfolds into 2**times parts."""
    defs: dict[str, Any] = {
        f"a{n}": {"allOf": [{"$ref": f"#a{n + 1}" if anchors else f"#/$defs/a{n + 1}"}] * 2, **({"$anchor": f"a{n}"} if anchors else {})}
        for n in range(times)
    }  # fmt: skip
    defs[f"a{times}"] = {"type": "object", **({"$anchor": f"a{times}"} if anchors else {})}
    return {"type": "object", "$defs": defs, "$ref": "#/$defs/a0"}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (doubling(40), "unfolds into"),
        (doubling(40, anchors=True), "only to #/$defs/"),
        ({"type": "object", "$dynamicAnchor": "x", "allOf": [{"$dynamicRef": "#x"}]}, "only to #/$defs/"),
        ({"type": "object", "$ref": "https://example.com/schema"}, ""),
    ],
)
def test_a_schema_that_could_take_for_ever_or_reaches_elsewhere_is_refused(schema: dict[str, Any], says: str) -> None:
    found = schemas.flaw(schema)
    assert found and says in found


@pytest.mark.parametrize(
    "schema",
    [
        doubling(8),
        {"type": "object", "properties": {"next": {"$ref": "#"}, "all": {"type": "array", "items": {"$ref": "#"}}}},
        {"type": "object", "$defs": {"a~b/c": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a~0b~1c"}}},
        {"type": "object", "properties": {"$ref": {"type": "string"}}},
        True,
    ],
)
def test_schemas_that_lead_back_to_themselves_or_share_parts_are_fine(schema: Any) -> None:
    assert schemas.flaw(schema) == ""


def test_a_pattern_tries_only_so_often() -> None:
    fits = schemas.check({"type": "object", "properties": {"a": {"pattern": "^(a+)+$"}}})
    assert fits({"a": "a" * 30}) == "" and "does not match" in fits({"a": "a" * 64 + "!"})
