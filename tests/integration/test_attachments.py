"""Images and files as input, over the real service: kept by their hash, shown to models that take them, refused for others."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from servicekit import Service, service

from agentfarm_sdk import parts
from agentfarm_sdk.protocol import roll
from jupyterhub_agentfarm.handlers import attachments

PNG = b"\x89PNG not really"
DIGEST = hashlib.sha256(PNG).hexdigest()
IMAGE = {"type": "image", "blob": DIGEST, "media_type": "image/png"}
TEXT = {"type": "text", "text": "What is this?"}


@pytest.fixture
async def farm(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    async with service(tmp_path, database_url, monkeypatch) as running:
        running.model.takes = frozenset({"text", "image"})
        await running.agent()
        yield running


async def upload(farm: Service, token: str, content: bytes) -> Any:
    async with farm.client(token) as client:
        return await client.post("/blobs", content=content)


async def submit(farm: Service, *given: Any, token: str = "ann") -> Any:
    return await farm.ask(token, "POST", "/tasks", {"target": "analyst", "input": list(given), "key": None})


async def test_an_image_is_kept_by_its_hash_and_shown_to_the_model(farm: Service) -> None:
    assert (await upload(farm, "ann", PNG)).json() == {"sha256": DIGEST, "size": len(PNG)}
    task = (await submit(farm, TEXT, IMAGE)).json()
    assert task["input"] == [TEXT, {**IMAGE, "size": len(PNG)}]
    claim = await farm.claim()
    assert claim
    farm.model.script.append("A picture.")
    body = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": "r", "n": 0}}
    await farm.ok(claim["token"], "POST", "/model/v1/chat/completions", body)
    sent = farm.model.asked[0].messages
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert sent[-1]["content"] == [TEXT, {"type": "image_url", "image_url": {"url": url}}]
    events = (await farm.ok("ann", "GET", f"/runs/{claim['run']}/events"))["items"]
    assert url not in str(events) and any(
        DIGEST in str(one["body"]) for one in events if one["kind"] == "message.added"
    )
    recorded = [one["body"] for one in events if one["kind"] == "message.added"]
    digest = ""
    for message in recorded:  # anyone can compute from the record what the model was shown
        digest = roll(digest, msgspec.json.encode(parts.shown(message, {DIGEST: PNG})))
    assert [one["body"]["digest"] for one in events if one["kind"] == "model.requested"] == [digest]
    assert (await farm.ask("ann", "GET", f"/runs/{claim['run']}/blobs/{DIGEST}")).content == PNG
    again = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": [TEXT, IMAGE]})
    assert again["input"] == task["input"]


async def test_an_inlined_image_is_the_same_as_an_uploaded_one(farm: Service) -> None:
    inlined = {"type": "image", "data": base64.b64encode(PNG).decode(), "media_type": "image/png"}
    assert (await submit(farm, TEXT, inlined)).json()["input"] == [TEXT, {**IMAGE, "size": len(PNG)}]


async def test_a_model_that_takes_no_images_is_not_given_one_and_a_file_of_text_is_for_all(farm: Service) -> None:
    farm.model.takes = frozenset({"text"})
    await upload(farm, "ann", PNG)
    refused = await submit(farm, TEXT, IMAGE)
    assert refused.status_code == 422 and "scripted takes no image" in refused.json()["detail"]
    assert "inputs" in refused.json()["hint"] and (await farm.ok("ann", "GET", "/tasks"))["items"] == []
    await upload(farm, "bob", PNG)
    assert (await submit(farm, IMAGE, token="bob")).status_code == 404  # who may not ask it learns nothing of it
    notes = {"type": "file", "data": base64.b64encode(b"17*23").decode(), "media_type": "text/plain", "name": "n.txt"}
    assert (await submit(farm, notes)).status_code == 201


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "blob": "0" * 64, "media_type": "image/png"},
        {"type": "image", "data": "no base64!", "media_type": "image/png"},
        {"type": "image", "data": "", "blob": DIGEST, "media_type": "image/png"},
        {"type": "image", "data": "AAAA", "media_type": "image/svg+xml"},
        {"type": "file", "data": "AAAA"},
        {"type": "image", "blob": "../../etc/passwd", "media_type": "image/png"},
        {"type": "image", "data": "AAAA", "media_type": "image/png", "url": "http://inside/"},
    ],
    ids=["not there", "no base64", "two contents", "not an image", "no media type", "no hash", "more"],
)
async def test_a_part_that_cannot_be_taken_is_refused_at_the_door(farm: Service, part: dict[str, Any]) -> None:
    answer = await submit(farm, TEXT, part)
    assert answer.status_code == 422 and answer.json()["hint"], answer.text


async def test_what_was_not_kept_before_is_refused_wherever_many_tasks_are_submitted(farm: Service) -> None:
    await upload(farm, "ann", PNG)
    many = {
        "tasks": [
            {"target": "analyst", "input": [IMAGE]},
            {"target": "analyst", "input": [{**IMAGE, "blob": "1" * 64}]},
        ]
    }
    assert (await farm.ask("ann", "POST", "/tasks", many)).status_code == 422
    assert (await farm.ok("ann", "GET", "/tasks"))["items"] == []
    many["tasks"].pop()
    assert len((await farm.ok("ann", "POST", "/tasks", many))["items"]) == 1


async def test_nobody_names_what_another_has_uploaded(farm: Service) -> None:
    await farm.agent("other", owner="bob")
    await upload(farm, "ann", PNG)
    task = {"target": "other", "input": [IMAGE]}
    assert (await farm.ask("bob", "POST", "/tasks", task)).status_code == 422
    await upload(farm, "bob", PNG)
    assert (await farm.ask("bob", "POST", "/tasks", task)).status_code == 201
    assert (await upload(farm, "ann", b"")).status_code == 422


async def test_more_than_a_model_can_be_sent_with_each_step_is_refused(
    farm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "MAX_INPUT_BYTES", 10)
    await upload(farm, "ann", PNG)
    assert (await submit(farm, IMAGE)).status_code == 413


async def test_a_notebook_s_run_and_a_pool_s_task_take_them_too(farm: Service) -> None:
    await upload(farm, "ann", PNG)
    bound = await farm.ok("ann", "POST", "/runs", {"definition": {"prompt": "p"}, "input": [TEXT, IMAGE]})
    events = (await farm.ok("ann", "GET", f"/runs/{bound['run']}/events"))["items"]
    assert any(one["body"].get("content") == [TEXT, {**IMAGE, "size": len(PNG)}] for one in events)
    farm.model.takes = frozenset({"text"})
    body = {"agentfarm": {"run": bound["run"], "fence": bound["fence"], "request": "r", "n": 0}}
    refused = await farm.ask(bound["token"], "POST", "/model/v1/chat/completions", body)
    assert refused.status_code == 422 and "takes no image" in refused.json()["detail"]


async def test_nobody_gets_at_another_owner_s_file_by_naming_it_in_a_fork_or_a_case(farm: Service) -> None:
    await upload(farm, "bob", PNG)
    await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "Hello."})
    claim = await farm.claim()
    assert claim
    sent = {"fence": claim["fence"], "n": 1, "events": [{"kind": "run.succeeded", "body": {"result": "Hi."}}]}
    await farm.ok(claim["token"], "POST", f"/runs/{claim['run']}/events", sent)
    case = {"name": "seen", "input": [TEXT, IMAGE], "expect": [{"kind": "contains", "text": "x"}]}
    made = await farm.ok("ann", "POST", "/agents/analyst/cases", {**case, "input": "Hello."})
    for method, path, body in (
        ("POST", f"/runs/{claim['run']}/fork", {"step": 0, "input": [TEXT, IMAGE]}),
        ("POST", "/agents/analyst/cases", {**case, "name": "other"}),
        ("PATCH", f"/agents/analyst/cases/{made['case_id']}", {"input": [TEXT, IMAGE]}),
    ):
        refused = await farm.ask("ann", method, path, body)
        assert refused.status_code == 422 and "no upload" in refused.json()["detail"], (path, refused.text)
    await upload(farm, "ann", PNG)  # it is hers too now
    await farm.ok("ann", "PATCH", f"/agents/analyst/cases/{made['case_id']}", {"input": [TEXT, IMAGE]})
    tried = (await farm.ok("ann", "POST", "/agents/analyst/cases/run", {}))["items"][0]
    assert (await farm.ask("ann", "GET", f"/runs/{tried['run_id']}/blobs/{DIGEST}")).content == PNG
