"""What lies in the database comes back as it was, and what was changed there never as something else."""

from __future__ import annotations

import os
import zlib

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
    if data[:1] not in (b"\x01", b"\x02"):  # JSON does not begin so
        assert unpack(pack(data)) == data


@given(
    kind=st.sampled_from(["tool.succeeded", "run.created", "run.of_a_later_release"]), seq=st.integers(0, 10**10),
    at=st.sampled_from(["2026-11-21T10:50:25.123456Z", "2000-01-01T00:00:00.000000Z", "1970-01-01T00:00:00.000001Z", "soon"]),
    by=st.sampled_from(["service", "gateway", "worker:1", "worker:01", "worker:0", "user:an a", "s", "é"]) | st.text(),
    call=st.sampled_from([None, "null", "c0-0", "c12-345", "c12", "c1-0 "]) | st.none() | st.text(),
    run=st.sampled_from(["run-0195f3a1b2c38e8dc09037d4", "run-0195F3A1b2c38e8dc09037d4", "farm"]), body=st.binary(min_size=32, max_size=32),
)  # fmt: skip
def test_every_header_comes_back_byte_for_byte(
    kind: str, seq: int, at: str, by: str, call: str | None, run: str, body: bytes
) -> None:
    header = make_header(
        epoch="d20f9164b09cc17c", run=run, seq=seq, kind=kind, at=at, by=by, call=call, body=body.hex(), prev="0" * 64
    )
    assert unpack(pack(header)) == header  # fmt: skip


def test_a_header_takes_little_more_than_a_third_of_its_bytes() -> None:
    assert len(pack(HEADER)) < len(HEADER) * 0.37 and unpack(pack(HEADER)) == HEADER


@given(st.data())
def test_packed_bytes_that_were_changed_are_never_read_as_something_else(data: st.DataObject) -> None:
    before = pack(data.draw(st.sampled_from([HEADER, b'{"result":"323","seconds":0.01,"result":"323"}'])))
    packed = bytearray(before)
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    packed[0] = data.draw(st.sampled_from([0, 1, 2, packed[0], packed[0]]))
    if packed != before:
        assert unpack(bytes(packed)) == bytes(packed)


@given(st.sampled_from([1, 2]), st.binary(max_size=120))
def test_bytes_that_somebody_gave_the_right_checksum_are_handed_on_and_stop_no_reader(mark: int, forged: bytes) -> None:
    checksum = zlib.crc32(forged, 2) if mark == 2 else zlib.crc32(forged)
    data = bytes([mark]) + checksum.to_bytes(4, "big") + forged
    assert isinstance(unpack(data), bytes)  # a verifier goes on, and names the event


def test_what_this_release_packed_can_be_read_for_ever() -> None:
    assert unpack(bytes.fromhex(PACKED)) == b'{"result":"323","seconds":0.01}'
    assert unpack(bytes.fromhex(NUMBERS)) == make_header(
        epoch="d20f9164b09cc17c", run="run-0195f3a1b2c38e8dc09037d4", seq=1234, kind="tool.succeeded", at="2026-11-21T10:50:25.123456Z",
        by="worker:12", call="c123-0", body="ab" * 32, prev="cd" * 32,
    )  # fmt: skip


NUMBERS = (
    "02bd6ae6aad20f9164b09cc17c0195f3a1b2c38e8dc09037d4ababababababababababababababababababababababababab"
    "abababababababcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd804461f442b09f03d20400"
    "000377313220633132332d30"
)
PACKED = "0136c2f00643ca92c646c64019e45c69580b00"
