"""Sizes, labels and flags as they are typed."""

from __future__ import annotations

import argparse

import pytest

from agentfarm_sdk.errors import Invalid
from jupyterhub_agentfarm.cli.sizes import add_needs, changes, needs, shown_size, size


@pytest.mark.parametrize(
    ("text", "value"), [("512MiB", 512 << 20), ("2G", 2 << 30), ("1.5 GiB", 3 << 29), ("42", 42), ("1t", 1 << 40)]
)
def test_a_size_is_read_as_people_type_it(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "GiB", "-1", "2 gallons", "1e9"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(Invalid, match="is no size"):
        size(text)


def test_a_size_is_shown_short() -> None:
    assert [shown_size(one) for one in (7, 512 << 20, 3 << 29)] == ["7 B", "512 MiB", "1.5 GiB"]


def test_a_label_is_set_by_its_value_and_taken_away_by_a_minus() -> None:
    assert changes(["zone=a", "disk-", "empty="], "label") == {"zone": "a", "disk": None, "empty": ""}
    with pytest.raises(Invalid, match="is no label"):
        changes(["zone"], "label")


def test_only_what_was_asked_for_is_asked_of_the_farm() -> None:
    parser = argparse.ArgumentParser()
    add_needs(parser)
    assert needs(parser.parse_args([])) == {}
    asked = parser.parse_args(
        ["--memory", "1GiB", "--label", "zone=a", "--without", "old", "--flag", "avx2", "--gpus", "1"]
    )
    assert needs(asked) == {
        "memory": 1 << 30,
        "gpus": 1,
        "labels": {"zone": "a"},
        "without": {"old": ""},
        "flags": ["avx2"],
    }
    with pytest.raises(Invalid, match="it has no name"):
        needs(parser.parse_args(["--label", "=a"]))
