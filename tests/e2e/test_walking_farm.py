"""A whole farm with a real model: tasks by command line, HTTP and notebook; who sees what; what the ledger says after."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

import httpx
import psutil
import pytest
from browserkit import Desk
from farmkit import Farm, Person, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
QUESTION, ANSWER = "What is 17*23?", "391"
NO_ENTRY = {401, 403, 404, 405, 409, 422, 428, 400, 415}  # never 2xx, never 5xx


@pytest.fixture(scope="session")
def agent(farm: Farm) -> str:
    """Alice's own agent, made from what the demo's analyst is, published by her."""
    name, alice, admin = "alices-sums", farm.person("alice"), farm.person("admin")
    with admin.api() as api:
        draft = api.get("/agents/analyst").raise_for_status().json()["draft"]
    with alice.api() as api:
        made = api.post("/agents", json={"name": name, "draft": draft})
        assert made.status_code == 201, made.text
        api.post(f"/agents/{name}/publish", json={"note": "for the tests"}).raise_for_status()
    return name


@pytest.fixture(scope="session")
def done(agent: str, farm: Farm) -> dict[str, Any]:
    """A task of Alice's that her agent has finished."""
    alice = farm.person("alice")
    task = alice.settled(alice.submit(agent, QUESTION)["task_id"])
    assert task["status"] == "succeeded", (task, alice.events(task["run_id"]))
    return task


# --- the work gets done -----------------------------------------------------------------------------------------


def test_the_command_line_submits_streams_the_steps_and_prints_the_answer(farm: Farm) -> None:
    said = farm.cli("task", "submit", "analyst", QUESTION, "--wait")
    assert said.returncode == 0, said.stderr
    assert ANSWER in said.stdout and "calculator" in said.stderr, (
        "the answer for the next program, the steps for the eye"
    )


def test_a_task_by_http_is_done_by_a_worker_kernel_and_the_ledger_tells_how(
    done: dict[str, Any], alice: Person
) -> None:
    assert ANSWER in json.dumps(done["result"])
    events = alice.events(done["run_id"])
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "run.created" and kinds[-1] == "run.succeeded" and "run.leased" in kinds
    assert kinds.index("model.requested") < kinds.index("model.replied") < kinds.index("tool.started")
    by = {event["kind"]: event["by"] for event in events}
    assert by["model.replied"] == by["tool.started"] == "gateway"
    assert by["tool.succeeded"] == "worker:1" and by["run.succeeded"] == "worker:1"
    reply = next(event for event in events if event["kind"] == "model.replied")["body"]
    assert reply["provenance"]["model"] and reply["usage"]["input"] > 0
    with alice.api() as api:
        assert api.get(f"/runs/{done['run_id']}/verify").json()["ok"] is True


def test_the_same_key_submits_once_and_another_body_under_it_is_refused(agent: str, alice: Person) -> None:
    with alice.api() as api:
        body = {"target": agent, "input": "What is 2+2?", "key": "only-once"}
        first, again = api.post("/tasks", json=body), api.post("/tasks", json=body)
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json()["task_id"] == again.json()["task_id"]
        refused = api.post("/tasks", json={**body, "input": "What is 2+3?"})
    assert refused.status_code == 409 and refused.json()["type"] == "conflict" and refused.json()["hint"]
    alice.settled(first.json()["task_id"])


def test_a_notebook_in_a_persons_server_submits_and_drives_an_agent_of_its_own(agent: str, alice: Person) -> None:
    kernel = alice.server("alice")
    printed = kernel.run(
        "from agentfarm_sdk import Farm, Agent, tool\n"
        f"print('RESULT', Farm().submit({agent!r}, {QUESTION!r}).result())\n"
        "@tool(effect='read')\n"
        "def multiply(a: int, b: int) -> int:\n"
        "    'Multiply two whole numbers.'\n"
        "    print('MULTIPLIED', a, b)\n"
        "    return a * b\n"
        "run = Agent('draft', prompt='You do sums. Use multiply.', tools=[multiply], tool_choice=['required', 'none']).run('What is 6*7?')\n"
        "print('RUN', run.run_id, run.status)\n",
        seconds=150,
    )
    assert re.search(rf"RESULT .*{ANSWER}", printed), printed
    bound = re.search(r"RUN (run-\w+) succeeded", printed)
    assert bound and "MULTIPLIED" in printed, printed
    events = alice.events(bound[1])
    assert "tool.succeeded" in [event["kind"] for event in events] and events[0]["body"]["bound"] is True


