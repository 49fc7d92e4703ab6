"""Frames of a WebSocket as RFC 6455 has them, however they are cut on the way, and what breaks a connection."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.handlers.wire import CloseCode, Wire

LIMIT = 70_000
BROKEN, TOO_BIG = CloseCode.PROTOCOL_ERROR, CloseCode.MESSAGE_TOO_BIG


class Transport:
    """Keeps what is written to it."""

    def __init__(self) -> None:
        self.written, self.closed, self.aborted = b"", False, False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0


def framed(kind: int, data: bytes, *, last: bool = True, masked: bool = True, wide: int = 0) -> bytes:
    """Return a client's frame; `wide`: bytes of its length, 0: as few as there must be."""
    size, mask = len(data), b"\x37\xfa\x21\x3d"
    wide = wide or (0 if size < 126 else 2 if size < 65536 else 8)
    short = size if wide == 0 else 126 if wide == 2 else 127
    head = bytes((last << 7 | kind, masked << 7 | short)) + (size.to_bytes(wide, "big") if wide else b"")
    return head + mask + unmasked(data, mask) if masked else head + data


def unmasked(data: bytes, mask: bytes) -> bytes:
    return bytes(one ^ mask[at % 4] for at, one in enumerate(data))


def heard(data: bytes, cuts: list[int]) -> tuple[list[bytes], Transport, Wire]:
    """Let a wire hear the bytes in pieces; return its messages, and what it wrote."""
    messages: list[bytes] = []
    transport: Any = Transport()

    async def hear() -> Wire:
        wire = Wire(LIMIT, 60.0, messages.append, lambda: None)
        wire.connection_made(transport)
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            wire.data_received(data[begin:end])
        return wire

    return messages, transport, asyncio.run(hear())


sizes = st.sampled_from([0, 1, 125, 126, 127, 1000, 65535, 65536, 69_000])


@given(st.data())
def test_messages_come_whole_and_in_order_however_they_are_cut(data: st.DataObject) -> None:
    sent, stream, pongs = [], b"", 0
    for _ in range(data.draw(st.integers(1, 3))):
        message = os.urandom(data.draw(sizes))
        places = sorted(data.draw(st.lists(st.integers(0, len(message)), max_size=3)))
        pieces = [message[a:b] for a, b in zip([0, *places], [*places, len(message)], strict=True)]
        for number, piece in enumerate(pieces):
            stream += framed(0 if number else data.draw(st.sampled_from([1, 2])), piece, last=number == len(pieces) - 1)
            if data.draw(st.booleans()):  # control frames may stand between the frames of a message
                stream, pongs = stream + framed(9, b"here?"), pongs + 1
        sent.append(message)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    messages, transport, wire = heard(stream, cuts)
    assert messages == sent
    assert transport.written == b"\x8a\x05here?" * pongs and wire.stands


@pytest.mark.parametrize(
    ("what", "code"),
    [
        (framed(1, b"x", masked=False), BROKEN), (framed(3, b"x"), BROKEN), (framed(0, b"x"), BROKEN), (framed(11, b""), BROKEN),
        (framed(1, b"a", last=False) + framed(1, b"b"), BROKEN), (framed(9, b"", last=False), BROKEN), (framed(9, b"x" * 200), BROKEN),
        (b"\xc1\x80", BROKEN), (framed(1, b"", wide=8)[:2] + b"\x7f" * 8, TOO_BIG),
        (framed(1, b"x" * 60_000, last=False) + framed(0, b"x" * 60_000), TOO_BIG),
    ],
)  # fmt: skip
def test_what_no_client_may_send_ends_the_connection_with_the_reason(what: bytes, code: int) -> None:
    messages, transport, wire = heard(what + framed(1, b"later"), [])
    assert messages == [] and transport.closed and not wire.stands
    assert transport.written[:1] == b"\x88" and transport.written[2:4] == code.to_bytes(2, "big")


def test_a_close_is_answered_with_its_code_and_nothing_behind_it_is_taken() -> None:
    messages, transport, _ = heard(framed(1, b"a") + framed(8, (1001).to_bytes(2, "big")) + framed(1, b"b"), [])
    assert messages == [b"a"] and transport.closed and transport.written == b"\x88\x02\x03\xe9"


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_what_is_sent_is_one_text_frame(size: int) -> None:
    transport: Any = Transport()

    async def send() -> None:
        wire = Wire(LIMIT, 60.0, lambda _: None, lambda: None)
        wire.connection_made(transport)
        wire.send(b"x" * size)

    asyncio.run(send())
    assert transport.written == framed(1, b"x" * size, masked=False)


async def test_a_client_that_is_silent_for_two_pings_is_cut_off() -> None:
    transport: Any = Transport()
    cut = asyncio.Event()
    transport.abort = cut.set
    Wire(LIMIT, 0.01, lambda _: None, lambda: None).connection_made(transport)
    await asyncio.wait_for(cut.wait(), 30)
    assert transport.written == b"\x89\x00"
