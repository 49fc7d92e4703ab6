"""Who may do what: owner, others, agents, operators and nobody, over every route of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from servicekit import Service, service

from jupyterhub_agentfarm.handlers.table import ROUTES
from jupyterhub_agentfarm.records import unit_name

# For each route the status that each asker gets. 2xx: let in; 404: it does not even show that the thing is there.
ASKERS = ("ann", "chatter", "viewer", "bob", "operator", "agent-analyst", "agent-other", "nobody")
IN, HIDE, NO, WHO = "in", 404, 403, 401  # "in": past the door; what the route then makes of an empty body is its affair
EVERYONE = (IN,) * 8
USERS = (IN,) * 7 + (WHO,)
PEOPLE = (IN,) * 5 + (NO, NO, WHO)
SEES = (IN, IN, IN, HIDE, IN, IN, HIDE, WHO)  # those who may see the agent's things
OWNS = (IN, HIDE, HIDE, HIDE, IN, HIDE, HIDE, WHO)  # of many agents' tasks
MANAGES = (IN, NO, NO, HIDE, IN, NO, NO, WHO)
RIGHTS: dict[str, tuple[Any, ...]] = {
    "GET /agents": USERS,
    "POST /agents": PEOPLE,
    "GET /agents/{name}": SEES,
    "PATCH /agents/{name}": MANAGES,
    "DELETE /agents/{name}": MANAGES,
    "POST /agents/{name}/start": (IN, IN, NO, HIDE, IN, NO, NO, WHO),
    "POST /agents/{name}/restart": MANAGES,
    "POST /agents/{name}/stop": MANAGES,
    "POST /agents/{name}/connect": MANAGES,
    "GET /agents/{name}/connections": MANAGES,
    "DELETE /agents/{name}/connections": MANAGES,
    "DELETE /agents/{name}/connections/{connection}": MANAGES,
    "GET /agents/{name}/shares": MANAGES,
    "POST /agents/{name}/shares": MANAGES,
    "GET /agents/{name}/memory": SEES,
    "GET /agents/{name}/logs": MANAGES,
    "DELETE /agents/{name}/memory": MANAGES,
    "GET /runs/{run}/memory": (NO,) * 7 + (WHO,),
    "POST /agents/{name}/publish": MANAGES,
    "GET /agents/{name}/versions": SEES,
    "GET /agents/{name}/versions/{number}": SEES,
    "GET /agents/{name}/diff": SEES,
    "POST /agents/{name}/restore": MANAGES,
    "GET /agents/{name}/export": SEES,
    "POST /agents/import": PEOPLE,
    "GET /tools": USERS,
    "GET /tools/files/{sha256}": USERS,
    "POST /tools/read": PEOPLE,
    "PUT /secrets": PEOPLE,
    "GET /secrets": PEOPLE,
    "DELETE /secrets/{name}": PEOPLE,
    "POST /tasks": (IN, IN, NO, HIDE, IN, IN, HIDE, WHO),
    "GET /tasks": USERS,
    "POST /blobs": USERS,
    "GET /tasks/{task}": SEES,
    "POST /tasks/{task}/cancel": (IN, IN, NO, HIDE, IN, IN, HIDE, WHO),
    "POST /tasks/{task}/pause": (IN, IN, NO, HIDE, IN, IN, HIDE, WHO),
    "POST /tasks/{task}/resume": (IN, IN, NO, HIDE, IN, IN, HIDE, WHO),
    "POST /tasks/{task}/rerun": (IN, IN, NO, HIDE, IN, IN, HIDE, WHO),
    "GET /batches/{batch}": OWNS,
    "GET /batches/{batch}/results": OWNS,
    "POST /batches/{batch}/cancel": OWNS,
    "POST /threads": (IN, IN, NO, HIDE, IN, IN, HIDE, WHO),
    "GET /threads": USERS,
    "GET /threads/{thread}": SEES,
    "POST /runs": USERS,
    "GET /runs/{run}": SEES,
    "GET /runs/{run}/events": SEES,
    "GET /runs/{run}/tokens": SEES,
    "GET /runs/{run}/verify": SEES,
    "GET /runs/{run}/bundle": SEES,
    "GET /runs/{run}/replay": SEES,
    "POST /runs/{run}/erase": (IN, NO, NO, HIDE, IN, NO, NO, WHO),
    "DELETE /runs/{run}": (IN, NO, NO, HIDE, IN, NO, NO, WHO),
    "GET /audit/export": (NO, NO, NO, NO, IN, NO, NO, WHO),
    "GET /runs/{run}/effects": SEES,
    "POST /runs/{run}/fork": (IN, IN, NO, HIDE, IN, IN, HIDE, WHO),
    "GET /audit/anchors": PEOPLE,
    "GET /audit/verify": (NO, NO, NO, NO, IN, NO, NO, WHO),
    "GET /runs/{run}/blobs/{sha256}": SEES,
    "POST /runs/{run}/events": (NO,) * 7 + (WHO,),
    "POST /runs/{run}/open": (NO,) * 7 + (WHO,),
    "POST /runs/{run}/calls/{call}/outcome": (NO,) * 7 + (WHO,),
    "PUT /runs/{run}/blobs/{sha256}": (NO,) * 7 + (WHO,),
    "POST /model/v1/chat/completions": (NO,) * 7 + (WHO,),
    "POST /runs/{run}/heartbeat": (NO, NO, NO, NO, NO, IN, HIDE, WHO),
    "POST /claims": (NO, NO, NO, NO, NO, IN, IN, WHO),
    "GET /worker": (NO, NO, NO, NO, NO, IN, IN, WHO),
    "GET /model/v1/models": USERS,
    "GET /inbox": USERS,
    "GET /inbox/{item}": (IN, IN, IN, HIDE, IN, IN, HIDE, WHO),
    "POST /inbox/{item}": (IN, NO, NO, HIDE, IN, NO, NO, WHO),
    "GET /health": EVERYONE,
    "GET /openapi.json": EVERYONE,
    "GET /metrics": (IN, IN, IN, IN, IN, NO, NO, IN),
    "GET /usage": USERS,
    "GET /budgets": USERS,
    "PUT /budgets": MANAGES,
    "GET /events": USERS,
    "GET /microservers": USERS,
    "GET /microservers/{name}": USERS,
    "POST /microservers/{name}/cordon": (NO, NO, NO, NO, IN, NO, NO, WHO),
    "POST /microservers/{name}/uncordon": (NO, NO, NO, NO, IN, NO, NO, WHO),
    "GET /joining": (NO, NO, NO, NO, IN, NO, NO, WHO),
    "PUT /microservers/{name}": (NO, NO, NO, NO, IN, NO, NO, WHO),
    "DELETE /microservers/{name}": (NO, NO, NO, NO, IN, NO, NO, WHO),
    "POST /microservers/{name}/drain": (NO, NO, NO, NO, IN, NO, NO, WHO),
    "POST /microservers/{name}/snapshot": (NO, NO, NO, NO, IN, NO, NO, WHO),
    "POST /microservers/{name}/lost": (NO, NO, NO, NO, IN, NO, NO, WHO),
    "GET /microservers/{name}/drain": (NO, NO, NO, NO, IN, NO, NO, WHO),
    "GET /people": PEOPLE,
    "GET /templates": USERS,
    "GET /tasks/counts": USERS,
    "GET /runs": USERS,
    "GET /runs/{run}/steps": SEES,
    "GET /runs/{run}/requests/{seq}": SEES,
    "POST /preview": USERS,
    "GET /agents/{name}/cases": SEES,
    "POST /agents/{name}/cases": MANAGES,
    "PATCH /agents/{name}/cases/{case}": MANAGES,
    "DELETE /agents/{name}/cases/{case}": MANAGES,
    "POST /agents/{name}/cases/run": MANAGES,
    "GET /agents/{name}/cases/runs": SEES,
    "GET /agents/{name}/cases/runs/{batch}": SEES,
    "PATCH /microservers/{name}": (NO, NO, NO, NO, IN, NO, NO, WHO),
    "GET /pools": USERS,
    "PUT /pools/{name}": (HIDE, HIDE, HIDE, HIDE, HIDE, NO, NO, WHO),
    "GET /placements/settings": USERS,
    "PUT /placements/settings": (NO, NO, NO, NO, IN, NO, NO, WHO),
    "GET /placements/rebalance": (NO, NO, NO, NO, IN, NO, NO, WHO),
    "GET /agents/{name}/resources": SEES,
    "PUT /agents/{name}/resources": MANAGES,
    "GET /placements/explain": USERS,  # which agent's or task's is asked behind the door
}
BODIES: dict[str, Any] = {
    "POST /agents": {"name": "x", "colour": "past the door"},
    "POST /agents/{name}/shares": {"person": "vic", "rights": "view"},
    "POST /agents/{name}/restore": {"number": 1},
    "POST /runs/{run}/erase": {"reason": "r", "all": True},
    "POST /tasks": {"target": "analyst", "input": "x"},
    "POST /threads": {"agent": "analyst"},
    "POST /agents/{name}/cases": {"name": "again", "input": "x", "expect": [{"kind": "exact", "value": 1}]},
    "POST /preview": {"definition": {"prompt": "p"}},
    "POST /tools/read": {"files": {"mine.py": "x = 1"}},
    "POST /runs": {"definition": {"prompt": "p"}, "input": "x"},
    "POST /runs/{run}/heartbeat": {"fence": 99},
    "POST /runs/{run}/events": {
        "fence": 99,
        "n": 1,
        "events": [{"kind": "value.recorded", "body": {"name": "x", "value": 1}}],
    },
    "POST /runs/{run}/calls/{call}/outcome": {"fence": 1, "event": {"kind": "tool.succeeded", "body": {"result": 1}}},
    "POST /claims": {"worker": "w", "claim_id": "c"},
    "POST /inbox/{item}": {"decision": "happened"},
    "PUT /secrets": {"name": "-", "value": "past the door"},
    "PUT /microservers/{name}": {"ssh": "root@10.0.0.1"},
    "PUT /budgets": {"scope": "agent", "name": "analyst", "unit": "tokens", "period": "day", "amount": 1e9},
}

# A manager may what the owner may, but for ending the agent; a person's server may what the person may, but for deciding,
# secrets and administration; a run token opens its own run to its worker, and nothing else.
MANAGER = {
    **dict.fromkeys(("DELETE /agents/{name}", "POST /runs/{run}/erase", "DELETE /runs/{run}"), NO),
    **dict.fromkeys(("GET /batches/{batch}", "GET /batches/{batch}/results", "POST /batches/{batch}/cancel"), HIDE),
}
SERVER = dict.fromkeys(
    ("PUT /secrets", "GET /secrets", "DELETE /secrets/{name}", "POST /inbox/{item}", "POST /runs/{run}/erase", "DELETE /runs/{run}"), NO
)  # fmt: skip
OWN_RUN = (
    "GET /runs/{run}", "GET /runs/{run}/events", "GET /runs/{run}/tokens", "GET /runs/{run}/verify", "GET /runs/{run}/bundle",
    "GET /runs/{run}/replay", "GET /runs/{run}/effects", "GET /runs/{run}/steps", "GET /runs/{run}/requests/{seq}", "GET /runs/{run}/memory", "GET /runs/{run}/blobs/{sha256}", "PUT /runs/{run}/blobs/{sha256}", "POST /runs/{run}/events", "POST /runs/{run}/open",
    "POST /runs/{run}/calls/{call}/outcome", "POST /runs/{run}/heartbeat", "POST /model/v1/chat/completions",
)  # fmt: skip
ANY_RUN = ("GET /tools/files/{sha256}", "GET /worker", "GET /model/v1/models", "GET /health", "GET /openapi.json")
DERIVED = ("manager", "ann-server", "run", "foreign run")


def expected(route: str, asker: str) -> Any:
    if asker in ASKERS:
        return RIGHTS[route][ASKERS.index(asker)]
    owners = RIGHTS[route][ASKERS.index("ann")]
    if asker in ("manager", "ann-server"):
        return (MANAGER if asker == "manager" else SERVER).get(route, owners)
    if route in ANY_RUN:
        return IN
    if route not in OWN_RUN:
        return NO
    return IN if asker == "run" else HIDE if route.startswith("GET") and "memory" not in route else NO


def body_of(route: str, run: str) -> Any:
    if route == "POST /model/v1/chat/completions":
        return {"agentfarm": {"run": run, "fence": 1, "request": "q", "n": 0}}
    return BODIES.get(route, {})


async def token_of(farm: Service, asker: str, own: str) -> str:
    if asker == "nobody":
        return ""
    if asker == "foreign run":
        await farm.ok("bob", "POST", "/tasks", {"target": "other", "input": "b"})
        claim = await farm.claim("other")
        assert claim
        return str(claim["token"])
    return own if asker == "run" else asker


def test_every_route_stands_in_the_table_of_rights() -> None:
    assert {f"{route.method} {route.path}" for route in ROUTES} == set(RIGHTS)
    assert {*OWN_RUN, *ANY_RUN, *MANAGER, *SERVER} <= set(RIGHTS)


async def things(farm: Service) -> dict[str, str]:
    """Make one of everything, ann's, shared with a viewer and a chatter."""
    await farm.agent(tools=[{"name": "calculator", "approval": "always"}])
    await farm.agent("other", owner="bob")
    for person, rights in (("vic", "view"), ("cho", "chat"), ("mia", "manage")):
        await farm.ok("ann", "POST", "/agents/analyst/shares", {"person": person, "rights": rights})
    thread = await farm.ok("ann", "POST", "/threads", {"agent": "analyst"})
    task = await farm.ok("ann", "POST", "/tasks", {"target": "analyst", "input": "a"})
    claim = await farm.claim()
    assert claim
    many = await farm.ok("ann", "POST", "/tasks", {"tasks": [{"target": "analyst", "input": "b"}]})
    await farm.ok("ann", "POST", f"/tasks/{many['items'][0]['task_id']}/cancel", {})
    farm.model.script.append(("calculator", {"expression": "1+1"}))
    body = {"agentfarm": {"run": claim["run"], "fence": claim["fence"], "request": "r", "n": 0}}
    await farm.ok(claim["token"], "POST", "/model/v1/chat/completions", body)
    (item,) = (await farm.ok("ann", "GET", "/inbox"))["items"]
    wanted = {"name": "sum", "input": "1+1?", "expect": [{"kind": "contains", "text": "2"}]}
    case = await farm.ok("ann", "POST", "/agents/analyst/cases", wanted)
    farm.fleet.logs[unit_name("agent-analyst")] = ["up"]
    return {
        "name": "analyst", "number": "1", "task": task["task_id"], "batch": many["batch_id"], "thread": thread["thread_id"], "run": claim["run"], "call": "c0-0", "connection": "connection-0",
        "item": item["inbox_id"], "seq": "1", "case": case["case_id"], "sha256": "0" * 64, "token": claim["token"],
    }  # fmt: skip


