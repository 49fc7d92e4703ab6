"""Merkle trees and chains of anchors: what is in there can be proven, what is not cannot."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfarm_sdk.audit import Leaf, merkle_path, merkle_root, root_of
from agentfarm_sdk.errors import Invalid

LEAVES = st.lists(
    st.builds(Leaf, st.text(max_size=5), st.integers(1, 99), st.text(max_size=3)), min_size=1, max_size=40
)


def test_the_root_of_small_trees_is_that_of_the_rfc() -> None:
    one, two, three = (Leaf("r", n, "h") for n in (1, 2, 3))
    hashed = [hashlib.sha256(b"\x00" + f'["r",{n},"h"]'.encode()).digest() for n in (1, 2, 3)]
    left = hashlib.sha256(b"\x01" + hashed[0] + hashed[1]).digest()
    assert merkle_root([one]) == hashed[0].hex()
    assert merkle_root([one, two, three]) == hashlib.sha256(b"\x01" + left + hashed[2]).hexdigest()
    assert merkle_root([]) == hashlib.sha256(b"").hexdigest()


@given(LEAVES, st.data())
def test_every_leaf_leads_to_the_root_and_nothing_else_does(leaves: list[Leaf], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    root, path = merkle_root(leaves), merkle_path(leaves, index)
    assert root_of(leaves[index], index, len(leaves), path) == root
    other = Leaf(leaves[index].run, leaves[index].seq + 1, leaves[index].head)
    assert root_of(other, index, len(leaves), path) != root
    if path:
        flipped = [*path]
        at = data.draw(st.integers(0, len(path) - 1))
        flipped[at] = hashlib.sha256(flipped[at].encode()).hexdigest()
        assert root_of(leaves[index], index, len(leaves), flipped) != root
        with pytest.raises(Invalid):
            root_of(leaves[index], index, len(leaves), path[:-1])
    with pytest.raises(Invalid):
        root_of(leaves[index], index, len(leaves), [*path, root])
    with pytest.raises(Invalid):
        root_of(leaves[index], len(leaves), len(leaves), path)
