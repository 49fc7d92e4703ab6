"""Approvals and calls in doubt, decided by people at the farm's page, in a real browser against a real farm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from browserkit import Desk
from farmkit import Counter, Farm, Held, Person, kill, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PAY = {"type": "object", "properties": {"to": {"type": "string"}, "amount": {"type": "integer"}}, "required": ["to", "amount"]}  # fmt: skip


class Paying:
    """A notebook's run, driven by the test, whose model asks to pay somebody."""

    def __init__(self, person: Person, to: str, amount: int, approval: str) -> None:
        self.person = person
        tool = {"name": "pay", "schema": PAY, "effect": "once", "approval": approval}
        with person.api() as api:
            body = {"definition": {"tools": [tool]}, "input": f"Pay {to} {amount}.", "mode": "live", "name": "payer"}
            self.bound = api.post("/runs", json=body).raise_for_status().json()
        self.run_id = self.bound["run"]
        said = {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c0-0", "type": "function", "function": {"name": "pay", "arguments": f'{{"to": "{to}", "amount": {amount}}}'}}
        ]}  # fmt: skip
        self.post("events", {"n": 1, "events": [{"kind": "model.reported", "body": {"message": said}}]})

    def post(self, what: str, body: dict[str, Any]) -> Any:
        with self.person.api() as api:
            headers = {"Authorization": f"Bearer {self.bound['token']}", "Agentfarm-Protocol": "1"}
            asked = {"fence": self.bound["fence"], **body}
            answer = api.post(f"/runs/{self.run_id}/{what}", json=asked, headers=headers)
            assert answer.status_code == 200, answer.text
            return answer.json()

    def __enter__(self) -> Paying:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing that waits: the farm is shared."""
        with self.person.api() as api:
            done = api.post(f"/tasks/{self.bound['task']}/cancel", json={})
            assert done.status_code in (200, 409), done.text  # 409: it has ended

    def event(self, kind: str) -> dict[str, Any]:
        return until(
            lambda: next((one for one in self.person.events(self.run_id) if one["kind"] == kind), None), 10,
            f"{kind} in {[one['kind'] for one in self.person.events(self.run_id)]}",
        )  # fmt: skip


@pytest.mark.parametrize("farm", ["sqlite"], indirect=True)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_an_approver_reads_what_is_asked_mends_it_and_the_farm_does_no_more_than_that(
    desk: Callable[..., Desk], farm: Farm, dark: bool
) -> None:
    to = "bob <img src=x onerror=alert(1)>" if dark else "bob"
    with Paying(farm.person("petra"), to, 500, "always") as run:
        mend_and_approve(desk("petra", dark=dark), run, to, "dark" if dark else "light")


def mend_and_approve(petra: Desk, run: Paying, to: str, look: str) -> None:
    run.event("approval.requested")
    run.post("events", {"n": 2, "events": [{"kind": "run.parked", "body": {"reason": "approval"}}]})
    page = petra.at("inbox")
    page.get_by_role("button", name="pay notebook: payer").first.click()
    page.get_by_text(to, exact=True).wait_for()
    petra.shot(f"inbox-{look}")
    assert petra.axe() == []
    page.get_by_role("button", name="Edit the arguments").click()
    page.get_by_label("Arguments").fill('{"to": ')
    page.get_by_role("button", name="Approve").click()
    page.get_by_role("alert").get_by_text("must be JSON").wait_for()
    page.get_by_label("Arguments").fill('{"to": "bob", "amount": 50}')
    page.get_by_label("Reason").fill("ten times too much")
    page.get_by_role("button", name="Approve").click()
    given = run.event("approval.given")
    assert given["by"] == "user:petra" and given["body"]["arguments"] == {"to": "bob", "amount": 50}
    page.get_by_role("button", name="pay notebook: payer").wait_for(state="detached")
    page.get_by_role("tab", name="Decided").click()
    page.get_by_text("given by petra").first.wait_for()


@pytest.mark.parametrize("scripted_farm", ["sqlite"], indirect=True)
def test_a_doubt_is_closed_by_a_person_and_by_nobody_whom_it_does_not_concern(
    browser: Any, scripted_farm: Farm, hands: dict[str, str], counter: Counter
) -> None:
    alice = scripted_farm.person("alice")
    call = Held(alice, hands["charge"], "charge", counter)
    call.reached()
    kill(call.worker().pid)
    task = call.settled(20)
    call.release()
    assert (task["status"], task["waiting"]) == ("waiting", "in_doubt"), call.kinds()
    with alice.api() as api:
        (item,) = [one for one in api.get("/inbox").json()["items"] if one["run_id"] == task["run_id"]]
    desks = [Desk(browser, scripted_farm, name) for name in ("paula", "alice")]
    try:
        page = desks[0].at("inbox")
        page.get_by_text("Nothing waits for a person.").wait_for()
        page = desks[0].at(f"inbox/{item['inbox_id']}")
        page.get_by_text("there is no inbox item").wait_for()
        desks[0].shot("inbox-refused")
        page = desks[1].at(f"inbox/{item['inbox_id']}")
        page.get_by_text("proven dead: kernel exited with -9").wait_for()
        page.get_by_label("Result").fill('{"receipt": 8}')
        page.get_by_text("Read as: object").wait_for()
        page.get_by_label("Reason").fill("the bank says so")
        desks[1].shot("inbox-doubt")
        assert desks[1].axe() == []
        page.get_by_role("button", name="It happened").click()
        assert until(lambda: call.settled()["status"] == "succeeded", 60, "the run goes on")
        (resolved,) = [one for one in alice.events(task["run_id"]) if one["kind"] == "tool.resolved"]
        told = {"decision": "happened", "result": {"receipt": 8}, "reason": "the bank says so"}
        assert resolved["by"] == "user:alice" and told.items() <= resolved["body"].items()
        assert len(counter.requests(call.name)) == 1, "a once effect happened twice"
        assert desks[1].wrong == []
    finally:
        for one in desks:
            one.close()
