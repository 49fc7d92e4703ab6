"""Is a record whole? Chains of events, anchors over their heads, and evidence bundles, checked without a farm.

Pure but for reading the bundle's file. A chain says that no event was changed, left out or put in; an anchor, kept
elsewhere, says that none was cut off its end and no run taken away.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from .errors import Invalid
from .protocol import GENESIS, Event, Header, NewEvent, batch_digest, body_hash, header_hash, read_event

BUNDLE_V = 1
ANCHOR_V = 1


@dataclass(frozen=True)
class Link:
    """An event as it is kept. `body` None: erased. `n`, `digest`: on the last event of a worker's append."""

    seq: int
    header: bytes
    salt: bytes | None
    body: bytes | None
    n: int | None = None
    digest: bytes | None = None


@dataclass(frozen=True)
class Checked:
    """`ok`, how many events hold, and the head; or the first bad event's seq and why."""

    ok: bool
    events: int
    head: str
    bad_seq: int | None = None
    why: str = ""


# -- a chain -------------------------------------------------------------------------------------------------------


def check_chain(epoch: str, run: str, links: Iterable[Link], seq: int, head: str) -> Checked:
    """Check a run's events from the first to the last, which is said to be number `seq` with hash `head`."""
    chain: list[tuple[str, str]] = []  # prev and hash of each event that is whole by itself
    lives: list[tuple[int, str, str]] = []  # seq, kind and epoch of each event that begins another life
    why, numbers, erasures = "", _Numbers(), _Erasures()
    for link in links:
        header = _header(link.header)
        why = _flaw(run, len(chain) + 1, link, header)
        if header is None or why:
            break
        if not lives or header.epoch != lives[-1][2]:
            lives.append((header.seq, header.kind, header.epoch))
        chain.append((header.prev, header_hash(link.header)))
        erasures.take(link, header)
        if why := numbers.flaw(link, header):
            return Checked(False, len(chain) - 1, header.prev, len(chain), why)
    found = GENESIS
    for at, (prev, hashed) in enumerate(chain, 1):
        if prev != found:  # this event or the one before it lies; what its successor names is the true one
            proven = hashed == (chain[at][0] if at < len(chain) else head)
            liar = at - 1 if proven and at > 1 else at
            return Checked(
                False, max(liar - 1, 0), found, liar, "the events beside it name another hash: it was changed"
            )
        found = hashed
    if why:
        return Checked(False, len(chain), found, len(chain) + 1, why)
    if seq != len(chain):
        why = f"{seq} events are on record, {len(chain)} are here"
        return Checked(False, min(seq, len(chain)), found, min(seq, len(chain)) + 1, why)
    if head != found:
        return Checked(
            False, max(seq - 1, 0), found, max(seq, 1), "the run's row names another hash: one of the two was changed"
        )
    for at, kind, life in lives[1:]:
        if kind != "run.restored":
            return Checked(
                False, at - 1, found, at, f"it is of another life of the ledger ({life}), which nobody restored"
            )
    if lives and lives[-1][2] != epoch:
        return Checked(False, seq - 1, found, seq, "the run's row is of another life of the ledger: it was changed")
    if gone := erasures.unnamed():
        return Checked(False, gone - 1, chain[gone - 1][0], gone, "its body is gone, and no event says who erased it")
    return Checked(True, seq, found)


class _Erasures:
    """Which bodies are gone, and which of them the `body.erased` events name: {"seqs": [[first, last], …]}."""

    def __init__(self) -> None:
        self._gone: list[int] = []
        self._named: list[tuple[int, int]] = []

    def take(self, link: Link, header: Header) -> None:
        if link.body is None:
            self._gone.append(link.seq)
        elif header.kind == "body.erased":
            for part in _data(link).get("seqs") or []:
                if isinstance(part, list) and len(part) == 2 and all(isinstance(end, int) for end in part):
                    self._named.append((part[0], part[1]))

    def unnamed(self) -> int | None:
        """Return the first body that is gone and that no event names."""
        named = {seq for first, last in self._named for seq in self._gone if first <= seq <= last}
        return next((seq for seq in self._gone if seq not in named), None)


