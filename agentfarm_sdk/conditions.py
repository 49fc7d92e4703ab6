"""When a call needs a person: `never`, `always`, or a condition on the arguments, e.g. `size > 100 and symbol != "USDC"`.

Pure, and closed in the end: a condition that cannot be read or evaluated asks a person. A condition is a Python expression
of the few nodes named here, read by `ast` and walked by us; nothing of it is ever executed.

    values     arguments by name, `order.size`, `items[0]`; "text", 12, 0.5, true, false, null; [lists] of constants
    numbers    + - * /  (decimal, 28 digits)
    compare    == != < <= > >= in, not in; chains as in 0 < size <= 10; only like with like (null with anything)
    logic      and, or, not: of true and false alone
    functions  len(x)  lower(text)  number("12.5")  startswith(text, prefix)  has(argument)
"""

from __future__ import annotations

import ast
import decimal
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from .errors import Invalid
from .protocol import ToolSpec

LONGEST = 500  # characters of a condition
HINT = 'never, always, or a condition on the arguments, e.g. size > 100 and symbol != "USDC"'
FUNCTIONS = {"len": 1, "lower": 1, "number": 1, "startswith": 2, "has": 1}  # and how many values they take
_WORDS = {"true": True, "false": False, "null": None}
_ARITHMETIC = decimal.Context(prec=28, traps=[decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow])
_OPERATORS: dict[type[ast.operator], Callable[[Decimal, Decimal], Decimal]] = {
    ast.Add: _ARITHMETIC.add, ast.Sub: _ARITHMETIC.subtract, ast.Mult: _ARITHMETIC.multiply, ast.Div: _ARITHMETIC.divide,
}  # fmt: skip
_NODES = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp, ast.Compare, ast.Call,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn,
    ast.Name, ast.Attribute, ast.Subscript, ast.Constant, ast.List, ast.Tuple, ast.Load, *_OPERATORS,
)  # fmt: skip


class Unclear(Exception):
    """The condition says nothing about these arguments: a person is asked."""


class _Absent(Unclear):
    """An argument that the call does not have."""


def asks(spec: ToolSpec, arguments: Mapping[str, Any], mode: str = "live") -> str:
    """Return why a person must approve this call, "" where nobody need. Mode `ask` asks for every effect."""
    rule = spec.approval
    if rule == "always":
        return "each call of this tool needs approval"
    try:
        if rule != "never" and evaluate(rule, arguments):
            return f"its condition holds: {rule}"
    except Unclear as unclear:
        return f"its condition cannot be evaluated: {unclear}"
    return "this run asks before each effect" if mode == "ask" and spec.effect != "read" else ""


def evaluate(text: str, arguments: Mapping[str, Any]) -> bool:
    """Say whether the condition holds. Raises Unclear, and nothing else."""
    try:
        value = _value(_parsed(text).body, arguments)
    except Unclear:
        raise
    except Invalid as error:
        raise Unclear(error.detail) from error
    except decimal.DecimalException as error:
        raise Unclear(f"no number: {type(error).__name__}") from error
    except RecursionError as error:
        raise Unclear("it is nested too deeply") from error
    if not isinstance(value, bool):
        raise Unclear(f"it is {_kind(value)}, neither true nor false")
    return value


