"""What the ledger's promises need: decisions, tasks that depend on others, anchors, budgets, what agents remember"""

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


def _tasks() -> None:
    """Dependencies, batches, children, retries, concurrency keys, ageing."""


def _audit() -> None:
    """Anchors, tombstones, forks."""


def _budgets() -> None:
    """Limits, reservations."""


def _memory() -> None:
    """What agents remember."""
