"""Whose turn it is: the order of the queue, in which nothing starves, and what may be claimed now.

An owner's runs stand in the order of their rank, the moment of their submission set back by `AGE_SECONDS` for each point of
priority. It does not depend on now: an index holds it, and what is submitted later than another's rank never overtakes it.
Where several owners wait for one agent they take turns, whatever their priorities.
"""

from __future__ import annotations

import sqlalchemy as sa

from .db import Tx
from .tables import CLAIMABLE

MANY = 1_000_000  # more owners or agents than any farm has
AGE_SECONDS = 60.0  # a point of priority is worth so much waiting; also in the migration that began with it


def rank(created_at: float, priority: int) -> float:
    """Return the place among those that wait; the smallest is next (epoch seconds). Pure."""
    return created_at - AGE_SECONDS * priority


# The words of the index's condition, as literals: with parameters SQLite would not use it.
_CLAIMABLE = "status IN ({})".format(", ".join(f"'{status}'" for status in CLAIMABLE))
# A thread's earlier runs have ended. A concurrency key is held from a run's first lease to its end.
_FREE = f"""q.{_CLAIMABLE} AND NOT q.bound AND (q.not_before IS NULL OR q.not_before <= :now)
  AND (q.thread_id IS NULL OR NOT EXISTS (SELECT 1 FROM runs e WHERE e.thread_id = q.thread_id AND e.run_no < q.run_no
    AND e.status NOT IN ('succeeded', 'failed', 'cancelled')))
  AND (q.concurrency_key IS NULL OR q.fence > 0 OR q.concurrency > (SELECT count(*) FROM runs h WHERE h.owner = q.owner
    AND h.concurrency_key = q.concurrency_key AND h.concurrency_key IS NOT NULL AND h.ended_at IS NULL AND h.fence > 0))"""

# Its task needs no files of the agent's.
_ANYWHERE = "EXISTS (SELECT 1 FROM tasks t WHERE t.task_id = q.task_id AND t.workspace = 'none')"

# The first free run of each owner, found by the index without looking at the rest; the owner whose turn is longest ago first.
# Written so that neither database reads all that waits: ORDER BY … LIMIT 1 for the smallest, a LIMIT that keeps the
# subquery whole, rows by their number instead of joins.
_RANK = "(SELECT r.rank FROM runs r WHERE r.run_no = f.run_no)"
NEXT = f"""WITH RECURSIVE owners(owner) AS (
  SELECT (SELECT r.owner FROM runs r WHERE r.agent = :agent AND r.{_CLAIMABLE} ORDER BY r.owner LIMIT 1)
  UNION ALL SELECT (SELECT r.owner FROM runs r WHERE r.agent = :agent AND r.{_CLAIMABLE} AND r.owner > owners.owner
    ORDER BY r.owner LIMIT 1) FROM owners WHERE owners.owner IS NOT NULL)
SELECT (SELECT r.run_id FROM runs r WHERE r.run_no = f.run_no) AS run_id, f.owner AS owner,
  (SELECT count(owner) FROM owners) AS owners FROM (
  SELECT owners.owner, (SELECT q.run_no FROM runs q WHERE q.agent = :agent AND q.owner = owners.owner AND {_FREE}
    ORDER BY q.rank, q.run_no LIMIT 1) AS run_no FROM owners WHERE owners.owner IS NOT NULL LIMIT {MANY}) f
LEFT JOIN turns ON turns.agent = :agent AND turns.owner = f.owner
WHERE f.run_no IS NOT NULL ORDER BY coalesce(turns.served, 0), {_RANK}, f.run_no LIMIT 1"""

NEXT_ANYWHERE = NEXT.replace(_FREE, f"{_FREE} AND {_ANYWHERE}")

# A free run of each agent, and since when it waits.
WAITING = sa.text(f"""WITH RECURSIVE agents(agent) AS (
  SELECT (SELECT r.agent FROM runs r WHERE r.{_CLAIMABLE} ORDER BY r.agent LIMIT 1)
  UNION ALL SELECT (SELECT r.agent FROM runs r WHERE r.{_CLAIMABLE} AND r.agent > agents.agent
    ORDER BY r.agent LIMIT 1) FROM agents WHERE agents.agent IS NOT NULL)
SELECT f.agent, (SELECT r.run_id FROM runs r WHERE r.run_no = f.run_no),
  (SELECT r.created_at FROM runs r WHERE r.run_no = f.run_no), (SELECT r.not_before FROM runs r WHERE r.run_no = f.run_no) FROM (
  SELECT agents.agent, (SELECT q.run_no FROM runs q WHERE q.agent = agents.agent AND {_FREE}
    ORDER BY q.owner, q.rank, q.run_no LIMIT 1) AS run_no FROM agents WHERE agents.agent IS NOT NULL LIMIT {MANY}) f
WHERE f.run_no IS NOT NULL ORDER BY {_RANK}, f.run_no""")

_SERVED = sa.text(
    "INSERT INTO turns (agent, owner, served) VALUES (CAST(:agent AS varchar), CAST(:owner AS varchar), "
    "(SELECT coalesce(max(t.served), 0) + 1 FROM turns t WHERE t.agent = CAST(:agent AS varchar))) "
    "ON CONFLICT (agent, owner) DO UPDATE SET served = excluded.served"
)


def served(tx: Tx, agent: str, owner: str) -> None:
    """Note that it was this owner's turn: the others who wait come first."""
    tx.execute(_SERVED, {"agent": agent, "owner": owner})
