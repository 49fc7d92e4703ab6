"""The helper answers whatever it is asked in JSON, and does only what its whitelist names."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.fleet import helper, zipped
from jupyterhub_agentfarm.fleet.helper import (
    cgroups,
    checks,
    disks,
    gpus,
    journal,
    keeper,
    logfiles,
    processes,
    processunits,
    programs,
    systemdunits,
)
from jupyterhub_agentfarm.fleet.helper.checks import VERSION, Refused
from jupyterhub_agentfarm.fleet.helper.serve import answer_to

FOLDER = Path(helper.__file__).parent
GOOD: dict[str, Any] = {
    "v": VERSION,
    "op": "start",
    "unit": "af-x",
    "argv": ["/bin/true"],
    "env": {"A": "b"},
    "workspace": "w",
}


def asked(tmp_path: Path, **fields: Any) -> dict[str, Any]:
    return answer_to(json.dumps({**GOOD, **fields}).encode(), ["--process", str(tmp_path)])


@pytest.mark.parametrize(
    "fields",
    [
        {"unit": "../../etc"}, {"unit": "a/b"}, {"unit": ""}, {"unit": "A"}, {"unit": "x" * 81}, {"unit": 7}, {"unit": "a\n"}, {"unit": None},
        {"unit": "-H"}, {"unit": "--property=User=root"}, {"unit": "a.service"}, {"unit": "a@b"}, {"unit": "a\0b"}, {"unit": "af-\u0430"}, {"unit": ["a"]},
        {"unit": "a%i"}, {"unit": "a\u2028b"}, {"unit": "\uff41"}, {"unit": {"unit": "a"}},
        {"argv": []}, {"argv": "rm -rf /"}, {"argv": ["true"]}, {"argv": ["../true"]}, {"argv": ["/bin/true", 1]}, {"argv": ["/bin/true", "a\0b"]},
        {"argv": ["/bin/../bin/true"]}, {"argv": ["-p"]}, {"argv": ["/bin/true", "x" * 100_001]}, {"argv": ["/bin/true"] * 501}, {"argv": ["/bin/true", "\ud800"]},
        {"argv": {"0": "/bin/true"}}, {"env": {"LD_PRELOAD": "/x.so"}}, {"env": {"LD_LIBRARY_PATH": "/"}}, {"env": {"a b": "c"}}, {"env": {"A": 1}},
        {"env": {"A": "\0"}}, {"env": ["A"]}, {"env": {"PYTHONSTARTUP": "/x"}}, {"env": {"A=B": "c"}}, {"env": {"A\nB": "c"}}, {"env": {"": "c"}},
        {"env": {"A": "\x1b[2J"}}, {"env": {"A": "b\rLD_PRELOAD=/x"}}, {"env": {"A": "\ud800"}}, {"env": {"-p": "c"}}, {"env": {"\u0410": "c"}},
        {"env": {f"A{i}": "" for i in range(1001)}}, {"env": {"A": None}},
        {"workspace": "../etc"}, {"workspace": "/etc"}, {"workspace": ".."}, {"workspace": "a/b"}, {"workspace": "~"}, {"workspace": "~a/../../b"},
        {"workspace": "-rf"}, {"workspace": "a\n"}, {"workspace": ""}, {"workspace": 3}, {"workspace": "~" + "x" * 201}, {"workspace": "A"},
        {"uid": 0}, {"uid": -1}, {"uid": "root"}, {"uid": True}, {"uid": 9999}, {"uid": 2**31}, {"uid": 200000.0}, {"uid": "200000"},
        {"limits": {"tasks": 1}}, {"limits": {"tasks": "many"}}, {"limits": {"memory": 1}}, {"limits": {"memory": "infinity"}}, {"limits": {"memory": -1}},
        {"limits": {"cpu": 0}}, {"limits": {"cpu": True}}, {"limits": {"cpu": 1e300}}, {"limits": {"MemoryMax": 1}}, {"limits": []}, {"limits": {"memory": 2**60}},
        {"about": {"x": {}}}, {"about": {"x": "y" * 501}}, {"about": {str(i): 1 for i in range(21)}}, {"about": []}, {"about": {"x": 1.5}},
        {"egress": "a.example:1"}, {"egress": ["a.example"]}, {"egress": [1]}, {"egress": ["10.0.0.0/8:1 accept"]}, {"egress": ["a.example:1"] * 101}, {"egress": {}},
        {"MemoryMax": "1G"}, {"user": "root"}, {"User": "root"}, {"root": "/"}, {"cwd": "/"}, {"properties": ["User=root"]}, {"ExecStartPre": "/bin/sh"},
        {"backend": "systemd"}, {"op": "exec"}, {"op": ["start"]}, {"op": None}, {"op": "start\n"}, {"op": "__init__"}, {"op": "release", "ports": [2222]},
        {"farm": ""}, {"farm": "../units"}, {"farm": "0123456789AB"}, {"farm": "0123456789ab\n"}, {"farm": None}, {"farm": 123456789012},
        {"v": 0}, {"v": 1}, {"v": VERSION + 1}, {"v": None}, {"v": float(VERSION)}, {"v": True}, {"v": str(VERSION)},
    ],
    ids=str,
)  # fmt: skip
def test_a_hostile_request_is_refused_with_the_reason_and_starts_nothing(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    answer = asked(tmp_path, **fields)
    assert answer["error"]["detail"] and "ok" not in answer
    assert not any(tmp_path.rglob("unit.json"))


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)).map(
        lambda v: json.dumps(v).encode()
    )
)
def test_whatever_comes_is_answered(text: bytes) -> None:
    assert set(answer_to(text, ["--process", "/nowhere"])) == {"error"}


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[" * 200_000, b'{"a":' * 100_000, b'{"v": 2, "v": 2, "op": "list"}', b'{"v": ' + b"9" * 500_000 + b"}", b'{"v": NaN}', b'{"v": Infinity}',
        b"\xff\xfe{}", b'{"v": 2, "op": "list"} {"v": 2}', b'"start"', b'{"v": 2, "op": "start", "limits": {"memory": 1e400}}', b"\0" * 100,
        b'{"v": 2, "op": "list", "' + b"x" * 100_000 + b'": 1}',
    ],
    ids=lambda text: repr(text[:30]),
)  # fmt: skip
def test_what_is_no_request_is_refused_shortly(text: bytes) -> None:
    error = answer_to(text, ["--process", "/nowhere"])["error"]
    assert error["type"] in ("invalid", "version") and len(error["detail"]) < 300


def test_too_large_a_request_is_refused() -> None:
    assert answer_to(b" " * (checks.MAX_REQUEST + 1), ["--process", "/nowhere"])["error"]["type"] == "too-large"


@pytest.mark.parametrize(
    "words", [["--process"], ["--process", "relative"], ["--systemd"], ["--process", "/a", "/b"], [""]]
)
def test_the_command_line_alone_names_the_backend(words: list[str]) -> None:
    assert "usage" in answer_to(json.dumps({"v": VERSION, "op": "list"}).encode(), words)["error"]["detail"]


def test_a_workspace_that_is_a_link_is_not_followed_when_it_is_given_to_its_user(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").write_text("x")
    home.mkdir()
    (home / "link").symlink_to(elsewhere)
    (home / "dangling").symlink_to("/nowhere")
    if os.getuid() != 0:
        pytest.skip("only root gives files away")
    processes.make_workspace(home, 200_123)
    assert (home / "link").lstat().st_uid == home.stat().st_uid == 200_123
    assert elsewhere.stat().st_uid == (elsewhere / "secret").stat().st_uid == 0


def test_an_environment_file_says_each_value_as_it_is() -> None:
    assert systemdunits.escaped('a"b\\c`d$e\nf') == 'a\\"b\\\\c\\`d\\$e\nf'


def test_no_value_of_a_request_becomes_a_property_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(systemdunits, "SECRET", tmp_path)
    hostile = {
        **GOOD,
        "argv": ["/bin/true", "--property=User=root"],
        "workspace": "~a%b",
        "uid": 200_000,
        "limits": {"cpu": 0.5},
    }
    words = systemdunits.properties(
        checks.start(hostile), "agentfarm-200000", Path("/var/lib/agentfarm/workspaces/~a%b")
    )
    assert all(word.startswith("--") and "\n" not in word for word in words)
    assert [word for word in words if "User=" in word] == ["--property=User=agentfarm-200000"]
    assert not any("MemoryHigh" in word for word in words), "it holds a server for minutes that should lose a kernel"
    assert "--property=CPUQuota=50%" in words and "--property=KillMode=control-group" in words


def test_it_is_one_file_that_is_the_same_each_time_and_answers_by_itself(tmp_path: Path) -> None:
    made = zipped.helper_file()
    assert made == zipped.helper_file.__wrapped__() and zipped.helper_version() == hashlib.sha256(made).hexdigest()
    names = zipfile.ZipFile(io.BytesIO(made)).namelist()
    assert set(names) == {
        "__main__.py",
        *(f"helper/{path.name}" for path in FOLDER.glob("*.py") if path.name != "__main__.py"),
    }
    alone = tmp_path / "helper.pyz"
    alone.write_bytes(made)
    unpacked = zipped.unpack(tmp_path / "copy")
    (unpacked / "serve.py").write_text("broken")
    assert unpacked == zipped.unpack(tmp_path / "copy") and (unpacked / "serve.py").read_text() != "broken"
    for way in (alone, FOLDER, unpacked):
        done = subprocess.run(
            [sys.executable, "-I", str(way), "--process", str(tmp_path)], input=json.dumps({"v": VERSION, "op": "facts"}), capture_output=True,
            text=True, timeout=30, check=True, cwd="/",
        )  # fmt: skip
        facts = json.loads(done.stdout)["ok"]
        assert facts["helper"] == (zipped.helper_version() if way == alone else "") and facts["backend"] == "process", (
            done.stderr
        )


def test_it_imports_the_standard_library_and_itself_and_is_read_by_python_3_9() -> None:
    for path in FOLDER.glob("*.py"):
        for one in ast.walk(ast.parse(path.read_text(), feature_version=(3, 9))):
            if isinstance(one, ast.Import):
                assert all(alias.name.partition(".")[0] in sys.stdlib_module_names for alias in one.names), path
            elif isinstance(one, ast.ImportFrom) and one.level == 0:
                assert one.module is not None and one.module.partition(".")[0] in sys.stdlib_module_names, path
            elif isinstance(one, ast.ImportFrom):
                assert one.level == 1, path
            elif isinstance(one, ast.Call) and getattr(one.func, "id", "") in ("isinstance", "issubclass"):
                assert not isinstance(one.args[1], ast.BinOp), (
                    f"{path}:{one.lineno}: a union of types at run time needs Python 3.10"
                )


def test_a_pid_that_is_used_again_is_another_process() -> None:
    found = processes.stat_of(os.getpid())
    assert (
        found is not None
        and processes.alive(os.getpid(), found[2])
        and not processes.alive(os.getpid(), str(int(found[2]) + 1))
    )


def test_a_log_that_has_grown_is_cut_while_the_server_writes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "MAX_LOG", 10)
    log = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(log, b"short\n")
    keeper.rotate(log, tmp_path / "log.1")
    assert not (tmp_path / "log.1").exists()
    os.write(log, b"and longer\n")
    keeper.rotate(log, tmp_path / "log.1")
    os.write(log, b"after\n")
    os.close(log)
    assert (tmp_path / "log.1").read_text() == "short\nand longer\n" and (tmp_path / "log").read_text() == "after\n"


# -- figures and logs


def program(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_gpu_tells_its_figures_and_what_it_does_not_tell_is_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (
        "0, GPU-1f, 00000000:3B:00.0, NVIDIA H200, 143771, 4, 37, 31\\n"
        "1, GPU-2f, 00000000:AF:00.0, Odd, Name, 15356, 1, [N/A], [N/A]\\nno GPU, at all\\n"
    )
    program(tmp_path, "nvidia-smi", f"printf '{lines}'", monkeypatch)
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "driver")
    (tmp_path / "driver" / "0000:3b:00.0").mkdir(parents=True)
    (tmp_path / "driver" / "0000:3b:00.0" / "information").write_text("Model: \t NVIDIA H200\nDevice Minor: \t 5\n")
    told = gpus.told(tmp_path)
    mib = 1 << 20
    assert told["gpus_problem"] == "" and told["gpus"] == [
        {"index": 0, "uuid": "GPU-1f", "minor": 5, "name": "NVIDIA H200", "memory": 143771 * mib, "memory_used": 4 * mib, "utilisation": 37, "temperature": 31},
        {"index": 1, "uuid": "GPU-2f", "minor": 1, "name": "Odd, Name", "memory": 15356 * mib, "memory_used": mib, "utilisation": None, "temperature": None},
    ]  # fmt: skip


def test_a_program_that_hangs_hangs_nobody_and_is_not_started_again_while_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "SECONDS", 0.3)
    monkeypatch.setattr(programs, "BUSY_SECONDS", 0.1)
    program(tmp_path, "nvidia-smi", f"echo $$ >> {tmp_path}/started; exec sleep 60", monkeypatch)
    # what the kernel holds is not ended by a signal: as if there were none
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: None)
    first, second = gpus.told(tmp_path), gpus.told(tmp_path)
    started = (tmp_path / "started").read_text().split()
    os.kill(int(started[0]), 9)
    assert first["gpus"] is None and "did not answer in 0.3 s" in first["gpus_problem"]
    assert second["gpus"] is None and "cannot be ended" in second["gpus_problem"] and len(started) == 1


def test_a_driver_that_is_broken_is_said_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", "echo NVIDIA-SMI has failed; exit 9", monkeypatch)
    assert gpus.told(tmp_path) == {"gpus": None, "gpus_problem": "NVIDIA-SMI has failed"}


def test_disks_tell_by_smart_how_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = '{"devices": [{"name": "/dev/sda", "type": "sat"}, {"name": "/dev/sdb", "type": "sat"}]}'
    bad = '{"model_name": "Old", "smart_status": {"passed": false}, "temperature": {"current": 51}}'
    script = f"case \"$*\" in --scan*) echo '{scan}';; *sda) echo '{bad}'; exit 8;; *) exit 2;; esac"
    program(tmp_path, "smartctl", script, monkeypatch)
    assert disks.smart(tmp_path) == {
        "disks": [
            {"device": "/dev/sda", "model": "Old", "healthy": False, "temperature": 51},
            {"device": "/dev/sdb", "model": "", "healthy": None, "temperature": None},
        ],
        "disks_problem": "",
    }


def test_the_figures_of_this_machine_are_in_their_bounds(tmp_path: Path) -> None:
    told = asked_op(tmp_path, "facts")["ok"]
    assert 0 <= told["disk_free"] <= told["disk"] and 0 <= told["inodes_free"] <= told["inodes"]
    assert 0 < told["cpu_time"]["busy"] < told["cpu_time"]["all"] and 0 <= told["took"] < 10
    assert all(0 <= share <= 1 for kinds in told["pressure"].values() for share in kinds.values())


def asked_op(tmp_path: Path, op: str, **fields: Any) -> dict[str, Any]:
    return answer_to(json.dumps({"v": VERSION, "op": op, **fields}).encode(), ["--process", str(tmp_path)])


@pytest.mark.parametrize(
    "fields",
    [
        {"after": "-1"}, {"after": "--flush"}, {"after": "s=1 -u x"}, {"after": "a/b"}, {"after": "x" * 401}, {"after": 5}, {"after": None}, {"after": ["a"]},
        {"after": "a\n"}, {"wait": -1}, {"wait": 11}, {"wait": True}, {"wait": "5"}, {"wait": None}, {"lines": 0}, {"lines": 1001}, {"follow": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_hostile_question_for_a_log_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert asked_op(tmp_path, "logs", unit="af-x", **fields)["error"]["type"] == "invalid"


def test_a_log_is_read_on_without_a_gap_and_nothing_twice_also_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "MAX_LOG", 0)
    monkeypatch.setattr(logfiles, "STILL_SECONDS", 3600)
    folder = tmp_path / "units" / "af-x"
    folder.mkdir(parents=True)
    log = os.open(folder / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def more(after: str, count: int = 1000) -> tuple[list[str], str]:
        told = asked_op(tmp_path, "logs", unit="af-x", after=after, lines=count)["ok"]
        return told["lines"], told["cursor"]

    os.write(log, b"one\ntwo\nthree\n")
    lines, cursor = more("", 2)
    assert lines == ["two", "three"] and more(cursor) == ([], cursor)
    os.write(log, b"four\nhalf of ")
    lines, cursor = more(cursor)
    assert lines == ["four"], "a line that is being written is not told yet"
    os.write(log, b"five\nsix\n")
    keeper.rotate(log, folder / "log.1")
    os.write(log, b"seven\n")
    found = []
    while (told := more(cursor, 1))[0]:
        found += told[0]
        cursor = told[1]
    os.close(log)
    assert found == ["half of five", "six", "seven"]


def test_what_a_unit_and_all_below_it_use_is_counted(tmp_path: Path) -> None:
    eats = "import os, time\nx = b'1' * (60 << 20)\nif os.fork() == 0:\n y = b'1' * (60 << 20)\n print('up', flush=True)\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", eats], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        told = processes.used([process.pid])[process.pid]
    finally:
        os.killpg(process.pid, 9)
        process.communicate()
    assert told["memory"] > 120 << 20 and told["cpu_seconds"] > 0 and told["tasks"] == 2


def test_of_a_unit_that_is_just_being_started_nobody_says_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"boot_id": processes.boot_id(), "started_at": time.time()}
    broken_off, ended = {**now, "started_at": time.time() - 3600.0}, {**now, "invocation": "ab"}
    monkeypatch.setattr(systemdunits, "LIB", tmp_path)
    for kept, reason in ((now, ""), (broken_off, "how it ended is not known"), (ended, "how it ended is not known")):
        assert systemdunits.ending("af-x", kept)["reason"] == reason
    folder = tmp_path / "units" / "af-x"
    folder.mkdir(parents=True)
    former = {"pid": 2**22, "start": "1", "boot_id": processes.boot_id(), "started_at": 1.0}
    (folder / "unit.json").write_text(json.dumps(former))
    assert processunits.state_of(folder)["reason"] == "its keeper was killed"
    seen: list[Any] = []

    def looked_at(_home: Path, _uid: int | None) -> None:
        seen.append(processunits.state_of(folder))
        raise checks.Refused("start", "far enough")

    monkeypatch.setattr(processunits, "make_workspace", looked_at)
    assert asked(tmp_path)["error"]["detail"] == "far enough" and seen == [{}]


# As a virtual machine with Debian's kernel 6.1 told it (version 2), and a container of the lab (version 1).
TREES = {
    "version 2": {
        "a.slice/a.service/cgroup.procs": "", "a.slice/a.service/below/cgroup.procs": "412\n",
        "a.slice/a.service/memory.events": "low 0\nhigh 0\nmax 757\noom 3\noom_kill 2\noom_group_kill 0\n",
    },
    "version 1": {
        "systemd/a.slice/a.service/cgroup.procs": "412\n", "unified/a.slice/a.service/cgroup.procs": "412\n",
        "memory/a.slice/a.service/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    },
}  # fmt: skip


@pytest.mark.parametrize("version", TREES)
def test_what_is_left_of_a_unit_and_what_died_for_memory_is_read_from_control_groups_of_both_versions(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    assert cgroups.is_empty("a.slice/a.service") and cgroups.oom_kills("a.slice/a.service") == 0
    for name, text in TREES[version].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroups.pids("a.slice/a.service") == [412], "the one below it is the unit's too, and is counted once"
    assert cgroups.oom_kills("a.slice/a.service") == 2


def test_a_journal_that_does_not_answer_is_no_empty_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "journalctl"
    program.write_text("#!/bin/sh\n[ -e $0.empty ] || exec /bin/sleep 30\n")
    program.chmod(0o755)
    monkeypatch.setattr(journal, "PATH", str(tmp_path))
    monkeypatch.setattr(journal, "READ_SECONDS", 0.1)
    with pytest.raises(Refused, match="has not answered"):
        journal.read("agentfarm-x.service", 10, "", 0)
    monkeypatch.setattr(journal, "READ_SECONDS", 20)
    (tmp_path / "journalctl.empty").touch()
    assert journal.read("agentfarm-x.service", 10, "", 0) == {"lines": [], "cursor": ""}
