"""The farm's error tree: agentfarm_sdk.errors (drawn there), and what only the farm's own processes raise.

StoreError       the operator: the database cannot be used as it is; `hint` is the way out
Deposed          StoreError: another service leads now; the one that hears it ends at once and writes nothing more
StartError       the operator: a process cannot start; one sentence and the way out
FleetError       Transient: the fleet daemon or a microserver cannot be reached
NoMicroserverFits  UserError: with the reason for each microserver
"""

from __future__ import annotations

from agentfarm_sdk.errors import (
    AgentFarmError,
    BudgetReached,
    Cancelled,
    Conflict,
    Fenced,
    Forbidden,
    Hole,
    InDoubt,
    Invalid,
    LimitReached,
    ModelFailed,
    NotFound,
    Parked,
    TooLarge,
    Transient,
    Unauthenticated,
    UserError,
)

__all__ = [
    "AgentFarmError",
    "BudgetReached",
    "Cancelled",
    "Conflict",
    "Deposed",
    "Fenced",
    "FleetError",
    "Forbidden",
    "Hole",
    "InDoubt",
    "Invalid",
    "LimitReached",
    "ModelFailed",
    "NoMicroserverFits",
    "NotFound",
    "Parked",
    "StartError",
    "StoreError",
    "TooLarge",
    "Transient",
    "Unauthenticated",
    "UserError",
]


class StoreError(AgentFarmError):
    type, title = "store", "The database cannot be used as it is"


class Deposed(StoreError):
    type, title = "deposed", "Another service leads"


class StartError(AgentFarmError):
    type, title = "start", "A process of the farm cannot start"


class FleetError(Transient):
    type, title = "fleet", "A microserver or the fleet daemon cannot be reached"


class NoMicroserverFits(UserError):
    status, type, title = 409, "unplaceable", "No microserver fits"

    def __init__(self, refusals: dict[str, str | None]) -> None:
        text = "; ".join(f"{name}: {why}" for name, why in sorted(refusals.items())) or "the farm has no microserver"
        super().__init__(text, hint="free or add a microserver, or ask for less", refusals=refusals)
        self.refusals = refusals
