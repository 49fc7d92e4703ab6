"""The farm's API for programmers: submit tasks, follow them, look after agents. The command line is built on it.

farm = Farm()                                  # configured by the environment
print(farm.submit("analyst", "What is 17*23?").result())
"""

from __future__ import annotations

import json
import mimetypes
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from . import batches, settings
from .answers import read_answer, sse
from .cases import Cases
from .errors import AgentFarmError, Invalid, Transient
from .protocol import ENDED, PROTOCOL, Event
from .shown.live import progress_of
from .shown.records import Listing, Record, RunRecord
from .task import Task

Json = dict[str, Any]
SILENCE_SECONDS = 60.0  # a stream sends at least a byte every 15 s
CUT_SECONDS = 120.0  # how long a stream that was cut is asked for again


class Farm:
    """A farm, over HTTP. `Farm()` reads the environment (AGENTFARM_SOCKET; AGENTFARM_URL and AGENTFARM_TOKEN; .farm/client.json).

    Raises:
        Invalid: no farm is named anywhere.
    """

    def __init__(self, url: str = "", token: str = "", *, socket: str = "", timeout: float = 30.0) -> None:
        address = settings.FarmAddress(settings.api_url(url), token, socket) if url else settings.farm_address()
        if address is None:
            hint = (
                "run this inside a server of the farm, set AGENTFARM_URL and AGENTFARM_TOKEN, or start one: make farm"
            )
            raise Invalid("no farm is named here", hint=hint)
        self.address = address
        headers = {"Agentfarm-Protocol": str(PROTOCOL), "Accept": "application/json"}
        if address.token:
            headers["Authorization"] = f"token {address.token}"
        transport = (
            httpx.HTTPTransport(uds=address.socket, retries=1) if address.socket else httpx.HTTPTransport(retries=1)
        )
        self._http = httpx.Client(
            base_url=address.url, headers=headers, timeout=timeout, transport=transport, follow_redirects=False
        )
        self._page: str | None = None

    def __repr__(self) -> str:  # never the token
        return f"<Farm {self.address.socket or self.address.url}>"

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    @property
    def page(self) -> str:
        """The address of the farm's page, for a browser; "" where the farm does not say."""
        if self._page is None:
            try:
                self._page = str(self.status().get("page") or "")
            except AgentFarmError:
                return ""
        return self._page

    # -- the API as it is ----------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Make one request and return its JSON (None for 204; bytes for what is no JSON). timeout: seconds, else the farm's.

        Raises:
            AgentFarmError: the problem that the farm answers, as its class in errors.py. Transient: it is not reachable.
        """
        try:
            response = self._http.request(
                method, path, json=body, params=_given(params), headers=headers, content=content,
                timeout=httpx.USE_CLIENT_DEFAULT if timeout is None else timeout,
            )  # fmt: skip
        except httpx.TimeoutException as error:
            raise Transient("the farm did not answer in time", hint="agentfarm status", retry_after=2.0) from error
        except httpx.TransportError as error:
            raise Transient(
                f"the farm at {self.address.url} cannot be reached: {error}", hint="is it up? make farm"
            ) from error
        return read_answer(response)

    def items(self, path: str, params: dict[str, Any] | None = None, limit: int | None = None) -> Iterator[Json]:
        """Yield the items of a list, page after page."""
        cursor, left = None, limit
        while left is None or left > 0:
            page = self.request(
                "GET", path, params={**(params or {}), "cursor": cursor, "limit": min(left or 100, 100)}
            )
            for item in page["items"][:left]:
                yield item
                left = None if left is None else left - 1
            cursor = page.get("next")
            if not cursor:
                return

    def stream(self, path: str, after: int = 0, timeout: float | None = None) -> Iterator[tuple[int, str, Any]]:
        """Yield (id, event, data) of server-sent events from `after` on, over cuts, until the farm ends the stream.

        Raises:
            TimeoutError: `timeout` seconds are over.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        cut_at: float | None = None
        while True:
            try:
                left = None if deadline is None else max(0.01, deadline - time.monotonic())
                for seq, event, data in self._stream_once(path, after, left):
                    cut_at, after = None, max(after, seq)
                    yield seq, event, data
                    if deadline is not None and time.monotonic() > deadline:
                        raise TimeoutError(f"nothing final within {timeout} s")
                return
            except (httpx.TransportError, Transient) as error:
                now = time.monotonic()
                if deadline is not None and now >= deadline:
                    raise TimeoutError(f"nothing final within {timeout} s") from error
                cut_at = cut_at or now
                if now - cut_at > CUT_SECONDS:
                    raise Transient("the farm cannot be reached any more", hint="agentfarm status") from error
                time.sleep(min(1.0, 0.05 + (now - cut_at)))

    def _stream_once(self, path: str, after: int, timeout: float | None) -> Iterator[tuple[int, str, Any]]:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(after)} if after else {})}
        read = SILENCE_SECONDS if timeout is None else min(SILENCE_SECONDS, timeout)
        with self._http.stream("GET", path, headers=headers, timeout=httpx.Timeout(30.0, read=read)) as response:
            if response.status_code != 200:
                response.read()
                read_answer(response)
            yield from sse(response.iter_lines())

    # -- tasks ---------------------------------------------------------------------------------------------------

    def submit(
        self,
        target: str,
        input: Any,
        *,
        priority: int = 0,
        key: str | None = None,
        mode: str | None = None,
        thread: str | None = None,
        workspace: str | None = None,
        deadline: float | None = None,
        variables: dict[str, str] | None = None,
        simulate: Json | None = None,
        after: Sequence[Task | str] = (),
        after_any_end: bool = False,
        results: bool = False,
        retry: int | Json | None = None,
        concurrency_key: str | None = None,
        concurrency: int | None = None,
        requirements: Json | None = None,
        wait: bool = False,
    ) -> Task:
        """Ask an agent (`analyst`) or a pool (`pool:analysts`) for something; with `wait`, return when it has ended.

        `input`: text, data, or parts: `["What is this?", farm.attach("photo.png")]` for a model that takes images or files.

        The same `key` submits the same task once; a task without one gets its own, so that a lost answer does no harm.
        priority: -100 to 100; a point is worth a minute of waiting. deadline: seconds from now; then it is cancelled.
        after: tasks that must have succeeded before it begins (`after_any_end`: or ended); `results`: it is told theirs.
        retry: how many runs in all, or `{"attempts", "backoff", "on"}`; never after a call with effect `once`.
        concurrency_key: at most `concurrency` (1) of the owner's runs with that key go on at once.
        requirements: what the server must have that does it, `{"memory": bytes, "gpus": 1, "labels": {…}, "flags": ["avx2"]}`.
        simulate: what answers the calls instead of the tools, `{"stubs": {tool: result}, "recording": run, "otherwise":
        "person" or "refuse"}`.
        """
        body = {"target": target, "input": _parts(input)} | _asked({
            "priority": priority or None, "key": key, "mode": mode, "thread": thread, "workspace": workspace, "deadline": deadline,
            "variables": variables, "simulate": simulate, "after": after, "after_any_end": after_any_end, "results": results,
            "retry": retry, "concurrency_key": concurrency_key, "concurrency": concurrency, "requirements": requirements,
        })  # fmt: skip
        once = {"Idempotency-Key": key or uuid.uuid4().hex}
        task = Task(self, self.again("POST", "/tasks", body, once))
        if wait:
            task.wait()
        return task

    def attach(self, file: Path | str, media_type: str = "") -> Json:
        """Upload an image or a file; return the part of an input that stands for it. Raises Invalid: what it is is not known."""
        path = Path(file)
        kind = media_type or mimetypes.guess_type(path.name)[0] or ""
        if not kind:
            raise Invalid(f"nobody knows what {path.name} is", hint='attach(file, media_type="application/pdf")')
        try:
            content = path.read_bytes()
        except OSError as error:
            raise Invalid(f"{path} cannot be read: {error.strerror}", hint="name a file that is there") from error
        kept = {"Content-Type": "application/octet-stream"}
        answer = self.request("POST", "/blobs", headers=kept, content=content)
        what = "image" if kind.startswith("image/") else "file"
        return {"type": what, "blob": answer["sha256"], "media_type": kind, "name": path.name}

    def again(self, method: str, path: str, body: Any, headers: dict[str, str], attempts: int = 4) -> Any:
        """Make a request that does no harm when made twice, again after a cut."""
        for attempt in range(1, attempts + 1):
            try:
                return self.request(method, path, body, headers=headers)
            except Transient as error:
                if attempt == attempts:
                    raise
                time.sleep(min(float(error.retry_after), 2.0) * attempt / 2)

    def map(
        self, target: str, inputs: Iterable[Any], *, ordered: bool = True, key: str = "", errors: str = "raise",
        timeout: float | None = None, progress: bool = True, **options: Any,
    ) -> Iterator[Any]:  # fmt: skip
        """Submit a task for each input, thousands too; return an iterator of the results, in order or as they come.

        With a `key`, asking again submits nothing twice, also where this process died in the middle. errors: `raise` at
        the first that failed, or `return` the error in its place. timeout: seconds for all. options: as for `submit`.
        progress: show how far it is while the results are taken, in a notebook or a terminal.
        """
        batch = self.submit_many(target, inputs, key=key, **options)

        def values() -> Iterator[Any]:
            with progress_of(batch, progress):
                yield from batch.values(ordered=ordered, errors=errors, timeout=timeout)

        return values()

    def submit_many(self, target: str, inputs: Iterable[Any], *, key: str = "", **options: Any) -> batches.Batch:
        """Submit a task for each input; return the batch, whose `results()` name each input's place."""
        return batches.submit(self, target, [_parts(one) for one in inputs], key=key, options=_asked(options))

    def thread(self, agent: str, *, title: str = "", policy: str = "enqueue") -> str:
        """Begin a conversation with an agent; return the id that `submit(thread=…)` takes.

        policy: what a message meets while a run is active: `enqueue`, `reject`, or `interrupt`, which ends that run at its
        next step boundary and goes on from what it has done.
        """
        answer: Json = self.request("POST", "/threads", {"agent": agent, "title": title, "policy": policy})
        return str(answer["thread_id"])

    def task(self, task_id: str) -> Task:
        return Task(self, self.request("GET", f"/tasks/{_id(task_id)}"))

    def tasks(self, limit: int | None = None, **filters: Any) -> Iterator[Json]:
        return self._listed("tasks", limit, filters)

    def _listed(self, kind: str, limit: int | None, filters: Json | None = None) -> Iterator[Json]:
        return Listing(lambda most: self.items(f"/{kind}", filters, most), self, kind, limit)

    # -- runs ----------------------------------------------------------------------------------------------------

    def run(self, run_id: str) -> RunRecord:
        """Return a run's row; in a notebook it shows the run, and `notebook(path)` writes it as one."""
        return RunRecord(self.request("GET", f"/runs/{_id(run_id)}"), self)

    def events(
        self, run_id: str, after: int = 0, follow: bool = False, timeout: float | None = None
    ) -> Iterator[Event]:
        """Yield a run's events; with `follow`, as they come, until the run has ended."""
        path = f"/runs/{_id(run_id)}/events"
        if not follow:
            page: dict[str, Any] = {"next": after}
            while page.get("next") is not None:
                page = self.request("GET", path, params={"after": page["next"] or None, "limit": 500})
                yield from (_event(item) for item in page["items"])
            return
        for _, _, data in self.stream(path, after, timeout):
            event = _event(data)
            yield event
            if event.kind.partition(".")[2] in ENDED and event.kind.startswith("run."):
                return

    def tokens(self, run_id: str, timeout: float | None = None) -> Iterator[str]:
        """Yield the model's words as they come; for the eye only."""
        for _, _, data in self.stream(f"/runs/{_id(run_id)}/tokens", 0, timeout):
            if isinstance(data, dict) and isinstance(data.get("text"), str):
                yield data["text"]

    def whole(self, run_id: str, result: Any) -> Any:
        """Return a result, fetched where the event holds only the name of its blob."""
        if not (isinstance(result, dict) and "$blob" in result):
            return result
        kept = self.request("GET", f"/runs/{_id(run_id)}/blobs/{_id(str(result['$blob']))}")
        return json.loads(kept) if isinstance(kept, bytes) else kept

    def verify(self, run_id: str) -> Json:
        """Check a run's chain; `{ok, events, head}` or the first bad event and why."""
        answer: Json = self.request("GET", f"/runs/{_id(run_id)}/verify")
        return answer

    def audit(self) -> Json:
        """Check every run and all anchors (operators): `{ok, runs, events, anchor, anchored_at, since, broken}`."""
        answer: Json = self.request("GET", "/audit/verify")
        return answer

    def bundle(self, run_id: str) -> bytes:
        """Return the run's evidence bundle, a zip; agentfarm_sdk.audit.verify_bundle checks it without a farm."""
        content: bytes = self.request("GET", f"/runs/{_id(run_id)}/bundle")
        return content

    def erase(
        self, run_id: str, reason: str, *, seqs: Sequence[int] = (), kinds: Sequence[str] = (), everything: bool = False, memory: bool = False
    ) -> Json:  # fmt: skip
        """Erase bodies of an ended run's events, by number or kind: headers and hashes stay, and who did it, and why.

        `memory`: also what its agent remembers since. The answer's `left` names what holds words of the run still.
        """
        body = {"reason": reason, "seqs": list(seqs), "kinds": list(kinds), "all": everything, "memory": memory}
        return self.request("POST", f"/runs/{_id(run_id)}/erase", body)  # type: ignore[no-any-return]

    def delete_run(self, run_id: str, reason: str) -> Json:
        """Delete an ended run; return its tombstone: how many events it had, and the hash of the last."""
        return self.request("DELETE", f"/runs/{_id(run_id)}", params={"reason": reason})  # type: ignore[no-any-return]

    def fork(self, run_id: str, step: int, **wish: Any) -> Task:
        """Begin a new run with the messages of this one before reply number `step` (from 0).

        `prompt` stands in place of the run's own, `input` is asked next; `version` (a number or "draft") is the
        definition instead of the run's own; `mode` is ask unless named.
        """
        return Task(self, self.request("POST", f"/runs/{_id(run_id)}/fork", {"step": step, **_given(wish)}))

    def effects(self, run_id: str) -> list[Json]:
        """Return the calls of a run that did something in the world, or may have."""
        return list(self.request("GET", f"/runs/{_id(run_id)}/effects")["items"])

    # -- agents --------------------------------------------------------------------------------------------------

    def agents(self, limit: int | None = None) -> Iterator[Json]:
        return self._listed("agents", limit)

    def agent(self, name: str) -> Json:
        return Record(self.request("GET", f"/agents/{_id(name)}"), self, "agents")

    def create_agent(self, name: str, draft: Json | None = None, **options: Any) -> Json:
        answer: Json = self.request("POST", "/agents", _given({"name": name, "draft": draft, **options}))
        return answer

    def publish(self, name: str, note: str = "") -> Json:
        answer: Json = self.request("POST", f"/agents/{_id(name)}/publish", {"note": note})
        return answer

    def export_agent(self, name: str) -> str:
        """Return the agent as one YAML document."""
        answer = self.request("GET", f"/agents/{_id(name)}/export")
        return answer.decode() if isinstance(answer, bytes) else json.dumps(answer, indent=2)

    def import_agent(self, document: str | Path, name: str | None = None) -> Json:
        """Make or change an agent from an exported document, or from a file with one."""
        text = document.read_text() if isinstance(document, Path) else document
        response = self._http.post(
            "/agents/import",
            content=text.encode(),
            params=_given({"name": name}),
            headers={"Content-Type": "application/yaml"},
        )
        answer: Json = read_answer(response)
        return answer

    def memory(self, name: str, query: str = "") -> Iterator[Json]:
        """Return what an agent remembers, `{key, value, run_id, changed_at}`: all, or what has all words of a query."""
        return self.items(f"/agents/{_id(name)}/memory", _given({"query": query or None}))

    def forget(self, name: str, key: str) -> Json:
        """Let an agent forget a key."""
        answer: Json = self.request("DELETE", f"/agents/{_id(name)}/memory", params={"key": key})
        return answer

    def cases(self, agent: str) -> Cases:
        """Return the test cases of an agent: kept, tried with versions, judged."""
        return Cases(self, agent)

    # -- what waits for a person, and the state of things --------------------------------------------------------

    def inbox(self, limit: int | None = None, **filters: Any) -> Iterator[Json]:
        return self._listed("inbox", limit, filters)

    def budgets(self) -> Iterator[Json]:
        return Listing(lambda most: iter(self.request("GET", "/budgets")["items"]), self, "budgets", None)

    def resolve(
        self, item: str, decision: str, *, reason: str = "", arguments: Json | None = None, result: Any = None, force: bool = False
    ) -> Json:  # fmt: skip
        """Decide what waits: approve, refuse; happened, not_happened, give_up; answer, for a question.

        `force`, with a reason: not_happened also where the worker is only silent. `arguments`: others for the call that is
        approved; of a budget {"amount": …}, so much beyond it.
        """
        given = _given({"arguments": arguments, "result": result, "force": force or None})
        body = {"decision": decision, "reason": reason, **given}
        answer: Json = self.request("POST", f"/inbox/{_id(str(item))}", body)
        return answer

    def tools(self) -> list[Json]:
        return list(self.items("/tools"))

    def models(self) -> list[Json]:
        answer: list[Json] = self.request("GET", "/model/v1/models")["data"]
        return answer

    def microservers(self) -> list[Json]:
        return list(self.items("/microservers"))

    def status(self) -> Json:
        """Return the service's own word on its health."""
        answer: Json = self.request("GET", "/health")
        return answer


def _event(data: Json) -> Event:
    """Return the event of parsed JSON: its body is kept as bytes again."""
    return msgspec.convert({**data, "body": msgspec.Raw(msgspec.json.encode(data.get("body")))}, Event)


def _parts(given: Any) -> Any:
    """Let text stand for itself among the parts of an input."""
    if not (
        isinstance(given, list) and any(isinstance(one, dict) and one.get("type") in ("image", "file") for one in given)
    ):
        return given
    return [{"type": "text", "text": one} if isinstance(one, str) else one for one in given]


def _asked(options: Json) -> Json:
    """Return options of a task as the API takes them."""
    body = {name: value for name, value in _given(options).items() if value is not False}
    if after := body.pop("after", ()):
        body["after"] = [one.id if isinstance(one, Task) else one for one in after]
    if isinstance(body.get("retry"), int):
        body["retry"] = {"attempts": body["retry"]}
    return body


def _given(values: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (values or {}).items() if value is not None}


def _id(text: str) -> str:
    return quote(text, safe="")
