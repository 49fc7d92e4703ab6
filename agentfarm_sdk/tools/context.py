"""What a tool may know of its call: `ctx`, the first parameter of a tool that asks for it."""

from __future__ import annotations

import logging
import random
import threading
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import Divergence


class Context:
    """One call's. What it hands out of the outside world is recorded with the outcome, and given back in a replay.

    key: the idempotency key, the same over every attempt. secrets: values by name, as the farm admitted them.
    workspace: the folder that belongs to the agent. cancelled: set when the run is to stop or the call is out of time.
    config: what the version fixes for this tool.
    """

    def __init__(
        self,
        *,
        run: str = "",
        call: str = "",
        key: str = "",
        attempt: int = 1,
        workspace: Path | None = None,
        secrets: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        cancelled: threading.Event | None = None,
        recorded: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.run, self.call, self.key, self.attempt = run, call, key, attempt
        self.workspace = workspace or Path.cwd()
        self.secrets = dict(secrets or {})
        self.config = dict(config or {})
        self.cancelled = cancelled or threading.Event()
        self.log = logging.getLogger(f"agentfarm.tool.{call or 'local'}")
        self.values: list[dict[str, Any]] = []
        self._recorded = None if recorded is None else list(recorded)
        self._lock = threading.Lock()

    def __repr__(self) -> str:  # never the secrets
        return f"<Context run={self.run} call={self.call} attempt={self.attempt}>"

    def now(self) -> datetime:
        """Return the time, in UTC."""
        return datetime.fromisoformat(self._value("now", lambda: datetime.now(timezone.utc).isoformat()))

    def random(self) -> float:
        """Return a random number in [0, 1)."""
        return float(self._value("random", random.random))

    def uuid(self) -> str:
        """Return a random UUID (version 4)."""
        return str(self._value("uuid", lambda: str(uuid.uuid4())))

    def _value(self, name: str, make: Any) -> Any:
        with self._lock:
            if self._recorded is None:
                value = make()
            else:
                place = len(self.values)
                then = self._recorded[place] if place < len(self._recorded) else None
                if then is None or then.get("name") != name:
                    raise Divergence(
                        f"call {self.call} asks for `{name}` as its value {place + 1}; recorded was "
                        f"{then.get('name') if then else 'no such value'}",
                        hint="the tool's code is another one than the one that ran",
                    )
                value = then["value"]
            self.values.append({"name": name, "value": value})
            return value
