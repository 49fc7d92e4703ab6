"""Laws of what crosses a border: hashes, the chain, round trips, and appends that are not what they should be."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfarm_sdk import errors, protocol
from agentfarm_sdk.protocol import (
    GENESIS,
    Definition,
    Event,
    ToolSpec,
    body_hash,
    call_id,
    call_key,
    canonical,
    content_hash,
    decode_events,
    header_hash,
    make_header,
    new_event,
    read_event,
    roll,
    timestamp,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(text, values, max_size=5)
headers = st.fixed_dictionaries({
    "epoch": text, "run": text, "seq": st.integers(1, 2**31), "kind": text, "at": text, "by": text,
    "call": st.none() | text, "body": text, "prev": text,
})  # fmt: skip


@given(headers, objects)
def test_an_event_reads_back_as_it_was_written_and_its_hash_is_over_the_kept_bytes(fields: Any, body: Any) -> None:
    header, raw = make_header(**fields), msgspec.json.encode(body)
    event = read_event(header, raw)
    for name in ("run", "seq", "kind", "at", "by", "call"):
        assert getattr(event, name) == fields[name]
    assert event.hash == header_hash(header) == hashlib.sha256(header).hexdigest()
    assert bytes(event.body) == raw and event.data() == body
    assert json.loads(header)["v"] == protocol.HEADER_V


@given(st.lists(objects, min_size=1, max_size=6), st.data())
def test_changing_one_byte_of_any_header_breaks_the_chain_behind_it(bodies: list[Any], data: st.DataObject) -> None:
    chain, prev = [], GENESIS
    for seq, body in enumerate(bodies, 1):
        hashed = body_hash(b"salt", msgspec.json.encode(body))
        header = make_header(
            epoch="e", run="r", seq=seq, kind="k", at=timestamp(seq), by="service", call=None, body=hashed, prev=prev
        )
        chain.append(header)
        prev = header_hash(header)
    place = data.draw(st.integers(0, len(chain) - 1))
    at = data.draw(st.integers(0, len(chain[place]) - 1))
    bad = bytearray(chain[place])
    bad[at] ^= data.draw(st.integers(1, 255))
    following = msgspec.json.decode(chain[place + 1])["prev"] if place + 1 < len(chain) else prev
    assert header_hash(chain[place]) == following
    assert header_hash(bytes(bad)) != following


@given(st.binary(min_size=1, max_size=16), st.binary(min_size=1, max_size=40), st.data())
def test_the_hash_of_a_body_depends_on_its_salt_and_each_of_its_bytes(salt: bytes, body: bytes, data: Any) -> None:
    other = bytearray(body)
    other[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    assert body_hash(salt, body) != body_hash(salt, bytes(other))
    assert body_hash(salt, body) != body_hash(b"x" + salt, body)


@given(objects)
def test_a_content_hash_does_not_depend_on_the_order_of_keys_and_survives_a_round_trip(value: dict[str, Any]) -> None:
    backwards = dict(reversed(list(value.items())))
    assert content_hash(value) == content_hash(backwards)
    assert canonical(msgspec.json.decode(canonical(value))) == canonical(value)


tools = st.builds(
    ToolSpec, name=text, schema=objects, effect=st.sampled_from(["read", "idempotent", "once"]),
    timeout=st.floats(0.1, 1000), secrets=st.lists(text, max_size=2), config=objects,
)  # fmt: skip
definitions = st.builds(
    Definition, prompt=text, tools=st.lists(tools, max_size=3), tool_choice=text | st.lists(text, max_size=3),
    answer=st.none() | objects, variables=st.dictionaries(text, text, max_size=2), fresh_kernel=st.booleans(),
)  # fmt: skip


@given(definitions)
def test_a_definition_keeps_its_hash_through_json_and_yaml_like_values(definition: Definition) -> None:
    again = msgspec.json.decode(canonical(definition), type=Definition)
    assert again == definition and content_hash(again) == content_hash(definition)
    assert content_hash(msgspec.convert(msgspec.to_builtins(definition), Definition)) == content_hash(definition)


def test_a_default_that_is_spelled_out_has_the_same_content_hash() -> None:
    spelled = msgspec.json.decode(
        b'{"tool_choice":"auto","tools":[{"name":"a","effect":"once","timeout":60.0}]}', type=Definition
    )
    assert content_hash(spelled) == content_hash(Definition(tools=[ToolSpec(name="a")]))


# A release's hash is on record in versions: these stay as they are for ever.
def test_content_hashes_of_released_definitions_do_not_change() -> None:
    assert content_hash(Definition()) == hashlib.sha256(b"{}").hexdigest()
    whole = Definition(prompt="p", tools=[ToolSpec(name="t", schema={"type": "object"}, effect="read")])
    form = b'{"prompt":"p","tools":[{"effect":"read","name":"t","schema":{"type":"object"}}]}'
    assert canonical(whole) == form and content_hash(whole) == hashlib.sha256(form).hexdigest()


@given(st.lists(st.lists(text, max_size=4) | st.just([]), max_size=1), st.integers(0, 30))
def test_the_tool_choice_of_a_step_is_its_own_or_the_last_of_the_list(choices: list[list[str]], step: int) -> None:
    for choice in choices:
        expected = choice[min(step, len(choice) - 1)] if choice else "auto"
        assert Definition(tool_choice=choice).choice_at(step) == expected


@given(st.tuples(text, text, text), st.tuples(text, text, text))
def test_a_key_is_the_same_over_attempts_and_another_for_each_epoch_run_and_call(one: Any, two: Any) -> None:
    assert call_key(*one) == call_key(*one)
    if one != two and not any("\n" in part for part in one + two):  # ids of ours hold no newline
        assert call_key(*one) != call_key(*two)


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=2, max_size=5, unique=True))
def test_a_rolling_digest_tells_order_and_content_of_messages(messages: list[bytes]) -> None:
    def rolled(sent: list[bytes]) -> str:
        digest = ""
        for message in sent:
            digest = roll(digest, message)
        return digest

    assert rolled(messages) != rolled(messages[::-1]) and rolled(messages) != rolled(messages[:-1])


def test_call_ids_tell_step_and_index() -> None:
    assert len({call_id(step, index) for step in range(120) for index in range(120)}) == 120 * 120


# --- appends as they come in --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(text, objects, st.none() | text), max_size=4))
def test_appended_events_read_back_and_their_bodies_stay_byte_for_byte(batch: list[Any]) -> None:
    raw = msgspec.json.encode([new_event(kind, body, call) for kind, body, call in batch])
    assert [(e.kind, msgspec.json.decode(e.body), e.call) for e in decode_events(raw)] == batch
    spaced = b'[{"kind":"tool.succeeded", "call":"c0-0", "body":{ "result" :  1.50 }}]'
    assert bytes(decode_events(spaced)[0].body) == b'{ "result" :  1.50 }'


MALFORMED = {
    "no list": b'{"kind":"tool.succeeded"}',
    "cut short": b'[{"kind":"tool.succeeded"',
    "no kind": b'[{"body":{}}]',
    "a kind that is no text": b'[{"kind":7}]',
    "an unknown type of call": b'[{"kind":"tool.succeeded","call":{}}]',
    "not utf-8": b'[{"kind":"tool.succeeded","body":{"result":"\xff"}}]',
    "kind not utf-8": b'[{"kind":"tool.\xff"}]',
    "half a surrogate pair": b'[{"kind":"tool.succeeded","body":{"result":"\\ud800"}}]',
    "a number out of range": b'[{"kind":"tool.succeeded","body":{"result":1e999}}]',
    "nan": b'[{"kind":"tool.succeeded","body":{"result":NaN}}]',
    "a body that is no object": b'[{"kind":"tool.succeeded","body":[1]}]',
    "a null body": b'[{"kind":"tool.succeeded","body":null}]',
    "nested too deep": b'[{"kind":"tool.succeeded","body":{"result":' + b"[" * 50_000 + b"]" * 50_000 + b"}}]",
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_append_is_refused_before_it_is_kept_with_one_kind_of_error(raw: bytes) -> None:
    with pytest.raises(msgspec.ValidationError) as refusal:
        decode_events(raw)
    assert str(refusal.value)


@given(st.binary(max_size=60) | st.builds(lambda body: b'[{"kind":"a","body":' + body + b"}]", st.binary(max_size=60)))
def test_whatever_bytes_are_appended_they_are_refused_or_can_be_read_for_ever(raw: bytes) -> None:
    try:
        events = decode_events(raw)
    except msgspec.ValidationError:
        return
    for n, event in enumerate(events, 1):
        header = make_header(
            epoch="e", run="r", seq=n, kind=event.kind, at="", by="", call=event.call, body="", prev=""
        )
        assert isinstance(read_event(header, bytes(event.body)).data(), dict)


def test_an_erased_body_reads_as_nothing() -> None:
    header = make_header(epoch="e", run="r", seq=1, kind="k", at="", by="worker:12", call=None, body="", prev=GENESIS)
    event = read_event(header, None)
    assert event.data() == {} and bytes(event.body) == b"null" and event.fence == 12
    assert Event(run="r", seq=1, kind="k", at="", by="gateway").fence is None


@given(st.floats(0, 4e9))
def test_times_sort_as_text(seconds: float) -> None:
    assert timestamp(seconds) <= timestamp(seconds + 1e-3) and timestamp(seconds).endswith("Z")


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", errors.BY_TYPE.values(), ids=lambda cls: cls.__name__)
def test_an_error_crosses_a_border_as_itself(cls: type[errors.AgentFarmError]) -> None:
    sent = cls("what happened", hint="what to do", run="run-1").problem()
    got = errors.from_problem(json.loads(json.dumps(sent)))
    assert type(got) is cls and got.problem() == sent
    assert sent["title"] and sent["type"] and 400 <= sent["status"] < 600


@given(objects)
def test_any_document_that_claims_to_be_a_problem_becomes_an_error_that_can_be_shown(problem: dict[str, Any]) -> None:
    error = errors.from_problem(problem)
    assert str(error) and isinstance(error.problem()["status"], int)
