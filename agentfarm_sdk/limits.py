"""What is left of a run's limits. Pure."""

from __future__ import annotations

from .errors import LimitReached
from .fold import Fold
from .protocol import Limits


def check(fold: Fold, limits: Limits, now: float) -> None:
    """Say whether the model may be asked once more. `now`: epoch seconds by the clock of its events.

    Raises:
        LimitReached: with the limit that is used up.
    """
    used = {
        "steps": (fold.steps, limits.steps),
        "calls": (len(fold.calls) - 1, limits.calls),  # the last one may be told to the model
        "tokens": (fold.tokens_in + fold.tokens_out, limits.tokens),
        "seconds": (fold.used(now), limits.seconds),
        "cost": (fold.cost, limits.cost),
    }
    for name, (have, most) in used.items():
        if most is not None and have >= most:
            raise LimitReached(
                f"the limit of {most:g} {'USD' if name == 'cost' else name} is reached",
                hint=f"raise limits.{name} of the agent",
            )
