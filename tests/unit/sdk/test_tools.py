"""@tool: signatures and docstrings become schemas; arguments become the parameters' types; sources are what was pinned."""

from __future__ import annotations

import dataclasses
import hashlib
from decimal import Decimal
from typing import Any, Literal, Optional, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfarm_sdk import Context, schemas, tool
from agentfarm_sdk.errors import Divergence, Invalid, ToolFailed
from agentfarm_sdk.protocol import ToolSpec, content_hash
from agentfarm_sdk.tools.registry import BUILTINS, builtin_specs, load, pinned


@dataclasses.dataclass
class Leg:
    symbol: str
    size: Decimal = Decimal("1")


class Note(TypedDict):
    title: str


@tool(effect="once", approval="always", timeout=5, secrets=["broker"])
def place_order(
    ctx: Context,
    symbol: str,
    size: Decimal,
    side: Literal["buy", "sell"] = "buy",
    limit: Optional[float] = None,  # noqa: UP045 - this form is promised too
    legs: list[Leg] = [],  # noqa: B006
    note: Note | None = None,
) -> dict[str, Any]:
    """Place an order.

    It is placed once.

    Args:
        symbol: the market,
            for example BTC-USD
        size: how much

    Returns:
        the order
    """
    return {"symbol": symbol, "size": size, "side": side, "legs": legs, "key": ctx.key}


def test_a_tool_says_of_itself_what_its_signature_and_docstring_say() -> None:
    spec = place_order.spec
    assert (spec.name, spec.effect, spec.approval, spec.timeout, spec.secrets) == (
        "place_order", "once", "always", 5.0, ["broker"],
    )  # fmt: skip
    assert spec.description == "Place an order.\n\nIt is placed once."
    properties = spec.schema["properties"]
    assert list(properties) == ["symbol", "size", "side", "limit", "legs", "note"] and "ctx" not in properties
    assert properties["symbol"]["description"] == "the market, for example BTC-USD"
    assert properties["side"] == {"enum": ["buy", "sell"], "default": "buy"}
    assert spec.schema["required"] == ["symbol", "size"] and spec.schema["additionalProperties"] is False
    assert spec.schema_hash == content_hash(spec.schema)
    assert schemas.flaw(spec.schema) == ""


def test_a_decimal_may_be_written_as_text_or_as_a_number_and_keeps_its_digits() -> None:
    for written in ("0.10", 0.1, 3):
        arguments = {"symbol": "BTC-USD", "size": written}
        assert schemas.check(place_order.spec.schema)(arguments) == ""
        assert place_order.arguments(arguments)["size"] == Decimal(str(written))


def test_values_become_the_parameters_types() -> None:
    got = place_order.arguments(
        {"symbol": "a", "size": "1", "legs": [{"symbol": "b", "size": 2}], "note": {"title": "t"}}
    )
    assert got["legs"] == [Leg("b", Decimal(2))] and got["note"] == {"title": "t"}


async def test_an_argument_that_does_not_fit_is_told_to_the_model() -> None:
    for wrong in ({"symbol": 3, "size": "1"}, {"symbol": "a", "size": "much"}, {"symbol": "a", "size": "1", "sise": 2}):
        with pytest.raises(ToolFailed, match=r"place_order"):
            await place_order.invoke(Context(), wrong)


async def test_a_result_is_json_and_one_that_cannot_be_is_told() -> None:
    result = await place_order.invoke(Context(key="k"), {"symbol": "a", "size": "0.10"})
    assert result == {"symbol": "a", "size": "0.10", "side": "buy", "legs": [], "key": "k"}

    @tool
    def thing() -> object:
        return object()

    with pytest.raises(ToolFailed, match="JSON"):
        await thing.invoke(Context(), {})


async def test_sys_exit_in_a_tool_ends_the_tool_alone() -> None:
    @tool
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(ToolFailed, match="SystemExit"):
        await leave.invoke(Context(), {})


class Strange:
    def __init__(self, a: int) -> None: ...


def test_what_json_schema_cannot_say_is_refused_at_decoration() -> None:
    def untyped(a): ...  # type: ignore[no-untyped-def]
    def rest(*a: int) -> None: ...
    def more(**a: int) -> None: ...
    def strange(a: Strange) -> None: ...
    def unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for function in (untyped, rest, more, strange, unknown):
        with pytest.raises(Invalid) as refused:
            tool(function)
        assert function.__name__ in refused.value.detail and refused.value.hint
    with pytest.raises(Invalid):
        tool(effect="sometimes")(rest)  # type: ignore[call-overload]
    with pytest.raises(Invalid):
        tool(approval="if large")(lambda: None)


