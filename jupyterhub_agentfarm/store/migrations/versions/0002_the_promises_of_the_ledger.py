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
    """What agents remember."""
