"""Approvals and calls in doubt, decided by people at the farm's page, in a real browser against a real farm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from browserkit import Desk
from farmkit import Farm, Person, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.parametrize("farm", ["sqlite"], indirect=True)]
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
            api.post(f"/tasks/{self.bound['task']}/cancel", json={}).raise_for_status()

    def event(self, kind: str) -> dict[str, Any]:
        return until(
            lambda: next((one for one in self.person.events(self.run_id) if one["kind"] == kind), None), 10,
            f"{kind} in {[one['kind'] for one in self.person.events(self.run_id)]}",
        )  # fmt: skip


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


def test_a_doubt_is_closed_by_a_person_and_by_nobody_whom_it_does_not_concern(
    desk: Callable[..., Desk], farm: Farm
) -> None:
    with Paying(farm.person("petra"), "carol", 7, "never") as run:
        close_the_doubt(desk, farm, run)


def close_the_doubt(desk: Callable[..., Desk], farm: Farm, run: Paying) -> None:
    run.event("tool.started")
    run.post("heartbeat", {"dead": "kernel exited with -9"})
    run.event("tool.doubted")
    other = desk("paula")
    page = other.at("inbox")
    page.get_by_text("Nothing waits for a person.").wait_for()
    with farm.person("petra").api() as api:
        (item,) = [one for one in api.get("/inbox").json()["items"] if one["run_id"] == run.run_id]
    page = other.at(f"inbox/{item['inbox_id']}")
    page.get_by_text("there is no inbox item").wait_for()
    other.shot("inbox-refused")
    other.wrong.clear()  # the browser tells of the 404 that was meant
    petra = desk("petra")
    page = petra.at(f"inbox/{item['inbox_id']}")
    page.get_by_text("proven dead: kernel exited with -9").wait_for()
    page.get_by_label("Result").fill('{"receipt": 8}')
    page.get_by_text("Read as: object").wait_for()
    page.get_by_label("Reason").fill("the bank says so")
    petra.shot("inbox-doubt")
    page.get_by_role("button", name="It happened").click()
    resolved = run.event("tool.resolved")["body"]
    assert (resolved["decision"], resolved["result"], resolved["reason"]) == ("happened", {"receipt": 8}, "the bank says so")  # fmt: skip
    page.get_by_text("happened by petra: the bank says so").wait_for()
