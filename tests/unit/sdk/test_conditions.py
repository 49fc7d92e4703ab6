"""The language of approvals: what it says is what Python says of the same, and what it cannot say asks a person."""

from __future__ import annotations

import operator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfarm_sdk.conditions import Unclear, asks, check, evaluate
from agentfarm_sdk.errors import Invalid
from agentfarm_sdk.protocol import ToolSpec

SCHEMA = {"type": "object", "properties": {"size": {"type": "number"}, "symbol": {"type": "string"}}}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
words = st.sampled_from(
    ["size", "symbol", "order.x", "items[0]", "1", "0.5", '"a"', "null", "true", "(", ")", "and", "or", "not", "==", "<", ">=",
     "!=", "in", "[1, 2]", "len(symbol)", "number(size)", "has(size)", "+", "*", "/", "-", "lambda: 0", "__import__('os')",
     "size.__class__", "**", "size if 1 else 2", "{}", "x:=1", "9" * 400]
)  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "arguments", "holds"),
    [
        ('size > 100 and symbol != "USDC"', {"size": 101, "symbol": "BTC"}, True),
        ('size > 100 and symbol != "USDC"', {"size": 101, "symbol": "USDC"}, False),
        ('symbol in ["BTC", "ETH"]', {"symbol": "ETH"}, True),
        ('symbol not in ["BTC", "ETH"]', {"symbol": "ETH"}, False),
        ("number(size) * price >= 1000", {"size": "0.1", "price": 10000}, True),
        ("size == 0.3", {"size": 0.3}, True),
        ("0.1 + 0.2 == 0.3 and size > 0", {"size": 1}, True),
        ("order.legs[1].size > 1", {"order": {"legs": [{"size": 9}, {"size": 2}]}}, True),
        ('has(note) and startswith(lower(note), "urgent")', {"note": "URGENT: now"}, True),
        ('has(note) and startswith(lower(note), "urgent")', {}, False),
        ("0 < size <= 10", {"size": 11}, False),
        ("note == null or len(note) > 3", {"note": None}, True),
        ("-size < -5", {"size": 6}, True),
        ("dry_run", {"dry_run": False}, False),
    ],
)
def test_a_condition_says_of_arguments_what_it_reads_like(condition: str, arguments: Any, holds: bool) -> None:
    assert evaluate(condition, arguments) is holds


@pytest.mark.parametrize(
    ("condition", "arguments"),
    [
        ("size > 100", {}),
        ("size > 100", {"size": "101"}),  # text is no number: `number(size)` is
        ("size == 100", {"size": "100"}),  # a slip that would let the call pass
        ("size", {"size": 1}),
        ("size > 1 or true", {"size": None}),
        ("tags == [1]", {"tags": [1]}),
        ("1 / size > 0", {"size": 0}),
        ("number(size) > 1", {"size": "many"}),
        ("order.size > 1", {"order": [1]}),
        ("size.__class__ == size", {"size": 1}),
        ("((((", {}),
        ("(" * 300 + "size" + ")" * 300, {"size": True}),
        ("size > 1" + " " * 600, {"size": 2}),
        ("", {}),
    ],
)
def test_what_cannot_be_evaluated_asks_a_person(condition: str, arguments: Any) -> None:
    with pytest.raises(Unclear):
        evaluate(condition, arguments)
    assert "cannot be evaluated" in asks(ToolSpec(name="pay", approval=condition), arguments)


@given(st.lists(words, min_size=1, max_size=9).map(" ".join) | st.text(max_size=40), st.dictionaries(st.sampled_from(["size", "symbol", "order", "items"]), json_values))  # fmt: skip
def test_no_condition_and_no_arguments_raise_anything_else_or_call_anything(condition: str, arguments: Any) -> None:
    try:
        assert isinstance(evaluate(condition, arguments), bool)
    except Unclear:
        assert asks(ToolSpec(name="pay", approval=condition), arguments) or condition == "never"


numbers = st.integers(-(10**9), 10**9) | st.decimals(-1000, 1000, places=3).map(float)
COMPARED = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@given(numbers, st.sampled_from(list(COMPARED)), numbers, st.sampled_from(["and", "or"]), st.booleans())
def test_numbers_compare_as_their_decimals_and_logic_is_python_s(
    left: Any, op: str, right: Any, join: str, flag: bool
) -> None:
    compared = COMPARED[op](Decimal(repr(left)), Decimal(repr(right)))
    expected = (compared and flag) if join == "and" else (compared or flag)
    assert evaluate(f"left {op} {right!r} {join} flag", {"left": left, "flag": flag}) is expected
    assert evaluate(f"not (left {op} right)", {"left": left, "right": right}) is not compared


@given(
    st.sampled_from(["never", "always", "size > 100"]),
    st.sampled_from(["live", "ask"]),
    st.booleans(),
    st.integers(0, 200),
)
def test_a_person_is_asked_by_the_rule_and_in_mode_ask_for_every_effect(
    rule: str, mode: str, effect: bool, size: int
) -> None:
    spec = ToolSpec(name="t", approval=rule, effect="once" if effect else "read")
    wanted = rule == "always" or (rule == "size > 100" and size > 100) or (mode == "ask" and effect)
    assert bool(asks(spec, {"size": size}, mode)) is wanted


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("sise > 100", "sise, which is no argument"),
        ("size >", "no condition"),
        ("sometimes maybe", "no condition"),
        ("true", "names no argument"),
        ("size.real() > 1", "the functions are"),
        ("__import__('os').system('x') or size > 1", "the functions are"),
        ("len(size, 2) > 1", "len takes 1"),
        ("size > 1 if symbol else true", "IfExp is not of the language"),
        ("size ** 99 > 1", "Pow is not of the language"),
        ("size > " + "1" * 600, "characters"),
    ],
)
def test_a_builder_is_told_at_the_door_what_is_wrong_with_a_rule(rule: str, why: str) -> None:
    with pytest.raises(Invalid, match=why.replace("(", r"\(")) as refused:
        check(ToolSpec(name="pay", approval=rule, schema=SCHEMA))
    assert refused.value.hint
