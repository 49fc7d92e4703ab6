"""The helper answers whatever it is asked in JSON, and does only what its whitelist names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyterhub_agentfarm.fleet import helper

GOOD: dict[str, Any] = {
    "v": 1,
    "op": "start",
    "unit": "af-x",
    "argv": ["/bin/true"],
    "env": {"A": "b"},
    "cwd": "/tmp/w",
}


def asked(tmp_path: Path, **fields: Any) -> dict[str, Any]:
    request = {**GOOD, "root": str(tmp_path), **fields}
    return helper.answer_to(json.dumps(request).encode())


@pytest.mark.parametrize(
    "fields",
    [
        {"unit": "../../etc"}, {"unit": "a/b"}, {"unit": ""}, {"unit": "A"}, {"unit": "x" * 101}, {"unit": 7}, {"unit": "a\n"}, {"unit": None},
        {"argv": []}, {"argv": "rm -rf /"}, {"argv": ["true"]}, {"argv": ["../true"]}, {"argv": ["/bin/true", 1]}, {"argv": ["/bin/true", "a\0b"]},
        {"env": {"LD_PRELOAD": "/x.so"}}, {"env": {"LD_LIBRARY_PATH": "/"}}, {"env": {"a b": "c"}}, {"env": {"A": 1}}, {"env": {"A": "\0"}}, {"env": ["A"]},
        {"env": {"PYTHONSTARTUP": "/x"}}, {"cwd": "relative"}, {"cwd": "/tmp/../etc"}, {"cwd": 3}, {"uid": 0}, {"uid": -1}, {"uid": "root"}, {"uid": True},
        {"uid": 9999}, {"tasks": 1}, {"tasks": "many"}, {"MemoryMax": "1G"}, {"user": "root"}, {"root": "relative"}, {"root": "/a/../b"}, {"root": 1},
        {"op": "exec"}, {"op": ["start"]}, {"op": None}, {"v": 0}, {"v": 2}, {"v": None},
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
    assert set(helper.answer_to(text)) == {"error"}


def test_too_large_and_too_deep_requests_are_refused() -> None:
    assert helper.answer_to(b" " * (helper.MAX_REQUEST + 1))["error"]["type"] == "too-large"
    assert helper.answer_to(b"[" * 200_000)["error"]["type"] == "invalid"


def test_it_imports_nothing_of_ours() -> None:
    assert "agentfarm" not in "".join(
        line for line in Path(helper.__file__).read_text().splitlines() if line.startswith(("import", "from"))
    )


def test_a_pid_that_is_used_again_is_another_process() -> None:
    found = helper.stat_of(os.getpid())
    assert (
        found is not None
        and helper.alive(os.getpid(), found[2])
        and not helper.alive(os.getpid(), str(int(found[2]) + 1))
    )


def test_a_log_that_has_grown_is_cut_while_the_server_writes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helper, "MAX_LOG", 10)
    log = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(log, b"short\n")
    helper.rotate(log, tmp_path / "log.1")
    assert not (tmp_path / "log.1").exists()
    os.write(log, b"and longer\n")
    helper.rotate(log, tmp_path / "log.1")
    os.write(log, b"after\n")
    os.close(log)
    assert (tmp_path / "log.1").read_text() == "short\nand longer\n" and (tmp_path / "log").read_text() == "after\n"