@pytest.mark.parametrize("asker", [*ASKERS, *DERIVED])
async def test_every_route_lets_in_whom_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asker: str) -> None:
    wrong = []
    async with service(tmp_path, f"sqlite:///{tmp_path}/farm.sqlite", monkeypatch) as farm:
        names = await things(farm)
        async with farm.client(await token_of(farm, asker, names.pop("token"))) as client:
            # what ends or changes things for those behind comes last
            for route in sorted(RIGHTS, key=lambda one: ("DELETE" in one, "cancel" in one, "POST" in one)):
                method, _, path = route.partition(" ")
                due = expected(route, asker)
                other = {"/secrets": "KEY", "/microservers": "local"}.get("/" + path.split("/")[1])
                own = {**names, "name": other} if other else names
                url = path.format(**own) + ("?reason=r" if route == "DELETE /runs/{run}" else "")
                async with client.stream(
                    method, url, json=body_of(route, names["run"]) if method != "GET" else None
                ) as answer:
                    got = answer.status_code
                    said = "" if got == 200 else (await answer.aread()).decode()
                fine = got not in (401, 403) and "there is no agent" not in said if due == IN else got == due
                if due == IN and got == 404:  # a thing that is not there, and not one that is hidden
                    fine = any(
                        word in said
                        for word in (
                            "tool file",
                            "no secret",
                            "no blob",
                            "remembers nothing",
                            "no connection",
                            "no model request",
                            "no case run",
                        )
                    )
                if got >= 500 or not fine:
                    wrong.append(f"{route} by {asker}: {got} {said}, expected {due}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("token", "status"), [("no-access", 403), ("pretender", 403), ("unknown", 401)])
async def test_a_token_without_the_scope_is_nobody_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, status: int
) -> None:
    async with service(tmp_path, f"sqlite:///{tmp_path}/farm.sqlite", monkeypatch) as farm:
        assert (await farm.ask(token, "GET", "/agents")).status_code == status