SIMPLE = {
    str: st.text(), int: st.integers(-(2**53), 2**53), float: st.floats(allow_nan=False, allow_infinity=False), bool: st.booleans(),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False), list[int]: st.lists(st.integers(-100, 100)),
    dict[str, bool]: st.dictionaries(st.text(), st.booleans()), Literal["a", "b"]: st.sampled_from(["a", "b"]),
    str | None: st.none() | st.text(), Leg: st.builds(Leg, st.text(), st.decimals(allow_nan=False, allow_infinity=False)),
}  # fmt: skip


@given(st.data(), st.lists(st.sampled_from(list(SIMPLE)), max_size=5))
def test_every_value_of_a_signature_fits_its_schema_and_comes_back(data: st.DataObject, kinds: list[Any]) -> None:
    def function() -> None: ...

    import inspect

    names = [f"p{place}" for place in range(len(kinds))]
    parameters = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=k) for n, k in zip(names, kinds, strict=True)
    ]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = dict(zip(names, kinds, strict=True))
    made = tool(function)
    values = {name: data.draw(SIMPLE[kind]) for name, kind in zip(names, kinds, strict=True)}
    sent = msgspec.json.decode(msgspec.json.encode(values))
    assert schemas.check(made.spec.schema)(sent) == ""
    assert made.arguments(sent) == values


def test_the_values_of_the_world_are_recorded_and_given_back() -> None:
    ctx = Context()
    then = (ctx.now(), ctx.random(), ctx.uuid())
    again = Context(recorded=ctx.values)
    assert (again.now(), again.random(), again.uuid()) == then and then[0].tzinfo is not None
    with pytest.raises(Divergence):
        again.random()
    with pytest.raises(Divergence):
        Context(recorded=ctx.values).uuid()


def test_a_context_shows_no_secret() -> None:
    assert "s3cret" not in repr(Context(secrets={"broker": "s3cret"}))


async def test_a_file_is_loaded_only_as_it_was_pinned(tmp_path: Any) -> None:
    code = b"from agentfarm_sdk import tool\n\n@tool(effect='read')\ndef double(x: int) -> int:\n    return 2 * x\n"
    sha256 = hashlib.sha256(code).hexdigest()
    schema = {
        "type": "object",
        "properties": {"x": {"type": "integer"}},
        "additionalProperties": False,
        "required": ["x"],
    }
    spec = ToolSpec(
        name="double", source=f"file@{sha256}", schema=schema, effect="read", schema_hash=content_hash(schema)
    )

    async def fetch(asked: str) -> bytes:
        assert asked == sha256
        return code

    async def other(asked: str) -> bytes:
        return code + b"#"

    assert await (await load(spec, fetch)).invoke(Context(), {"x": 4}) == 8
    with pytest.raises(Invalid, match="pinned"):
        await load(spec, other)
    with pytest.raises(Invalid, match="schema"):
        await load(msgspec.structs.replace(spec, schema={"type": "object", "properties": {"y": {}}}), fetch)
    by_hand = {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0}}}
    loose = msgspec.structs.replace(spec, schema=by_hand, schema_hash=content_hash(by_hand))
    assert (await load(loose, fetch)).spec is loose


async def test_a_package_is_loaded_only_in_the_pinned_version() -> None:
    import httpx

    place = "httpx:codes"
    with pytest.raises(Invalid, match=r"pinned to httpx==0\.0\.1"):
        await load(ToolSpec(name="codes", source=f"httpx==0.0.1#{place}"))
    with pytest.raises(Invalid, match="not here"):
        await load(ToolSpec(name="codes", source=f"httpx=={httpx.__version__}#httpx:nothing"))


async def test_a_kernels_own_tool_is_loaded_nowhere_else() -> None:
    with pytest.raises(Invalid, match="kernel"):
        await load(place_order.spec)


def test_pinning_copies_the_file_and_refuses_what_stands_in_none() -> None:
    spec, code = pinned(place_order)
    assert spec.source == f"file@{hashlib.sha256(code).hexdigest()}" and b"def place_order" in code
    namespace: dict[str, Any] = {"tool": tool}
    exec("@tool\ndef typed(x: int) -> int:\n    return x\n", namespace)
    with pytest.raises(Invalid, match="no file"):
        pinned(namespace["typed"])


def test_the_built_in_tools_say_what_they_do_to_the_world() -> None:
    specs = builtin_specs()
    assert {name: spec.effect for name, spec in specs.items()} == {
        "calculator": "read", "list_files": "read", "read_file": "read", "write_file": "idempotent", "run_python": "once",
        "http_request": "once", "remember": "idempotent", "forget": "idempotent", "recall": "read", "wait_until": "read",
        "ask_person": "read", "delegate": "read",
    }  # fmt: skip
    assert set(specs) == set(BUILTINS) and all(spec.description and spec.source == "builtin" for spec in specs.values())