class _Numbers:
    """The numbers of each worker's appends and the digests of what they held, as they follow each other."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._since: dict[str, list[NewEvent] | None] = {}  # written since the last number; None: a body was erased

    def flaw(self, link: Link, header: Header) -> str:
        by = header.by
        if by.startswith("worker:"):
            since = self._since.setdefault(by, [])
            if link.body is None:
                self._since[by] = None
            elif since is not None:
                since.append(NewEvent(kind=header.kind, call=header.call, body=msgspec.Raw(link.body)))
        if link.n is None and link.digest is None:
            return ""
        last, batch = self._last.get(by, 0) + 1, self._since.get(by)
        if link.n != last or not by.startswith("worker:") or (link.digest is None and batch is not None):
            return f"the number of its append is {link.n}, not {last}: it was changed"
        self._last[by], self._since[by] = last, []
        # a late outcome, which has no number, may stand before the batch
        if batch is not None and all(batch_digest(batch[at:]) != link.digest for at in range(len(batch))):
            return "the digest of its append is another one: it was changed"
        return ""


def _header(raw: bytes) -> Header | None:
    try:
        return msgspec.json.decode(raw, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _flaw(run: str, expected: int, link: Link, header: Header | None) -> str:
    """Return what is wrong with one event by itself; "" = nothing."""
    if link.seq != expected:
        return f"it is missing: event {link.seq} stands in its place"
    if header is None:
        return "its header cannot be read: it was changed"
    if header.seq != expected or header.run != run:
        return "its header is of another event or run: it was changed"
    if link.body is not None and body_hash(link.salt or b"", link.body) != header.body:
        return "its body was changed"
    if (link.body is None) != (link.salt is None):
        return "its body or salt was taken away by half: it was changed"
    return ""


# -- anchors -------------------------------------------------------------------------------------------------------


class Leaf(msgspec.Struct, frozen=True, array_like=True):
    """A run's head at the time of an anchor: its event `seq` has the hash `head`."""

    run: str
    seq: int
    head: str


