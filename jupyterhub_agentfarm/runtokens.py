"""Run tokens: what a worker holds instead of a Hub token. Pure; signed by the service, checked without the Hub.

Form: `afr.<payload>.<mac>`, both base64url without padding; payload is JSON {e: epoch, r: run, f: fence, x: expiry};
mac is HMAC-SHA256 (RFC 2104) over the payload's text.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

import msgspec

from agentfarm_sdk.errors import Unauthenticated
from agentfarm_sdk.protocol import RUN_TOKEN_SECONDS

PREFIX = "afr."


class RunClaims(msgspec.Struct, frozen=True, kw_only=True):
    e: str  # epoch
    r: str  # run
    f: int  # fence
    x: float  # expiry, epoch seconds


def mint(key: bytes, *, epoch: str, run: str, fence: int, now: float, seconds: float = RUN_TOKEN_SECONDS) -> str:
    payload = _b64(msgspec.json.encode(RunClaims(e=epoch, r=run, f=fence, x=now + seconds)))
    return f"{PREFIX}{payload}.{_mac(key, payload)}"


def check(key: bytes, token: str, *, epoch: str, now: float) -> RunClaims:
    """Return what the token says. Raises Unauthenticated: forged, expired, or of another epoch."""
    _, _, rest = token.partition(PREFIX)
    payload, _, mac = rest.partition(".")
    if not token.startswith(PREFIX) or not hmac.compare_digest(mac.encode(), _mac(key, payload).encode()):
        raise Unauthenticated("this run token was not made by this farm", hint="claim the run anew")
    claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=RunClaims)
    if claims.x < now:
        raise Unauthenticated("this run token has expired", hint="send a heartbeat: its answer carries a new one")
    if claims.e != epoch:
        raise Unauthenticated("this run token is from before the farm was restored", hint="claim the run anew")
    return claims


def _mac(key: bytes, payload: str) -> str:
    return _b64(hmac.new(key, payload.encode(), hashlib.sha256).digest())


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
