"""The farm's tables, for SQLite and PostgreSQL alike. migrations/ creates them; a test proves both are equal.

Times are epoch seconds. JSON is kept as text. `runs` row 1 is the farm's own chain (run_id "farm").
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from .packing import Packed

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)
Big = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only INTEGER PRIMARY KEY

CLAIMABLE = ("queued", "assigned")
STATUSES = ("queued", "assigned", "running", "waiting", "cancelling", "succeeded", "failed", "cancelled", "chain")


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


def _where_set(table: str, column: str) -> Index:
    """An index of the few rows that have a value there."""
    only = text(f"{column} IS NOT NULL")
    return Index(f"ix_{table}_{column}", column, sqlite_where=only, postgresql_where=only)


FARM_RUN = "farm"  # the farm's own chain: status "chain", never claimed

meta = Table("meta", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False))

agents = Table(
    "agents",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("owner", String(255), nullable=False),
    Column("owner_since", Double),  # creation time of the hub user: a name used again is another person
    Column("pool", String(64)),
    Column("resources", Text, nullable=False, server_default="{}"),  # what its server is promised (demands.Resources)
    Column("draft", Text, nullable=False),
    Column("draft_rev", Integer, nullable=False, server_default="1"),
    Column("edited_by", String(255)),  # who wrote that revision of the draft, and when
    Column("edited_at", Double),
    Column("published", Integer),
    Column("created_at", Double, nullable=False),
    Column("retired_at", Double),
    Index("ix_agents_owner", "owner"),
)

pools = Table(  # how many servers a pool's members may have; a pool without a row follows the farm's rules
    "pools",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("min_servers", Integer, nullable=False),
    Column("max_servers", Integer),
    Column("idle_seconds", Double),
)

definitions = Table(
    "definitions",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("agent", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("hash", String(64), nullable=False),
    Column("note", Text, nullable=False, server_default=""),
    Column("created_at", Double, nullable=False),
    Column("created_by", String(255), nullable=False),
)

files = Table(  # sources of tools, pinned by content
    "files",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
)

grants = Table(  # with whom an agent is shared; mirrored to the Hub's shares
    "grants",
    metadata,
    Column("agent", String(64), primary_key=True),
    Column("person", String(255), primary_key=True),
    Column("rights", String(32), nullable=False),  # view | chat | manage
    Column("created_at", Double, nullable=False),
)

connections = Table(  # tokens of agents that people hold in an editor; the token itself is the Hub's, and nowhere here
    "connections",
    metadata,
    Column("connection_id", String(64), primary_key=True),  # stands in the token's note at the Hub
    Column("agent", String(64), nullable=False),
    Column("person", String(255), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Index("ix_connections_agent", "agent"),
)

threads = Table(
    "threads",
    metadata,
    Column("thread_id", String(64), primary_key=True),
    Column("agent", String(64), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("title", Text, nullable=False, server_default=""),
    Column("policy", String(16), nullable=False, server_default="enqueue"),
    Column("created_at", Double, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("task_id", String(64), primary_key=True),
    Column("owner", String(255), nullable=False),
    Column("submitted_by", String(255), nullable=False),
    Column("target", String(80), nullable=False),
    Column("agent", String(64)),
    Column("thread_id", String(64)),
    Column("input", Text, nullable=False),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("mode", String(16), nullable=False, server_default="live"),
    Column("key", String(255)),
    Column("key_digest", String(64)),
    Column("workspace", String(16), nullable=False, server_default="home"),
    Column("deadline", Double),
    Column("requirements", Text, nullable=False, server_default="{}"),
    Column("status", String(16), nullable=False),
    Column("waiting", String(16)),
    Column("run_id", String(64)),
    Column("result", Text),
    Column("error", Text),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("rank", Double, nullable=False, server_default="0"),  # turns.rank: its place among those that wait
    Column("options", Text, nullable=False, server_default="{}"),  # JSON: after, retry …, as they were asked for
    Column("concurrency_key", String(255)),
    Column("parent_run", String(64)),  # of a child
    Column("parent_call", String(32)),
    Column("batch_id", String(64)),
    Column("place", Integer),  # in the batch, from 1
    Column("batch_ended", Integer),  # as which one of the batch it ended, from 1
    UniqueConstraint("owner", "key"),
    CheckConstraint(_one_of("status", STATUSES[:-1]), name="status"),
    Index("ix_tasks_owner_created_at", "owner", "created_at"),
    Index("ix_tasks_agent_created_at", "agent", "created_at"),
    _where_set("tasks", "thread_id"),
    Index(
        "ix_tasks_deadline", "deadline", sqlite_where=text("deadline IS NOT NULL AND ended_at IS NULL"),
        postgresql_where=text("deadline IS NOT NULL AND ended_at IS NULL"),
    ),
    Index("ix_tasks_batch", "batch_id", "place", unique=True),
    Index("ix_tasks_batch_ended", "batch_id", "batch_ended", unique=True),
    _where_set("tasks", "parent_run"),
    Index(  # what waits for a member of its pool
        "ix_tasks_pool", "status", "target", "owner", "rank", "task_id",
        sqlite_where=text("run_id IS NULL AND ended_at IS NULL"), postgresql_where=text("run_id IS NULL AND ended_at IS NULL"),
    ),
)  # fmt: skip

task_links = Table(  # which tasks come after which
    "task_links",
    metadata,
    Column("task_id", String(64), primary_key=True),
    Column("after_task", String(64), primary_key=True),
    Index("ix_task_links_after_task", "after_task"),
)

batches = Table(
    "batches",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("owner", String(255), nullable=False),
    Column("submitted_by", String(255), nullable=False),
    Column("key", String(255)),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("owner", "key"),
)

turns = Table(  # where several owners wait for one agent: whose turn was last
    "turns",
    metadata,
    Column("agent", String(80), primary_key=True),
    Column("owner", String(255), primary_key=True),
    Column("served", Big, nullable=False),  # counted up for each agent
)

runs = Table(
    "runs",
    metadata,
    Column("run_no", Big, primary_key=True, autoincrement=True),
    Column("run_id", String(64), nullable=False, unique=True),
    Column("task_id", String(64)),
    Column("agent", String(80), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("thread_id", String(64)),
    Column("version", Integer),
    Column("definition_hash", String(64), nullable=False),
    Column("mode", String(16), nullable=False),
    Column("epoch", String(32), nullable=False),
    Column("bound", Boolean, nullable=False, server_default=text("false")),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("status", String(16), nullable=False),
    Column("waiting", String(16)),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("last_n", Integer, nullable=False, server_default="0"),
    Column("seq", Integer, nullable=False, server_default="0"),
    Column("head", String(64), nullable=False),
    Column("worker", String(255)),
    Column("claim_id", String(64)),
    Column("lease_until", Double),
    Column("not_before", Double),  # waits until then before it is claimed again
    Column("cancel", Text),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("rank", Double, nullable=False, server_default="0"),
    Column("linked", Boolean, nullable=False, server_default=text("false")),  # its end concerns others (links.py)
    Column("concurrency_key", String(255)),
    Column("concurrency", Integer, nullable=False, server_default="1"),  # so many with that key at once
    Column("interrupted", Boolean, nullable=False, server_default=text("false")),  # a thread goes on from here
    CheckConstraint(_one_of("status", STATUSES), name="status"),
    Index("ix_runs_agent_status", "agent", "status"),
    Index(  # claiming takes the first one of an owner, however many wait
        "ix_runs_queue",
        "agent",
        "owner",
        "rank",
        "run_no",
        sqlite_where=text(_one_of("status", CLAIMABLE)),
        postgresql_where=text(_one_of("status", CLAIMABLE)),
    ),
    Index("ix_runs_task_id", "task_id"),
    _where_set("runs", "thread_id"),
    _where_set("runs", "lease_until"),
    _where_set("runs", "not_before"),
    Index(
        "ix_runs_concurrency", "owner", "concurrency_key",
        sqlite_where=text("concurrency_key IS NOT NULL AND ended_at IS NULL AND fence > 0"),
        postgresql_where=text("concurrency_key IS NOT NULL AND ended_at IS NULL AND fence > 0"),
    ),
    Index(
        "ix_runs_keyed", "concurrency_key", sqlite_where=text("concurrency_key IS NOT NULL AND ended_at IS NULL"),
        postgresql_where=text("concurrency_key IS NOT NULL AND ended_at IS NULL"),
    ),
    Index("ix_runs_claim_id", "claim_id"),
)  # fmt: skip

events = Table(
    "events",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),  # one writer: also the order of all events of the farm
    Column("run_no", Big, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("header", Packed, nullable=False),
    Column("salt", LargeBinary),  # null with the body once it was erased
    Column("body", Packed),
    Column("n", Integer),  # on the last event of a worker's append: its number and digest
    Column("digest", LargeBinary),
    UniqueConstraint("run_no", "seq"),
)

anchors = Table(  # signed roots over the heads that moved; the same as in the operator's file
    "anchors",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("upto", Big, nullable=False),  # the last event of the farm that it covers (events.id)
    Column("anchor", Text, nullable=False),  # the bytes that are signed
    Column("signature", String(128), nullable=False),
)

anchored = Table(  # their leaves
    "anchored",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("run_id", String(64), primary_key=True),
    Column("seq", Integer, nullable=False),
    Column("head", String(64), nullable=False),
    Index("ix_anchored_run_id", "run_id"),
)

tombstones = Table(  # what stays of deleted runs; the farm's own chain says the same
    "tombstones",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("epoch", String(32), nullable=False),
    Column("seq", Integer, nullable=False),
    Column("head", String(64), nullable=False),
    Column("deleted_at", Double, nullable=False),
    Column("deleted_by", String(255), nullable=False),
)

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("size", Integer, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
)

run_blobs = Table(
    "run_blobs",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("sha256", String(64), primary_key=True),
)

uploads = Table(  # images and files for tasks: whose they are
    "uploads",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("created_at", Double, nullable=False),
)

inbox = Table(
    "inbox",
    metadata,
    Column("inbox_id", String(64), primary_key=True),
    Column("run_id", String(64), nullable=False),
    Column("call", String(32), nullable=False),
    Column("kind", String(16), nullable=False),  # approval | in_doubt | simulation
    Column("agent", String(80), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("detail", Text, nullable=False),  # JSON: tool, arguments, key, effect, proof
    Column("asked_at", Double, nullable=False),
    Column("decided_at", Double),
    Column("decision", String(16)),
    Column("decided_by", String(255)),
    Column("reason", Text),
    Column("votes", Text),  # JSON: [{by, at, reason, arguments?}], where several must approve
    Column("due_at", Double),  # when time alone does something with it: shows it to more people, or lets it expire
    Column("expires_at", Double),
    Column("escalated_at", Double),
    Column("escalate_to", String(255)),  # a group of the Hub that may see and decide it then
    _where_set("inbox", "due_at"),
    Index("ix_inbox_owner_decided_at", "owner", "decided_at"),
    Index("ix_inbox_run_id", "run_id"),
)

secrets = Table(
    "secrets",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("ciphertext", LargeBinary, nullable=False),
    Column("updated_at", Double, nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("agent", String(80), primary_key=True),
    Column("owner", String(255), primary_key=True),
    Column("model", String(255), primary_key=True),
    Column("requests", Integer, nullable=False),
    Column("tokens_in", Big, nullable=False),
    Column("tokens_out", Big, nullable=False),
    Column("cost", Double, nullable=False),
    Column("estimated", Integer, nullable=False, server_default="0"),  # requests whose tokens nobody counted
    Column("unpriced", Integer, nullable=False, server_default="0"),  # requests of models without a price
)

budgets = Table(
    "budgets",
    metadata,
    Column("scope", String(8), primary_key=True),  # agent | owner | farm
    Column("name", String(255), primary_key=True),  # "" = the farm
    Column("unit", String(8), primary_key=True),  # usd | tokens
    Column("period", String(8), primary_key=True),  # day | month | total
    Column("amount", Double, nullable=False),
    Column("action", String(8), nullable=False),  # stop | ask
    Column("set_by", String(255), nullable=False),
    Column("set_at", Double, nullable=False),
)

reservations = Table(  # what model requests under way may use; those of a service that died are settled in full
    "reservations",
    metadata,
    Column("hold_id", String(64), primary_key=True),
    Column("run_id", String(64), nullable=False),
    Column("agent", String(80), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("model", String(255), nullable=False),
    Column("tokens_in", Big, nullable=False),
    Column("tokens_out", Big, nullable=False),
    Column("cost", Double, nullable=False),
    Column("reserved_at", Double, nullable=False),
)

memory = Table(  # what agents remember: the latest value of each key; memory.* events say who wrote it
    "memory",
    metadata,
    Column("agent", String(80), primary_key=True),
    Column("owner", String(255), primary_key=True),  # "" but for notebooks' agents: each person's own
    Column("key", String(200), primary_key=True),
    Column("value", Text, nullable=False),  # JSON
    Column("run_id", String(64), nullable=False),
    Column("changed_at", Double, nullable=False),
)

timers = Table(  # calls that rest until a time; a row goes when it fires, or finds its run ended
    "timers",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("call", String(32), primary_key=True),
    Column("due_at", Double, nullable=False),
    Index("ix_timers_due_at", "due_at"),
)

idempotency = Table(  # answers to writes that carried an Idempotency-Key
    "idempotency",
    metadata,
    Column("asker", String(255), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
)

cases = Table(  # what an agent is tried with, and what is expected of it
    "cases",
    metadata,
    Column("case_id", String(64), primary_key=True),
    Column("agent", String(64), nullable=False),
    Column("name", String(200), nullable=False),
    Column("input", Text, nullable=False),
    Column("variables", Text, nullable=False),
    Column("expect", Text, nullable=False),  # JSON: a list of checks
    Column("mode", String(16), nullable=False),
    Column("simulate", Text),
    Column("from_run", String(64)),
    Column("created_at", Double, nullable=False),
    Column("created_by", String(255), nullable=False),
    Column("changed_at", Double, nullable=False),
    UniqueConstraint("agent", "name"),
)

case_results = Table(  # tasks that tried a case, and the verdict on each
    "case_results",
    metadata,
    Column("task_id", String(64), primary_key=True),
    Column("batch_id", String(64), nullable=False),
    Column("agent", String(64), nullable=False),
    Column("case_id", String(64), nullable=False),
    Column("name", String(200), nullable=False),
    Column("version", Integer),  # null: the draft
    Column("expect", Text, nullable=False),  # as it was when the task was submitted
    Column("verdict", String(16)),
    Column("checks", Text),
    Column("judged_at", Double),
    Index("ix_case_results_agent_batch_id", "agent", "batch_id"),
    Index(
        "ix_case_results_unjudged",
        "task_id",
        sqlite_where=text("verdict IS NULL"),
        postgresql_where=text("verdict IS NULL"),
    ),
)
