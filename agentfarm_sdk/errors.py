"""What can go wrong, named for what happened; each class says who acts now. Imports nothing.

AgentFarmError
├── UserError            the asker: `detail` and `hint` are shown to them as they stand
│   ├── NotFound             404
│   ├── Forbidden            403
│   ├── Conflict             409  same key or number, another body; or the thing has moved on
│   ├── Invalid              422  a value that cannot be: which one, and what would do
│   ├── TooLarge             413
│   ├── LimitReached         429  steps, calls, tokens, seconds, cost
│   └── BudgetReached        402  of the agent, its owner or the farm
├── Unauthenticated      401  the asker signs in, or gets a new token
├── Transient            503  the loop: tries again, visibly (`retry_after` in seconds)
├── Fenced               409  nobody: a newer lease holds the run; stop, write nothing
├── Hole                 409  the worker: append the missing numbers first
├── Parked               409  the worker: the farm has put the run aside, a person decides; it ends here
├── ModelFailed          502  the asker: the model did not reply in any of the attempts that the version allows
├── ToolFailed                the model, which is told
├── InDoubt                   a person
├── Divergence                a person, who sees both sides
└── Cancelled                 nobody: the run was asked to stop
"""

from __future__ import annotations

from typing import Any


class AgentFarmError(Exception):
    """Base of every error of ours. `type` is the stable name that crosses borders."""

    status = 500
    type = "error"
    title = "Something went wrong"

    def __init__(self, detail: str, *, hint: str = "", **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.extra = extra

    def problem(self) -> dict[str, Any]:
        """Return the RFC 9457 form: type, title, status, detail, hint and what the error adds."""
        return {
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "hint": self.hint,
            **self.extra,
        }


class UserError(AgentFarmError):
    status, type, title = 400, "bad-request", "The request cannot be carried out"


class NotFound(UserError):
    status, type, title = 404, "not-found", "There is no such thing here"


class Forbidden(UserError):
    status, type, title = 403, "forbidden", "You may not do this"


class Conflict(UserError):
    status, type, title = 409, "conflict", "This stands against something already recorded"


class Invalid(UserError):
    status, type, title = 422, "invalid", "A value is not valid"


class TooLarge(UserError):
    status, type, title = 413, "too-large", "This is too large"


class LimitReached(UserError):
    status, type, title = 429, "limit-reached", "A limit is reached"


class BudgetReached(UserError):
    status, type, title = 402, "budget", "A budget is used up"


class Unauthenticated(AgentFarmError):
    status, type, title = 401, "unauthenticated", "Sign in, or send a valid token"


class Transient(AgentFarmError):
    """`retry_after`: seconds, also sent as the Retry-After header."""

    status, type, title = 503, "unavailable", "Not available at the moment"

    def __init__(self, detail: str, *, hint: str = "", retry_after: float = 1.0, **extra: Any) -> None:
        super().__init__(detail, hint=hint, retry_after=retry_after, **extra)
        self.retry_after = retry_after


class Fenced(AgentFarmError):
    status, type, title = 409, "fenced", "A newer lease holds this run"


class Hole(AgentFarmError):
    status, type, title = 409, "hole", "An append is missing before this one"


class Parked(AgentFarmError):
    status, type, title = 409, "parked", "The run waits for a person"


class ModelFailed(AgentFarmError):
    status, type, title = 502, "model-failed", "The model did not reply"


class ToolFailed(AgentFarmError):
    status, type, title = 422, "tool-failed", "The tool failed"


class InDoubt(AgentFarmError):
    status, type, title = 409, "in-doubt", "Nobody knows whether this call took effect"


class Divergence(AgentFarmError):
    status, type, title = 409, "divergence", "Today's code differs from what was recorded"


class Cancelled(AgentFarmError):
    status, type, title = 409, "cancelled", "The run was cancelled"


BY_TYPE: dict[str, type[AgentFarmError]] = {
    cls.type: cls
    for cls in (UserError, NotFound, Forbidden, Conflict, Invalid, TooLarge, LimitReached, BudgetReached, Unauthenticated,
                Transient, Fenced, Hole, Parked, ModelFailed, ToolFailed, InDoubt, Divergence, Cancelled)
}  # fmt: skip


def from_problem(problem: dict[str, Any]) -> AgentFarmError:
    """Turn a problem document into the error that it stands for; unknown types become AgentFarmError."""
    cls = BY_TYPE.get(str(problem.get("type", "")), AgentFarmError)
    known = {"type", "title", "status", "detail", "hint"}
    extra = {k: v for k, v in problem.items() if k not in known}
    error = cls(
        str(problem.get("detail") or problem.get("title") or "error"), hint=str(problem.get("hint", "")), **extra
    )
    if cls is AgentFarmError and isinstance(problem.get("status"), int):
        error.status = problem["status"]
    return error
