"""Parts of an input: which lists are parts, what a model must take for them, and what it is shown."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfarm_sdk.parts import GONE, are_parts, blobs_of, needed, shown

TEXT = {"type": "text", "text": "What is this?"}
IMAGE = {"type": "image", "blob": "a" * 64, "media_type": "image/png", "size": 3}
PDF = {"type": "file", "blob": "b" * 64, "media_type": "application/pdf", "name": "x.pdf"}
NOTES = {"type": "file", "blob": "c" * 64, "media_type": "text/plain", "name": "notes.txt"}


@pytest.mark.parametrize(
    "value", [[], "text", [1], [{"type": "text"}], [{"type": "video", "blob": "x"}], [TEXT, 1], {"type": "text"}]
)
def test_other_lists_are_data(value: Any) -> None:
    assert not are_parts(value) and blobs_of(value) == [] and needed(value) == frozenset()


def test_what_a_model_must_take_is_images_and_files_but_not_text_in_a_file() -> None:
    assert (
        needed([TEXT, IMAGE]) == {"image"} and needed([PDF, NOTES]) == {"file"} and needed([TEXT, NOTES]) == frozenset()
    )
    assert blobs_of([TEXT, IMAGE, PDF]) == ["a" * 64, "b" * 64]


def test_a_model_is_shown_openai_s_parts_and_told_of_what_is_gone() -> None:
    message = {"role": "user", "content": [TEXT, IMAGE, PDF, NOTES]}
    kept = {"a" * 64: b"png", "c" * 64: "Grüße".encode()}
    assert shown(message, kept)["content"] == [
        TEXT,
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(b"png").decode()}},
        {"type": "text", "text": GONE},
        {"type": "text", "text": "notes.txt:\nGrüße"},
    ]
    assert shown({"role": "user", "content": "x"}, {}) == {"role": "user", "content": "x"}


@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda one: st.lists(one) | st.dictionaries(st.sampled_from(["type", "text", "blob"]), one),
    )
)
def test_no_input_is_too_odd_to_be_told_apart(value: Any) -> None:
    assert isinstance(are_parts(value), bool) and isinstance(blobs_of(value), list)
