"""Values that several parts of the service pass around: frozen, no I/O. Ids, times and status are as in docs/architecture.md.

Times are epoch seconds (UTC) as float; in JSON they are ISO 8601 with Z.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentfarm_sdk.protocol import Definition, Event

from .errors import Invalid

EMBEDDED_MODEL = "smollm2-135m-instruct"  # what the service and the model's own server call it
EMBEDDED_CONTEXT = 4096  # tokens that it can take, with its reply


def new_id(prefix: str) -> str:
    """Return an id that sorts by time: run-, task-, thread-, inbox- and 24 hex digits (48 bits ms, 48 random)."""
    return f"{prefix}-{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"


def hub_user(agent: str) -> str:
    """Return the Hub's user name of an agent."""
    return f"agent-{agent}"


def microserver_name(text: str) -> str:
    """Return the name of a machine that joins. Raises Invalid: it is none."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", text) or text == "local":
        hint = "lowercase letters, digits and hyphens, at most 40, a letter first; local is the farm's own machine"
        raise Invalid(f"{text!r} is no name for a microserver", hint=hint)
    return text


def unit_name(user: str, server: str = "") -> str:
    """Return the unit's name for a hub user's server: the same each time, different for each pair, safe everywhere."""
    readable = re.sub(r"[^a-z0-9]+", "-", f"{user}-{server}".lower()).strip("-")[:60] or "server"
    digest = hashlib.sha256(f"{user}\n{server}".encode()).hexdigest()[:8]
    return f"af-{readable}-{digest}"


@dataclass(frozen=True)
class Agent:
    name: str
    owner: str
    pool: str | None
    draft: Definition
    draft_rev: int  # its ETag
    published: int | None  # number of the published version
    created_at: float
    retired_at: float | None = None
    owner_since: float | None = None  # creation time of the owner's hub user, where the Hub told it
    edited_by: str | None = None  # who wrote this revision of the draft
    edited_at: float | None = None


@dataclass(frozen=True)
class Version:
    agent: str
    number: int
    hash: str
    definition: Definition
    note: str
    created_at: float
    created_by: str


@dataclass(frozen=True)
class Task:
    task_id: str
    owner: str
    submitted_by: str
    target: str  # "analyst" or "pool:analysts"
    agent: str | None
    thread_id: str | None
    input: Any
    priority: int
    mode: str
    key: str | None
    workspace: str  # home | none
    deadline: float | None
    requirements: dict[str, Any]
    status: str
    waiting: str | None
    run_id: str | None
    result: Any
    error: dict[str, Any] | None
    created_at: float
    ended_at: float | None
    options: dict[str, Any] = field(default_factory=dict)  # after, retry …, as they were asked for
    concurrency_key: str | None = None
    parent_run: str | None = None
    parent_call: str | None = None
    batch_id: str | None = None
    place: int | None = None  # in the batch, from 1


BEGINS = ("queued", "assigned")  # statuses of a task that has not begun


@dataclass(frozen=True)
class Placeless:
    """Which tasks that have not begun wait for a place for a server, and why: as the scheduler knows it at one moment; no row says so.

    agents: why those have none; pools: the same of targets whose tasks nobody has yet; astray: agents whose servers are away from their files.
    """

    agents: Mapping[str, str] = field(default_factory=dict)
    pools: Mapping[str, str] = field(default_factory=dict)
    astray: frozenset[str] = frozenset()

    def why(self, task: Task) -> str:
        """Return why the task waits for a place, "" where it does not."""
        if task.status not in BEGINS:
            return ""
        if task.agent in self.astray and task.workspace == "home":
            return "its agent's files cannot be reached: it waits for them"
        return (self.agents.get(task.agent) if task.agent else self.pools.get(task.target)) or ""


@dataclass(frozen=True)
class Run:
    """A row of `runs`: who it is, how far it is, who holds it."""

    run_no: int
    run_id: str
    task_id: str
    agent: str
    owner: str
    thread_id: str | None
    version: int | None  # None: a draft, named by its hash
    definition_hash: str
    mode: str
    epoch: str
    bound: bool  # to a person's kernel: never enters the queue
    status: str
    waiting: str | None
    fence: int
    last_n: int
    seq: int
    head: str
    worker: str | None
    claim_id: str | None
    lease_until: float | None
    cancel: str | None
    created_at: float
    ended_at: float | None
    linked: bool = False  # its end concerns others (store/links.py)

    def moved(self, changes: dict[str, Any]) -> Run:
        """Return the row with other values; what dataclasses.replace does, in a tenth of the time."""
        run = object.__new__(Run)
        run.__dict__.update(self.__dict__, **changes)
        return run


@dataclass(frozen=True)
class Committed:
    """Events of one run that have just been committed, in order; what `Database.on_commit` hands out."""

    run_id: str
    agent: str
    owner: str
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Demand:
    """What a server asks of a microserver; memory, cpu and GPUs are promised to it there. Bytes, cores."""

    server: str  # unit name
    memory: int = 0
    cpu: float = 0.0
    tasks: int = 0  # processes and threads at most; 0: what the microserver's helper takes by itself
    gpus: int = 0
    gpu_memory: int = 0  # that each of them must have
    labels: dict[str, str] = field(default_factory=dict)  # that the microserver must have
    without: dict[str, str] = field(default_factory=dict)  # that it must not have; "": whatever the value
    flags: tuple[str, ...] = ()  # of the CPU
    tolerates: tuple[str, ...] = ()  # taints
    ticks: str = ""  # the tick store to be near: the value of the label `ticks` where its streams are kept
    ticks_only: bool = False  # nowhere else
    group: str = ""  # the pool
    apart: str = "soft"  # from others of the group: no | soft | hard
    rank: str = ""  # spread | binpack; "": the farm's
    pin: str = ""  # the only microserver for it
    home: str = ""  # where its workspace is


@dataclass(frozen=True)
class Microserver:
    """A snapshot of a microserver, as placement sees it. Bytes, cores.

    `memory_free` is measured; `promised_…` is what the servers placed there may come to use; `unused`: how much of that
    they have not taken yet, so that it is measured as free still. `gpus`: the memory of each.
    """

    name: str
    state: str = "ready"  # ready | cordoned | draining | lost
    reason: str = ""  # of the state
    memory: int = 0
    memory_free: int = 0
    cpus: int = 0
    load: float = 0.0
    servers: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    taints: dict[str, str] = field(default_factory=dict)  # name -> reason
    flags: frozenset[str] = frozenset()
    gpus: tuple[int, ...] = ()
    gpus_taken: frozenset[int] = frozenset()
    promised_memory: int = 0
    promised_cpu: float = 0.0
    unused: int = 0
    reserve_memory: int = 0  # for the system
    reserve_cpu: float = 0.0
    groups: dict[str, int] = field(default_factory=dict)  # pool -> its servers here
    others: frozenset[str] = frozenset()  # servers that another farm has here, by unit
