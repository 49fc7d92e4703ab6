"""The calculator: exact, and limited in every direction."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfarm_sdk.errors import ToolFailed
from agentfarm_sdk.tools.calculator import calculator


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("17*23", "391"), ("17 × 23", "391"), ("10/4", "2.5"), ("9/3", "3"), ("0.1+0.2", "0.3"), ("2**-1", "0.5"), ("-7//2", "-4"),
        ("-7.5//2", "-4"), ("-7.5 % 2", "0.5"), ("sqrt(16)", "4"), ("round(2.675, 2)", "2.68"), ("max(1, 2.5, 2)", "2.5"), ("1_000*2", "2000"),
        ("(1+2)*-3", "-9"), ("floor(-0.5)", "-1"), ("2**64", str(2**64)), ("1e3", "1000"), ("min(3,4)", "3"),
        ("1/3", "0." + "3" * 50),
    ],
)  # fmt: skip
def test_arithmetic_is_exact(asked: str, answer: str) -> None:
    assert calculator(asked) == answer


@pytest.mark.parametrize(
    "asked",
    [
        "", "1+", "__import__('os')", "().__class__", "abs.__name__", "[1]*10**9", "'a'*3", "True", "x", "1 if 1 else 2", "lambda: 1", "f(1)",
        "2^3", "1/0", "1%0", "1//0.0", "sqrt(-1)", "9**9**9", "2**10000", "10**1000*10**1000*10**1000", "1e99999", "9.9**1001", "(" * 300 + "1" + ")" * 300,
        "-" * 900 + "1", "1" * 1001, "1+" * 499 + "1" * 900, "round(1, 2, 3)", "abs()", "max(*[1])", "ln(0)", "1;2", "1\n2", "2j",
    ],
)  # fmt: skip
def test_what_is_no_arithmetic_or_too_much_is_told(asked: str) -> None:
    if asked == "-" * 900 + "1":  # deep, but a number all the same
        assert calculator(asked) == "1"
        return
    with pytest.raises(ToolFailed) as told:
        calculator(asked)
    assert told.value.detail


NUMBER = st.integers(-(10**9), 10**9)


@given(NUMBER, NUMBER, st.sampled_from(["+", "-", "*", "//", "%", "/"]))
def test_it_agrees_with_exact_arithmetic(a: int, b: int, sign: str) -> None:
    if b == 0 and sign in "//%":
        return
    got = Decimal(calculator(f"({a}) {sign} ({b})"))
    exact = {"+": a + b, "-": a - b, "*": a * b}.get(sign)
    if sign in ("//", "%"):
        exact = a // b if sign == "//" else a % b
    if exact is not None:
        assert got == exact
    else:
        assert abs(Fraction(got) - Fraction(a, b)) <= abs(Fraction(a, b)) / 10**45


@given(st.text(alphabet="0123456789.+-*/%()e, absmxqrt_[]{}'\"", max_size=60))
def test_no_text_does_anything_but_a_number_or_a_refusal(text: str) -> None:
    try:
        Decimal(calculator(text))
    except ToolFailed:
        pass
