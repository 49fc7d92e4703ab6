"""Tools read off a file's text: the same as a kernel makes of it, and nothing executed."""

from __future__ import annotations

import sys
import types

import pytest

from agentfarm_sdk.tools.registry import Tool
from jupyterhub_agentfarm.handlers.toolfiles import tools_of

ORDERS = '''
from __future__ import annotations
import decimal
from dataclasses import dataclass
from typing import Literal, TypedDict
import agentfarm_sdk as sdk
from agentfarm_sdk import tool as makes_a_tool

@dataclass
class Leg:
    side: Literal["buy", "sell"]
    size: decimal.Decimal = 1

class Note(TypedDict, total=False):
    text: str

def was_it_placed(ctx, symbol): ...

@makes_a_tool(effect="once", approval="number(size) > 100", probe=was_it_placed, secrets=["KEY"], escalate_after=60, timeout=5)
def place_order(ctx, symbol: str, size: decimal.Decimal, legs: list[Leg], notes: "dict[str, Note] | None" = None, *, far: bool = False):
    """Place a market order.

    Args:
        symbol: for instance BTC-USD
    """
    return symbol

@sdk.tool(effect="read", name="price-of")
async def price(symbol: str, at: tuple[int, float] = (1, 2.5)) -> float:
    "Say what it costs."

def no_tool(x: int): ...
'''


def test_what_is_read_is_what_a_kernel_would_make_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("orders")
    monkeypatch.setitem(sys.modules, "orders", module)
    exec(compile(ORDERS, "orders.py", "exec"), module.__dict__)
    made = {one.name: one.spec for one in vars(module).values() if isinstance(one, Tool)}
    found = tools_of("orders.py", ORDERS)
    assert [one.name for one in found] == ["place_order", "price-of"] == list(made)
    for one in found:
        spec = made[one.name]
        assert one.tool is not None and one.problem == ""
        assert one.tool["schema"] == spec.schema and one.tool["schema_hash"] == spec.schema_hash
        assert (one.tool["effect"], one.tool["approval"]) == (spec.effect, spec.approval)
        assert one.tool["description"] == spec.description and one.tool["source"] == "file:orders.py"
    order = found[0].tool
    assert (
        order
        and order["probe"]
        and order["secrets"] == ["KEY"]
        and order["escalate_after"] == 60
        and order["timeout"] == 5
    )


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("def f(:", 1, "no Python"),
        ("x = 1", 1, "no function of this file is a tool"),
        ("def tool(f): ...\n@tool\ndef f(x: int): ...", 1, "no function of this file is a tool"),
        ("from agentfarm_sdk import tool\n@tool\ndef f(x): ...", 3, "has no type"),
        ("from agentfarm_sdk import tool\n@tool\ndef f(\n  x: np.ndarray\n): ...", 4, "np.ndarray"),
        ("from agentfarm_sdk import tool\n@tool(effect='reed')\ndef f(x: int): ...", 3, "reed"),
        ("from agentfarm_sdk import tool\n@tool(approval='x >')\ndef f(x: int): ...", 3, "approval"),
        ("from agentfarm_sdk import tool\n@tool(efect='read')\ndef f(x: int): ...", 3, "efect"),
        ("from agentfarm_sdk import tool\nE = 'read'\n@tool(effect=E)\ndef f(x: int): ...", 3, "effect cannot be read"),
        ("from agentfarm_sdk import tool\n@tool\ndef f(x: int = make()): ...", 3, "default of x"),
        ("from agentfarm_sdk import tool\n@tool\ndef f(*x: int): ...", 3, "x"),
        ("from agentfarm_sdk import tool\n" + "@tool\ndef f(x: int): ...\n" * 2, 5, "twice"),
        ("from agentfarm_sdk import tool\n@tool\ndef f(x: 'int['): ...", 3, "is no type"),
        ("from agentfarm_sdk import tool\n@tool\ndef f(x: dict[int]): ...", 3, ""),
        ("(" * 5000, 1, "no Python"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_says_why_and_where(text: str, line: int, said: str) -> None:
    found = tools_of("mine.py", text)
    wrong = [one for one in found if one.tool is None]
    assert wrong and wrong[-1].line == line and said in wrong[-1].problem and wrong[-1].problem, found


def test_nothing_of_the_file_is_executed() -> None:
    text = "from agentfarm_sdk import tool\nraise SystemExit\n@tool\ndef f(x: int = 1):\n    'Does it.'\n    raise SystemExit\n"
    (one,) = tools_of("mine.py", text)
    assert one.tool and one.tool["schema"]["properties"]["x"] == {"type": "integer", "default": 1}


def test_what_is_nested_too_deeply_is_refused_in_words() -> None:
    head = "from agentfarm_sdk import tool\n@tool\ndef f(x: "
    for text in (
        "|".join(["int"] * 900) + "): ...",
        "int = " + "-" * 2000 + "1): ...",
        "int = " + "-" * 200_000 + "1): ...",
    ):
        (found,) = tools_of("deep.py", head + text)
        assert found.tool is None and "nested too deeply" in found.problem
