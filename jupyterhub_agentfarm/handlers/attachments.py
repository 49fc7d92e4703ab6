"""Images and files that come with a task: uploaded before, or inlined; kept by the hash of their content.

What a model cannot take is refused here, before anything is written.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Annotated, Any, Literal

import msgspec
from sqlalchemy.engine import Connection

from agentfarm_sdk import parts
from agentfarm_sdk.protocol import MAX_BLOB_BYTES, Definition

from ..errors import AgentFarmError, Invalid, TooLarge
from ..store import agents, blobs
from ..store.db import Tx
from .asking import Asker, reach_agent
from .routes import KIB, Call, Route

MAX_INPUT_BYTES = 20 * 1024 * KIB  # of one task's images and files: they are sent to the model with every step
IMAGES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A part of an input. An image or a file is named by the hash of an upload (`blob`), or inlined (`data`, base64)."""

    type: Literal["text", "image", "file"]
    text: str | None = None
    blob: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None
    data: str | None = None
    media_type: Annotated[str, msgspec.Meta(pattern=r"^[a-z]+/[A-Za-z0-9.+-]+$")] = ""
    name: Annotated[str, msgspec.Meta(max_length=255)] = ""
    size: int = 0


class Uploaded(msgspec.Struct, frozen=True):
    sha256: str
    size: int


async def upload(call: Call) -> Uploaded:
    """Keep an image or a file for tasks of yours: name it there by its hash, as `blob`."""
    content: bytes = call.body
    if not content:
        raise Invalid("there is nothing in it", hint="send the file's bytes as the body")
    digest = hashlib.sha256(content).hexdigest()
    owner = await call.read(lambda c: _owner(c, call.asker))
    await call.write(lambda tx: blobs.upload(tx, owner, digest, content))
    return Uploaded(digest, len(content))


async def taken(call: Call, given: Any, definition: Definition | None) -> Any:
    """Return an input as it is kept: its images and files by their hashes. One without any is returned as it is.

    Raises Invalid: a part that is none, is not there, or that the model does not take; TooLarge.
    """
    if not parts.are_parts(given):
        return given
    read = [_part(one, place) for place, one in enumerate(given)]
    if definition is not None:
        await _takes(call, definition, parts.needed(given))
    contents = {digest: content for _, digest, content in read if content is not None}

    def keep(tx: Tx) -> list[dict[str, Any]]:
        owner = _owner(tx.connection, call.asker)
        for digest, content in contents.items():
            blobs.upload(tx, owner, digest, content)
        sizes = blobs.uploaded(tx.connection, owner, [digest for _, digest, _ in read if digest])
        if sum(sizes.values()) > MAX_INPUT_BYTES:
            raise TooLarge(
                f"the images and files of this task have {sum(sizes.values())} bytes", hint=f"at most {MAX_INPUT_BYTES}"
            )
        return [_kept(part, digest, sizes) for part, digest, _ in read]

    return await call.write(keep)


def check(connection: Connection, owner: str, given: Any) -> None:
    """Raises Invalid where an input names an image or a file that is none of the owner's uploads, or holds one itself."""
    if not (isinstance(given, list) and parts.are_parts(given)):
        return
    named = parts.blobs_of(given)
    known = blobs.uploaded(connection, owner, named)
    inlined = any("data" in one or (one["type"] != "text" and not one.get("media_type")) for one in given)
    if inlined or set(named) - set(known):
        raise Invalid(
            "a part of the input is not kept yet - at `$.input`",
            hint="upload it first (POST /blobs) and name it by its sha256: blob, with its media_type",
        )


def _part(one: dict[str, Any], place: int) -> tuple[Part, str, bytes | None]:
    """Read a part; return it with its hash ("" = text) and, where it is inlined, its content. Raises Invalid."""
    where = f"at `$.input[{place}]`"
    try:
        part = msgspec.convert(one, Part)
        if part.type == "text":
            return part, "", None
        if (part.blob is None) == (part.data is None):
            raise ValueError("it has either blob or data")
        if not part.media_type or (part.type == "image" and part.media_type not in IMAGES):
            raise ValueError(f"its media_type is {part.media_type or 'missing'}")
        if part.data is None:
            return part, str(part.blob), None
        content = base64.b64decode(part.data, validate=True)
        return part, hashlib.sha256(content).hexdigest(), content
    except (msgspec.ValidationError, ValueError, binascii.Error) as error:
        kinds = ", ".join(sorted(IMAGES))
        raise Invalid(
            f"a part of the input cannot be taken: {error} - {where}",
            hint=f'{{"type": "image" or "file", "blob": sha256 of POST /blobs, or "data": base64, "media_type"}}; images: {kinds}',
        ) from error


def _kept(part: Part, digest: str, sizes: dict[str, int]) -> dict[str, Any]:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    if digest not in sizes:
        raise Invalid(f"there is no upload {digest[:12]}… of yours", hint="upload it first: POST /blobs")
    named = {"name": part.name} if part.name else {}
    return {"type": part.type, "blob": digest, "media_type": part.media_type, "size": sizes[digest], **named}


async def _takes(call: Call, definition: Definition, needed: frozenset[str]) -> None:
    """Raises Invalid: the model does not take such parts, as far as its record says."""
    if not needed:
        return
    try:
        route, model = call.parts.models.upstreams.route(definition.model.name)
    except AgentFarmError:
        return  # no model at all: the run says so
    if missing := needed - await route.upstream.inputs(model):
        raise Invalid(
            f"the model {model} takes no {' and no '.join(sorted(missing))} as input",
            hint="choose one that does (agentfarm model list), or, if it does, name it in the upstream's settings: inputs",
        )


async def definition_of(call: Call, target: str, version: int | str | None, given: Any) -> Definition | None:
    """Return the definition that will be given this input, where its parts ask for that and it is known already."""
    if not parts.are_parts(given) or target.startswith("pool:"):
        return None

    def read(connection: Connection) -> Definition | None:
        agent = reach_agent(connection, call.asker, target, "chat")[0]  # who may not, learns nothing of it here
        number = version if isinstance(version, int) else agent.published
        return (
            agent.draft
            if version == "draft" or number is None
            else agents.version(connection, target, number).definition
        )

    try:
        return await call.read(read)
    except AgentFarmError:
        return None  # submitting says what is wrong with the target


def _owner(connection: Connection, asker: Asker) -> str:
    return agents.show(connection, asker.name).owner if asker.kind == "agent" else asker.name


ROUTES = [
    Route("POST", "/blobs", upload, "Keep an image or a file for tasks", raw=True, answer=Uploaded, status=201, limit=MAX_BLOB_BYTES + KIB),
]  # fmt: skip
