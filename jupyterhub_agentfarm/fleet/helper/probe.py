"""What a machine must have to be a microserver, as it is found: looked up, not judged (fleet/findings.py does), nothing changed.

`microserver add` sends this file's text to a machine on which nothing is installed yet; the helper answers `examine` with it. So it stands
alone: standard library, Python 3.9. Called as root; what only root may read is left out for others.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NEEDED = ("systemctl", "systemd-run", "journalctl", "useradd", "userdel")
VENV_PYTHON = "/opt/agentfarm/venv/bin/python"
FOLDERS = ("/opt", "/var/lib")  # programs · workspaces
NO_DISKS = ("loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd")


def examine(client: str = "") -> dict[str, Any]:
    """Return what is there. Bytes; `client`: the address of who signs in, for sshd's rules that depend on it."""
    memory = {line.partition(":")[0]: line.split() for line in Path("/proc/meminfo").read_text().splitlines()}
    return {
        "arch": platform.machine(), "libc": _libc(), "flags": flags(), "memory": int(memory["MemTotal"][1]) * 1024,
        "disks": {folder: _disk(folder) for folder in FOLDERS}, "cpus": os.cpu_count() or 1, "root": os.geteuid() == 0,
        "systemd": _systemd(), "cgroup": 2 if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else 1,
        "missing": [program for program in NEEDED if shutil.which(program, path=PATH) is None],
        "nft": shutil.which("nft", path=PATH) is not None, "python": list(sys.version_info[:3]), "executable": sys.executable, "venv": _has_venv(), "helper_python": _version("/usr/bin/python3"), "venv_python": _version(VENV_PYTHON),
        "sshd": _sshd(client), "max_map_count": _number("/proc/sys/vm/max_map_count"), "nofile": _nofile(),
        "smart": _smart(), "ecc": _ecc(), "system": _system(),
    }  # fmt: skip


def _run(*words: str, seconds: float = 15.0) -> subprocess.CompletedProcess[str] | None:
    """Run a program of the system; None where it is not there, or does not answer."""
    try:
        return subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=seconds, check=False, stdin=subprocess.DEVNULL,
            env={"PATH": PATH, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None


def flags() -> list[str]:
    """Return what the CPU can do, as the kernel names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "").partition(":")[2].split()


def _libc() -> str:
    """Return the C library that is there, e.g. glibc-2.35; "" for another one. platform.libc_ver() tells what a program asks for at least."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").replace(" ", "-")
    except (OSError, ValueError):
        return ""


def _disk(folder: str) -> dict[str, int]:
    where = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    usage = shutil.disk_usage(where)
    return {"total": usage.total, "free": usage.free}


def _systemd() -> int:
    """Return systemd's version; 0 where it does not run."""
    said = _run("systemctl", "--version") if os.path.isdir("/run/systemd/system") else None
    words = said.stdout.split() if said is not None else []
    digits = words[1].split("~")[0].split(".")[0] if len(words) > 1 else ""
    return int(digits) if digits.isdigit() else 0


def _has_venv() -> bool:
    try:
        import venv  # noqa: F401
    except ImportError:
        return False
    return True


def _version(python: str) -> list[int]:
    """Return a Python's version; [] where there is none."""
    said = _run(python, "-I", "-c", "import sys; print(*sys.version_info[:2])")
    return [int(part) for part in said.stdout.split()] if said is not None and said.returncode == 0 else []


def _sshd(client: str) -> dict[str, str]:
    """Return sshd's settings as they are for root's login from there; {} where they cannot be read."""
    address = client or (os.environ.get("SSH_CONNECTION", "").split() or ["127.0.0.1"])[0]
    program = shutil.which("sshd", path=PATH)
    said = _run(program, "-T", "-C", f"user=root,host={address},addr={address}") if program else None
    if said is None or said.returncode != 0:
        return {}
    pairs = (line.partition(" ") for line in said.stdout.splitlines())
    return {name.lower(): value.strip() for name, _, value in pairs}


def _number(path: str) -> int:
    try:
        return int(Path(path).read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _nofile() -> int:
    """Return how many files a service may open at most: systemd's default, else our own limit."""
    said = _run("systemctl", "show", "--property=DefaultLimitNOFILE", "--value")
    text = said.stdout.strip() if said is not None else ""
    if text == "infinity":
        return 2**62
    return int(text) if text.isdigit() else resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _smart() -> dict[str, Any]:
    """Return {reason} where disks cannot be asked, else {disks: {device: {passed, model}}}."""
    if os.geteuid() != 0:
        return {"reason": "only root may ask the disks"}
    if shutil.which("smartctl", path=PATH) is None:
        return {"reason": "smartctl is not installed"}
    found: dict[str, Any] = {}
    for name in sorted(os.listdir("/sys/block")) if os.path.isdir("/sys/block") else []:
        if name.startswith(NO_DISKS):
            continue
        said = _run("smartctl", "-H", "-i", "-j", f"/dev/{name}")
        try:
            answer = json.loads(said.stdout if said is not None else "")
        except ValueError:
            continue
        if isinstance(answer, dict) and isinstance(answer.get("smart_status"), dict):
            found[name] = {
                "passed": bool(answer["smart_status"].get("passed")),
                "model": str(answer.get("model_name", "")),
            }
    return {"disks": found} if found else {"reason": "no disk here answers (a virtual machine's do not)"}


def _ecc() -> dict[str, int]:
    """Return how many memory controllers with ECC there are, and how many errors they have counted."""
    controllers = sorted(Path("/sys/devices/system/edac/mc").glob("mc[0-9]*"))
    return {
        "controllers": len(controllers),
        "corrected": sum(_number(str(one / "ce_count")) for one in controllers),
        "uncorrected": sum(_number(str(one / "ue_count")) for one in controllers),
    }


def _system() -> str:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return ""
    known = dict(line.split("=", 1) for line in lines if "=" in line)
    return known.get("PRETTY_NAME", "").strip('"')