def test_the_ledger_verifies_by_the_command_line(farm: Farm, done: dict[str, Any]) -> None:
    said = farm.cli("audit", "verify")
    assert said.returncode == 0, said.stdout + said.stderr


def test_a_stream_of_events_resumes_where_the_reader_was(done: dict[str, Any], alice: Person) -> None:
    def ids(after: int) -> list[int]:
        with alice.api() as api:
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(after)} if after else {})}
            with api.stream("GET", f"/runs/{done['run_id']}/events", headers=headers) as stream:
                return [int(line[3:]) for line in stream.iter_lines() if line.startswith("id:")]

    whole = ids(0)
    assert whole == list(range(1, len(whole) + 1)) and ids(3) == whole[3:]


# --- whose is what ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can read what a server's token is: its process is not dumpable"
)
def test_no_hub_token_reaches_a_kernel(agent: str, alice: Person, done: dict[str, Any], farm: Farm) -> None:
    """Neither a notebook's nor a worker's: not in its environment, not in its command line."""
    names = alice.server("alice").run("import os, json; print(json.dumps(dict(os.environ)))")
    seen = [json.loads(names)]
    for process in psutil.process_iter():
        try:
            if "ipykernel_launcher" in " ".join(process.cmdline()) and str(farm.state) in json.dumps(process.environ()):
                seen.append(process.environ() | {"argv": " ".join(process.cmdline())})
        except psutil.Error:
            continue
    assert len(seen) > 1, "the agent's worker kernel was not found"
    tokens = server_tokens(farm)
    assert tokens, "the servers' own tokens were not found: this test would see nothing"
    for environment in seen:
        text = json.dumps(environment)
        assert "JUPYTERHUB_API_TOKEN" not in environment and "AGENTFARM_TOKEN" not in environment
        assert not [token for token in tokens if token in text]


def server_tokens(farm: Farm) -> set[str]:
    """Read the Hub tokens of the running servers out of their processes, as nobody else can."""
    found = set()
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        mine = environment.get("AGENTFARM_URL") == farm.ready["service_url"]
        if mine and (token := environment.get("JUPYTERHUB_API_TOKEN")):
            found.add(token)
    return found


@pytest.mark.parametrize("name", ["agent-analyst", "agent-nobody"])
def test_nobody_logs_in_as_an_agent(farm: Farm, name: str) -> None:
    password = farm.passwords()["people"]
    auth = {"auth": {"username": name, "password": password}}
    assert httpx.post(f"{farm.ready['hub_url']}api/users/{name}/tokens", json=auth).status_code == 403


def test_the_owner_opens_the_server_of_an_agent_and_another_person_does_not(
    farm: Farm, agent: str, done: dict[str, Any], alice: Person, bob: Person
) -> None:
    def status(person: Person, path: str) -> int:
        kernel = farm.kernels(f"agent-{agent}", person.token)
        return httpx.get(
            f"{kernel.base}{path}", headers={"Host": kernel.host, **person.headers}, timeout=30
        ).status_code

    until(farm.kernels(f"agent-{agent}", alice.token).leads, 60, "its owner opens the server")
    assert status(bob, "api/kernels") in {403, 404}
    for person, expected in ((alice, {200, 201, 202, 400}), (bob, {403, 404})):
        with person.hub() as hub:
            assert hub.post(f"/users/agent-{agent}/server", json={"user_options": {}}).status_code in expected
            assert hub.post(f"/users/agent-{agent}/tokens", json={"note": "x"}).status_code in {403, 404}


def test_another_person_reaches_nothing_of_an_agent_by_any_route(
    farm: Farm, agent: str, done: dict[str, Any], alice: Person, bob: Person
) -> None:
    """Every route that the API says it has, with the owner's own ids, in another's name and in nobody's."""
    with bob.api() as api:
        routes = api.get("/openapi.json").raise_for_status().json()["paths"]
    tried = 0
    for path, verbs in routes.items():
        if "{" not in path:
            continue
        filled = fill(path, agent, done)
        for verb in verbs:
            for headers in (bob.headers, {}, {"Authorization": "token " + "0" * 32}):
                base = f"{farm.ready['service_url']}/api/v1"
                answer = httpx.request(verb, base + filled, headers=headers, json={}, timeout=30)
                tried += 1
                assert answer.status_code in NO_ENTRY, (
                    verb,
                    filled,
                    bool(headers),
                    answer.status_code,
                    answer.text[:300],
                )
                assert done["run_id"] not in answer.text.replace(filled, "") or answer.status_code != 200
    assert tried > 60
    with alice.api() as api:
        assert api.get(f"/agents/{agent}").status_code == 200, "what was tried left the agent alone"
        assert api.get(f"/tasks/{done['task_id']}").json()["status"] == "succeeded"


