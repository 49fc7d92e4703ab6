"""What crosses a process border: events and their hashes, messages, definitions, the worker's messages.

Pure: no I/O, no clock. Service, worker, local ledger and verifier all use it. docs/protocol.md explains it with
examples. Bodies are kept as received, so they travel as `msgspec.Raw` and are hashed as bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import cache, lru_cache
from typing import Annotated, Any, Literal

import msgspec

PROTOCOL = 1  # header `Agentfarm-Protocol`; the service speaks N and N-1
HEADER_V = 1  # the form of an event's header; every form ever written stays readable
GENESIS = "0" * 64  # `prev` of a run's first event
BLOB_OVER = 16_384  # a body above this many bytes is stored as a blob, and the event names it
MAX_APPEND_BYTES = 4 * 1024 * 1024
MAX_BLOB_BYTES = 64 * 1024 * 1024
LEASE_SECONDS = 30.0  # as the service gives it unless its operator says otherwise; the two below are for that lease
HEARTBEAT_SECONDS = 10.0
EFFECT_SECONDS = 25.0  # a worker starts no effect later than this after its last renewal
MAX_UNANSWERED = 8  # appends a worker may have under way
CANCEL_GRACE_SECONDS = 10.0
RUN_TOKEN_SECONDS = 900.0

Effect = Literal["read", "idempotent", "once"]
Mode = Literal["live", "ask", "simulate"]
Status = Literal["queued", "assigned", "running", "waiting", "cancelling", "succeeded", "failed", "cancelled"]
Waiting = Literal[
    "approval", "in_doubt", "paused", "budget", "question", "timer", "child", "after", "restored", "place"
]
ENDED: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})

# Kinds are an open set: readers keep what they do not know.
WORKER_KINDS = frozenset({
    "tool.succeeded", "tool.failed", "tool.probed", "value.recorded", "model.reported", "context.compacted", "person.executed",
    "run.parked", "run.succeeded", "run.failed", "run.cancelled", "memory.remembered", "memory.forgotten", "timer.set", "question.asked",
    "child.submitted",
})  # fmt: skip  # what a worker may append


# --- tools, definitions -----------------------------------------------------------------------------------------


def beat_seconds(lease: float) -> float:
    """Return how often a lease of so many seconds is renewed."""
    return min(HEARTBEAT_SECONDS, lease * HEARTBEAT_SECONDS / LEASE_SECONDS)


def effect_seconds(lease: float) -> float:
    """Return how long after a renewal an effect may still be started under a lease of so many seconds."""
    return lease * EFFECT_SECONDS / LEASE_SECONDS


class ToolSpec(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A tool as a version pins it. `source`: builtin | package==v#module:function | file@sha256 | kernel (notebook runs)."""

    name: str
    description: str = ""
    schema: dict[str, Any] = {}  # JSON Schema (2020-12) of the arguments, type object
    effect: Effect = "once"
    approval: str = "never"  # never | always | a condition on the arguments (conditions.py)
    timeout: float = 60.0  # seconds
    source: str = "builtin"
    schema_hash: str = ""
    secrets: list[str] = []  # names only; values leave the service with an admission alone
    config: dict[str, Any] = {}  # e.g. http_request: {"allow": ["https://api.example.com/"]}
    approvers: int = 1  # so many different people must approve; one refusal refuses
    approval_expires: float | None = None  # seconds; then the model is told that nobody approved
    escalate_after: float | None = None  # seconds; then operators, and the group `escalate_to`, are shown it
    escalate_to: str = ""  # a group of the Hub whose members may then decide
    probe: bool = False  # the tool can tell, by the key, whether a call of which nobody knows took effect


