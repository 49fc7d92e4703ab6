"""Times that an operator sets for the fleet daemon by its environment."""

from __future__ import annotations

import os

from ..errors import StartError


def seconds_of(name: str, default: float) -> float:
    """Return how many seconds a variable of the environment says. Raises StartError."""
    text = os.environ.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.1 <= value <= 3600:
        raise StartError(f"{name} is {text!r}", hint="a number of seconds from 0.1 to 3600")
    return value
