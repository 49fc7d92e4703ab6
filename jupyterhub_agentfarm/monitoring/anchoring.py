"""Makes the anchors, each minute while something changed, and writes them to a file that an operator keeps elsewhere."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agentfarm_sdk.audit import Leaf, Signed

from ..errors import AgentFarmError, Invalid
from ..store import anchors
from ..store.db import Database

log = logging.getLogger(__name__)
EACH = 60.0  # seconds
PAGE = 100


class AnchorLine(msgspec.Struct, frozen=True):
    """A line of the file: an anchor with all that it holds."""

    anchor: str
    signature: str
    leaves: list[Leaf]


class Anchoring:
    """`seed`: 32 bytes of the service's key. The file is written behind the database and catches up by itself."""

    def __init__(self, db: Database, seed: bytes, file: Path, each: float = EACH) -> None:
        self.db, self.file, self.each = db, file, each
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw().hex()
        self._filed = -1  # the last number in the file; -1: not looked yet

    async def run(self) -> None:
        """Make anchors for ever; a database or disk that is away is waited for."""
        while True:
            await asyncio.sleep(self.each)
            try:
                await self.anchor()
            except (AgentFarmError, OSError) as error:
                log.warning("no anchor now: %s", getattr(error, "detail", error))

    async def anchor(self) -> int | None:
        """Make an anchor where something has moved; return its number. Raises Transient, OSError."""
        wanted = await self.db.read(anchors.due)
        if wanted is not None:
            text = anchors.text(self.db.epoch, wanted, self.db.now(), self.public)
            signed = Signed(text, self._key.sign(text.encode()).hex())
            await self.db.write(lambda tx: anchors.keep(tx, wanted, signed))
        await self._write_file()
        return wanted.number if wanted else None

    async def _write_file(self) -> None:
        if self._filed < 0:
            self._filed = last_number(self.file)
        while missing := await self.db.read(lambda c: anchors.listed(c, self._filed, PAGE)):
            lines = []
            for number, signed in missing:
                held = await self.db.read(lambda c, number=number: anchors.leaves(c, number))  # type: ignore[misc]
                lines.append(msgspec.json.encode(AnchorLine(signed.anchor, signed.signature, held)) + b"\n")
            await asyncio.to_thread(_append, self.file, b"".join(lines))
            self._filed = missing[-1][0]


def last_number(file: Path) -> int:
    """Return the number of the file's last whole line, 0 where there is none; half a line of a crash is cut off."""
    if not file.exists():
        return 0
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with file.open("r+b") as out:
            out.truncate(len(whole))
    lines = whole.splitlines()
    if not lines:
        return 0
    try:
        line = msgspec.json.decode(lines[-1], type=AnchorLine)
    except msgspec.DecodeError as error:
        raise Invalid(
            f"{file} was changed: its last line cannot be read", hint="bring it back from your copy"
        ) from error
    return Signed(line.anchor, line.signature).read().number


def _append(file: Path, content: bytes) -> None:
    with file.open("ab") as out:
        os.fchmod(out.fileno(), 0o600)
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
