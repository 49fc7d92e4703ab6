"""Images and files in a task's input: `[{"type": "text", "text"}, {"type": "image", "blob", "media_type"}, {"type": "file", …}]`.

The ledger holds a part by the hash of its content; a model is shown OpenAI's content parts, made of it. Pure; gateway and
verifiers use the same, so that the digest of what was shown can be computed from the record.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

KINDS = frozenset({"text", "image", "file"})
GONE = "(a part of this message is no longer kept)"


def are_parts(value: Any) -> bool:
    """Say whether an input is a list of parts; any other list is data, and told to the model as JSON."""
    return isinstance(value, list) and bool(value) and all(_is_part(one) for one in value)


def _is_part(one: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(one.get("type"), str) or one["type"] not in KINDS:
        return False
    return isinstance(one.get("text"), str) if one["type"] == "text" else "blob" in one or "data" in one


def blobs_of(value: Any) -> list[str]:
    """Return the hashes that the parts name."""
    return [str(one["blob"]) for one in value if one.get("blob")] if are_parts(value) else []


def needed(value: Any) -> frozenset[str]:
    """Return what a model must take besides text: image, file. A file of text is shown as text."""
    return (
        frozenset(one["type"] for one in value if one["type"] != "text" and not _textual(one))
        if are_parts(value)
        else frozenset()
    )


def shown(message: dict[str, Any], kept: Mapping[str, bytes]) -> dict[str, Any]:
    """Return a message as a model is shown it: OpenAI's content parts. `kept`: contents by hash; what is missing is said."""
    if not isinstance(message.get("content"), list):
        return message
    return {**message, "content": [_shown(one, kept) for one in message["content"]]}


def _shown(part: dict[str, Any], kept: Mapping[str, bytes]) -> dict[str, Any]:
    if part.get("type") == "text":
        return {"type": "text", "text": part.get("text", "")}
    content = kept.get(str(part.get("blob")))
    if content is None:
        return {"type": "text", "text": GONE}
    name = str(part.get("name") or part["type"])
    if _textual(part):
        return {"type": "text", "text": f"{name}:\n{content.decode('utf-8', 'replace')}"}
    url = f"data:{part.get('media_type')};base64,{base64.b64encode(content).decode()}"
    if part["type"] == "image":
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file": {"filename": name, "file_data": url}}


def _textual(part: Mapping[str, Any]) -> bool:
    kind = str(part.get("media_type", ""))
    return part.get("type") == "file" and (kind.startswith("text/") or kind in ("application/json", "application/yaml"))