class Retry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What follows when the model's server fails. Each attempt is an event; when they are over the run fails.

    max_wait: seconds; a server that asks for a longer pause (Retry-After) is not asked again. on: which failures.
    """

    attempts: Annotated[int, msgspec.Meta(ge=1, le=20)] = 8  # with pauses of 0.5 to 8 s: half a minute
    max_wait: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 60.0
    on: tuple[Literal["busy", "down", "slow", "failed", "nonsense"], ...] = (
        "busy",
        "down",
        "slow",
        "failed",
        "nonsense",
    )


class ModelSpec(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    name: str = ""  # as the gateway lists it; "" = the farm's default model
    provider: str | None = None  # pin, e.g. a Hugging Face provider
    parameters: dict[str, Any] = {}  # temperature, max_tokens, seed, top_p, stop ...
    context: Annotated[int, msgspec.Meta(ge=512)] | None = None  # tokens that it can take; None: what the gateway knows
    retry: Retry = Retry()


class Limits(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """None = no limit of this kind. seconds: wall time of the run from its first lease, without those that it was parked; cost in USD."""

    steps: int | None = 20
    calls: int | None = 50
    tokens: int | None = 200_000
    seconds: float | None = 1800.0
    cost: float | None = None


class Simulate(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """What answers the calls of a run in mode `simulate`: `stubs` by tool, then what an earlier run (`recording`) got

    for the same tool and arguments; `otherwise` a person, or (`refuse`) nobody: then the model is told so.
    """

    stubs: dict[str, Any] = {}
    recording: str | None = None
    otherwise: Literal["person", "refuse"] = "person"


class Definition(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a version fixes. Its content hash is over the canonical JSON of the fields that differ from their defaults:

    a new field leaves old hashes as they are; a default, here and in the parts, is never changed.
    """

    prompt: str = ""
    model: ModelSpec = ModelSpec()
    tools: list[ToolSpec] = []
    limits: Limits = Limits()
    tool_choice: str | list[str] = "auto"  # auto | required | none, or one per step (the last repeats)
    answer: dict[str, Any] | None = None  # JSON Schema of a structured answer
    variables: dict[str, str] = {}  # defaults of {{name}} in the prompt
    fresh_kernel: bool = False
    description: str = ""

    def choice_at(self, step: int) -> str:
        """Return the tool choice for the step (from 0)."""
        if isinstance(self.tool_choice, str):
            return self.tool_choice
        return self.tool_choice[min(step, len(self.tool_choice) - 1)] if self.tool_choice else "auto"

    def tool(self, name: str) -> ToolSpec | None:
        return next((tool for tool in self.tools if tool.name == name), None)


def canonical(value: Any) -> bytes:
    """Return compact JSON with sorted keys, without the fields that equal their defaults: what content hashes are of."""
    if isinstance(value, msgspec.Struct):  # made of JSON once: 30 and 30.0 seconds are the same
        value = msgspec.convert(msgspec.to_builtins(value), type(value))
    return msgspec.json.encode(_differing(value), order="sorted")


@cache
def _fields(cls: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(cls)


def _differing(value: Any) -> Any:
    """Leave out defaults by equality: `omit_defaults` does so by identity, and a decoded "once" is another object."""
    if isinstance(value, msgspec.Struct):
        named = [(field, getattr(value, field.name)) for field in _fields(type(value))]
        return {field.encode_name: _differing(got) for field, got in named if got != _default(field)}
    return [_differing(one) for one in value] if isinstance(value, list) else value


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def content_hash(value: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of a definition or a schema."""
    return hashlib.sha256(canonical(value)).hexdigest()


def narrower(schema: Any, full: dict[str, Any]) -> bool:
    """Say whether a schema asks for arguments of a built-in tool and for no others: a version may narrow their values.

    The tool checks what it gets all the same.
    """
    if schema == full:
        return True
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
        return False
    names, needed = set(schema["properties"]), set(schema.get("required") or ())
    known, must = set(full.get("properties") or ()), set(full.get("required") or ())
    whole = schema.get("type") == "object" and schema.get("additionalProperties") is False
    return whole and names <= known and must <= needed <= names


# --- events -----------------------------------------------------------------------------------------------------


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Made by the service alone, kept as bytes. `hash` of an event is the SHA-256 of these bytes."""

    v: int
    epoch: str
    run: str
    seq: int
    kind: str
    at: str
    by: str
    call: str | None
    body: str
    prev: str


class NewEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event before it has a place: as a worker appends it, or as the service records it."""

    kind: str
    body: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    call: str | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded event as readers get it. `body` is JSON as kept, or null where it was erased."""

    run: str
    seq: int
    kind: str
    at: str
    by: str
    call: str | None = None
    hash: str = ""
    body: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))

    def data(self) -> dict[str, Any]:
        """Return the body as a dict; {} where it was erased."""
        value = msgspec.json.decode(self.body)
        return value if isinstance(value, dict) else {}

    @property
    def erased(self) -> bool:
        """Whether its body is gone; a body.erased event says by whose will."""
        return bytes(self.body) == b"null"

    @property
    def fence(self) -> int | None:
        """The fence of the worker that wrote it, else None."""
        return int(self.by[7:]) if self.by.startswith("worker:") else None


