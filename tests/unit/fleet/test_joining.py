"""Machines that join: what speaks against one, whose host key is trusted, which packages it gets, and what stands in its authorized_keys."""

from __future__ import annotations

import base64
import gzip
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.errors import Conflict, Invalid, StartError
from jupyterhub_agentfarm.fleet.bootstrap import environment, machine
from jupyterhub_agentfarm.fleet.bootstrap.environment import Kind, kind_of, lock, programs, wanted
from jupyterhub_agentfarm.fleet.bootstrap.login import confirmed, fingerprint
from jupyterhub_agentfarm.fleet.bootstrap.steps import Chain, stop_at
from jupyterhub_agentfarm.fleet.findings import ahead, judge
from jupyterhub_agentfarm.fleet.helper.probe import examine

GIB = 2**30
GOOD: dict[str, Any] = {
    "arch": "x86_64", "libc": "glibc-2.35", "flags": ["avx2"], "memory": 16 * GIB, "cpus": 4, "root": True, "systemd": 249, "cgroup": 2, "missing": [], "nft": True,
    "disks": {"/opt": {"total": 100 * GIB, "free": 50 * GIB}, "/var/lib": {"total": 100 * GIB, "free": 50 * GIB}}, "python": [3, 10, 12],
    "executable": "/usr/bin/python3", "venv": True, "helper_python": [3, 10], "venv_python": [], "max_map_count": 1_048_576, "nofile": 1_048_576,
    "sshd": {"permitrootlogin": "prohibit-password", "allowtcpforwarding": "yes", "maxsessions": "10"}, "smart": {"disks": {"sda": {"passed": True}}},
    "ecc": {"controllers": 1, "corrected": 0, "uncorrected": 0}, "system": "Ubuntu 22.04.5 LTS",
}  # fmt: skip


def test_a_machine_as_it_should_be_passes_every_check() -> None:
    assert {one.state for one in judge(GOOD, 0.0)} == {"ok"}