def fill(path: str, agent: str, done: dict[str, Any]) -> str:
    ids = {
        "tasks": done["task_id"],
        "runs": done["run_id"],
        "threads": done["thread_id"] or "thread-0",
        "agents": agent,
    }
    values = {"name": agent, "call": "c0-0", "sha256": "0" * 64, "n": "1", "agent": agent}
    noun = path.strip("/").split("/")[0]
    return re.sub(
        r"{(\w+)}", lambda match: str(values.get(match[1]) or ids.get(noun) or "inbox-0"), path.removeprefix("/api/v1")
    )


LISTS = ["/agents", "/tasks", "/threads", "/inbox", "/usage", "/secrets"]


def test_lists_and_searches_of_another_person_are_without_it(agent: str, done: dict[str, Any], bob: Person) -> None:
    with bob.api() as api:
        for path in LISTS:
            answer = api.get(path, params={"agent": agent} if path != "/secrets" else None)
            assert agent not in answer.text.replace(f"agent={agent}", "") or answer.status_code >= 400, path
            assert done["task_id"] not in answer.text, path
            assert agent not in api.get(path).text, path


def test_another_person_can_neither_submit_to_an_agent_nor_take_its_runs(agent: str, bob: Person, farm: Farm) -> None:
    with bob.api() as api:
        assert api.post("/tasks", json={"target": agent, "input": "x"}).status_code in {403, 404}
        assert api.post("/claims", json={"worker": "w", "claim_id": "c"}).status_code == 403
        assert api.post("/agents", json={"name": agent}).status_code == 409


def test_a_notebook_of_another_person_reaches_nothing_either(agent: str, done: dict[str, Any], bob: Person) -> None:
    printed = bob.server("bob").run(
        "from agentfarm_sdk import Farm\n"
        "farm = Farm()\n"
        f"for ask in (lambda: farm.agent({agent!r}), lambda: farm.task({done['task_id']!r}), lambda: farm.run({done['run_id']!r}),\n"
        f"            lambda: farm.submit({agent!r}, 'x'), lambda: list(farm.events({done['run_id']!r}))):\n"
        "    try:\n        print('GOT', ask())\n"
        "    except Exception as error:\n        print('REFUSED', type(error).__name__)\n"
        f"print('SEES', {agent!r} in str(list(farm.agents())))\n"
    )
    assert printed.count("REFUSED") == 5 and "GOT" not in printed and "SEES False" in printed, printed


# --- the page ---------------------------------------------------------------------------------------------------


def test_the_page_shows_the_owner_the_agent_and_the_live_steps_of_a_run(
    desk: Callable[..., Desk], agent: str, done: dict[str, Any]
) -> None:
    alice = desk("alice")
    alice.page.locator("nav").get_by_text("AgentFarm").first.click()  # the Hub's navigation
    alice.page.wait_for_url("**/services/agentfarm/")
    page = alice.at("agents")
    page.get_by_role("row", name=agent).get_by_text("version 1").wait_for()
    page.get_by_role("link", name="Tasks").click()
    page.locator("select[name=target]").select_option(agent)
    page.locator("textarea[name=input]").fill("What is 12*12?")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("calculator").first.wait_for()
    page.get_by_text("144").first.wait_for()
    alice.shot("farm-run")


def test_the_page_shows_another_person_neither_agent_nor_run(
    desk: Callable[..., Desk], agent: str, done: dict[str, Any]
) -> None:
    bob = desk("bob")
    page = bob.at("tasks")
    page.get_by_text("Nothing was asked for yet.").wait_for()
    bob.at("agents")
    page.get_by_text("No agent yet.").wait_for()
    assert agent not in page.content() and QUESTION not in page.locator("body").inner_text()
    asked = "path => fetch(path, {headers: {'X-XSRFToken': document.querySelector('meta[name=farm]').dataset.xsrf}}).then(answer => answer.status)"
    for path in (
        f"runs/{done['run_id']}",
        f"tasks/{done['task_id']}",
        f"agents/{agent}",
        f"runs/{done['run_id']}/events",
    ):
        assert page.evaluate(asked, f"/services/agentfarm/api/v1/{path}") in {403, 404}, path
    bob.at(f"runs/{done['run_id']}").get_by_role("alert").first.wait_for()
    bob.refused_on_purpose()
