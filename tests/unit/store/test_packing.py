"""What lies in the database comes back as it was, and what was changed there never as something else."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from agentfarm_sdk.protocol import make_header
from jupyterhub_agentfarm.store.packing import pack, unpack

HEADER = make_header(
    epoch="d20f9164b09cc17c", run="run-0195f3a1b2c38e8dc09037d4", seq=1234, kind="tool.succeeded", at="2026-11-21T10:50:25.123456Z",
    by="worker:1", call="c123-0", body=os.urandom(32).hex(), prev=os.urandom(32).hex(),
)  # fmt: skip


@given(st.binary() | st.text().map(str.encode))
def test_whatever_is_packed_comes_back(data: bytes) -> None:
    if data[:1] != b"\x01":  # JSON does not begin so
        assert unpack(pack(data)) == data


def test_a_header_takes_little_more_than_half_of_its_bytes() -> None:
    assert len(pack(HEADER)) < len(HEADER) * 0.6 and unpack(pack(HEADER)) == HEADER


@given(st.data())
def test_packed_bytes_that_were_changed_are_never_read_as_something_else(data: st.DataObject) -> None:
    packed = bytearray(pack(HEADER))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert unpack(bytes(packed)) == bytes(packed) != HEADER


def test_what_this_release_packed_can_be_read_for_ever() -> None:
    packed = bytes.fromhex(PACKED)
    assert unpack(packed) == b'{"result":"323","seconds":0.01}'


PACKED = "0136c2f00643ca92c646c64019e45c69580b00"
