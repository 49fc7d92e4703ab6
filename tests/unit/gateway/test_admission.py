"""Which calls may start: never a guess, never beyond a limit, never an effect without the person who is asked for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfarm_sdk.protocol import Definition, Limits, Simulate, ToolSpec, call_key
from jupyterhub_agentfarm.gateway.admission import Verdict, admit, disagreement, message, parse, validators
from jupyterhub_agentfarm.gateway.asking import AskedCall
from jupyterhub_agentfarm.gateway.simulation import Answers

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0}},
    "required": ["n"],
    "additionalProperties": False,
}
DEFINITION = Definition(
    tools=[
        ToolSpec(name="look", schema=SCHEMA, effect="read"),
        ToolSpec(name="pay", schema=SCHEMA, effect="once"),
        ToolSpec(name="ask", schema=SCHEMA, effect="once", approval="always"),
    ],
    limits=Limits(calls=3),
)


def decided(*calls: tuple[str, str], mode: str = "live", before: int = 0, cancelled: bool = False) -> list[Verdict]:
    said = message(4, "", [AskedCall(name, arguments) for name, arguments in calls])
    return admit(
        DEFINITION,
        validators(DEFINITION),
        said,
        mode=mode,
        calls_before=before,
        cancelled=cancelled,
        epoch="e",
        run="r",
        fence=2,
    )


def states(verdicts: list[Verdict]) -> list[str]:
    return [verdict.told.state for verdict in verdicts]


def test_a_call_that_fits_starts_with_its_key() -> None:
    (verdict,) = decided(("pay", '{"n": 1}'))
    assert (verdict.told.state, verdict.told.key) == ("admitted", call_key("e", "r", "c4-0"))
    assert verdict.event.kind == "tool.started" and verdict.event.call == "c4-0"


@pytest.mark.parametrize(
    "arguments",
    [
        '{"n": NaN}',
        '{"n": 1e999}',
        '{"n": "\\ud800"}',
        "[" * 5000,
        '{"n": -1}',
        '{"n": "1"}',
        "{}",
        '{"n": 1, "m": 2}',
        "[1]",
        "{n: 1}",
        "null",
        "",
        '{"n": 1',
        "7",
    ],
)
def test_arguments_against_the_schema_are_refused_and_the_model_is_told(arguments: str) -> None:
    (verdict,) = decided(("pay", arguments))
    assert verdict.told.state == "failed" and verdict.told.error
    assert verdict.event.kind == "tool.failed"


def test_json_that_was_encoded_twice_is_the_one_thing_repaired() -> None:
    assert states(decided(("pay", '"{\\"n\\": 1}"'))) == ["admitted"]
    assert parse('"\\"{}\\""')[1]


def test_an_unknown_tool_is_answered_with_the_known_ones() -> None:
    assert "look, pay, ask" in decided(("fly", "{}"))[0].told.error


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("live", ["admitted", "admitted", "awaiting"]),
        ("ask", ["admitted", "awaiting", "awaiting"]),
        ("simulate", ["admitted", "failed", "failed"]),
    ],
)
def test_the_mode_decides_over_effects(mode: str, expected: list[str]) -> None:
    assert states(decided(("look", '{"n": 1}'), ("pay", '{"n": 1}'), ("ask", '{"n": 1}'), mode=mode)) == expected


def test_a_cancelled_run_starts_nothing_and_a_limit_holds_within_a_reply() -> None:
    assert states(decided(("look", '{"n": 1}'), cancelled=True)) == ["failed"]
    assert states(decided(("look", '{"n": 1}'), ("look", '{"n": 2}'), before=2)) == ["admitted", "failed"]


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"n": {"type": "string", "pattern": "("}}},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "#/nowhere"},
    ],
    ids=["a pattern that is none", "a reference elsewhere", "a reference to nothing"],
)
def test_a_schema_that_cannot_be_applied_refuses_the_call_and_breaks_nothing(schema: dict[str, Any]) -> None:
    (validator,) = validators(Definition(tools=[ToolSpec(name="odd", schema=schema)])).values()
    assert "cannot be applied" in disagreement(validator, {"n": "x"})


def test_a_pattern_that_tries_for_ever_is_given_up() -> None:
    (validator,) = validators(
        Definition(tools=[ToolSpec(name="odd", schema={"properties": {"n": {"pattern": r"^((a+)+)\1?(?<!b)$"}}})])
    ).values()
    assert disagreement(validator, {"n": "a" * 5000 + "b"})


@given(st.text() | st.dictionaries(st.text(), st.integers()), st.sampled_from(["look", "pay", "ask", "other"]))
def test_whatever_a_model_writes_gets_one_verdict_for_each_call(arguments: Any, name: str) -> None:
    (verdict,) = decided((name, arguments))
    assert verdict.told.state in ("admitted", "awaiting", "failed") and verdict.event.call == "c4-0"


@pytest.mark.parametrize(
    ("rule", "state", "why"),
    [
        ("n > 10", "admitted", ""),
        ("n < 10", "awaiting", "its condition holds: n < 10"),
        ("m > 10", "awaiting", "cannot be evaluated: m is not given"),
        ("sometimes, perhaps", "awaiting", "cannot be evaluated"),
    ],
)
def test_a_condition_decides_of_the_arguments_and_one_that_is_not_understood_asks_a_person(
    rule: str, state: str, why: str
) -> None:
    rules = {"approval": rule, "approvers": 2, "approval_expires": 60.0}
    definition = Definition(tools=[ToolSpec(name="pay", schema=SCHEMA, **rules)])
    said = message(0, "", [AskedCall("pay", '{"n": 1}')])
    (verdict,) = admit(
        definition, validators(definition), said, mode="live", calls_before=0, cancelled=False, epoch="e", run="r", fence=1
    )  # fmt: skip
    assert verdict.told.state == state
    if state == "awaiting":
        asked = msgspec.json.decode(verdict.event.body)
        assert verdict.event.kind == "approval.requested" and why in asked["why"]
        assert asked["arguments"] == {"n": 1} and (asked["approvers"], asked["approval_expires"]) == (2, 60.0)


@given(
    st.sampled_from(["read", "idempotent", "once"]), st.sampled_from(["never", "always", "n > 5", "m"]), st.sampled_from(["live", "ask", "simulate"]),
    st.none() | st.builds(Answers, st.builds(Simulate, stubs=st.sampled_from([{}, {"t": 1}]), otherwise=st.sampled_from(["person", "refuse"]))),
    st.integers(0, 9),
)  # fmt: skip
def test_no_effect_starts_that_its_rule_or_the_run_s_mode_holds_back(
    effect: Any, approval: str, mode: str, answers: Answers | None, n: int
) -> None:
    definition = Definition(tools=[ToolSpec(name="t", schema=SCHEMA, effect=effect, approval=approval)])
    (verdict,) = admit(
        definition, validators(definition), message(0, "", [AskedCall("t", f'{{"n": {n}}}')]), mode=mode, calls_before=0,
        cancelled=False, epoch="e", run="r", fence=1, answers=answers if mode == "simulate" else None,
    )  # fmt: skip
    asks = approval in ("always", "m") or (approval == "n > 5" and n > 5)
    if effect != "read" and mode == "simulate":
        assert verdict.told.state in ("awaiting", "answered", "failed") and verdict.event.kind != "tool.started"
    elif (asks or (mode == "ask" and effect != "read")) and verdict.told.state != "answered":
        assert verdict.event.kind == "approval.requested"
    assert (verdict.event.kind == "tool.started") == (verdict.told.state == "admitted")
