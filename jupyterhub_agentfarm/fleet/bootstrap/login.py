"""An operator's own way onto a machine: their ssh with their configuration, agent and keys; ssh itself asks for a password, sudo through us.

Only the host key is ours to judge: it is read from the network first, confirmed by the operator, and then the only one that is taken.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

from ...errors import AgentFarmError, Conflict, Invalid, StartError
from ..connection import Target
from ..helper import probe
from . import machine

KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")  # best first
SCAN_SECONDS, SIGN_IN_SECONDS, STEP_SECONDS = 10, 180.0, 900.0
CHUNK = 1 << 18
# Reads the text of a module, then one line of arguments, and calls a function of it; what follows on stdin is the function's DATA.
RUN = """
import json, sys
source = sys.stdin.buffer
names = {"__name__": "agentfarm"}
exec(compile(source.read(int(source.readline())), "agentfarm", "exec"), names)
asked = json.loads(source.readline())
names["DATA"] = source
try:
    answer = {"ok": names[asked["do"]](**asked["with"])}
except Exception as error:
    known = type(error).__name__ == "Failed"
    answer = {"error": str(error) if known else type(error).__name__ + ": " + str(error), "hint": getattr(error, "hint", "")}
print(json.dumps(answer))
"""
PYTHONS = "for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do command -v $p >/dev/null 2>&1 && $p -I -c 'import sys; print(sys.executable, *sys.version_info[:2])'; done"
# What ssh says when an operator cannot sign in. The first that fits.
REFUSED = [
    ("Host key verification failed", "its host key is another one now than a moment ago", "something stands between: compare the key at the machine itself"),
    ("Permission denied", "it does not let you in", "try: ssh {to}; or name a key: --key FILE"),
    ("Connection refused", "nothing listens on its SSH port", "is sshd installed and started there?"),
    ("Could not resolve", "its name is not known to DNS", "name its address"),
    ("timed out", "it does not answer", "see its power and network"),
    ("No route to host", "it does not answer", "see its power and network"),
]  # fmt: skip


class Source(Protocol):
    """What is sent behind a request."""

    def read(self, size: int, /) -> bytes: ...


class Machine:
    """A machine while somebody is signed in there. Use it as a context; one connection carries every step."""

    def __init__(self, to: Target, host_key: str, key: str = "") -> None:
        self.to = to
        short = None if len(tempfile.gettempdir()) < 60 else "/tmp"  # a control socket's path has little room
        self._folder = Path(tempfile.mkdtemp(prefix="agentfarm-", dir=short))
        known = self._folder / "known_hosts"
        known.write_text(f"{to.bare} {host_key}\n")  # by this name, whatever the operator's configuration makes of it
        self._ssh = [
            "ssh", "-p", str(to.port), "-l", to.user, "-o", f"HostKeyAlias={to.bare}", "-o", f"UserKnownHostsFile={known}",
            "-o", "GlobalKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no", "-o", "CheckHostIP=no",
            "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=6", "-o", "ForwardAgent=no", "-o", "ForwardX11=no",
            "-o", "ClearAllForwardings=yes", "-o", "RemoteCommand=none", "-o", "RequestTTY=no",
            "-o", "ControlMaster=auto", "-o", f"ControlPath={self._folder / 'c'}", "-o", "ControlPersist=60",
            *(["-i", key, "-o", "IdentitiesOnly=yes"] if key else []),
        ]  # fmt: skip
        self._python, self._sudo, self._password = "python3", "", b""
        self.client = ""  # our address, as that machine sees it
        self.pythons: list[list[str]] = []  # [path, major, minor]

    def __enter__(self) -> Machine:
        try:
            self._sign_in()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if (self._folder / "c").exists():
            subprocess.run([*self._ssh, "-O", "exit", self.to.bare], capture_output=True, timeout=20, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _sign_in(self) -> None:
        """Raises StartError: why one cannot sign in, or what it lacks even for the checks."""
        said = self._shell(f"id -u; echo ${{SSH_CONNECTION:-}}; {PYTHONS}; true", SIGN_IN_SECONDS).splitlines()
        uid, connection = [*said, "", ""][:2]
        if not uid.strip().isdigit():
            raise StartError(
                f"{self.to.user} cannot run commands at {self.to.bare}: {uid or 'nothing is answered'}",
                hint=f"try: ssh {self.to.user}@{self.to.bare} id; or sign in as somebody else",
            )
        self.client = connection.split(" ")[0]
        self.pythons = [line.split() for line in said[2:] if len(line.split()) == 3]
        able = [one for one in self.pythons if (int(one[1]), int(one[2])) >= (3, 10)] or self.pythons[:1]
        if not able or (int(able[0][1]), int(able[0][2])) < (3, 9):
            there = ", ".join(f"{one[1]}.{one[2]}" for one in self.pythons) or "none"
            raise StartError(
                f"{self.to.bare} needs Python 3.10 or newer; it has: {there}",
                hint="install one, e.g. apt-get install python3 python3-venv",
            )
        self._python = able[0][0]
        if uid.strip() != "0":
            self._become_root()

    def _become_root(self) -> None:
        """Find out whether sudo asks for a password, and ask for it. Raises StartError."""
        asked = self._shell(
            "command -v sudo >/dev/null || { echo none; exit; }; sudo -k -n true 2>/dev/null && echo free || echo password",
            60,
        )
        if "none" in asked:
            raise StartError(f"{self.to.user} is not root there, and there is no sudo", hint="--ssh root@…")
        self._sudo = "sudo -n "
        if "free" in asked:
            return
        self._sudo = "sudo -k -S -p '' "
        prompt = f"sudo's password of {self.to.user} at {self.to.bare}: "
        self._password = (
            getpass.getpass(prompt) if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
        ).encode() + b"\n"
        self.call(machine, "now")

    def _shell(self, words: str, seconds: float) -> str:
        """Run a shell command as whoever signs in. Raises StartError."""
        with tempfile.TemporaryFile() as told:  # a file: what stays in the background would hold a pipe open
            try:
                done = subprocess.run(
                    [*self._ssh, self.to.bare, f"exec sh -c {shlex.quote(words)}"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=told, timeout=seconds, check=False
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise StartError(
                    f"{self.to.bare} did not let {self.to.user} in within {seconds:.0f} s",
                    hint="was a password asked for, and not given? Else see its power and network",
                ) from None
            except OSError as error:
                raise StartError("ssh cannot be started here", hint="install OpenSSH's client") from error
            if done.returncode == 255:
                told.seek(0)
                raise refused(self.to, told.read().decode(errors="replace"))
        return done.stdout.decode(errors="replace")

    def examine(self) -> dict[str, Any]:
        """Return what helper/probe.py finds there."""
        return self.call(probe, "examine", client=self.client)

    def call(
        self, module: Any, do: str, *, data: Source | None = None, sent: Callable[[int], None] = lambda _: None, **arguments: Any
    ) -> dict[str, Any]:  # fmt: skip
        """Run a function of machine.py or probe.py there as root. data: what it reads; sent: told of the bytes under way. Raises StartError."""
        text = Path(module.__file__).read_bytes()
        head = (
            self._password
            + f"{len(text)}\n".encode()
            + text
            + json.dumps({"do": do, "with": arguments}).encode()
            + b"\n"
        )
        words = f"{self._sudo}{self._python} -I -c {shlex.quote(RUN)}"
        with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as out:
            process = subprocess.Popen(
                [*self._ssh, self.to.bare, words], stdin=subprocess.PIPE, stdout=out, stderr=told
            )
            assert process.stdin is not None
            try:
                _pour(process.stdin, head, data, sent)
                code = process.wait(STEP_SECONDS)
            except subprocess.TimeoutExpired:
                raise StartError(
                    f"{self.to.bare} does not come to an end with: {do}", hint="see its load and disk"
                ) from None
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            out.seek(0)
            told.seek(0)
            return self._answer(out.read(), told.read().decode(errors="replace"), code)

    def _answer(self, out: bytes, told: str, code: int) -> dict[str, Any]:
        try:
            answer = json.loads(out.splitlines()[-1])
        except (ValueError, IndexError):
            if code == 255:
                raise refused(self.to, told) from None
            if self._sudo and ("password" in told or "sudo" in told):
                raise StartError(
                    f"sudo at {self.to.bare} does not let {self.to.user} become root", hint=_last(told)
                ) from None
            raise StartError(
                f"{self.to.bare}: {_last(told)}", hint="the same command again goes on from there"
            ) from None
        if "error" in answer:
            raise StartError(f"{self.to.bare}: {answer['error']}", hint=str(answer.get("hint", "")))
        found: dict[str, Any] = answer["ok"]
        return found


def _pour(sink: IO[bytes], head: bytes, data: Source | None, sent: Callable[[int], None]) -> None:
    """Write all of it; a reader that has ended says why itself."""
    try:
        sink.write(head)
        while data is not None and (block := data.read(CHUNK)):
            sink.write(block)
            sent(len(block))
        sink.close()
    except BrokenPipeError:
        pass


def _last(said: str) -> str:
    return (said.strip().splitlines() or ["it said nothing"])[-1][:300]


def refused(to: Target, said: str) -> AgentFarmError:
    for sign, detail, hint in REFUSED:
        if sign.lower() in said.lower():
            return StartError(f"{to.bare}: {detail}", hint=hint.format(to=to))
    return StartError(f"{to.bare}: {_last(said)}", hint=f"try: ssh {to}")


# -- whom we speak to --------------------------------------------------------------------------------------------

# What the machine itself prints of each of its keys: nobody stands between there.
COMPARE = (
    "compare it with what the machine itself says: for f in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $f; done"
)


def host_keys(to: Target) -> list[str]:
    """Return the host's public keys ("ssh-ed25519 AAAA…") as the network tells them, the best kind first. Raises StartError."""
    try:
        said = subprocess.run(
            ["ssh-keyscan", "-T", str(SCAN_SECONDS), "-p", str(to.port), "--", to.bare], capture_output=True, text=True, timeout=60, check=False
        )  # fmt: skip
    except OSError as error:
        raise StartError("ssh-keyscan cannot be started here", hint="install OpenSSH's client") from error
    except subprocess.TimeoutExpired:
        said = None
    found = (
        [line.split(" ", 1)[1] for line in said.stdout.splitlines() if line and not line.startswith("#")]
        if said
        else []
    )
    keys = sorted((key for key in found if key.split()[0] in KINDS), key=lambda key: KINDS.index(key.split()[0]))
    if not keys:
        told = said.stderr.lower() if said else ""
        if "getaddrinfo" in told or "name or service" in told:
            raise StartError(
                f"{to.bare}: its name is not known to DNS", hint="is it written right? Else name its address"
            )
        why = "nothing listens there" if "refused" in told else "it does not answer"
        raise StartError(
            f"{to.bare} shows no host key at port {to.port}: {why}",
            hint="are address and port right? See its power and network; is sshd started there?",
        )
    return keys


def fingerprint(key: str) -> str:
    """Return a key's fingerprint as ssh-keygen -lf prints it."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def confirmed(keys: list[str], known: list[str], said: str, ask: Callable[[str], bool]) -> str:
    """Return the host key that is to be trusted: the one that the farm knows, that the operator names (`said`), or says yes to.

    Raises Conflict: it is another one. Invalid: the operator said no.
    """
    shown = ", ".join(f"{key.split()[0]} {fingerprint(key)}" for key in keys)
    if said:
        wanted = said if said.startswith("SHA256:") else f"SHA256:{said}"
        for key in keys:
            if fingerprint(key) == wanted:
                return key
        raise Conflict(
            f"its host key is not {wanted}; it shows {shown}",
            hint="something stands between, or it was installed anew: compare at the machine itself",
        )
    for key in keys:
        if key in known:
            return key
    if known:
        raise Conflict(
            f"its host key is not the one that the farm knows; it shows {shown}",
            hint=f"{COMPARE}; then again with --host-key FINGERPRINT",
        )
    if not ask(f"it shows the host key {keys[0].split()[0]} {fingerprint(keys[0])}"):
        raise Invalid("the host key was not confirmed: nothing was done", hint=COMPARE)
    return keys[0]