def check(spec: ToolSpec) -> None:
    """Refuse a rule that would ask about every call by mistake. Raises Invalid: what is wrong, and what would do."""
    if spec.approval in ("never", "always"):
        return
    tree = _parsed(spec.approval)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(_WORDS)
    names -= {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    if not names:
        raise Invalid(f"approval {spec.approval!r} names no argument", hint=HINT)
    known = spec.schema.get("properties")
    closed = spec.schema.get("additionalProperties") is False or (isinstance(known, dict) and known)
    if closed and (unknown := sorted(names - set(known or {}))):
        has = ", ".join(known or {}) or "none"
        raise Invalid(f"approval names {unknown[0]}, which is no argument of {spec.name}", hint=f"its arguments: {has}")


@lru_cache(maxsize=1024)
def _parsed(text: str) -> ast.Expression:
    """Read a condition. Raises Invalid."""
    if len(text) > LONGEST:
        raise Invalid(f"a condition of {len(text)} characters", hint=f"at most {LONGEST}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        nodes = list(ast.walk(tree))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise Invalid(f"approval {text!r} is no condition: {getattr(error, 'msg', error)}", hint=HINT) from error
    for node in nodes:
        if fault := _fault(node):
            raise Invalid(f"approval {text!r}: {fault}", hint=HINT)
    return tree


def _fault(node: ast.AST) -> str:
    """Say what about a node is not of the language, or ""."""
    if not isinstance(node, _NODES):
        return f"{type(node).__name__} is not of the language"
    if isinstance(node, ast.Constant) and not isinstance(node.value, str | int | float | None):
        return f"{node.value!r} is neither text nor number"
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords:
            return "the functions are " + ", ".join(FUNCTIONS)
        if len(node.args) != FUNCTIONS[node.func.id]:
            return f"{node.func.id} takes {FUNCTIONS[node.func.id]}"
    if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Constant):
        return "an index is a number or a text"
    if isinstance(node, ast.List | ast.Tuple) and not all(map(_constant, node.elts)):
        return "a list holds constants"
    return ""


def _constant(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id in _WORDS)


def _value(node: ast.AST, given: Mapping[str, Any]) -> Any:
    """Return the value of a node: text, Decimal, bool, None, list or dict. Raises Unclear."""
    match node:
        case ast.Constant():
            return _plain(node.value)
        case ast.Name():
            if node.id in given:  # an argument may be called `true`
                return _plain(given[node.id])
            if node.id in _WORDS:
                return _WORDS[node.id]
            raise _Absent(f"{node.id} is not given")
        case ast.Attribute():
            return _part(_value(node.value, given), node.attr)
        case ast.Subscript():
            assert isinstance(node.slice, ast.Constant)
            return _part(_value(node.value, given), node.slice.value)
        case ast.List() | ast.Tuple():
            return [_value(one, given) for one in node.elts]
        case ast.BoolOp():
            wanted = isinstance(node.op, ast.Or)
            return (
                any(_truth(one, given) for one in node.values)
                if wanted
                else all(_truth(one, given) for one in node.values)
            )
        case ast.UnaryOp():
            if isinstance(node.op, ast.Not):
                return not _truth(node.operand, given)
            return _ARITHMETIC.minus(_number(_value(node.operand, given)))
        case ast.BinOp():
            left, right = _number(_value(node.left, given)), _number(_value(node.right, given))
            return _OPERATORS[type(node.op)](left, right)
        case ast.Compare():
            return all(_compared(op, left, right) for op, left, right in _pairs(node, given))
        case ast.Call():
            assert isinstance(node.func, ast.Name)
            return _called(node.func.id, node.args, given)
    raise Unclear(f"{type(node).__name__} has no value")


def _plain(value: Any) -> Any:
    """Let every number be a Decimal: what is written 0.1 is 0.1."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(Decimal(repr(value)) if isinstance(value, float) else Decimal(value))
    return value


def _number(value: Any) -> Decimal:
    if not isinstance(value, Decimal) or not value.is_finite():
        raise Unclear(f"{_kind(value)} is no number")
    return value


def _part(whole: Any, key: Any) -> Any:
    if isinstance(whole, dict) and isinstance(key, str):
        if key not in whole:
            raise _Absent(f"{key} is not given")
        return _plain(whole[key])
    if isinstance(whole, list) and isinstance(key, int) and not isinstance(key, bool):
        if not 0 <= key < len(whole):
            raise _Absent(f"there is no [{key}]")
        return _plain(whole[key])
    raise Unclear(f"{_kind(whole)} has no {key!r}")


def _truth(node: ast.AST, given: Mapping[str, Any]) -> bool:
    value = _value(node, given)
    if not isinstance(value, bool):
        raise Unclear(f"{_kind(value)} is neither true nor false")
    return value


def _pairs(node: ast.Compare, given: Mapping[str, Any]) -> Iterator[tuple[ast.cmpop, Any, Any]]:
    left = _value(node.left, given)
    for op, one in zip(node.ops, node.comparators, strict=True):
        right = _value(one, given)
        yield op, left, right
        left = right


def _compared(op: ast.cmpop, left: Any, right: Any) -> bool:
    match op:
        case ast.Eq():
            return _equal(left, right)
        case ast.NotEq():
            return not _equal(left, right)
        case ast.In() | ast.NotIn():
            if isinstance(right, str) and isinstance(left, str):
                found = left in right
            elif isinstance(right, list):
                found = any(_equal(left, _plain(one)) for one in right)
            else:
                raise Unclear(f"{_kind(left)} in {_kind(right)}")
            return found == isinstance(op, ast.In)
    if not (isinstance(left, str) and isinstance(right, str)):
        left, right = _number(left), _number(right)
    match op:
        case ast.Lt():
            return bool(left < right)
        case ast.LtE():
            return bool(left <= right)
        case ast.Gt():
            return bool(left > right)
    return bool(left >= right)


def _equal(left: Any, right: Any) -> bool:
    """Compare like with like, and no lists: "100" == 100, or [0.1] == [0.1], is a slip that would let a call pass."""
    if left is None or right is None:
        return left is right
    if _kind(left) != _kind(right) or isinstance(left, list | dict):
        raise Unclear(f"{_kind(left)} is compared with {_kind(right)}")
    return bool(left == right)


def _called(name: str, args: list[ast.expr], given: Mapping[str, Any]) -> Any:
    if name == "has":
        try:
            return _value(args[0], given) is not None
        except _Absent:
            return False
    values = [_value(one, given) for one in args]
    if name == "len" and isinstance(values[0], str | list | dict):
        return Decimal(len(values[0]))
    if name == "number" and isinstance(values[0], str | Decimal):
        text = values[0]
        return _number(_ARITHMETIC.create_decimal(text.strip()) if isinstance(text, str) else text)
    if name == "lower" and isinstance(values[0], str):
        return values[0].lower()
    if name == "startswith" and all(isinstance(one, str) for one in values):
        return values[0].startswith(values[1])
    raise Unclear(f"{name} of {_kind(values[0])}")


def _kind(value: Any) -> str:
    kinds = {
        bool: "true or false",
        str: "text",
        Decimal: "a number",
        list: "a list",
        dict: "an object",
        type(None): "null",
    }
    return kinds.get(type(value), type(value).__name__)
