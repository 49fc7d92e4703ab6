"""What speaks for and against a machine as a microserver, and what follows from it. Pure: helper/probe.py has looked.

`microserver add` shows it before anything is installed, `agentfarm doctor` again at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..demands import DEFAULT_MEMORY

MIB, GIB = 2**20, 2**30
LEAST_PYTHON, LEAST_HELPER_PYTHON, LEAST_SYSTEMD = (3, 10), (3, 9), 247
ARCHITECTURES = ("x86_64", "aarch64")  # those that the packages have wheels for
SMALLEST = 384 * MIB  # a server and one kernel
ENVIRONMENT = 1200 * MIB  # two releases beside each other
MAPS = FILES = 1_048_576  # QuestDB's manual
OFFSET_SECONDS = 1.0
SESSIONS = 10


@dataclass(frozen=True)
class Finding:
    """`warn`: it works, with less; `fail`: it does not work, or would lose something."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    hint: str = ""


def judge(seen: Mapping[str, Any], offset: float, joined: bool = False) -> list[Finding]:
    """Return a finding for each check. offset: its clock's seconds ahead of ours; joined: it is a microserver already."""
    python = _programs if joined else _python
    parts = (_system, _walls, python, _cpu, _memory, _disks, _sshd, _kernel, _hardware)
    return [*(finding for part in parts for finding in part(seen)), _clock(offset)]


def ahead(before: float, theirs: float, after: float) -> float:
    """Return by how many seconds a clock is ahead of ours at least, which said `theirs` between two moments of ours; 0 where it may be right."""
    return max(0.0, theirs - after) + min(0.0, theirs - before)


def _system(seen: Mapping[str, Any]) -> Iterator[Finding]:
    version = seen["systemd"]
    name = seen.get("system") or "Linux"
    if not version:
        yield Finding(
            "systemd",
            "fail",
            f"{name}: systemd does not run there",
            "a microserver's servers are systemd units: take another system",
        )
    elif version < LEAST_SYSTEMD:
        yield Finding(
            "systemd",
            "fail",
            f"{name}: systemd {version}",
            f"its limits are known to hold from {LEAST_SYSTEMD} on: upgrade the system",
        )
    else:
        yield Finding("systemd", "ok", f"{name}, systemd {version}")
    if seen["cgroup"] == 1:
        yield Finding(
            "cgroups", "warn", "version 1: limits hold; that memory runs short cannot be seen beforehand (PSI)",
            "boot it with systemd.unified_cgroup_hierarchy=1",
        )  # fmt: skip
    else:
        yield Finding("cgroups", "ok", "version 2")
    if seen["missing"]:
        yield Finding(
            "programs",
            "fail",
            "not there: " + ", ".join(seen["missing"]),
            "install them: systemd and passwd (shadow-utils)",
        )


def _walls(seen: Mapping[str, Any]) -> Iterator[Finding]:
    if seen["nft"]:
        yield Finding("walls", "ok", "nft is there: agents' servers reach what they may and nothing else")
    else:
        yield Finding(
            "walls",
            "warn",
            "nft is not installed: agents' servers there reach whatever that machine reaches",
            "apt-get install nftables",
        )


def _python(seen: Mapping[str, Any]) -> Iterator[Finding]:
    version, helper = tuple(seen["python"]), tuple(seen["helper_python"])
    shown = ".".join(map(str, version))
    if version[:2] < LEAST_PYTHON:
        yield Finding(
            "python",
            "fail",
            f"Python {shown}; servers need 3.10 or newer",
            "install one beside it, e.g. apt-get install python3.11",
        )
    elif not seen["venv"]:
        yield Finding("python", "fail", f"Python {shown} without the module venv", "apt-get install python3-venv")
    elif helper < LEAST_HELPER_PYTHON:
        there = "not there" if not helper else ".".join(map(str, helper))
        yield Finding(
            "python", "fail", f"/usr/bin/python3 is {there}; the helper needs 3.9 or newer", "apt-get install python3"
        )
    else:
        yield Finding("python", "ok", f"{shown} at {seen['executable']}")


