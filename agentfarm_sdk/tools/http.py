"""HTTP for agents: only to addresses that the version lists, never into the private network by a detour.

The name is resolved once, its addresses are checked, and the connection goes to a checked address (a second answer of a
rebinding name server is never asked for). Redirects are followed by hand and checked like the first address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import httpx

from ..errors import ToolFailed
from ..waiting import within
from .context import Context
from .registry import Probed, happened, not_happened, tool

MAX_BYTES = 1024 * 1024
MAX_REDIRECTS = 5
SECONDS = 30.0
PORTS = {"http": 80, "https": 443}
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Headers that would let a caller be taken for another, or break the framing.
REFUSED = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "proxy-authorization", "idempotency-key"}
)
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


async def ask_status(ctx: Context, url: str, method: Method = "GET", **more: Any) -> Probed | None:
    """Ask the address that the version names for it, with the call's key: 200 it happened, 404 it did not."""
    address = str(ctx.config.get("probe", "")).replace("{key}", ctx.key)
    allow = [str(entry) for entry in ctx.config.get("allow", [])]
    headers = {name: value for name, value in (more.get("headers") or {}).items() if name.lower() not in REFUSED}
    answer = await within(_follow(allow, address, "GET", headers, None), SECONDS)
    if answer["status"] == 404:
        return not_happened()
    return happened(answer) if answer["status"] == 200 else None


@tool(effect="once", timeout=SECONDS + 5, probe=ask_status)
async def http_request(
    ctx: Context, url: str, method: Method = "GET", headers: dict[str, str] | None = None, body: str | None = None
) -> dict[str, Any]:
    """Make an HTTP request and return status, headers and text.

    Args:
        url: the address, http or https
        method: the verb
        headers: more headers
        body: what to send
    """
    allow = [str(entry) for entry in ctx.config.get("allow", [])]
    sent = {name: value for name, value in (headers or {}).items() if name.lower() not in REFUSED}
    sent |= {"Idempotency-Key": ctx.key} if ctx.key else {}
    try:
        return await within(_follow(allow, url, method, sent, body), SECONDS)
    except asyncio.TimeoutError as error:
        raise ToolFailed(f"{urlsplit(url).hostname} did not answer within {SECONDS:.0f} s") from error
    except httpx.ConnectError as error:
        host = urlsplit(url).hostname
        said = f"{host}: {error or type(error).__name__}"
        raise ToolFailed(
            f"{said}. Where its agent's server is walled in, an operator must have listed {host} for it (egress)"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ToolFailed(f"{urlsplit(url).hostname}: {error or type(error).__name__}") from error


async def _follow(
    allow: Sequence[str], url: str, method: str, headers: dict[str, str], body: str | None
) -> dict[str, Any]:
    for _ in range(MAX_REDIRECTS + 1):
        answer = await _one(allow, url, method, headers, body)
        target = answer["headers"].get("location")
        if answer["status"] not in (301, 302, 303, 307, 308) or not target:
            return {**answer, "url": url}
        there = urljoin(url, target)
        if _origin(urlsplit(there)) != _origin(urlsplit(url)):  # what was meant for one server is not told to another
            headers = {name: v for name, v in headers.items() if name.lower() not in ("authorization", "cookie")}
        if answer["status"] == 303 or (answer["status"] in (301, 302) and method == "POST"):
            method, body = "GET", None
        url = there
    raise ToolFailed(f"more than {MAX_REDIRECTS} redirects")


async def _one(
    allow: Sequence[str], url: str, method: str, headers: dict[str, str], body: str | None
) -> dict[str, Any]:
    parts = checked(allow, url)
    host, port = str(parts.hostname), parts.port or PORTS[parts.scheme]
    address = await _address(host, port, listed=_names_address(allow, parts))
    there = f"[{address}]" if ":" in address else address
    pinned = parts._replace(netloc=f"{there}:{port}", fragment="").geturl()
    named = host if port == PORTS[parts.scheme] else f"{host}:{port}"
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=SECONDS) as client:
        request = client.build_request(
            method,
            pinned,
            headers={"Accept-Encoding": "identity", **headers, "Host": f"[{host}]" if ":" in host else named},
            content=None if body is None else body.encode(),
            extensions={"sni_hostname": host},
        )
        response = await client.send(request, stream=True)
        try:
            data, cut = await _read(response)
        finally:
            await response.aclose()
    text = data.decode(response.charset_encoding or "utf-8", "replace")
    answer = {"status": response.status_code, "headers": dict(response.headers), "text": text}
    return {**answer, "cut_after_bytes": MAX_BYTES} if cut else answer


async def _read(response: httpx.Response) -> tuple[bytes, bool]:
    data = bytearray()
    async for chunk in response.aiter_bytes(65536):
        data += chunk
        if len(data) > MAX_BYTES:
            return bytes(data[:MAX_BYTES]), True
    return bytes(data), False


def checked(allow: Sequence[str], url: str) -> SplitResult:
    """Return the parts of an address that the list allows. Raises ToolFailed."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ToolFailed(f"{url!r} is not an address: {error}") from error
    if parts.scheme not in PORTS or not parts.hostname or port == 0:
        raise ToolFailed(f"{url!r}: only http and https addresses with a host")
    if parts.username or parts.password or "\\" in url or any(ord(c) < 33 for c in url):
        raise ToolFailed("an address with a user name, a backslash or spaces is refused")
    if ".." in unquote(unquote(parts.path)).replace("\\", "/").split("/"):
        raise ToolFailed("an address with .. in its path is refused")
    if not any(_allows(entry, parts) for entry in allow):
        listed = ", ".join(allow) or "no address"
        raise ToolFailed(
            f"{url} is not on this agent's list (which has {listed}); its owner can add it to the tool's `allow`"
        )
    return parts


def _allows(entry: str, parts: SplitResult) -> bool:
    if entry == "*":
        return True
    one = urlsplit(entry)
    path = one.path.rstrip("/")
    below = parts.path == path or parts.path.startswith(path + "/") or not path
    return _origin(one) == _origin(parts) and below


def _origin(parts: SplitResult) -> tuple[str, str, int | None]:
    return parts.scheme, (parts.hostname or "").rstrip("."), parts.port or PORTS.get(parts.scheme)


def _names_address(allow: Sequence[str], parts: SplitResult) -> bool:
    """Say whether the list itself names this host as an address (or as localhost): only then it may be a private one."""
    host = parts.hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if host != "localhost":
            return False
    return any(entry != "*" and _allows(entry, parts) for entry in allow)


async def _address(host: str, port: int, listed: bool) -> str:
    """Resolve a host; return an address that may be connected to. Raises ToolFailed: unknown, or one of them is private."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise ToolFailed(f"{host} is not known") from error
    addresses = [str(one[4][0]) for one in found]
    if not listed:
        for address in addresses:
            if not is_public(address):
                raise ToolFailed(f"{host} is {address}, a private address; only the tool's `allow` can name one")
    return addresses[0]


def is_public(address: str) -> bool:
    """Say whether an address belongs to the open internet, also by the address that it carries inside."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and (ip in NAT64 or ip.packed[:12] == b"\0" * 12):
            inner = ipaddress.IPv4Address(ip.packed[12:])
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast
