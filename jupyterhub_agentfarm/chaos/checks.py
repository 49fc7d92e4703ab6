"""What must hold after whatever was done to a farm: told from the record and from what reached the world. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

from agentfarm_sdk.protocol import ENDED, Waiting

from .work import REACHING

Event = Mapping[str, Any]
CLOSES = frozenset({
    "tool.succeeded", "tool.failed", "tool.doubted", "timer.set", "child.submitted", "question.asked",
})  # fmt: skip  # behind it a call is under way no more


def unfinished(task: Mapping[str, Any]) -> list[str]:
    """Every run ends, or waits for a named reason."""
    if task["status"] in ENDED or task["waiting"] in get_args(Waiting):
        return []
    return [f"{task['task_id']}: is {task['status']} ({task['waiting']}) and waits for nobody"]


def of_record(run: str, events: Sequence[Event]) -> list[str]:
    """Nothing finished is started again; a `once` call starts again only where a person, or its tool's probe, said that it did not happen."""
    found, done = list[str](), set[str]()
    may_start: dict[str, bool] = defaultdict(lambda: True)
    for event in events:
        call, kind, body = str(event.get("call")), event["kind"], event["body"] or {}
        if kind == "tool.started":
            if call in done:
                found.append(f"{run}: event {event['seq']} starts the finished call {call} again")
            if body.get("effect") == "once" and not may_start[call]:
                found.append(f"{run}: event {event['seq']} starts the once call {call} a second time")
            may_start[call] = False
        elif kind == "tool.resolved":
            may_start[call] = body.get("decision") == "not_happened"
        elif kind == "tool.probed":
            may_start[call] = body.get("answer") == "not_happened"
        if kind in {"tool.succeeded", "tool.failed"}:
            done.add(call)
    return found


def of_end(run: str, events: Sequence[Event]) -> list[str]:
    """Nothing is left open by a run that has ended: a `once` call ended, or was in doubt; each child has ended, once."""
    ended = next(
        (
            event["kind"]
            for event in events
            if event["kind"].partition(".")[2] in ENDED and event["kind"].startswith("run.")
        ),
        None,
    )
    if ended is None:
        return []
    found, open_calls, children = list[str](), dict[str, str](), Counter[str]()
    for event in events:
        call, kind, body = str(event.get("call")), event["kind"], event["body"] or {}
        if kind == "tool.started":
            open_calls[call] = str(body.get("effect"))
        elif kind in CLOSES:
            open_calls.pop(call, None)
        children[call] += kind == "child.finished"
    for call, effect in open_calls.items():
        if effect == "once" or ended == "run.succeeded":
            found.append(
                f"{run}: has {ended.partition('.')[2]} and nobody says what became of the {effect} call {call}"
            )
    for call, times in children.items():
        if times > 1:
            found.append(f"{run}: the child of call {call} has ended {times} times")
    return found


def of_failure(run: str, events: Sequence[Event], allowed: Collection[str]) -> list[str]:
    """A run fails for a reason of its own, never because something of the farm died."""
    for event in events:
        why = (event["body"] or {}).get("error", {}) if event["kind"] == "run.failed" else {}
        if why and why.get("type") not in allowed:
            return [f"{run}: failed, and nobody asked for it: {why.get('type')}: {why.get('message')}"]
    return []


def of_world(
    requests: Sequence[Mapping[str, Any]], runs: Mapping[str, Sequence[Event]], calls: Mapping[str, str]
) -> list[str]:
    """Compare what reached the world with what the record allowed.

    Args:
        requests: {name, key} of every request.  runs: events by run.  calls: the run of every name.
    """
    found = []
    reached, keys = Counter(str(one["name"]) for one in requests), defaultdict(set)
    for one in requests:
        keys[str(one["name"])].add(one["key"])
    for name, times in sorted(reached.items()):
        if name not in calls:
            found.append(f"{name}: reached the world, and no run asked for it")
            continue
        run = calls[name]
        started = [e for e in runs.get(run, ()) if e["kind"] == "tool.started" and e["body"]["key"] in keys[name]]
        allowed = len(started)
        if len(keys[name]) != 1:
            found.append(f"{name} of {run}: came under {len(keys[name])} keys")
        if times > allowed:
            found.append(f"{name} of {run}: reached the world {times} times, the record knows of {allowed}")
        if started and started[0]["body"]["effect"] == "once" and times > 1 + _denied(runs[run], started[0]["call"]):
            found.append(f"{name} of {run}: a once effect happened {times} times")
    came = {one["key"] for one in requests}
    for run in sorted({run for run in calls.values() if run}):
        found += [
            f"{run}: its call {call} has succeeded, and did not reach the world"
            for call in _made_up(runs.get(run, ()), came)
        ]
    return found


def _made_up(events: Sequence[Event], came: Collection[Any]) -> list[str]:
    """Return the calls of tools that reach the world which have succeeded without that. Else a trial whose tools reach nothing would pass."""
    keys = {
        event["call"]: event["body"]["key"]
        for event in events
        if event["kind"] == "tool.started" and event["body"].get("tool") in REACHING
    }
    done = {event["call"] for event in events if event["kind"] == "tool.succeeded"}
    return sorted(call for call in done & keys.keys() if keys[call] not in came)


def _denied(events: Sequence[Event], call: Any) -> int:
    """Return how often a person, or the tool's probe, said of a call that it did not happen."""
    said = {"tool.resolved": "decision", "tool.probed": "answer"}
    mine = [event for event in events if event["call"] == call and event["kind"] in said]
    return sum(event["body"].get(said[event["kind"]]) == "not_happened" for event in mine)