class Anchor(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed: the Merkle root over the heads that moved since the anchor before it. Kept as bytes."""

    v: int
    epoch: str
    number: int
    at: str
    leaves: int
    root: str
    prev: str  # SHA-256 of the anchor before it, as bytes
    key: str  # Ed25519 public key, hex
    upto: int | None = None  # the last event of the farm that it covers, as `audit export` counts them


class Signed(msgspec.Struct, frozen=True):
    """An anchor as it is handed on: its bytes as text, and the Ed25519 signature over them, hex."""

    anchor: str
    signature: str

    def read(self) -> Anchor:
        """Raises Invalid."""
        try:
            return msgspec.json.decode(self.anchor, type=Anchor)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise Invalid(f"an anchor cannot be read: {error}", hint="it was changed") from error

    def hash(self) -> str:
        return hashlib.sha256(self.anchor.encode()).hexdigest()


def merkle_root(leaves: Sequence[Leaf]) -> str:
    """Return the root (hex) of the Merkle tree of RFC 9162 §2.1.1 over the leaves, in their order."""
    return _tree([_leaf(leaf) for leaf in leaves]).hex()


def merkle_path(leaves: Sequence[Leaf], index: int) -> list[str]:
    """Return the inclusion proof of RFC 9162 §2.1.3.1 for one of the leaves, nearest first."""
    return [one.hex() for one in _path([_leaf(leaf) for leaf in leaves], index)]


def root_of(leaf: Leaf, index: int, size: int, path: Sequence[str]) -> str:
    """Return the root that a leaf and its inclusion proof lead to (RFC 9162 §2.1.3.2). Raises Invalid."""
    try:
        proof = [bytes.fromhex(one) for one in path]
    except ValueError as error:
        raise Invalid("an inclusion proof is not hexadecimal") from error
    at, last, found = index, size - 1, _leaf(leaf)
    if not 0 <= index < size:
        raise Invalid("an inclusion proof names a leaf that is not there")
    for one in proof:
        if last == 0:
            raise Invalid("an inclusion proof is too long")
        if at % 2 or at == last:
            found = _node(one, found)
            while at % 2 == 0 and at:
                at, last = at >> 1, last >> 1
        else:
            found = _node(found, one)
        at, last = at >> 1, last >> 1
    if last:
        raise Invalid("an inclusion proof is too short")
    return found.hex()


def _leaf(leaf: Leaf) -> bytes:
    return hashlib.sha256(b"\x00" + msgspec.json.encode(leaf)).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(count: int) -> int:
    """Return the largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


def _tree(hashes: Sequence[bytes]) -> bytes:
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    at = _split(len(hashes))
    return _node(_tree(hashes[:at]), _tree(hashes[at:]))


def _path(hashes: Sequence[bytes], index: int) -> list[bytes]:
    if len(hashes) <= 1:
        return []
    at = _split(len(hashes))
    if index < at:
        return [*_path(hashes[:at], index), _tree(hashes[at:])]
    return [*_path(hashes[at:], index - at), _tree(hashes[:at])]


def check_anchors(anchors: Iterable[Signed], key: str = "") -> list[Anchor]:
    """Check that anchors follow each other and are signed; `key`: the public key that the asker knows.

    Raises:
        Invalid: the first one that is not what was signed, names another predecessor, or is of another key.
    """
    read: list[Anchor] = []
    before = ""
    for signed in anchors:
        anchor = signed.read()
        name = f"anchor {anchor.number}"
        if key and anchor.key != key:
            raise Invalid(f"{name} is signed by another key", hint=f"its key is {anchor.key}")
        if read and (anchor.number != read[-1].number + 1 or anchor.prev != before):
            raise Invalid(f"{name} does not follow anchor {read[-1].number}: one was changed or left out")
        if not signature_holds(signed, anchor):
            raise Invalid(f"{name} was changed: its signature does not hold")
        read.append(anchor)
        before = signed.hash()
    return read


def signature_holds(signed: Signed, anchor: Anchor) -> bool:
    """Check the Ed25519 signature. Raises Invalid: the library that can do so is not installed."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise Invalid("signatures cannot be checked here", hint="pip install cryptography") from error
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(anchor.key)).verify(
            bytes.fromhex(signed.signature), signed.anchor.encode()
        )
    except (InvalidSignature, ValueError):
        return False
    return True


# -- evidence bundles ----------------------------------------------------------------------------------------------


class BundledRun(msgspec.Struct, frozen=True, kw_only=True):
    """run.json of a bundle."""

    v: int
    run_id: str
    epoch: str
    agent: str
    owner: str
    definition_hash: str
    seq: int
    head: str
    exported_at: str


class BundledEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A line of events.jsonl: header and body are JSON texts as they were hashed; null: erased. salt, digest: hex."""

    seq: int
    header: str
    salt: str | None
    body: str | None
    n: int | None = None
    digest: str | None = None


class BundledAnchor(msgspec.Struct, frozen=True, kw_only=True):
    """A line of anchors.jsonl: an anchor that holds the run, which leaf it is, and the proof that it is in there."""

    signed: Signed
    leaf: Leaf
    index: int
    path: list[str]


@dataclass(frozen=True)
class Verdict:
    """What a bundle turned out to be: the run, its chain, up to which event it is anchored, and all that is wrong."""

    run: str
    checked: Checked
    anchored: int = 0
    anchor: Anchor | None = None
    erased: int = 0
    flaws: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.checked.ok and not self.flaws


def verify_bundle(path: Path, key: str = "") -> Verdict:
    """Check an evidence bundle by itself. `key`: the public key that its anchors must be signed by.

    Raises:
        Invalid: the file is no bundle, or of a form that this program does not know.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            files = {name: bundle.read(name) for name in bundle.namelist()}
    except (OSError, zipfile.BadZipFile, RuntimeError) as error:
        raise Invalid(f"{path} is not an evidence bundle, or it is damaged: {error}") from error
    run, links = (
        _part(files, "run.json", BundledRun),
        [link_of(one) for one in _lines(files, "events.jsonl", BundledEvent)],
    )
    if run.v != BUNDLE_V:
        raise Invalid(f"this bundle is of form {run.v}", hint="verify it with a newer AgentFarm")
    checked = check_chain(run.epoch, run.run_id, links, run.seq, run.head)
    flaws = [*_definition_flaws(run, files, links), *_blob_flaws(files, links)]
    held, anchor = 0, None
    for one in _lines(files, "anchors.jsonl", BundledAnchor):
        try:
            found = _anchored(one, run, links, key)
        except Invalid as error:
            flaws.append(error.detail)
            continue
        if one.leaf.seq >= held:
            held, anchor = one.leaf.seq, found
    return Verdict(run.run_id, checked, held, anchor, sum(link.body is None for link in links), flaws)


def read_bundle(path: Path) -> tuple[BundledRun, list[Event], bytes]:
    """Return a bundle's run, its events and its definition (JSON), unchecked: verify_bundle checks. Raises Invalid."""
    try:
        with zipfile.ZipFile(path) as bundle:
            files = {name: bundle.read(name) for name in ("run.json", "events.jsonl", "definition.json")}
    except (OSError, zipfile.BadZipFile, RuntimeError, KeyError) as error:
        raise Invalid(f"{path} is not an evidence bundle, or it is damaged: {error}") from error
    try:
        events = [
            read_event(one.header.encode(), None if one.body is None else one.body.encode())
            for one in _lines(files, "events.jsonl", BundledEvent)
        ]
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise Invalid(f"an event of {path} cannot be read: {error}") from error
    return _part(files, "run.json", BundledRun), events, files["definition.json"]


def _anchored(one: BundledAnchor, run: BundledRun, links: list[Link], key: str) -> Anchor:
    (anchor,) = check_anchors([one.signed], key)
    name = f"anchor {anchor.number}"
    if one.leaf.run != run.run_id:
        raise Invalid(f"{name} is of another run")
    if root_of(one.leaf, one.index, anchor.leaves, one.path) != anchor.root:
        raise Invalid(f"{name} does not hold this run's head: the proof was changed")
    if not 1 <= one.leaf.seq <= len(links) or header_hash(links[one.leaf.seq - 1].header) != one.leaf.head:
        raise Invalid(f"{name} holds another event {one.leaf.seq} than the bundle")
    return anchor


def _definition_flaws(run: BundledRun, files: dict[str, bytes], links: list[Link]) -> list[str]:
    raw = files.get("definition.json", b"")
    if hashlib.sha256(raw).hexdigest() != run.definition_hash:
        return ["definition.json is not the one whose hash the run names"]
    created = _data(links[0]) if links else {}
    for name, said in (("definition", run.definition_hash), ("agent", run.agent), ("owner", run.owner)):
        if created.get(name, said) != said:
            return [f"run.json names another {name} than the run's first event"]
    for tool in msgspec.json.decode(raw).get("tools", []):
        source = str(tool.get("source", ""))
        if source.startswith("file@") and f"files/{source[5:]}" not in files:
            return [f"the source of tool {tool.get('name')} is missing"]
    return []


def _blob_flaws(files: dict[str, bytes], links: list[Link]) -> list[str]:
    flaws = []
    for name, content in files.items():
        folder, _, digest = name.partition("/")
        if folder in ("blobs", "files") and hashlib.sha256(content).hexdigest() != digest:
            flaws.append(f"{name} was changed")
    for link in links:
        result = _data(link).get("result")
        blob = result.get("$blob") if isinstance(result, dict) else None
        if blob and f"blobs/{blob}" not in files:
            flaws.append(f"the blob {blob[:12]}… of event {link.seq} is missing")
    return flaws


def _data(link: Link) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(link.body or b"null")
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _part(files: dict[str, bytes], name: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(files[name], type=kind)
    except KeyError as error:
        raise Invalid(f"{name} is missing from the bundle", hint="make it again: agentfarm run bundle RUN") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise Invalid(f"{name} of the bundle was changed: {error}") from error


def _lines(files: dict[str, bytes], name: str, kind: Any) -> list[Any]:
    if name not in files:
        raise Invalid(f"{name} is missing from the bundle", hint="make it again: agentfarm run bundle RUN")
    found = []
    for number, line in enumerate(files[name].splitlines(), 1):
        try:
            found.append(msgspec.json.decode(line, type=kind))
        except (msgspec.DecodeError, UnicodeError) as error:
            raise Invalid(f"line {number} of {name} was changed: {error}") from error
    return found


def link_of(one: BundledEvent) -> Link:
    """Return an event that was handed on as text as it is kept. Raises Invalid."""
    try:
        salt = None if one.salt is None else bytes.fromhex(one.salt)
        digest = None if one.digest is None else bytes.fromhex(one.digest)
    except ValueError as error:
        raise Invalid(f"event {one.seq} was changed: its salt or digest is not hexadecimal") from error
    return Link(one.seq, one.header.encode(), salt, None if one.body is None else one.body.encode(), one.n, digest)
