"""The command line over HTTP, against a server that answers as docs/architecture.md says: what it asks, prints and returns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jupyterhub_agentfarm.cli.main import main

AGENT = {
    "name": "analyst", "owner": "admin", "pool": None, "published": 2, "rights": "owner", "created_at": "2026-11-21T08:00:00Z",
    "draft": {"prompt": "You do sums.", "tools": [{"name": "calculator"}]},
}  # fmt: skip
TASK = {
    "task_id": "task-1", "target": "analyst", "agent": "analyst", "status": "succeeded", "run_id": "run-1",
    "input": "What is 17*23?", "result": "It is 391.", "priority": 0, "created_at": "2026-11-21T08:00:00Z",
}  # fmt: skip
DENIED = {"type": "forbidden", "title": "t", "status": 403, "detail": "you may not see this", "hint": "ask admin"}


def event(seq: int, kind: str, body: Any, call: str | None = None) -> dict[str, Any]:
    return {"run": "run-1", "seq": seq, "kind": kind, "at": "2026-11-21T08:00:00Z", "by": "gateway", "call": call, "hash": f"h{seq}", "body": body}  # fmt: skip


EVENTS = [
    event(1, "run.created", {"task": "task-1"}),
    event(2, "model.replied", {"message": {"tool_calls": [{"function": {"name": "calculator", "arguments": "17*23"}}]}}),
    event(3, "tool.succeeded", {"result": 391}, "c0-0"),
    event(4, "run.succeeded", {"result": "It is 391."}),
]  # fmt: skip


class Stub:
    """Answers by path; keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                path = self.path.partition("?")[0].removeprefix("/api/v1")
                stub.asked.append((self.command, self.path, dict(self.headers), body))
                status, value = stub.answers.get(
                    (self.command, path), (404, {"detail": f"no {path} here", "type": "not-found", "status": 404})
                )
                stream = isinstance(value, list) and "event-stream" in self.headers.get("Accept", "")
                if stream:
                    data = "".join(
                        f"id: {one['seq']}\nevent: {one['kind']}\ndata: {json.dumps(one)}\n\n" for one in value
                    ).encode()
                else:
                    data = (
                        value
                        if isinstance(value, bytes)
                        else json.dumps({"items": value, "next": None} if isinstance(value, list) else value).encode()
                    )
                self.send_response(status)
                kind = (
                    "text/event-stream" if stream else "text/yaml" if isinstance(value, bytes) else "application/json"
                )
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def on(self, method: str, path: str, value: Any, status: int = 200) -> None:
        self.answers[method, path] = (status, value)

    def sent(self, method: str, path: str) -> dict[str, Any]:
        """Return the JSON of the last request to the path."""
        found = [body for verb, where, _, body in self.asked if verb == method and where.endswith(path)]
        return dict(json.loads(found[-1]))


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A stub, found as a person finds a farm: by .farm/client.json of the folder."""
    stub = Stub()
    for name in [name for name in os.environ if name.startswith("AGENTFARM_")]:
        monkeypatch.delenv(name)
    (tmp_path / ".farm").mkdir()
    (tmp_path / ".farm/client.json").touch(0o600)
    (tmp_path / ".farm/client.json").write_text(json.dumps({"url": stub.url, "token": "secret-token"}))
    monkeypatch.chdir(tmp_path)
    yield stub
    stub.server.shutdown()


def test_a_submitted_task_prints_its_answer_alone_and_tells_the_steps_beside_it(
    farm: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    farm.on("POST", "/tasks", {**TASK, "status": "running", "result": None}, 201)
    farm.on("GET", "/runs/run-1/events", EVENTS)
    farm.on("GET", "/tasks/task-1", TASK)
    assert main(["task", "submit", "analyst", "What is 17*23?", "--wait", "--key", "k", "--priority", "3"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "It is 391.\n"
    assert "calculator" in printed.err and "c0-0 -> 391" in printed.err
    body = farm.sent("POST", "/tasks")
    assert (body["target"], body["input"], body["key"], body["priority"]) == ("analyst", "What is 17*23?", "k", 3)
    assert farm.asked[0][2]["Authorization"] == "token secret-token"


def test_a_task_that_fails_is_exit_code_1_with_its_error(farm: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    failed = {**TASK, "status": "failed", "result": None, "error": {"type": "x", "message": "the model said nothing"}}
    farm.on("POST", "/tasks", failed, 201)
    farm.on("GET", "/runs/run-1/events", [EVENTS[0], event(2, "run.failed", {"error": failed["error"]})])
    assert main(["task", "submit", "analyst", "?", "--wait"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and "task-1 failed: the model said nothing" in printed.err


def test_without_waiting_the_task_s_id_is_printed(farm: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    farm.on("POST", "/tasks", {**TASK, "status": "queued"}, 201)
    assert main(["task", "submit", "analyst", "?", "--var", "tone=dry"]) == 0
    assert capsys.readouterr().out == "task-1  queued\n"
    assert farm.sent("POST", "/tasks")["variables"] == {"tone": "dry"}


def test_lists_are_aligned_for_eyes_and_json_for_programs(farm: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    farm.on("GET", "/agents", [AGENT, {**AGENT, "name": "a-much-longer-name", "published": None}])
    assert main(["agent", "list"]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.startswith("NAME") and head.index("OWNER") == first.index("admin") == second.index("admin")
    assert main(["agent", "list", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == ["analyst", "a-much-longer-name"]


def test_an_empty_list_prints_nothing_to_a_pipe(farm: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    farm.on("GET", "/tasks", [])
    assert main(["task", "list"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "" and "agentfarm task submit" in printed.err


def test_an_agent_is_made_published_exported_and_imported(
    farm: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    farm.on("POST", "/agents", AGENT, 201)
    farm.on("POST", "/agents/analyst/publish", {"number": 3, "hash": "abcdef0123456789"})
    farm.on("GET", "/agents/analyst/export", b"name: analyst\n")
    farm.on("POST", "/agents/import", AGENT)
    assert main(["agent", "create", "analyst", "--prompt", "You do sums.", "--tool", "calculator", "--pool", "p"]) == 0
    draft = {"prompt": "You do sums.", "tools": [{"name": "calculator"}]}
    assert farm.sent("POST", "/agents") == {"name": "analyst", "pool": "p", "draft": draft}
    assert main(["agent", "publish", "analyst", "--note", "better"]) == 0
    assert main(["agent", "export", "analyst", "-o", str(tmp_path / "a.yaml")]) == 0
    assert (tmp_path / "a.yaml").read_text() == "name: analyst\n"
    assert main(["agent", "import", str(tmp_path / "a.yaml"), "--publish"]) == 0
    assert "version 3" in capsys.readouterr().out
    assert [body for verb, where, _, body in farm.asked if where.endswith("/import")] == [b"name: analyst\n"]


def test_a_secret_comes_from_standard_input_and_is_never_shown(
    farm: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    farm.on("PUT", "/secrets", {"name": "key"})
    farm.on("GET", "/secrets", [{"name": "key"}])
    monkeypatch.setattr(sys, "stdin", io.StringIO("hush\n"))
    assert main(["secret", "set", "key"]) == 0 and main(["secret", "list"]) == 0
    assert farm.sent("PUT", "/secrets") == {"name": "key", "value": "hush"}
    printed = capsys.readouterr()
    assert "hush" not in printed.out + printed.err
    with pytest.raises(SystemExit):
        main(["secret", "set", "key", "hush"])  # a value in argv would stand in the process list


def test_a_broken_chain_is_exit_code_1_and_names_the_event(farm: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    farm.on("GET", "/audit/verify", DENIED, status=403)  # no operator
    farm.on("GET", "/tasks", [TASK])
    farm.on("GET", "/runs/run-1/verify", {"run_id": "run-1", "ok": True, "events": 4, "head": "h"})
    assert main(["audit", "verify"]) == 0
    assert capsys.readouterr().out == "whole: 1 run, 4 events\n"
    broken = {"run_id": "run-1", "ok": False, "events": 4, "bad_seq": 3, "why": "its body was changed"}
    farm.on("GET", "/runs/run-1/verify", broken)
    assert main(["audit", "verify", "run-1"]) == 1
    assert "event 3" in capsys.readouterr().out


def test_events_are_a_line_each_and_as_json_a_document_each(farm: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    farm.on("GET", "/runs/run-1/events", EVENTS)
    assert main(["run", "events", "run-1", "--follow"]) == 0
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()] == [one["kind"] for one in EVENTS]
    assert main(["run", "events", "run-1", "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == EVENTS


@pytest.mark.parametrize(
    ("status", "problem", "code"),
    [
        (403, DENIED, 4),
        (401, {**DENIED, "type": "unauthenticated", "status": 401}, 4),
        (404, {**DENIED, "type": "not-found", "status": 404}, 2),
        (422, {**DENIED, "type": "invalid", "status": 422}, 2),
        (503, {**DENIED, "type": "unavailable", "status": 503, "retry_after": 0.01}, 3),
        (500, {**DENIED, "type": "error", "status": 500}, 1),
        (502, b"<html>bad gateway</html>", 3),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_one_sentence(
    farm: Stub, status: int, problem: Any, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    farm.on("GET", "/agents/analyst", problem, status)
    assert main(["agent", "show", "analyst"]) == code
    printed = capsys.readouterr()
    assert printed.err.startswith("agentfarm: ") and "Traceback" not in printed.err and printed.out == ""
    if isinstance(problem, dict):
        assert problem["detail"] in printed.err and problem["hint"] in printed.err


def test_a_farm_that_is_away_is_exit_code_3(farm: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    farm.server.shutdown()
    farm.server.server_close()
    assert main(["status"]) == 3
    assert "make farm" in capsys.readouterr().err


def test_where_no_farm_is_named_the_way_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("AGENTFARM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 2
    assert "AGENTFARM_URL" in capsys.readouterr().err
    assert main(["status", "--state", str(tmp_path / "none")]) == 2
    assert "agentfarm up" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["task", "submit", "analyst", "?", "--var", "no-value"],
        ["inbox", "resolve", "7", "approve", "--arguments", "{broken"],
        ["agent", "import", "no-such-file.yaml"],
    ],
)
def test_bad_input_is_exit_code_2_before_anything_is_sent(farm: Stub, argv: list[str]) -> None:
    assert main(argv) == 2
    assert farm.asked == []


@pytest.mark.parametrize("argv", [[], ["agent"], ["nonsense"], ["task", "submit"], ["task", "list", "--limit", "many"]])
def test_a_command_that_is_none_is_a_usage_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err


def item(kind: str, **detail: Any) -> dict[str, Any]:
    return {
        "inbox_id": "inbox-1", "kind": kind, "agent": "trader", "owner": "ann", "run_id": "run-1", "call": "c0-0", "reason": None,
        "detail": {"tool": "pay", "effect": "once", "arguments": {"to": "bob"}, "key": "k1", **detail}, "votes": [],
        "asked_at": "2026-11-21T08:00:00.000000Z", "decided_at": None, "decision": None, "decided_by": None, "expires_at": None,
        "escalated_at": None, "escalate_to": None, "worker": None,
    }  # fmt: skip


def test_the_inbox_tells_what_waits_how_long_and_what_is_known_of_the_worker(
    farm: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    voted = item("approval", approvers=2) | {"votes": [{"by": "user:ann", "at": "2026-11-21T08:01:00.000000Z"}]}
    doubted = item("in_doubt", proof=None) | {"worker": "only silent"}
    farm.on("GET", "/inbox", [voted, doubted])
    assert main(["inbox", "list", "--escalated"]) == 0 and "escalated=true" in farm.asked[-1][1]
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert "1 of 2 (ann)" in first and "pay" in first and "only silent" in second
    farm.answers["GET", "/inbox/inbox-1"] = 200, doubted | {"decided_at": "2026-11-21T08:45:00.000000Z"}
    assert main(["inbox", "show", "inbox-1"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("45 min", "k1", '{"to": "bob"}', "only silent"))
    farm.answers["POST", "/inbox/inbox-1"] = 200, voted
    command = ["inbox", "resolve", "inbox-1", "not_happened", "--force", "--reason", "unplugged", "--result", "1"]
    assert main(command) == 0 and "1 of 2 (ann) have approved" in capsys.readouterr().out
    assert json.loads(farm.asked[-1][3]) == {
        "decision": "not_happened",
        "reason": "unplugged",
        "force": True,
        "result": 1,
    }


def test_a_reader_that_goes_away_is_no_error(farm: Stub) -> None:
    farm.on("GET", "/agents", [AGENT] * 100)
    command = f"{sys.executable} -m jupyterhub_agentfarm.cli agent list | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("NAME") and done.stderr == ""


BUDGET = {
    "scope": "agent", "name": "analyst", "unit": "usd", "period": "day", "amount": 5.0, "action": "ask", "spent": 1.5,
    "reserved": 0.5, "left": 3.0, "set_by": "ann", "set_at": "2026-11-21T08:00:00Z", "warning": "the model m has no price",
}  # fmt: skip


def test_budgets_are_set_listed_and_taken_away_and_usage_is_summed(
    farm: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    farm.answers[("PUT", "/budgets")] = (200, BUDGET)
    farm.answers[("GET", "/budgets")] = (200, [BUDGET])
    farm.answers[("GET", "/usage")] = (
        200,
        [{"owner": "ann", "requests": 3, "tokens_in": 9, "tokens_out": 4, "cost": 0.25}],
    )
    assert main(["budget", "set", "agent:analyst", "5", "--ask"]) == 0
    said = capsys.readouterr().out
    assert "5 USD per day, 3 left" in said and "but the model m has no price" in said
    assert json.loads(farm.asked[-1][3]) == {"scope": "agent", "name": "analyst", "unit": "usd", "period": "day", "amount": 5.0, "action": "ask"}  # fmt: skip
    assert main(["budget", "remove", "farm", "--per", "month", "--tokens"]) == 0
    assert json.loads(farm.asked[-1][3]) == {"scope": "farm", "name": "", "unit": "tokens", "period": "month", "amount": None}  # fmt: skip
    assert main(["budget", "set", "nobody", "5"]) == 2
    assert main(["budget", "list"]) == 0 and main(["usage", "--by", "owner", "--since", "2026-11-01"]) == 0
    said = capsys.readouterr().out
    assert "analyst" in said and "0.25" in said and "by=owner&since=2026-11-01" in farm.asked[-1][1]