def _programs(seen: Mapping[str, Any]) -> Iterator[Finding]:
    version = tuple(seen["venv_python"])
    if version < LEAST_PYTHON:
        yield Finding(
            "python", "fail", "the servers' programs are not there", "add it again: agentfarm microserver add"
        )
    else:
        yield Finding("python", "ok", f"servers run with Python {'.'.join(map(str, version))}")


def _cpu(seen: Mapping[str, Any]) -> Iterator[Finding]:
    arch = seen["arch"]
    if arch not in ARCHITECTURES or not seen["libc"].startswith("glibc-"):
        yield Finding(
            "cpu",
            "fail",
            f"{arch}, {seen['libc'] or 'no glibc'}",
            "packages are there for x86_64 and aarch64 with glibc",
        )
    elif arch == "x86_64" and "avx2" not in seen["flags"]:
        yield Finding(
            "cpu", "warn", "no AVX2: the embedded model, DuckDB 2 and the usual build of Polars end there with an illegal instruction",
            "agents that need them ask for it: agentfarm agent resources AGENT --flag avx2",
        )  # fmt: skip
    else:
        yield Finding("cpu", "ok", f"{seen['cpus']} cores, {arch}" + (" with AVX2" if arch == "x86_64" else ""))


def _memory(seen: Mapping[str, Any]) -> Iterator[Finding]:
    size = seen["memory"]
    for_servers, promise = size - min(size // 10, GIB), DEFAULT_MEMORY // MIB
    servers, less = int(for_servers // DEFAULT_MEMORY), "agentfarm placement settings --memory 384MiB, or add memory"
    found = f"{size // MIB} MiB: room for {servers} server{'' if servers == 1 else 's'} of {promise} MiB"
    if for_servers < SMALLEST:
        yield Finding("memory", "fail", f"{size // MIB} MiB", "not one server fits there: it needs 1 GiB, better 4")
    elif not servers:
        found = f"{size // MIB} MiB: too little for the {promise} MiB that a server is promised: none will go there"
        yield Finding("memory", "warn", found, f"promise servers less: {less}")
    elif size < 2 * GIB:
        yield Finding("memory", "warn", found, f"for more of them promise them less: {less}")
    else:
        yield Finding("memory", "ok", found)


def _disks(seen: Mapping[str, Any]) -> Iterator[Finding]:
    opt, lib = seen["disks"]["/opt"], seen["disks"]["/var/lib"]
    if opt["free"] < ENVIRONMENT:
        yield Finding(
            "disk",
            "fail",
            f"{opt['free'] // MIB} MiB free at /opt",
            f"programs take up to {ENVIRONMENT // MIB} MiB: free some space",
        )
    elif lib["free"] < max(5 * GIB, lib["total"] // 20):
        yield Finding(
            "disk",
            "warn",
            f"{lib['free'] // MIB} MiB free at /var/lib",
            "agents' files are there: little room for them",
        )
    else:
        yield Finding("disk", "ok", f"{lib['free'] // GIB} GiB free of {lib['total'] // GIB} for workspaces")


def _sshd(seen: Mapping[str, Any]) -> Iterator[Finding]:
    said = seen["sshd"]
    if not said:
        yield Finding(
            "sshd",
            "warn",
            "its settings cannot be read",
            "it must let root sign in with a key, and forward ports and sockets",
        )
        return
    wrong = []
    if said.get("permitrootlogin") == "no":
        wrong.append("PermitRootLogin forced-commands-only")
    if said.get("pubkeyauthentication") == "no":
        wrong.append("PubkeyAuthentication yes")
    if said.get("disableforwarding") == "yes":
        wrong.append("DisableForwarding no")
    if said.get("allowtcpforwarding", "yes") not in ("yes", "all"):
        wrong.append("AllowTcpForwarding yes")
    if said.get("allowstreamlocalforwarding", "yes") not in ("yes", "all"):
        wrong.append("AllowStreamLocalForwarding yes")
    if ".ssh/authorized_keys" not in said.get("authorizedkeysfile", ".ssh/authorized_keys"):
        wrong.append("AuthorizedKeysFile .ssh/authorized_keys")
    if wrong:
        found = f"it forbids what the farm needs ({', '.join(line.split()[0] for line in wrong)})"
        yield Finding(
            "sshd",
            "fail",
            found,
            f"write into /etc/ssh/sshd_config.d/10-agentfarm.conf: {'; '.join(wrong)}; then systemctl reload ssh",
        )
    elif int(said.get("maxsessions", SESSIONS)) < SESSIONS:
        yield Finding(
            "sshd",
            "warn",
            f"MaxSessions {said['maxsessions']}: the farm asks up to 8 things at once",
            f"MaxSessions {SESSIONS}",
        )
    else:
        yield Finding("sshd", "ok", "root's key and forwarding are allowed")


def _kernel(seen: Mapping[str, Any]) -> Iterator[Finding]:
    wrong, hints = [], []
    if seen["max_map_count"] < MAPS:
        wrong.append(f"vm.max_map_count is {seen['max_map_count']}")
        hints.append(f"echo vm.max_map_count={MAPS} > /etc/sysctl.d/60-agentfarm.conf && sysctl --system")
    if seen["nofile"] < FILES:
        wrong.append(f"services may open {seen['nofile']} files")
        hints.append(f"DefaultLimitNOFILE={FILES} in /etc/systemd/system.conf.d/agentfarm.conf")
    if wrong:
        yield Finding(
            "kernel",
            "warn",
            f"{', '.join(wrong)}: too few for a QuestDB with many tables; agents do without",
            "; ".join(hints),
        )
    else:
        yield Finding("kernel", "ok", "its limits are wide enough for QuestDB")


def _hardware(seen: Mapping[str, Any]) -> Iterator[Finding]:
    smart, ecc = seen["smart"], seen["ecc"]
    bad = [name for name, one in smart.get("disks", {}).items() if not one["passed"]]
    if bad:
        yield Finding(
            "disks",
            "warn",
            f"{', '.join(bad)}: the disk itself says that it is failing (SMART)",
            "replace it before files are there",
        )
    elif "disks" in smart:
        yield Finding("disks", "ok", f"{', '.join(smart['disks'])}: healthy by their own word (SMART)")
    else:
        hint = "apt-get install smartmontools" if "not installed" in smart["reason"] else ""
        yield Finding(
            "disks", "warn" if hint else "ok", f"their own word (SMART) is not known: {smart['reason']}", hint
        )
    if ecc["uncorrected"]:
        yield Finding(
            "ecc",
            "warn",
            f"{ecc['uncorrected']} memory errors could not be corrected",
            "what it computed may be wrong: test and replace its memory",
        )
    elif ecc["corrected"]:
        yield Finding(
            "ecc",
            "warn",
            f"{ecc['corrected']} memory errors were corrected since it started",
            "a module may be failing: watch the number",
        )
    elif ecc["controllers"]:
        yield Finding("ecc", "ok", "ECC memory without an error since it started")
    else:
        yield Finding("ecc", "ok", "no ECC memory is seen: errors of memory go unnoticed")


def _clock(offset: float) -> Finding:
    if abs(offset) > OFFSET_SECONDS:
        found = f"its clock is {abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} ours: times in its logs and files are wrong"
        return Finding(
            "clock", "warn", found, "let chrony or systemd-timesyncd keep both right: timedatectl set-ntp true"
        )
    return Finding("clock", "ok", f"at most {OFFSET_SECONDS:.0f} s from ours")
