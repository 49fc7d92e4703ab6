"""`agentfarm audit …`: is the record whole? Evidence bundles are checked without a farm."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

from agentfarm_sdk.audit import Anchor, Leaf, Signed, check_anchors, merkle_root, verify_bundle
from agentfarm_sdk.errors import Forbidden, Invalid
from agentfarm_sdk.exports import is_export, verify_export
from agentfarm_sdk.farm import Farm

from .show import Out, noun


class _Kept(msgspec.Struct, frozen=True):
    anchor: str
    signature: str
    leaves: list[Leaf]


def add(nouns: Any) -> None:
    verb = noun(nouns, "audit", "is the record whole?")
    verify = verb(
        "verify", verify_all, "check runs, the whole farm, bundles and exports (no farm needed), kept anchors"
    )
    verify.add_argument(
        "what", nargs="*", help="runs, or files made by `run bundle` or `audit export`; the whole farm if none is named"
    )
    verify.add_argument("--key", default="", metavar="HEX", help="the public key that anchors must be signed by")
    verify.add_argument(
        "--anchors", metavar="FILE", help="compare the farm, or an export, with a copy of its anchors.jsonl"
    )
    verify.set_defaults(offline=offline)
    export = verb("export", export_all, "all events of the farm as they are kept, one JSON a line (operators)")
    export.add_argument(
        "--after", type=int, default=0, metavar="ID", help="only those behind this one: the last id you have"
    )
    export.add_argument(
        "-o", "--output", metavar="FILE", help="append them there; without --after, behind its last line"
    )
    listed = verb("anchors", list_anchors, "the signed roots over the heads of all runs")
    listed.add_argument("--limit", type=int, default=20)


def offline(asked: argparse.Namespace) -> bool:
    """Say whether a command needs no farm: all that it names are files; where anchors are kept, exports to hold to them."""
    files = [Path(one) for one in asked.what if Path(one).is_file()]
    if not files or len(files) < len(asked.what):
        return False
    return not asked.anchors or all(map(is_export, files))


def verify_all(farm: Farm | None, asked: argparse.Namespace, out: Out) -> int:
    """Check what is named; 1 where something is not whole."""
    files = [one for one in asked.what if Path(one).is_file()]
    kept = _read(Path(asked.anchors)) if asked.anchors else None
    found = [
        _export(Path(one), kept, asked.key) if is_export(Path(one)) else _bundle(Path(one), asked.key) for one in files
    ]
    if farm is not None:
        found += [_run(farm.verify(one)) for one in asked.what if one not in files]
        if asked.anchors:
            found += _kept(farm, Path(asked.anchors), asked.key)
        if not asked.what:
            found += _whole(farm)
    if out.as_json:
        out.value(found)
    else:
        for one in found:
            print(one["says"])
    return 0 if all(one["ok"] for one in found) else 1


def list_anchors(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    rows = []
    for one in farm.items("/audit/anchors", None, asked.limit):
        rows.append({"number": one["number"], **msgspec.to_builtins(Signed(one["anchor"], one["signature"]).read())})
    out.rows(
        rows,
        ("number", "at", "leaves", "root", "key"),
        "no anchor yet: one is made each minute while something changes",
    )


def export_all(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    """Write page after page; cut short, it goes on where it was."""
    after, count = asked.after, 0
    with _opened(asked.output) as to:
        if asked.output and not after:
            after = _last_id(Path(asked.output))
        while True:
            page = farm.request("GET", "/audit/export", params={"after": after, "limit": 500})
            for one in page["items"]:
                to.write(msgspec.json.encode(one).decode() + "\n")
                after, count = one["id"], count + 1
            to.flush()
            if page["next"] is None:
                break
    if asked.output:
        out.line(f"{asked.output}: {count} events more, up to {after}", {"events": count, "last": after})


def _opened(name: str | None) -> Any:
    try:
        return open(name, "a", encoding="utf-8") if name else nullcontext(sys.stdout)
    except OSError as error:
        raise Invalid(f"{name} cannot be written: {error.strerror}", hint="name another file by -o") from error


def _last_id(file: Path) -> int:
    """Return the id on the last whole line; half a line, of an export that was cut short, is cut off. Raises Invalid."""
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(file, len(whole))
    try:
        return int(msgspec.json.decode(whole.splitlines()[-1])["id"]) if whole else 0
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise Invalid(f"{file} is no export: its last line has no id", hint="name another file by -o") from error


def _bundle(file: Path, key: str) -> dict[str, Any]:
    verdict = verify_bundle(file, key)
    checked = verdict.checked
    flaws = [] if checked.ok else [f"event {checked.bad_seq} is not what was recorded: {checked.why}"]
    flaws += verdict.flaws
    says = [f"{file}: {flaw}" for flaw in flaws]
    if not flaws:
        erased = f", {verdict.erased} bodies erased" if verdict.erased else ""
        anchor = verdict.anchor
        upto = (
            f"whole up to event {verdict.anchored}, which anchor {anchor.number} of {anchor.at} holds (key {anchor.key})"
            if anchor
            else "no anchor holds it yet: nothing proves that its end was not cut off"
        )
        says = [f"{file}: {verdict.run}: {checked.events} events chained{erased}; {upto}"]
    return {"ok": verdict.ok, "run_id": verdict.run, "events": checked.events, "anchored": verdict.anchored,
            "bad_seq": checked.bad_seq, "flaws": flaws, "says": "\n".join(says)}  # fmt: skip


def _export(file: Path, kept: list[_Kept] | None, key: str) -> dict[str, Any]:
    anchored, read = _latest(kept, key) if kept is not None else ({}, [])
    export = verify_export(file, anchored)
    erased = f", {export.erased} bodies erased" if export.erased else ""
    upto = f"; whole up to anchor {read[-1].number} of {read[-1].at}, by your copy" if read else ""
    whole = f"{file}: {export.runs} runs, {export.events} events chained{erased}{upto}"
    said = [f"{file}: {flaw}" for flaw in export.flaws] or [whole]
    return {
        "ok": not export.flaws,
        "runs": export.runs,
        "events": export.events,
        "flaws": export.flaws,
        "says": "\n".join(said),
    }


def _run(one: dict[str, Any]) -> dict[str, Any]:
    if one["ok"]:
        return {**one, "says": f"whole: {one['run_id']}, {one['events']} events"}
    return {**one, "says": f"{one['run_id']}: event {one['bad_seq']} is not what was recorded: {one['why']}"}


def _whole(farm: Farm) -> list[dict[str, Any]]:
    """Check the whole farm as an operator, else all runs that the asker may see."""
    try:
        answer = farm.audit()
    except Forbidden:
        return _mine(farm)
    says = [
        f"{one['run_id'] or 'anchors'}: " + (f"event {one['bad_seq']} is not what was recorded: " if one["bad_seq"] else "") + one["why"]
        for one in answer["broken"]
    ]  # fmt: skip
    upto = "; no anchor yet"
    if answer["anchor"]:
        upto = f" up to anchor {answer['anchor']} of {answer['anchored_at']}, and {answer['since']} events since"
    whole = f"whole: {answer['runs']} runs, {answer['events']} events{upto}"
    return [{**answer, "says": "\n".join(says) or whole}]


def _mine(farm: Farm) -> list[dict[str, Any]]:
    found = [_run(farm.verify(task["run_id"])) for task in farm.tasks() if task.get("run_id")]
    events = sum(one["events"] for one in found)
    says = f"whole: {len(found)} run{'s' * (len(found) != 1)}, {events} events"
    broken = [one for one in found if not one["ok"]]
    return broken or [{"ok": True, "runs": len(found), "events": events, "says": says}]


def heads(file: Path) -> list[Leaf]:
    """Return the latest head of each run that a file of anchors holds. Raises Invalid."""
    latest = {leaf.run: leaf for one in _read(file) for leaf in one.leaves}
    return list(latest.values())


def _read(file: Path) -> list[_Kept]:
    try:
        return [msgspec.json.decode(line, type=_Kept) for line in file.read_bytes().splitlines()]
    except (OSError, msgspec.DecodeError) as error:
        raise Invalid(f"{file} cannot be read: {error}", hint="name a copy of the farm's anchors.jsonl") from error


def _latest(kept: list[_Kept], key: str) -> tuple[dict[str, tuple[Leaf, int]], list[Anchor]]:
    """Return the latest head of each run that kept anchors hold, with its anchor's number; and the anchors. Raises Invalid."""
    read = check_anchors([Signed(one.anchor, one.signature) for one in kept], key)
    heads: dict[str, tuple[Leaf, int]] = {}
    for anchor, one in zip(read, kept, strict=True):
        if merkle_root(one.leaves) != anchor.root:
            raise Invalid(f"what anchor {anchor.number} holds was changed in the copy")
        heads |= {leaf.run: (leaf, anchor.number) for leaf in one.leaves}
    return heads, read


def _kept(farm: Farm, file: Path, key: str) -> list[dict[str, Any]]:
    """Compare a kept copy of the anchors with what the farm says now."""
    heads, read = _latest(_read(file), key)
    flaws: list[str] = []
    for leaf, number in heads.values():
        events = farm.request("GET", f"/runs/{leaf.run}/events", params={"after": leaf.seq - 1, "limit": 1})["items"]
        if not events or events[0]["hash"] != leaf.head:
            flaws.append(f"{leaf.run}: event {leaf.seq} is not the one that anchor {number} of your copy holds")
    says = flaws or [
        f"whole up to anchor {read[-1].number} of {read[-1].at}, by your copy" if read else "no anchor in there"
    ]
    return [{"ok": not flaws, "anchors": len(read), "runs": len(heads), "flaws": flaws, "says": "\n".join(says)}]