@pytest.mark.parametrize(
    ("change", "name", "state", "word"),
    [
        ({"flags": ["avx"]}, "cpu", "warn", "no AVX2"),
        ({"arch": "riscv64"}, "cpu", "fail", "riscv64"),
        ({"memory": 600 * 2**20}, "memory", "warn", "none will go there"),
        ({"memory": 1600 * 2**20}, "memory", "warn", "1 server of 1024"),
        ({"memory": 400 * 2**20}, "memory", "fail", "400 MiB"),
        ({"disks": {**GOOD["disks"], "/opt": {"total": GIB, "free": GIB // 2}}}, "disk", "fail", "at /opt"),
        ({"disks": {**GOOD["disks"], "/var/lib": {"total": 9 * GIB, "free": GIB}}}, "disk", "warn", "at /var/lib"),
        ({"systemd": 0}, "systemd", "fail", "does not run"),
        ({"systemd": 245}, "systemd", "fail", "systemd 245"),
        ({"cgroup": 1}, "cgroups", "warn", "version 1"),
        ({"missing": ["useradd"]}, "programs", "fail", "useradd"),
        ({"nft": False}, "walls", "warn", "whatever that machine reaches"),
        ({"python": [3, 9, 2]}, "python", "fail", "3.9.2"),
        ({"venv": False}, "python", "fail", "venv"),
        ({"helper_python": [3, 6]}, "python", "fail", "/usr/bin/python3 is 3.6"),
        ({"sshd": {"permitrootlogin": "no", "allowtcpforwarding": "local"}}, "sshd", "fail", "PermitRootLogin, AllowTcpForwarding"),
        ({"sshd": {"maxsessions": "2"}}, "sshd", "warn", "MaxSessions 2"),
        ({"sshd": {}}, "sshd", "warn", "cannot be read"),
        ({"max_map_count": 65530}, "kernel", "warn", "65530"),
        ({"nofile": 524288}, "kernel", "warn", "524288"),
        ({"smart": {"disks": {"sda": {"passed": False}}}}, "disks", "warn", "sda"),
        ({"smart": {"reason": "smartctl is not installed"}}, "disks", "warn", "not installed"),
        ({"ecc": {"controllers": 1, "corrected": 3, "uncorrected": 0}}, "ecc", "warn", "3 memory errors were corrected"),
        ({"ecc": {"controllers": 1, "corrected": 3, "uncorrected": 1}}, "ecc", "warn", "could not be corrected"),
    ],
)  # fmt: skip
def test_what_a_machine_lacks_is_said_with_what_follows(change: Any, name: str, state: str, word: str) -> None:
    (found,) = [one for one in judge({**GOOD, **change}, 0.0) if one.name == name]
    assert found.state == state and word in found.found and (found.hint or state == "ok")
    if state == "fail":
        with pytest.raises(StartError, match=name):
            stop_at([found])


@given(st.floats(-1e6, 1e6), st.floats(0, 100), st.floats(0, 1))
def test_a_clock_is_said_to_be_wrong_only_by_what_the_way_there_does_not_explain(
    offset: float, way: float, share: float
) -> None:
    before = 1_000_000.0
    found = ahead(before, before + way * share + offset, before + way)
    assert abs(found) <= abs(offset) + 1e-6 and found * offset >= 0
    assert abs(found - offset) <= way + 1e-6
    (clock,) = [one for one in judge(GOOD, found) if one.name == "clock"]
    assert clock.state == ("warn" if abs(found) > 1 else "ok")


def test_this_machine_can_be_examined_by_the_text_of_the_probe_alone() -> None:
    """As a bare machine is: nothing of ours is there."""
    seen = examine()
    assert judge(seen, 0.0) and seen["memory"] > 0 and seen["python"] == list(sys.version_info[:3])
    for module in (machine, sys.modules["jupyterhub_agentfarm.fleet.helper.probe"]):
        text = Path(str(module.__file__)).read_text()
        alone = subprocess.run(
            [sys.executable, "-I", "-c", text], capture_output=True, text=True, timeout=60, check=False
        )
        assert (alone.returncode, alone.stderr) == (0, "")


# -- host keys ---------------------------------------------------------------------------------------------------


def key_of(seed: bytes, kind: str = "ssh-ed25519") -> str:
    return f"{kind} {base64.b64encode(seed * 8).decode()}"


ED, RSA, OTHER = key_of(b"ed25"), key_of(b"rsa-", "ssh-rsa"), key_of(b"othe")


def never(question: str) -> bool:
    raise AssertionError(question)


def test_a_host_key_is_trusted_once_it_is_known_named_or_confirmed() -> None:
    assert confirmed([ED, RSA], [], "", lambda question: fingerprint(ED) in question) == ED
    assert confirmed([ED, RSA], [RSA], "", never) == RSA
    assert confirmed([ED, RSA], [], fingerprint(RSA), never) == RSA
    assert confirmed([ED], [OTHER], fingerprint(ED).removeprefix("SHA256:"), never) == ED
    with pytest.raises(Invalid, match="was not confirmed"):
        confirmed([ED], [], "", lambda _: False)
    with pytest.raises(Conflict, match="not the one that the farm knows"):
        confirmed([ED], [OTHER], "", lambda _: True)
    with pytest.raises(Conflict, match="its host key is not SHA256:"):
        confirmed([ED], [ED], fingerprint(OTHER), never)


def test_a_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True, timeout=20)
    said = subprocess.run(["ssh-keygen", "-lf", str(tmp_path / "key.pub")], capture_output=True, text=True, check=True)
    assert fingerprint((tmp_path / "key.pub").read_text()) == said.stdout.split()[1]


# -- packages ----------------------------------------------------------------------------------------------------


def test_the_lock_is_read_for_the_machine_and_not_for_this_one() -> None:
    old, new = Kind((3, 10, 12), "x86_64", (2, 35)), Kind((3, 13, 1), "aarch64", (2, 41))
    text = lock().read_text()
    for_old, for_new = ({pin.name: pin for pin in wanted(text, kind)} for kind in (old, new))
    assert "tomli" in for_old and "tomli" not in for_new  # python_full_version < 3.11
    assert for_old["tornado"].version != for_new["tornado"].version
    assert "colorama" not in for_old and "xllamacpp" not in for_old
    assert all("--hash=sha256:" in pin.lines and ";" not in pin.lines for pin in for_old.values())
    assert {"jupyterhub", "jupyterlab", "ipykernel", "msgspec"} <= for_old.keys()


def test_a_kind_of_machine_is_what_was_found_there() -> None:
    assert kind_of([3, 10, 12], "x86_64", "glibc-2.35") == Kind((3, 10, 12), "x86_64", (2, 35))
    assert str(kind_of([3, 10, 12], "x86_64", "")) == "Python 3.10 on x86_64"


def test_programs_are_started_by_their_own_environment() -> None:
    points = "[console_scripts]\njupyterhub-singleuser = jupyterhub.singleuser:main\nx = a.b:C.run [extra]\n\n[other]\nn = m:f\n"
    made = dict(programs([points], "0123456789ab"))
    assert made.keys() == {"jupyterhub-singleuser", "x"}
    assert made["x"].startswith("#!/opt/agentfarm/venvs/0123456789ab/bin/python\n") and "sys.exit(C.run())" in made["x"]


def test_our_own_files_make_another_environment_of_the_same_packages_when_they_change(tmp_path: Path) -> None:
    kind, file = environment.ours(), tmp_path / "a.py"
    file.write_text("one")
    ours, packages = [("site/a.py", file)], environment.digest(kind, [], [])
    first = environment.digest(kind, [], ours)
    assert first == environment.digest(kind, [], ours) != packages and machine.ID.fullmatch(first)
    file.write_text("two")
    assert environment.digest(kind, [], ours) != first and environment.digest(kind, [], []) == packages


PROGRAM = "import sys, mine\ndef main():\n    print(sys.prefix, mine.WHICH)\n"


def archives_of(place: Path, made: str, which: str) -> tuple[Path, Path]:
    """Pack a small environment: one package with a program, and what is ours, which differs by release."""
    files = {
        "dep.py": PROGRAM,
        "dep.dist-info/entry_points.txt": "[console_scripts]\njupyterhub-singleuser = dep:main\n",
    }
    own = {"mine/__init__.py": f"from .{which} import WHICH\n", f"mine/{which}.py": f"WHICH = '{which}'\n"}
    found = []
    for name, texts in ((PACKAGES, files), (made, own)):
        paths = [(f"site/{inner}", place / made / inner) for inner in texts]
        for (_, path), text in zip(paths, texts.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        found.append(place / f"{name}.tar.gz")
        environment.pack(found[-1], name, environment.ours(), paths, config=name == made)
    return found[0], found[1]


PACKAGES, ONE, TWO = "a" * 12, "1" * 12, "2" * 12


def test_a_release_that_changes_what_is_ours_alone_is_sent_alone_and_shares_the_packages_that_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "OPT", tmp_path)
    monkeypatch.setattr(machine, "VENVS", tmp_path / "venvs")
    monkeypatch.setattr(machine.os, "geteuid", lambda: 0)

    def unpack(made: str, base: str, *archives: Path) -> Path:
        sizes = [archive.stat().st_size for archive in archives]
        with Chain(archives) as chain:
            monkeypatch.setattr(machine, "DATA", chain)
            assert machine.unpack(made, PACKAGES, base, sizes) == {"new": True}
        return tmp_path / "venvs" / made

    def says(where: Path) -> list[str]:
        return subprocess.run(
            [where / "bin" / "jupyterhub-singleuser"], capture_output=True, text=True, check=True
        ).stdout.split()

    one = unpack(ONE, "", *archives_of(tmp_path, ONE, "first"))
    two = unpack(TWO, ONE, archives_of(tmp_path, TWO, "second")[1])
    assert says(one) == [str(one), "first"] and says(two) == [str(two), "second"]
    assert machine.state()["complete"] == {ONE: PACKAGES, TWO: PACKAGES}
    (site,) = one.glob("lib/python3*/site-packages")
    there = two / site.relative_to(one)
    assert (site / "dep.py").stat().st_ino == (there / "dep.py").stat().st_ino
    assert sorted(path.name for path in (there / "mine").iterdir()) == ["__init__.py", "__pycache__", "second.py"]
    assert (two / "agentfarm-config").is_symlink() and "first" not in str([*there.rglob("*.pyc")])


# -- on the machine ----------------------------------------------------------------------------------------------


def test_the_farms_line_stands_once_among_the_keys_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = tmp_path / ".ssh" / "authorized_keys"
    monkeypatch.setattr(machine, "keys_file", lambda: keys)
    for key in (ED, ED, OTHER + " agentfarm", ED + " another comment"):
        machine.authorize(key)
    line = 'restrict,port-forwarding,command="/usr/bin/python3 -I /opt/agentfarm/helper.pyz"'
    assert sorted(keys.read_text().splitlines()) == sorted(f"{line} {key} agentfarm" for key in (ED, OTHER))
    assert keys.stat().st_mode & 0o777 == 0o600 and keys.parent.stat().st_mode & 0o777 == 0o700
    keys.write_text(f"# mine\n{ED}\n{line} {RSA} agentfarm")  # the farm's key without a forced command: never
    machine.authorize(ED)
    assert keys.read_text().splitlines() == ["# mine", f"{line} {RSA} agentfarm", f"{line} {ED} agentfarm"]


def packed(*names: str) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return gzip.compress(sink.getvalue())


@pytest.mark.parametrize(("data", "why"), [(packed("../x"), "the archive names"), (packed("/x"), "the archive names"), (packed("a")[:-20], "did not arrive whole")], ids=["above", "absolute", "cut"])  # fmt: skip
def test_an_archive_that_is_cut_or_leads_elsewhere_is_no_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes, why: str
) -> None:
    monkeypatch.setattr(machine, "OPT", tmp_path)
    monkeypatch.setattr(machine, "VENVS", tmp_path / "venvs")
    monkeypatch.setattr(machine, "DATA", io.BytesIO(data))
    monkeypatch.setattr(machine.os, "geteuid", lambda: 0)
    with pytest.raises(machine.Failed, match=why):
        machine.unpack("0123456789ab", "0" * 12, "", [len(data) + (20 if "whole" in why else 0)])
    assert not (tmp_path / "x").exists() and not (tmp_path / "venvs/0123456789ab/complete").exists()
    with pytest.raises(machine.Failed, match="no name of an environment"):
        machine.unpack("../../etc", "0" * 12, "", [1])


def test_a_program_that_does_not_end_there_is_named() -> None:
    with pytest.raises(machine.Failed, match="sleep has not ended in 0 s"):
        machine.command("sleep", "30", seconds=0.05)
