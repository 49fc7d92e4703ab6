"""What the launcher reads and says: .env, the reason in a log, the story of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentfarm_sdk.protocol import Event
from jupyterhub_agentfarm import dotenv
from jupyterhub_agentfarm.errors import StartError
from jupyterhub_agentfarm.launcher import keeper, story, up
from jupyterhub_agentfarm.launcher.state import State


def test_dotenv_is_read_as_people_write_it() -> None:
    text = (
        "# HF_API_URL=no\nHF_API_URL=http://127.0.0.1:11434/v1\nexport HUGGING_FACE_AUTH_TOKEN='a=b # c'\n\n"
        'no equals sign\n DB_CONNECTION_STRING = "sqlite:///x"\nPATH=/evil\n'
    )
    assert dotenv.parse(text) == {
        "HF_API_URL": "http://127.0.0.1:11434/v1",
        "HUGGING_FACE_AUTH_TOKEN": "a=b # c",
        "DB_CONNECTION_STRING": "sqlite:///x",
    }


def test_the_environment_stands_before_dotenv_unless_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("HF_API_URL=file\nQUESTDB_CONF=file\n")
    env = {"HF_API_URL": "shell", "QUESTDB_CONF": "", "OTHER": ""}
    assert dotenv.with_dotenv(env, tmp_path / ".env") == {"HF_API_URL": "shell", "QUESTDB_CONF": "file", "OTHER": ""}
    assert dotenv.with_dotenv(env, tmp_path / "none") == env


@pytest.mark.parametrize(
    ("log", "best"),
    [
        ("", ""),
        ("it said one thing\n", "it said one thing"),
        (
            'Traceback (most recent call last):\n  File "x.py", line 1\n    boom\nOSError: [Errno 98] Address already in use\n',
            "OSError: [Errno 98] Address already in use",
        ),
        ("[I 2026-11-21 08:06:58.783 JupyterHub app:1] fine\n[E 2026-11-21 08:06:59 JupyterHub app:2] no database\n[I x] bye\n", "no database"),
        ("this database is of a newer release than this program. install that release\n", "this database is of a newer release than this program. install that release"),
    ],
)  # fmt: skip
def test_the_reason_is_the_line_that_tells_most(log: str, best: str) -> None:
    assert keeper.reason(log) == best


def test_the_pause_between_starts_grows_to_half_a_minute() -> None:
    pauses = [keeper.pause(deaths) for deaths in range(1, 20)]
    assert pauses == sorted(pauses) and pauses[0] <= 0.2 and pauses[-1] == 30.0
    assert max(keeper.pause(deaths, 0.5) for deaths in range(1, 20)) == 0.5
    assert (up.longest_pause({}), up.longest_pause({"AGENTFARM_RESTART_SECONDS": "2"})) == (30.0, 2.0)
    with pytest.raises(StartError):
        up.longest_pause({"AGENTFARM_RESTART_SECONDS": "soon"})


def event(kind: str, body: bytes, call: str | None = None) -> Event:
    import msgspec

    return Event(run="r", seq=1, kind=kind, at="t", by="gateway", call=call, hash="h", body=msgspec.Raw(body))


@pytest.mark.parametrize(
    ("kind", "body", "line"),
    [
        (
            "model.replied",
            b'{"message": {"content": null, "tool_calls": [{"function": {"name": "calculator", "arguments": "{\\"expression\\": \\"17*23\\"}"}}]}}',
            'the model asks for calculator({"expression": "17*23"})',
        ),
        ("model.replied", b'{"message": {"content": "It is\\n391."}}', "the model says: It is 391."),
        ("tool.succeeded", b'{"result": 391}', "c0-0 -> 391"),
        ("tool.failed", b'{"error": {"type": "x", "message": "no"}}', "tool failed: no"),
        ("run.succeeded", b'{"result": "391"}', "done: 391"),
        ("run.succeeded", b'{"result": {"$blob": "abc", "size": 20000, "preview": "p"}}', "done: p … (20000 bytes)"),
        ("run.failed", b"null", "run failed:"),  # erased: said, not shown
        ("some.kind_of_tomorrow", b"{}", ""),
        ("message.added", b'{"role": "user", "content": "x"}', ""),
    ],
)  # fmt: skip
def test_a_step_is_told_in_a_line(kind: str, body: bytes, line: str) -> None:
    assert story.line_of(event(kind, body, "c0-0")) == line


def test_the_first_screen_names_address_sign_in_and_the_size_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/passwords.json").write_text('{"admin": {"admin": "A" }, "people": "P"}')
    state = State(tmp_path, {"public": 8123})
    screen = story.welcome(state, "1.2", story.Model(embedded=True), "none", 7.4)
    assert "http://farm.localhost:8123/" in screen and "135 million" in screen and "admin   A" in screen
    assert "no AVX2" in story.welcome(state, "1.2", story.Model(missing="this CPU has no AVX2"), "none", 7.4)
    assert "http://gpu:8000/v1" in story.welcome(state, "1.2", story.Model(named="http://gpu:8000/v1"), "none", 7.4)