def new_event(kind: str, body: Any = None, call: str | None = None) -> NewEvent:
    """Make an event from a plain value."""
    return NewEvent(kind=kind, call=call, body=msgspec.Raw(msgspec.json.encode({} if body is None else body)))


def timestamp(seconds: float) -> str:
    """Return UTC ISO 8601 with microseconds and Z for an epoch time in seconds."""
    whole, micro = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{_second(whole)}.{micro:06d}Z"


@lru_cache(64)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def moment(text: Any) -> float | None:
    """Return the epoch seconds of a UTC time as it stands in events; None where it is none."""
    try:
        found = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
        return found.timestamp() if found.tzinfo else None
    except (ValueError, OverflowError):
        return None


def body_hash(salt: bytes, body: bytes) -> str:
    """Return sha256(salt || body) as hex: it can be checked while salt and body are kept, and says nothing after."""
    return hashlib.sha256(salt + body).hexdigest()


def make_header(
    *, epoch: str, run: str, seq: int, kind: str, at: str, by: str, call: str | None, body: str, prev: str
) -> bytes:
    """Return the header's bytes, as they are kept and hashed."""
    return msgspec.json.encode(
        Header(v=HEADER_V, epoch=epoch, run=run, seq=seq, kind=kind, at=at, by=by, call=call, body=body, prev=prev)
    )


def header_hash(header: bytes) -> str:
    return hashlib.sha256(header).hexdigest()


def read_event(header: bytes, body: bytes | None) -> Event:
    """Return the event of a stored header and body (None = erased)."""
    h = msgspec.json.decode(header, type=Header)
    raw = msgspec.Raw(b"null" if body is None else body)
    return Event(run=h.run, seq=h.seq, kind=h.kind, at=h.at, by=h.by, call=h.call, hash=header_hash(header), body=raw)


def call_key(epoch: str, run: str, call: str) -> str:
    """Return the idempotency key of a call: the same over every attempt, different in every epoch."""
    return hashlib.sha256(f"{epoch}\n{run}\n{call}".encode()).hexdigest()


def call_id(step: int, index: int) -> str:
    """Return our own id of the index-th call in a step's reply (both from 0)."""
    return f"c{step}-{index}"


def roll(digest: str, message: bytes) -> str:
    """Return the rolling digest after one more message as it was sent: sha256(previous || bytes)."""
    return hashlib.sha256(digest.encode() + message).hexdigest()


# --- the worker's messages --------------------------------------------------------------------------------------


class AppendRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /runs/{id}/events. `events` stay raw: their bytes are the digest by which a repeat is known."""

    fence: int
    n: int
    events: msgspec.Raw  # JSON list of NewEvent


class AdmittedCall(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A call and what may be done with it.

    `state`: admitted (do it now), awaiting (a person decides), answered (simulated: `result`), failed (told why), probe (it was started by a worker that
    is gone: ask the tool's probe, append `tool.probed`, then open the run again).
    """

    call: str
    tool: str
    arguments: dict[str, Any] = {}
    state: Literal["admitted", "awaiting", "answered", "failed", "probe"] = "admitted"
    key: str = ""
    attempt: int = 1
    error: str = ""
    result: Any = None
    secrets: dict[str, str] = {}


class AppendAnswer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    n: int
    seq: int
    head: str
    admitted: list[AdmittedCall] = []
    inbox: list[Event] = []
    token: str = ""  # a renewed run token, now and then


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A model request of a run, without messages: the gateway folds them from the ledger itself.

    `request`: the worker's id of it; the same id gets the recorded reply again. `n`: the worker's last append, which
    the gateway waits for. `messages`: only where the worker must send its own (then the digest is over those).
    """

    run: str
    fence: int
    request: str
    n: int
    tool_choice: str | None = None
    messages: list[dict[str, Any]] | None = None
    stream: bool = False


class ModelAnswer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What the worker gets for it, once the reply and its admissions are committed."""

    request: str
    seq: int
    head: str
    message: dict[str, Any]  # {"role": "assistant", "content", "tool_calls"?} with our call ids
    calls: list[AdmittedCall] = []
    usage: dict[str, Any] = {}
    inbox: list[Event] = []  # recorded by others before the reply
    after: list[Event] = []  # recorded by the gateway behind it: an answer that does not fit is asked for once more
    token: str = ""


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    worker: str  # a name for the log: server and supervisor instance
    claim_id: str  # the same id gets the same lease again
    wait: float = 0.0  # seconds to wait for a run
    kernels: list[str] = []  # definition hashes of warm kernels
    scratch: bool = False  # the server is away from the agent's files: it takes runs of tasks that need none


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    run: str
    fence: int
    token: str
    lease: float  # seconds
    agent: str
    definition: str  # content hash
    fresh_kernel: bool = False


class OpenRequest(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Op "open" on a WebSocket that a former run of the kernel has opened: this run's fence and token sign it in.

    Where the connection was opened with this run's token they may be left out.
    """

    fence: int = 0
    token: str = ""


class Opened(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a worker is told when it takes a run up: GET /runs/{id}/open with a run token, op "open" on the WebSocket."""

    run: str
    epoch: str
    fence: int
    n: int  # the last append under this fence (0 for a new lease)
    definition: Definition
    mode: Mode = "live"
    events: list[Event] = []
    calls: list[AdmittedCall] = []  # admitted and without outcome: do them now
    inbox: list[Event] = []
    files: list[str] = []  # sha256 of tool sources: GET /tools/files/{sha256}
    task: str = ""
    agent: str = ""


class HeartbeatRequest(msgspec.Struct, frozen=True, kw_only=True):
    fence: int
    dead: str | None = None  # the supervisor's proof that the kernel is dead, e.g. "kernel exited with -9"


class HeartbeatAnswer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    lease: float
    token: str
    inbox: list[Event] = []


def decode_events(raw: bytes) -> list[NewEvent]:
    """Read the `events` of an append; what is returned can be read for ever. Raises msgspec.ValidationError."""
    try:
        events = msgspec.json.decode(raw, type=list[NewEvent])
        for event in events:  # a Raw is kept unread: bad UTF-8 or numbers would show only when the run is folded
            msgspec.json.decode(event.body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise msgspec.ValidationError(f"these events cannot be read: {error}") from error
    return events


def batch_digest(events: Sequence[NewEvent]) -> bytes:
    """Return 16 bytes by which a repeated append is told from another one under the same number.

    They are over what is kept of each event, so that a verifier can make them again.
    """
    digest = hashlib.sha256()
    for event in events:
        digest.update(f"{event.kind}\n{event.call or ''}\n{len(event.body)}\n".encode())
        digest.update(event.body)
    return digest.digest()[:16]
