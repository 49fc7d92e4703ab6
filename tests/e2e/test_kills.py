"""Kill any process at any moment: each run ends right, or waits for a named reason; a `once` effect never happens twice.

The effects are counted by a stranger (counter.py), which holds its answer back while somebody is killed: the effect has
happened, and the farm cannot know yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from farmkit import Counter, Farm, Held, Person, kill, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def alice(scripted_farm: Farm) -> Person:
    return scripted_farm.person("alice")


@pytest.fixture
def held(hands: dict[str, str], alice: Person, counter: Counter) -> Iterator[dict[str, Held]]:
    """A run of each agent in the middle of its effect."""
    made = {tool: Held(alice, agent, tool, counter) for tool, agent in hands.items()}
    for one in made.values():
        one.reached()
    yield made
    for one in made.values():
        one.release()


@pytest.mark.parametrize("victim", ["service", "hub", "daemon", "proxy"])
def test_a_run_goes_on_over_the_death_of(
    victim: str, scripted_farm: Farm, held: dict[str, Held], counter: Counter
) -> None:
    scripted_farm.kill(victim)
    for one in held.values():
        one.release()
    for one in held.values():
        task = one.settled()
        assert task["status"] == "succeeded", (task, one.kinds())
        assert len(counter.requests(one.name)) == 1, "the worker lived: nothing was to be called again"
    answers(scripted_farm)


def answers(farm: Farm) -> None:
    """Wait until every part of the farm works again, so that the next test finds it whole."""
    person = farm.person("alice")

    def look() -> bool:
        try:
            through_proxy = httpx.get(
                f"http://127.0.0.1:{httpx.URL(farm.ready['public_url']).port}/services/agentfarm/api/v1/health"
            )
            with person.hub() as hub, person.api() as api:
                return all(
                    one.status_code == 200 for one in (through_proxy, hub.get("/user"), api.get("/microservers"))
                )
        except httpx.HTTPError:
            return False

    until(look, 60, "every part of the farm answers")


def test_a_killed_worker_leaves_a_once_call_in_doubt_and_a_person_says_that_it_happened(
    scripted_farm: Farm, held: dict[str, Held], counter: Counter, alice: Person
) -> None:
    once, again = held["charge"], held["store"]
    for one in held.values():
        kill(one.worker().pid)
    task = once.settled(20)
    assert (task["status"], task["waiting"]) == ("waiting", "in_doubt"), once.kinds()
    assert once.kinds()[-2:] == ["run.requeued", "tool.doubted"] or once.kinds()[-1] == "tool.doubted", once.kinds()
    again.reached(2)
    for one in held.values():
        one.release()
    assert again.settled()["status"] == "succeeded", again.kinds()
    keys = {request["key"] for request in counter.requests(again.name)}
    assert counter.effects(again.name) == 1 and len(keys) == 1
    item = doubt_of(alice, once)
    assert item["detail"]["proof"], "the supervisor saw the kernel end: that is proof"
    said = scripted_farm.cli(
        "inbox",
        "resolve",
        item["inbox_id"],
        "happened",
        "--result",
        '"charged"',
        "--reason",
        "the bank says so",
        token=alice.token,
    )
    assert said.returncode == 0, said.stderr
    task = until(lambda: (t := once.settled())["status"] == "succeeded" and t, 60, "the run goes on")
    assert len(counter.requests(once.name)) == 1, "a once effect happened twice"
    resolved = [e for e in alice.events(task["run_id"]) if e["kind"] == "tool.resolved"]
    assert resolved[0]["by"] == "user:alice" and resolved[0]["body"]["reason"] == "the bank says so"


def doubt_of(person: Person, one: Held) -> dict[str, Any]:
    with person.api() as api:
        run = person.task(one.task_id)["run_id"]
        return next(item for item in api.get("/inbox").raise_for_status().json()["items"] if item["run_id"] == run)


def test_the_death_of_an_agents_server_is_healed_and_a_doubt_that_is_given_up_ends_the_run(
    scripted_farm: Farm, held: dict[str, Held], counter: Counter, alice: Person
) -> None:
    once, again = held["charge"], held["store"]
    for one in held.values():
        server = one.server()
        for process in [server, *server.children(recursive=True)]:
            if process.is_running():
                process.kill()
    again.reached(2, 120)  # after a lease, or the tool's own time where nobody proves the worker dead
    for one in held.values():
        one.release()
    assert again.settled()["status"] == "succeeded", again.kinds()
    assert counter.effects(again.name) == 1
    task = once.settled()
    assert (task["status"], task["waiting"]) == ("waiting", "in_doubt"), once.kinds()
    with alice.api() as api:
        item = doubt_of(alice, once)
        decided = api.post(f"/inbox/{item['inbox_id']}", json={"decision": "given_up", "reason": "nobody knows"})
        assert decided.status_code == 200, decided.text
        assert api.post(f"/inbox/{item['inbox_id']}", json={"decision": "happened", "reason": "no"}).status_code == 409
    assert until(lambda: (t := alice.task(once.task_id))["status"] == "failed" and t, 30, "the run is given up")
    assert len(counter.requests(once.name)) == 1, "a once effect happened twice"


def test_a_doubt_that_did_not_happen_is_called_again_with_its_key(
    scripted_farm: Farm, hands: dict[str, str], counter: Counter, alice: Person
) -> None:
    once = Held(alice, hands["charge"], "charge", counter)
    once.reached()
    kill(once.worker().pid)
    assert once.settled(20)["waiting"] == "in_doubt"
    once.release()
    with alice.api() as api:
        item = doubt_of(alice, once)
        answer = api.post(
            f"/inbox/{item['inbox_id']}", json={"decision": "not_happened", "reason": "the bank has nothing"}
        )
        assert answer.status_code == 200, answer.text
    task = until(lambda: (t := once.settled())["status"] == "succeeded" and t, 60, "the run goes on")
    assert task["status"] == "succeeded"
    keys = [request["key"] for request in counter.requests(once.name)]
    assert len(keys) == 2 and len(set(keys)) == 1, "a person said so, and the key tells the other side"


def test_everything_dies_at_once_and_the_next_start_goes_on(
    scripted_farm: Farm, held: dict[str, Held], counter: Counter
) -> None:
    for pid in [scripted_farm.ready["pid"], *scripted_farm.ready["pids"].values()]:
        if psutil.pid_exists(pid):
            psutil.Process(pid).kill()
    scripted_farm.launcher.wait(10)
    scripted_farm.start()
    for one in held.values():
        one.release()
    for one in held.values():
        task = one.settled()
        assert task["status"] == "succeeded", (task, one.kinds())
        assert len(counter.requests(one.name)) == 1, "the workers lived: nothing was to be called again"


def test_after_all_this_the_ledger_is_whole(scripted_farm: Farm, hands: dict[str, str]) -> None:
    said = scripted_farm.cli("audit", "verify")
    assert said.returncode == 0, said.stdout + said.stderr
    assert not [line for line in Path(scripted_farm.log).read_text().splitlines() if "Traceback" in line]
