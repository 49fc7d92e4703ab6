"""Definitions as people write them: filled in, checked, out to YAML and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfarm_sdk.protocol import Definition, Limits, ModelSpec, ToolSpec, content_hash
from agentfarm_sdk.tools.registry import builtin_specs
from jupyterhub_agentfarm.errors import Invalid
from jupyterhub_agentfarm.handlers import drafts

BUILTINS = builtin_specs()
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}


def settle(given_: dict[str, Any], files: dict[str, str] | None = None) -> Definition:
    return drafts.settle(given_, files or {}, BUILTINS, lambda _: False).definition


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=60)
definitions = st.builds(
    Definition,
    prompt=texts,
    description=texts,
    model=st.builds(
        ModelSpec, name=texts, parameters=st.dictionaries(texts, st.floats(0, 2) | st.integers(0, 9) | texts)
    ),
    limits=st.builds(Limits, steps=st.none() | st.integers(1, 99), seconds=st.none() | st.floats(0.5, 9999)),
    variables=st.dictionaries(texts, texts, max_size=3),
    fresh_kernel=st.booleans(),
    tools=st.sampled_from([[], [BUILTINS["calculator"]], [BUILTINS["calculator"], BUILTINS["read_file"]]]),
)


@given(definitions)
def test_an_agent_s_file_comes_back_with_the_same_hash(definition: Definition) -> None:
    file = drafts.load(drafts.dump("analyst", "pool", definition, {}, BUILTINS))
    assert (file.name, file.pool) == ("analyst", "pool")
    assert content_hash(settle(file.definition)) == content_hash(definition)


def test_a_built_in_tool_with_narrower_arguments_keeps_them_in_the_file_and_no_other_schema_is_taken() -> None:
    schema = {
        "type": "object", "properties": {"expression": {"type": "string", "maxLength": 9}}, "required": ["expression"],
        "additionalProperties": False,
    }  # fmt: skip
    settled = drafts.settle({"tools": [{"name": "calculator", "schema": schema}]}, {}, BUILTINS, lambda _: False)
    text = drafts.dump("a", None, settled.definition, {}, BUILTINS)
    assert "maxLength: 9" in text and "description" not in text
    again = drafts.settle(drafts.load(text).definition, {}, BUILTINS, lambda _: False)
    assert again == settled
    for wrong in (
        {"type": "object", "properties": {"other": {}}, "additionalProperties": False},
        {"type": "object"},
        7,
    ):
        with pytest.raises(Invalid, match="narrower"):
            drafts.settle({"tools": [{"name": "calculator", "schema": wrong}]}, {}, BUILTINS, lambda _: False)


def test_a_tool_s_code_travels_in_the_file_under_its_name() -> None:
    code = "def double(x: int) -> int:\n    return 2 * x\n"
    tool = {"name": "double", "schema": SCHEMA, "source": "file:mine.py"}
    settled = drafts.settle({"tools": [tool]}, {"mine.py": code}, BUILTINS, lambda _: False)
    digest = settled.definition.tools[0].source.removeprefix("file@")
    text = drafts.dump("a", None, settled.definition, {digest: ("mine.py", code.encode())}, BUILTINS)
    assert "source: file:mine.py" in text and "    def double" in text
    file = drafts.load(text)
    again = drafts.settle(file.definition, file.files, BUILTINS, lambda _: False)
    assert again == settled


def test_a_built_in_tool_is_its_name_alone_and_its_approval_may_be_tightened() -> None:
    (tool,) = settle({"tools": [{"name": "calculator", "approval": "always", "timeout": 5}]}).tools
    assert tool == ToolSpec(**{**{f: getattr(BUILTINS["calculator"], f) for f in ToolSpec.__struct_fields__}, "approval": "always", "timeout": 5.0})  # fmt: skip


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        ({"tools": ["calculator", "calculator"]}, "twice"),
        ({"tools": [{"name": "t", "source": "kernel", "schema": SCHEMA}]}, "kernel"),
        ({"tools": [{"name": "t", "source": "pip install evil", "schema": SCHEMA}]}, "no source"),
        ({"tools": [{"name": "t", "source": "pkg==1#m:f", "schema": {"type": "array"}}]}, "type is object"),
        ({"tools": [{"name": "t", "source": "pkg==1#m:f", "schema": {"type": "objekt"}}]}, "objekt"),
        ({"tools": [{"name": "t", "source": "pkg==1#m:f", "schema": SCHEMA, "schema_hash": "00"}]}, "schema_hash"),
        ({"tools": [{"name": "calculator", "timeout": 0}]}, "$.tools[0].timeout"),
        ({"tools": [{"name": "calculator", "approval": "amount > 1"}]}, "$.tools[0].approval"),
        ({"tools": [{"name": "calculator", "config": {"probe": "https://a/{key}"}}]}, "$.tools[0].config.probe"),
        ({"tools": [{"name": "http_request", "config": {"probe": "https://a/"}}]}, "$.tools[0].config.probe"),
        (
            {"tools": [{"name": "t", "source": "pkg==1#m:f", "schema": SCHEMA, "effect": "read", "probe": True}]},
            "has a probe",
        ),
        ({"tools": "calculator"}, "expected a list"),
        ({"tool_choice": "perhaps"}, "perhaps"),
        ({"tool_choice": ["required"]}, "no tool"),
        ({"limits": {"tokens": 0}}, "$.limits.tokens"),
        ({"model": {"temperature": 1}}, "$.model.temperature"),
        ({"answer": {"type": 3}}, "$.answer"),
    ],
)
def test_what_could_only_fail_later_is_refused_at_the_door(draft: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid) as caught:
        settle(draft)
    assert words in caught.value.detail and caught.value.hint


def test_http_request_is_probed_where_its_config_names_an_address_for_it_and_travels_so() -> None:
    probe = "https://api.example.com/orders/{key}"
    settled = drafts.settle(
        {"tools": [{"name": "http_request", "config": {"probe": probe}}]}, {}, BUILTINS, lambda _: False
    )
    assert settled.definition.tools[0].probe and not settle({"tools": ["http_request"]}).tools[0].probe
    file = drafts.load(drafts.dump("a", None, settled.definition, {}, BUILTINS))
    assert drafts.settle(file.definition, file.files, BUILTINS, lambda _: False) == settled


@pytest.mark.parametrize("name", ["", "A", "1a", "a_b", "a--b", "a-", "-a", "a" * 26, "ä", "a\n"])
def test_names_that_the_hub_or_a_shell_would_trip_over_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        drafts.check_name(name)
    assert drafts.check_name("a-1") == "a-1" and drafts.check_name("a" * 25)


def test_a_difference_names_each_part_by_its_path() -> None:
    old = settle({"prompt": "a", "tools": ["calculator"]})
    new = settle({"prompt": "b", "tools": ["read_file"], "limits": {"steps": 3}})
    found = {one["path"]: (one["from"], one["to"]) for one in drafts.difference(old, new)}
    assert found["prompt"] == ("a", "b") and found["limits.steps"] == (20, 3)
    assert found["tools.read_file"][0] is None and found["tools.calculator"][1] is None
    assert drafts.difference(old, old) == []
