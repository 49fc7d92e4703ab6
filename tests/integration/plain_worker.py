"""A worker in nothing but Python's standard library: what docs/protocol.md says of plain HTTP, step by step.

python plain_worker.py URL AGENT-TOKEN      # does one run with one call, prints its id
"""

from __future__ import annotations

import hashlib
import json
import sys
import urllib.error
import urllib.request
from typing import Any

URL = sys.argv[1] + "/api/v1"


def ask(token: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Send JSON, or bytes as they are; return (status, what was answered)."""
    raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, raw, method=method)
    request.add_header("Authorization", "token " + token)
    request.add_header("Agentfarm-Protocol", "1")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    return status, json.loads(content) if content[:1] in (b"{", b"[") else content


def good(token: str, method: str, path: str, body: Any = None) -> Any:
    status, answer = ask(token, method, path, body)
    assert status in (200, 201, 204), (method, path, status, answer)
    return answer


def main(agent_token: str) -> None:
    claim = good(agent_token, "POST", "/claims", {"worker": "plain", "claim_id": "claim-1", "wait": 5})
    same = good(agent_token, "POST", "/claims", {"worker": "plain", "claim_id": "claim-1"})
    assert same["run"] == claim["run"] and same["fence"] == claim["fence"]
    run, fence, token = claim["run"], claim["fence"], claim["token"]
    opened = good(token, "POST", f"/runs/{run}/open", {})
    assert opened["definition"]["tools"][0]["name"] == "calculator" and opened.get("n", 0) == 0

    n, asked = 0, 0
    while True:
        question = {"run": run, "fence": fence, "request": f"r{asked}", "n": n}
        answer = good(token, "POST", "/model/v1/chat/completions", {"agentfarm": question})["agentfarm"]
        assert (
            good(token, "POST", "/model/v1/chat/completions", {"agentfarm": question})["agentfarm"]["seq"]
            == answer["seq"]
        )
        asked += 1
        calls = answer.get("calls", [])
        if not calls:
            break
        for call in calls:
            assert call["tool"] == "calculator" and len(call["key"]) == 64
            result = eval(call["arguments"]["expression"], {"__builtins__": {}})  # what this little worker can do
            large = json.dumps("the work: " + "x" * 20_000).encode()
            name = hashlib.sha256(large).hexdigest()
            good(token, "PUT", f"/runs/{run}/blobs/{name}", large)
            assert good(token, "GET", f"/runs/{run}/blobs/{name}") == large
            n += 1
            done = {"kind": "tool.succeeded", "call": call["call"], "body": {"result": result}}
            written = good(token, "POST", f"/runs/{run}/events", {"fence": fence, "n": n, "events": [done]})
            again = good(token, "POST", f"/runs/{run}/events", {"fence": fence, "n": n, "events": [done]})
            assert (again["seq"], again["head"]) == (written["seq"], written["head"])
            other = {"fence": fence, "n": n, "events": [{**done, "body": {"result": 0}}]}
            assert ask(token, "POST", f"/runs/{run}/events", other)[1]["type"] == "conflict"
            beyond = {"fence": fence, "n": n + 5, "events": [done]}
            assert ask(token, "POST", f"/runs/{run}/events", beyond)[1]["type"] == "hole"
            late = ask(token, "POST", f"/runs/{run}/calls/{call['call']}/outcome", {"fence": fence, "event": done})
            assert late[1]["type"] == "conflict"  # it has its outcome
    assert good(agent_token, "POST", f"/runs/{run}/heartbeat", {"fence": fence})["lease"] > 0
    end = {"kind": "run.succeeded", "body": {"result": answer["message"]["content"]}}
    good(token, "POST", f"/runs/{run}/events", {"fence": fence, "n": n + 1, "events": [end]})
    events = good(token, "GET", f"/runs/{run}/events?limit=500")["items"]
    head = "0" * 64
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1)) and events[-1]["hash"] != head
    print(run)


main(sys.argv[2])
