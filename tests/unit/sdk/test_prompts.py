"""Variables of prompts: whose value counts, what is missing, what stays as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfarm_sdk.errors import Invalid
from agentfarm_sdk.prompts import render


def test_a_given_variable_goes_before_a_field_of_the_input_and_that_before_a_default() -> None:
    prompt = "{{a}} {{ b }} {{c}} {{d}}"
    defaults = {"a": "default", "b": "default", "c": "default"}
    told = render(prompt, defaults, {"a": "given"}, {"a": "field", "b": "field", "d": {"x": [1, None]}})
    assert told == 'given field default {"x":[1,null]}'


def test_all_that_is_missing_is_named_at_once_and_nothing_that_is_escaped() -> None:
    with pytest.raises(Invalid, match="the prompt needs one, two") as said:
        render(r"{{two}} {{one}} {{two}} \{{three}} {{four}}", {}, {"four": "4"})
    assert "defaults" in said.value.hint


@given(st.text(), st.text())
def test_a_value_is_taken_as_it_is_and_what_is_no_place_stays(value: str, around: str) -> None:
    around = around.replace("{", "").replace("\\", "")
    assert render(f"{around}{{{{x}}}}{around}", {}, {"x": value}) == f"{around}{value}{around}"
    assert render(f"{around}\\{{{{x}}}}", {}, {}) == f"{around}{{{{x}}}}"
