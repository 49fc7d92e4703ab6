"""What a router's list says of prices and inputs, and that odd entries say nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.gateway.upstreams.catalog import Entry, read

LISTED = {
    "id": "openai/gpt-oss-120b",
    "architecture": {"input_modalities": ["text", "image"], "output_modalities": ["text"]},
    "providers": [
        {"provider": "a", "status": "live", "pricing": {"input": 0.1, "output": 0.9}},
        {"provider": "b", "status": "live", "pricing": {"input": 0.3, "output": 0.5}},
        {"provider": "dear", "status": "staging", "pricing": {"input": 9, "output": 9}},
        {"provider": "free of words", "status": "live"},
    ],
}


def test_a_pinned_provider_has_its_price_and_an_open_choice_the_highest_of_those_that_serve() -> None:
    entry = read([LISTED])["openai/gpt-oss-120b"]
    assert (entry.price("b"), entry.price(None), entry.price("dear")) == ((0.3, 0.5), (0.3, 0.9), (0.3, 0.9))
    assert entry.inputs == {"text", "image"}
    assert Entry().price(None) is None and Entry().inputs == {"text"}


ODD = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(ODD, ODD, ODD)
def test_what_is_odd_in_a_list_is_no_price_and_no_error(providers: Any, pricing: Any, shape: Any) -> None:
    found = read([{"id": "m", "providers": providers, "architecture": shape},
                  {"id": "n", "providers": [{"provider": "a", "pricing": pricing}], "architecture": {"input_modalities": shape}}])  # fmt: skip
    for entry in found.values():
        price = entry.price(None)
        assert price is None or min(price) >= 0
