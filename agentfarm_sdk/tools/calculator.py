"""Arithmetic: exact integers and 50-digit decimals, from text, without `eval`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, DecimalException, localcontext
from typing import Any

from ..errors import ToolFailed
from .registry import tool

MAX_CHARACTERS = 1000
MAX_DIGITS = 2000  # of an integer
MAX_EXPONENT = 1000
PRECISION = 50
Number = int | Decimal

_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})
_CONSTANTS = {
    "pi": Decimal("3.14159265358979323846264338327950288419716939937511"),
    "e": Decimal("2.71828182845904523536028747135266249775724709369996"),
}


@tool(effect="read", timeout=5)
def calculator(expression: str) -> str:
    """Calculate an arithmetic expression and return the number.

    Args:
        expression: e.g. "17*23" or "sqrt(2) + 1/3"; + - * / // % ** ( ) and abs, round, min, max, sqrt, floor, ceil, exp, ln, log10
    """
    if len(expression) > MAX_CHARACTERS:
        raise ToolFailed(f"the expression is longer than {MAX_CHARACTERS} characters")
    text = expression.strip().translate(_SIGNS)
    try:
        tree = ast.parse(text, mode="eval")
        with localcontext(Context(prec=PRECISION, Emax=5000, Emin=-5000)):
            return _text(_value(tree.body, text))
    except SyntaxError as error:
        raise ToolFailed(f"this is not an arithmetic expression: {expression[:100]!r}") from error
    except ZeroDivisionError as error:
        raise ToolFailed("division by zero") from error
    except DecimalException as error:
        raise ToolFailed("the result is not a number, or is too large") from error
    except (RecursionError, MemoryError, ValueError) as error:
        raise ToolFailed("the expression is too deep or a number in it is too long") from error


def _value(tree: ast.expr, text: str) -> Number:
    if isinstance(tree, ast.Constant) and type(tree.value) in (int, float):
        written = ast.get_source_segment(text, tree) or repr(tree.value)
        return tree.value if isinstance(tree.value, int) else Decimal(written)
    if isinstance(tree, ast.Name) and tree.id in _CONSTANTS:
        return _CONSTANTS[tree.id]
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, (ast.UAdd, ast.USub)):
        value = _value(tree.operand, text)
        return -value if isinstance(tree.op, ast.USub) else value
    if isinstance(tree, ast.BinOp) and type(tree.op) in _BINARY:
        return _limited(_BINARY[type(tree.op)](_value(tree.left, text), _value(tree.right, text)))
    if (
        isinstance(tree, ast.Call)
        and isinstance(tree.func, ast.Name)
        and tree.func.id in _FUNCTIONS
        and not tree.keywords
    ):
        least, most, fn = _FUNCTIONS[tree.func.id]
        if not least <= len(tree.args) <= most:
            raise ToolFailed(f"{tree.func.id} takes {least} to {most} numbers")
        return _limited(fn(*(_value(arg, text) for arg in tree.args)))
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitXor):
        raise ToolFailed("^ is not a power here: write **")
    raise ToolFailed(f"this is not arithmetic: {ast.unparse(tree)[:60]!r}")


def _limited(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > MAX_DIGITS * 3.33:
        raise ToolFailed(f"the result has more than {MAX_DIGITS} digits")
    return value


def _divide(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int) and b and a % b == 0:
        return a // b
    return Decimal(a) / Decimal(b) if b else 1 // 0


def _floor_divide(a: Number, b: Number) -> int:
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    return int((Decimal(a) / Decimal(b)).to_integral_value(ROUND_FLOOR)) if b else 1 // 0


def _modulo(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    return a - b * _floor_divide(a, b)


def _power(a: Number, b: Number) -> Number:
    if not -MAX_EXPONENT <= b <= MAX_EXPONENT:
        raise ToolFailed(f"an exponent beyond {MAX_EXPONENT}")
    if isinstance(a, int) and isinstance(b, int) and b >= 0:
        if a.bit_length() * b > MAX_DIGITS * 4:
            raise ToolFailed(f"the result has more than {MAX_DIGITS} digits")
        return int(a**b)
    return Decimal(a) ** Decimal(b)


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.FloorDiv: _floor_divide,
    ast.Mod: _modulo,
    ast.Pow: _power,
}
_FUNCTIONS: dict[str, tuple[int, int, Callable[..., Number]]] = {
    "abs": (1, 1, abs),
    "min": (1, 100, lambda *them: min(them)),
    "max": (1, 100, lambda *them: max(them)),
    "round": (1, 2, lambda x, n=0: round(Decimal(x), int(n)) if n else round(x)),
    "sqrt": (1, 1, lambda x: Decimal(x).sqrt()),
    "floor": (1, 1, lambda x: int(Decimal(x).to_integral_value(ROUND_FLOOR))),
    "ceil": (1, 1, lambda x: int(Decimal(x).to_integral_value(ROUND_CEILING))),
    "exp": (1, 1, lambda x: Decimal(x).exp()),
    "ln": (1, 1, lambda x: Decimal(x).ln()),
    "log10": (1, 1, lambda x: Decimal(x).log10()),
}


def _text(value: Number) -> str:
    if isinstance(value, int):
        return str(value)
    if not value.is_finite():
        raise ToolFailed("the result is not a number, or is too large")
    value = value.normalize()
    return format(value, "f") if -30 < value.adjusted() < 30 else str(value)
