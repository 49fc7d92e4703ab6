"""What the ledger's promises need: decisions, tasks that depend on others, anchors, budgets, what agents remember"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _inbox()
    _tasks()
    _audit()
    _budgets()
    _memory()
    _connections()
    _agents()
    _cases()


def _inbox() -> None:
    """Approvals by several people, their expiry, escalation."""
    for name, kind in (
        ("votes", sa.Text), ("due_at", sa.Double), ("expires_at", sa.Double), ("escalated_at", sa.Double), ("escalate_to", sa.String(255)),
    ):  # fmt: skip
        op.add_column("inbox", sa.Column(name, kind))
    only = sa.text("due_at IS NOT NULL")
    op.create_index("ix_inbox_due_at", "inbox", ["due_at"], sqlite_where=only, postgresql_where=only)


def _tasks() -> None:
    """Dependencies, batches, children, retries, concurrency keys, ageing."""
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    for column in (
        sa.Column("rank", sa.Double(), server_default="0", nullable=False),
        sa.Column("options", sa.Text(), server_default="{}", nullable=False),
        sa.Column("concurrency_key", sa.String(length=255)),
        sa.Column("parent_run", sa.String(length=64)),
        sa.Column("parent_call", sa.String(length=32)),
        sa.Column("batch_id", sa.String(length=64)),
        sa.Column("place", sa.Integer()),
        sa.Column("batch_ended", sa.Integer()),
    ):
        op.add_column("tasks", column)
    for column in (
        sa.Column("rank", sa.Double(), server_default="0", nullable=False),
        sa.Column("linked", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("concurrency_key", sa.String(length=255)),
        sa.Column("concurrency", sa.Integer(), server_default="1", nullable=False),
        sa.Column("interrupted", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    ):
        op.add_column("runs", column)
    for table in ("tasks", "runs"):
        op.execute(f"UPDATE {table} SET rank = created_at - 60.0 * priority")
    op.create_table(
        "task_links",
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("after_task", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "after_task", name=op.f("pk_task_links")),
    )
    op.create_table(
        "batches",
        sa.Column("batch_id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("submitted_by", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=255)),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("pk_batches")),
        sa.UniqueConstraint("owner", "key", name=op.f("uq_batches_owner_key")),
    )
    op.create_table(
        "turns",
        sa.Column("agent", sa.String(length=80), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("served", big, nullable=False),
        sa.PrimaryKeyConstraint("agent", "owner", name=op.f("pk_turns")),
    )
    _index("task_links", "after_task", "after_task")
    _index("tasks", "batch", "batch_id", "place", unique=True)
    _index("tasks", "batch_ended", "batch_id", "batch_ended", unique=True)
    _index("tasks", "parent_run", "parent_run", where="parent_run IS NOT NULL")
    _index(
        "runs",
        "concurrency",
        "owner",
        "concurrency_key",
        where="concurrency_key IS NOT NULL AND ended_at IS NULL AND fence > 0",
    )
    _index("runs", "keyed", "concurrency_key", where="concurrency_key IS NOT NULL AND ended_at IS NULL")
    _index("runs", "not_before", "not_before", where="not_before IS NOT NULL")
    _index("tasks", "pool", "status", "target", "owner", "rank", "task_id", where="run_id IS NULL AND ended_at IS NULL")
    op.drop_index("ix_tasks_deadline", "tasks")
    _index("tasks", "deadline", "deadline", where="deadline IS NOT NULL AND ended_at IS NULL")
    op.drop_index("ix_runs_queue", "runs")
    _index("runs", "queue", "agent", "owner", "rank", "run_no", where="status IN ('queued', 'assigned')")


def _index(table: str, name: str, *columns: str, where: str = "", unique: bool = False) -> None:
    only = sa.text(where) if where else None
    op.create_index(f"ix_{table}_{name}", table, list(columns), unique=unique, sqlite_where=only, postgresql_where=only)


def _audit() -> None:
    """Anchors, tombstones, forks."""
    op.create_table(
        "anchors",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("upto", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("anchor", sa.Text(), nullable=False),
        sa.Column("signature", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_anchors")),
    )
    op.create_table(
        "anchored",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("head", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("number", "run_id", name=op.f("pk_anchored")),
    )
    op.create_index("ix_anchored_run_id", "anchored", ["run_id"], unique=False)
    op.create_table(
        "tombstones",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.String(length=32), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("head", sa.String(length=64), nullable=False),
        sa.Column("deleted_at", sa.Double(), nullable=False),
        sa.Column("deleted_by", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_tombstones")),
    )


def _budgets() -> None:
    """Limits, reservations."""
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    for name in ("estimated", "unpriced"):
        op.add_column("usage", sa.Column(name, sa.Integer(), server_default="0", nullable=False))
    op.create_table(
        "budgets",
        sa.Column("scope", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("unit", sa.String(length=8), nullable=False),
        sa.Column("period", sa.String(length=8), nullable=False),
        sa.Column("amount", sa.Double(), nullable=False),
        sa.Column("action", sa.String(length=8), nullable=False),
        sa.Column("set_by", sa.String(length=255), nullable=False),
        sa.Column("set_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "name", "unit", "period", name=op.f("pk_budgets")),
    )
    op.create_table(
        "uploads",
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "sha256", name=op.f("pk_uploads")),
    )
    op.create_table(
        "reservations",
        sa.Column("hold_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("agent", sa.String(length=80), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=False),
        sa.Column("tokens_in", big, nullable=False),
        sa.Column("tokens_out", big, nullable=False),
        sa.Column("cost", sa.Double(), nullable=False),
        sa.Column("reserved_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("hold_id", name=op.f("pk_reservations")),
    )


def _memory() -> None:
    """What agents remember, timers."""
    op.create_table(
        "memory",
        sa.Column("agent", sa.String(length=80), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("agent", "owner", "key", name=op.f("pk_memory")),
    )
    op.create_table(
        "timers",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("call", sa.String(length=32), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "call", name=op.f("pk_timers")),
    )
    op.create_index("ix_timers_due_at", "timers", ["due_at"])


def _connections() -> None:
    """Tokens of agents that people hold in an editor."""
    op.create_table(
        "connections",
        sa.Column("connection_id", sa.String(length=64), nullable=False),
        sa.Column("agent", sa.String(length=64), nullable=False),
        sa.Column("person", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("connection_id", name=op.f("pk_connections")),
    )
    op.create_index("ix_connections_agent", "connections", ["agent"])


def _agents() -> None:
    """Who edited a draft; what its server is promised; how many servers a pool has."""
    op.create_table(
        "pools",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("min_servers", sa.Integer(), nullable=False),
        sa.Column("max_servers", sa.Integer()),
        sa.Column("idle_seconds", sa.Double()),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_pools")),
    )
    op.add_column("agents", sa.Column("resources", sa.Text(), server_default="{}", nullable=False))
    op.add_column("agents", sa.Column("edited_by", sa.String(length=255)))
    op.add_column("agents", sa.Column("edited_at", sa.Double()))


def _cases() -> None:
    """Test cases of agents, and verdicts."""
    op.create_table(
        "cases",
        sa.Column("case_id", sa.String(length=64), nullable=False),
        sa.Column("agent", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("variables", sa.Text(), nullable=False),
        sa.Column("expect", sa.Text(), nullable=False),
        sa.Column("mode", sa.String(length=16), nullable=False),
        sa.Column("simulate", sa.Text()),
        sa.Column("from_run", sa.String(length=64)),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("created_by", sa.String(length=255), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("case_id", name=op.f("pk_cases")),
        sa.UniqueConstraint("agent", "name", name=op.f("uq_cases_agent_name")),
    )
    op.create_table(
        "case_results",
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("batch_id", sa.String(length=64), nullable=False),
        sa.Column("agent", sa.String(length=64), nullable=False),
        sa.Column("case_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer()),
        sa.Column("expect", sa.Text(), nullable=False),
        sa.Column("verdict", sa.String(length=16)),
        sa.Column("checks", sa.Text()),
        sa.Column("judged_at", sa.Double()),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_case_results")),
    )
    op.create_index("ix_case_results_agent_batch_id", "case_results", ["agent", "batch_id"])
    _index("case_results", "unjudged", "task_id", where="verdict IS NULL")
