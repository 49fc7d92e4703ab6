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


def _budgets() -> None:
    """Limits, reservations."""


def _memory() -> None:
    """What agents remember."""
