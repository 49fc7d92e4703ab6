"""Where servers go. Pure decisions: no I/O, no clock, no randomness; the same snapshot gives the same answer.

The fleet daemon calls them with a snapshot of the farm. `rooms` says what a microserver has left and why it refuses, `choice` places
one server, `batch` many at once, `balance` which of those that run had better stand elsewhere.
"""

from .balance import Move, Standing, rebalance
from .batch import Planned, place_all
from .choice import Placement, choose_microserver, feasible, refusals, why_not
from .rooms import RANKS, Rank, Refusal, Room, refusal

__all__ = [
    "RANKS",
    "Move",
    "Placement",
    "Planned",
    "Rank",
    "Refusal",
    "Room",
    "Standing",
    "choose_microserver",
    "feasible",
    "place_all",
    "rebalance",
    "refusal",
    "refusals",
    "why_not",
]
