"""`agentfarm microserver add|remove`: a machine joins the farm, or leaves it.

Signing in and installing is done from here, by the operator's own right to (their ssh, their sudo); the farm is asked only for its public key,
and told the result. The farm's own key can do no more there than ask the helper.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from agentfarm_sdk.errors import Conflict, Invalid, NotFound
from agentfarm_sdk.farm import Farm

from ..demands import Labels
from ..errors import StartError
from ..fleet.bootstrap import machine, steps
from ..fleet.bootstrap.login import COMPARE, Machine, confirmed, host_keys
from ..fleet.connection import Target, once_only, target
from ..fleet.findings import Finding
from ..fleet.zipped import helper_version
from ..records import microserver_name
from .show import Adder, Out
from .sizes import pairs, shown_size


def add(verb: Adder) -> None:
    parser = verb(
        "add", add_microserver, "check a machine, install what it needs, and let it take servers; again is harmless"
    )
    parser.add_argument("name", help="what the farm calls it")
    parser.add_argument(
        "--ssh", metavar="USER@HOST[:PORT]", help="how you sign in there: as root, or as somebody who may use sudo"
    )
    parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE", help="what servers can ask for")
    signing_in(parser)
    parser = verb(
        "remove", remove_microserver, "take a machine out of the farm, and off it all that the farm put there"
    )
    parser.add_argument("name")
    parser.add_argument("--ssh", metavar="USER@HOST[:PORT]", help="how you sign in there, if not as when it was added")
    parser.add_argument(
        "--delete-workspaces", action="store_true", help="agents' files there as well; else they are left"
    )
    parser.add_argument(
        "--force", action="store_true", help="also while servers run or workspaces live there: servers are ended"
    )
    parser.add_argument("--gone", action="store_true", help="the machine is not reached any more: only forget it")
    signing_in(parser)


def signing_in(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key",
        metavar="FILE",
        default="",
        type=_key,
        help="the private key that you sign in with (else as ssh finds it)",
    )
    parser.add_argument(
        "--host-key",
        metavar="FINGERPRINT",
        default="",
        help="its host key's, as ssh-keygen -l prints it (SHA256:…): nothing is asked",
    )
    parser.add_argument(
        "--yes", action="store_true", help="do not ask: a host key that is new is taken as the network shows it"
    )


def _key(file: str) -> str:
    if file and not Path(file).expanduser().is_file():
        raise argparse.ArgumentTypeError(f"there is no file {file}")
    return file


@contextlib.contextmanager
def going_on() -> Iterator[None]:
    """Say at a Ctrl-C how to go on: every step is looked for first."""
    try:
        yield
    except KeyboardInterrupt:
        print(file=sys.stderr)
        say("broken off; the same command goes on from there")
        raise


def say(text: str) -> None:
    """Tell of the way, beside the answer."""
    print(f"  {text}", file=sys.stderr, flush=True)


def show(findings: list[Finding]) -> None:
    for one in findings:
        print(
            f"  {one.state:<5} {one.name:<9} {one.found}" + (f"\n{'':18} {one.hint}" if one.hint else ""),
            file=sys.stderr,
        )


def add_microserver(farm: Farm, asked: argparse.Namespace, out: Out) -> int:
    microserver_name(asked.name)  # what the farm would refuse in the end is refused before anything is done
    labels = _labels(asked.label)
    needs = joining(farm)
    known = needs["microservers"].get(asked.name, {})
    to = login_of(asked, asked.name, known)
    host_key = host_key_of(asked, to, known)
    once_only(asked.name, to, [host_key], needs["microservers"])
    say(f"signing in as {to}")
    with going_on(), Machine(to, host_key, asked.key) as there:
        seen, findings = steps.look(there)
        show(findings)
        steps.stop_at(findings)
        joined = steps.join(there, seen, needs["public_key"], say)
    say("telling the farm")
    entry = {
        "ssh": str(Target("root", to.host, to.port)), "login": str(to), "host_keys": [host_key], "measured": joined.measured,
        **({"labels": labels} if labels else {}),
    }  # fmt: skip
    now = farm.request("PUT", f"/microservers/{quote(asked.name, safe='')}", entry)
    if now["silent"]:
        raise StartError(
            f"all is installed, but the farm does not reach {asked.name}: {now['silent']}",
            hint="agentfarm doctor; then the same command again",
        )
    if out.as_json:
        out.value({**now, "findings": [vars(one) for one in findings], "environment": joined.environment})
        return 0
    has = f"{now['cpus']} cores, {shown_size(now['memory'])}, {measured(joined.measured)}"
    out.line(f"{asked.name} is {now['state']}{'' if joined.changed else ', as before'}: {has}")
    return 0


def _labels(named: list[str]) -> dict[str, str]:
    """Return what --label says. Raises Invalid."""
    found = pairs(named, "--label")
    try:
        return msgspec.convert(found, Labels)
    except msgspec.ValidationError:
        hint = "letters, digits and ._/- in names; in values also :, + and spaces; 63 characters at most"
        raise Invalid(f"--label {' '.join(named)}: these are no labels", hint=hint) from None


def measured(figures: Mapping[str, float]) -> str:
    """Return in words what was measured when a machine joined."""
    told = {
        "disk_write": f"writes {shown_size(int(figures.get('disk_write', 0)))} a second",
        "fsync": f"a durable write takes {figures.get('fsync', 0) * 1000:.1f} ms",
        "cpu": f"a fixed piece of Python takes {figures.get('cpu', 0) * 1000:.0f} ms",
    }
    return ", ".join(words for name, words in told.items() if name in figures)


def joining(farm: Farm) -> dict[str, Any]:
    """Return what a machine needs that joins. Raises Conflict: this agentfarm is another release than the farm."""
    needs: dict[str, Any] = farm.request("GET", "/joining")
    if needs["helper"] != helper_version():
        raise Conflict(
            "this agentfarm is another release than the farm's",
            hint="use the one of the machine that the farm runs on; was that updated, then start the farm anew first",
        )
    return needs


def login_of(asked: argparse.Namespace, name: str, known: dict[str, Any]) -> Target:
    text = getattr(asked, "ssh", None) or known.get("login") or known.get("ssh")
    if not text:
        raise Invalid(f"how is {name} reached?", hint="--ssh USER@HOST")
    return target(text)


def host_key_of(asked: argparse.Namespace, to: Target, known: dict[str, Any]) -> str:
    """Return the host key that is trusted from now on. Raises Conflict, Invalid, StartError."""
    same = known and target(known["ssh"]).known_as == to.known_as
    return confirmed(
        host_keys(to), known["host_keys"] if same else [], asked.host_key, lambda question: _yes(asked, question)
    )


def _yes(asked: argparse.Namespace, shown: str) -> bool:
    if asked.yes:
        say(f"{shown}: taken as it is (--yes)")
        return True
    if not sys.stdin.isatty():
        raise Invalid(
            shown, hint="there is no terminal to ask at: confirm it by --host-key FINGERPRINT, or take it by --yes"
        )
    say(shown)
    say(COMPARE)
    print("  is it the same? [yes/no] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def remove_microserver(farm: Farm, asked: argparse.Namespace, out: Out) -> int:
    needs = joining(farm)
    known, path = needs["microservers"].get(asked.name), f"/microservers/{quote(asked.name, safe='')}"
    if known is None and not asked.ssh:
        raise NotFound(
            f"there is no microserver {asked.name} that could be removed",
            hint="what is left on a machine goes by: --ssh USER@HOST",
        )
    left: list[str] = []
    if known is not None and not (asked.gone or asked.force or asked.delete_workspaces):
        _empty(farm, asked.name, path)

    def begin() -> None:
        if known is not None:
            farm.request("POST", f"{path}/cordon", {"reason": "it is being removed"})

    if not asked.gone:
        try:
            left = _clear(asked, needs, known or {}, begin)
        except StartError as error:
            error.hint += f"\n  if it never comes back: agentfarm microserver remove {asked.name} --gone"
            raise
    if known is not None:
        farm.request("DELETE", path, params={"force": "true"})  # nothing runs there any more, or nobody can know
    told = [f"{asked.name} is removed", *(f"left there: {what}" for what in left)]
    if asked.gone:
        told.append("what the farm put on that machine is still there")
    out.line("\n".join(told), {"name": asked.name, "left": left})
    return 0


def _empty(farm: Farm, name: str, path: str) -> None:
    """Raises Conflict: workspaces have their home there, and whoever begins elsewhere begins without them."""
    there = farm.request("POST", f"{path}/drain", {"dry_run": True})["items"]
    live = [one["user"] for one in there if not one.get("scratch")]  # else it merely runs there, away from its files
    if live:
        raise Conflict(
            f"workspaces live on {name}: {_some(live)}",
            hint=f"agentfarm microserver drain {name} takes them elsewhere; --force leaves them there, and who had them begins without",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _clear(
    asked: argparse.Namespace, needs: dict[str, Any], known: dict[str, Any], begin: Callable[[], None]
) -> list[str]:
    """Take the farm off a machine; return what stays there. `begin` is called once it is reached. Raises Conflict: servers run there."""
    to = login_of(asked, asked.name, known)
    host_key = host_key_of(asked, to, known)
    say(f"signing in as {to}")
    with going_on(), Machine(to, host_key, asked.key) as there:
        begin()
        say("removing units, users, programs and the farm's key")
        done = there.call(
            machine,
            "leave",
            key=needs["public_key"],
            farm=needs["farm"],
            workspaces=asked.delete_workspaces,
            force=asked.force,
        )
    if done["running"]:
        raise Conflict(
            f"servers run on {asked.name}: {_some(done['running'])}",
            hint="it takes nothing new; stop them (agentfarm agent stop …), or end them by --force",
        )  # fmt: skip
    return list(done["left"])
