"""A workspace goes through a stream and is the same; what is hostile, cut or changed on the way leaves what is there alone."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyterhub_agentfarm.fleet import helper
from jupyterhub_agentfarm.fleet.helper import workspaces
from jupyterhub_agentfarm.fleet.helper.checks import VERSION, Refused

MOST = {"bytes": 1 << 20, "entries": 1000}
names = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 100
)
files = st.tuples(st.just("file"), st.binary(max_size=2000), st.sampled_from([0o600, 0o644, 0o755, 0o400]))
links = st.tuples(st.just("link"), st.sampled_from(["/etc/passwd", "../..", "gone", "a/b", "."]), st.just(0))
trees = st.recursive(
    files | links, lambda below: st.tuples(st.just("dir"), st.dictionaries(names, below, max_size=4), st.just(0o750)), max_leaves=12
)  # fmt: skip


def build(path: Path, kind: str, what: Any, mode: int) -> None:
    if kind == "file":
        path.write_bytes(what)
        path.chmod(mode)
    elif kind == "link":
        path.symlink_to(what)
    else:
        path.mkdir()
        for name, below in what.items():
            build(path / name, *below)
        path.chmod(mode)


def sent(folder: Path) -> tuple[bytes, dict[str, Any]]:
    sink = io.BytesIO()
    last = workspaces.send(folder, sink)
    return sink.getvalue(), last


def shown(folder: Path) -> list[tuple[str, Any]]:
    """Return what anybody sees there, by another way than the helper's own."""
    found: list[tuple[str, Any]] = []
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        if path.is_symlink():
            found.append((str(path.relative_to(folder)), os.readlink(path)))
        else:
            content = path.read_bytes() if path.is_file() else None
            found.append((str(path.relative_to(folder)), (about.st_mode, int(about.st_mtime), content)))
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(names, trees, max_size=5))
def test_what_comes_out_is_what_went_in_whatever_it_is_called_and_wherever_links_lead(tree: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        build(root / "from", "dir", tree, 0o700)
        stream, last = sent(root / "from")
        got = workspaces.receive(
            root, "to", None, {"bytes": last["bytes"], "entries": last["entries"]}, io.BytesIO(stream)
        )
        assert got == {name: last[name] for name in ("digest", "bytes", "entries")}
        assert shown(root / "to") == shown(root / "from")
        assert sorted(os.listdir(root)) == ["from", "to"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of workspaces with an old one of the name `w`, and one to come from."""
    build(tmp_path / "w", "dir", {"old": ("file", b"true", 0o600)}, 0o700)
    build(
        tmp_path / "new",
        "dir",
        {"a": ("file", b"x" * 5000, 0o600), "d": ("dir", {"l": ("link", "../a", 0)}, 0o700)},
        0o700,
    )
    return tmp_path


def refused(place: Path, stream: bytes, most: dict[str, int] = MOST) -> Refused:
    """Hold that the stream is refused, and that nothing is otherwise then."""
    with pytest.raises(Refused) as told:
        workspaces.receive(place, "w", None, most, io.BytesIO(stream))
    assert shown(place / "w")[0][1][2] == b"true" and sorted(os.listdir(place)) == ["new", "w"]
    return told.value


def test_a_stream_that_breaks_off_anywhere_changes_nothing(place: Path) -> None:
    whole, _ = sent(place / "new")
    end = whole.rindex(workspaces.LAST.encode())  # behind the last member is only padding
    for cut in [*range(0, end + 512, 512), 1, 100, 513, end + 600]:
        refused(place, whole[:cut])


def test_a_byte_that_was_changed_on_the_way_is_found(place: Path) -> None:
    whole, _ = sent(place / "new")
    at = whole.index(b"x" * 100) + 50
    assert refused(place, whole[:at] + b"y" + whole[at + 1 :]).kind == "checksum"


def member(
    name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, len(content)
    return made, content


DIR, LINK = tarfile.DIRTYPE, tarfile.SYMTYPE
ROOT = member("workspace", DIR)


@pytest.mark.parametrize(
    "members",
    [
        [ROOT, member("/etc/cron.d/x", content=b"x")], [ROOT, member("workspace/../../x", content=b"x")], [ROOT, member("../x", content=b"x")],
        [ROOT, member("workspace/./x", content=b"x")], [ROOT, member("workspace//x", content=b"x")], [ROOT, member("other/x", content=b"x")],
        [ROOT, member("workspace/l", LINK, link="/etc"), member("workspace/l/x", content=b"x")],
        [ROOT, member("workspace/l", LINK, link="."), member("workspace/l/x", content=b"x")],
        [ROOT, member("workspace/l", LINK, link="/etc/passwd"), member("workspace/l", content=b"x")],
        [ROOT, member("workspace/h", tarfile.LNKTYPE, link="/etc/shadow")], [ROOT, member("workspace/h", tarfile.LNKTYPE, link="workspace")],
        [ROOT, member("workspace/d", tarfile.CHRTYPE)], [ROOT, member("workspace/d", tarfile.BLKTYPE)], [ROOT, member("workspace/p", tarfile.FIFOTYPE)],
        [ROOT, member("workspace/s", tarfile.GNUTYPE_SPARSE)], [ROOT, member("workspace/c", tarfile.CONTTYPE)],
        [ROOT, member("workspace/x", content=b"1"), member("workspace/x", content=b"2")], [member("workspace", content=b"x")],
        [member("workspace", LINK, link="/etc")], [member("workspace/x", content=b"x"), member("workspace/x/y", content=b"x")],
        [ROOT, member("workspace/" + "d/" * 300 + "x", content=b"x")], [ROOT, member("workspace/" + "n" * 70_000, content=b"x")],
        [ROOT, member("workspace/big", content=b"x" * (3 << 20))], [ROOT, member("snapshot.json", content=b"[]")],
        [ROOT, member("snapshot.json", content=b"{")], [ROOT, member("snapshot.json", LINK, link="/etc/passwd")], [ROOT, member("snapshot.json", content=b"{}")],
        [],
    ],
    ids=lambda members: members[-1][0].name[:40] if members else "nothing",
)  # fmt: skip
def test_a_hostile_archive_is_refused_and_writes_nowhere(
    place: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for made, content in members:
            archive.addfile(made, io.BytesIO(content))
    outside = sorted(os.listdir(place.parent))
    refused(place, sink.getvalue())
    assert sorted(os.listdir(place.parent)) == outside


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=4096))
def test_what_is_no_archive_is_refused(junk: bytes) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.raises(Refused):
        workspaces.receive(Path(place), "w", None, MOST, io.BytesIO(junk))


def test_more_than_was_announced_or_than_fits_is_refused(place: Path) -> None:
    (place / "new" / "big").write_bytes(b"x" * (2 << 20))
    whole, last = sent(place / "new")
    assert "announced" in refused(place, whole, {"bytes": 10, "entries": 10}).detail
    assert refused(place, whole, {"bytes": 1 << 59, "entries": last["entries"]}).kind == "room"


def test_pipes_and_sockets_are_left_out_and_links_are_never_followed(place: Path) -> None:
    folder = place / "new"
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "s"))
    (place / "secret").mkdir()
    (place / "secret" / "key").write_text("k")
    (folder / "out").symlink_to(place / "secret")
    whole, _ = sent(folder)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        assert [one.name for one in archive if one.name.split("/")[-1] in ("pipe", "s", "key")] == []


def test_what_is_written_meanwhile_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., bytes] = os.read

    def shrinks(file: int, count: int) -> bytes:
        os.truncate(place / "new" / "a", 10)
        return real(file, count)

    monkeypatch.setattr(workspaces.os, "read", shrinks)
    assert sent(place / "new")[1]["changed"] == 1


def ask(state: Path, request: dict[str, Any], stream: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "-I", str(Path(helper.__file__).parent), "--process", str(state)]
    line = json.dumps({"v": VERSION, **request}).encode() + b"\n"
    return subprocess.run(words, input=line + stream, capture_output=True, timeout=60, check=False)


def test_a_helper_gives_a_workspace_and_another_takes_it(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for state in (one, other):
        (state / "workspaces").mkdir(parents=True)
    build(one / "workspaces" / "w", "dir", {"a": ("file", b"x" * 300_000, 0o640), "l": ("link", "a", 0)}, 0o700)
    size = json.loads(ask(one, {"op": "measure", "workspace": "w"}).stdout)["ok"]
    assert size == {"there": True, "bytes": 300_000, "entries": 3}
    gave = ask(one, {"op": "snapshot", "workspace": "w"})
    assert gave.returncode == 0 and not gave.stderr
    took = ask(
        other,
        {"op": "restore", "workspace": "w", "uid": None, "bytes": size["bytes"], "entries": size["entries"]},
        gave.stdout,
    )
    assert json.loads(took.stdout)["ok"]["bytes"] == 300_000, took
    assert shown(one / "workspaces" / "w") == shown(other / "workspaces" / "w")
    assert "ok" in json.loads(ask(one, {"op": "discard", "workspace": "w"}).stdout)
    assert os.listdir(one / "workspaces") == []
    gone = json.loads(ask(one, {"op": "snapshot", "workspace": "w"}).stdout)["error"]
    assert "no such workspace" in gone["detail"]
    assert json.loads(ask(one, {"op": "measure", "workspace": "w"}).stdout)["ok"]["there"] is False


@pytest.mark.parametrize(
    "fields",
    [
        {"workspace": "../etc"}, {"workspace": ".coming-w"}, {"workspace": ""}, {"workspace": None}, {"uid": 0}, {"uid": "root"}, {"bytes": -1},
        {"bytes": "1"}, {"entries": None}, {"entries": True}, {"to": "/etc"},
    ],
    ids=str,
)  # fmt: skip
def test_a_hostile_request_for_a_workspace_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    good = {"op": "restore", "workspace": "w", "uid": None, "bytes": 1, "entries": 1}
    assert "error" in json.loads(ask(tmp_path, {**good, **fields}, b"\0" * 1024).stdout)
    assert not list(tmp_path.iterdir()) or os.listdir(tmp_path / "workspaces") == []