async def test_a_page_s_request_needs_its_xsrf_header_and_works_under_the_page_s_prefix_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    async with service(tmp_path, f"sqlite:///{tmp_path}/farm.sqlite", monkeypatch) as farm:
        await farm.agent()
        cookie = {"Cookie": farm.cookie("ann")}
        async with httpx.AsyncClient(base_url=farm.url, headers=cookie) as browser:
            page = await browser.get("/services/agentfarm/")
            assert page.status_code == 200 and "script-src 'self'" in page.headers["Content-Security-Policy"]
            xsrf = page.text.partition('data-xsrf="')[2].partition('"')[0]
            kept = {"Cookie": f"{cookie['Cookie']}; _xsrf={page.cookies['_xsrf']}", "Sec-Fetch-Mode": "cors"}
            task = {"target": "analyst", "input": "x"}
            base = "/services/agentfarm/api/v1"
            assert (await browser.post(f"{base}/tasks", json=task, headers=kept)).status_code == 401
            assert (await browser.get(f"{base}/tasks", headers=kept)).status_code == 401
            made = await browser.post(f"{base}/tasks", json=task, headers={**kept, "X-XSRFToken": xsrf})
            assert made.status_code == 201, made.text
            other = await browser.post("/api/v1/tasks", json=task, headers={**kept, "X-XSRFToken": xsrf})
            assert other.status_code == 401, "the own listener looks at no cookie"
        async with httpx.AsyncClient(base_url=farm.url) as stranger:
            asked = await stranger.get("/services/agentfarm/")
            assert asked.status_code == 302 and "/oauth2/authorize" in asked.headers["Location"]
