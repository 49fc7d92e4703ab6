"""Built-in tools against the real thing: a walled-in process, a real HTTP server, and escapes that are really tried."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agentfarm_sdk import Context
from agentfarm_sdk.errors import ToolFailed
from agentfarm_sdk.tools import http, python
from agentfarm_sdk.tools.http import http_request, is_public
from agentfarm_sdk.tools.python import refusal, run_python

# --- run_python -------------------------------------------------------------------------------------------------

walled = pytest.mark.skipif(bool(refusal()), reason=f"no walls here: {refusal()}")


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context(workspace=tmp_path, key="key-1", call="c0-0")


@walled
def test_a_program_runs_and_what_it_prints_comes_back(ctx: Context) -> None:
    answer = run_python(
        ctx, "import sys, json, math\nprint(math.factorial(20))\nprint('oops', file=sys.stderr)\nsys.exit(3)"
    )
    assert (answer["stdout"], answer["stderr"], answer["exit_code"]) == ("2432902008176640000\n", "oops\n", 3)


@walled
def test_it_sees_no_environment_no_file_of_ours_and_no_process(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    (tmp_path / "token").write_text("s3cret")
    code = (
        "import os, glob\n"
        "print(sorted(os.environ))\n"
        f"for path in ({str(tmp_path / 'token')!r}, '/etc/passwd', '/etc/shadow', '/proc/{os.getpid()}/environ', '/proc/self/environ', "
        f"{str(Path.home())!r}, {str(Path(__file__))!r}, '/dev/mem', '/sys', '/run'):\n"
        "    print(path, os.path.lexists(path) and os.path.isfile(path))\n"
        f"print([path for path in glob.glob('/tmp/*') if not {sys.prefix!r}.startswith(path)], os.getpid())\n"
        "try: os.kill(-1, 9)\n"
        "except OSError as error: print('kill', error.errno)\n"
    )
    answer = run_python(ctx, code)
    assert "s3cret" not in str(answer) and "SECRET_TOKEN" not in str(answer) and "True" not in answer["stdout"], answer
    assert "[] 1" in answer["stdout"] and answer["exit_code"] == 0


@walled
def test_it_reaches_no_network_not_even_this_machine(ctx: Context) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind(f"\0agentfarm-test-{os.getpid()}")
        abstract.listen()
        code = (
            "import socket\n"
            f"for family, address in ((socket.AF_INET, ('127.0.0.1', {server.getsockname()[1]})), (socket.AF_INET, ('1.1.1.1', 80)), "
            f"(socket.AF_UNIX, '\\0agentfarm-test-{os.getpid()}')):\n"
            "    try:\n        socket.socket(family).connect(address); print('REACHED', address)\n"
            "    except OSError as error: print('no', error)\n"
        )
        answer = run_python(ctx, code)
        abstract.close()
    assert "REACHED" not in answer["stdout"] and answer["stdout"].count("no [") == 3


@walled
def test_it_cannot_leave_its_root_or_get_its_rights_back(ctx: Context) -> None:
    code = (
        "import os, ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def tried(name, result): print(name, 'DONE' if result == 0 else 'refused')\n"
        "os.makedirs('/tmp/x', exist_ok=True)\n"
        "tried('mount', libc.mount(b'none', b'/tmp/x', b'tmpfs', 0, None))\n"
        "tried('chroot', libc.chroot(b'/tmp/x'))\n"
        "tried('setuid', libc.setuid(0))\n"
        "tried('umount', libc.umount2(b'/usr', 2))\n"
        "for path in ('/usr/evil', '/lib/evil', os.__file__):\n"
        "    try: open(path, 'a'); print(path, 'DONE')\n"
        "    except OSError: print(path, 'refused')\n"
    )
    answer = run_python(ctx, code)
    assert "DONE" not in answer["stdout"] and answer["stdout"].count("refused") == 7, answer


@walled
def test_memory_processor_output_and_time_are_limited(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "MemoryError" in run_python(ctx, "x = bytearray(8 * 1024**3)")["stderr"]
    noisy = run_python(ctx, "print('x' * 10_000_000)")
    assert len(noisy["stdout"]) < python.OUTPUT + 100 and "cut: 10000001 bytes" in noisy["stdout"]
    monkeypatch.setattr(python, "SECONDS", 0.5)
    began = time.monotonic()
    late = run_python(ctx, "import os, time\nfor _ in range(3): os.fork()\ntime.sleep(60)")
    assert late["ended"] == "out of time" and time.monotonic() - began < 40
    with pytest.raises(ToolFailed):
        run_python(ctx, "#" * (python.MAX_CODE + 1))


@walled
def test_a_cancel_ends_the_program_with_all_that_it_started(ctx: Context) -> None:
    threading.Timer(0.3, ctx.cancelled.set).start()
    began = time.monotonic()
    answer = run_python(ctx, "import os, time\nos.fork()\nos.setsid() if os.getpid() != 1 else None\ntime.sleep(25)")
    assert answer["ended"] == "cancelled" and time.monotonic() - began < 20


def test_where_no_wall_can_be_built_it_says_so_and_runs_nothing(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python, "refusal", lambda: "namespaces of its own: Operation not permitted")
    with pytest.raises(ToolFailed, match="not available"):
        run_python(ctx, "print(1)")


# --- http_request -----------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    seen: list[dict[str, Any]]
    stop: threading.Event

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.seen.append(
            {"path": self.path, "headers": dict(self.headers), "body": self.rfile.read(length), "method": self.command}
        )
        path, _, rest = self.path.partition("?to=")
        if path in ("/redirect", "/round"):
            self.send_response(302)
            self.send_header("Location", rest or path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path == "/slow":
            self.stop.wait(30)
        body = b"x" * (3 * http.MAX_BYTES) if path == "/large" else b"Gr\xc3\xbc\xc3\x9fe"
        self.send_response({"/missing": 404, "/broken": 500}.get(path.rpartition("/")[0], 200))
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None: ...


class Site:
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.stop = threading.Event()
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("H", (Handler,), {"seen": self.seen, "stop": self.stop})
        )
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.stop.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture
def other() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


async def get(url: str, allow: list[str], **more: Any) -> Any:
    return await http_request.invoke(Context(key="key-1", config={"allow": allow}), {"url": url, **more})


async def test_a_listed_address_is_asked_with_the_calls_key(site: Site) -> None:
    sent = {"X-More": "1", "Host": "evil", "idempotency-key": "mine"}
    answer = await get(f"{site.url}/v1/a?b=c", [f"{site.url}/v1"], method="POST", body="ü", headers=sent)
    assert (answer["status"], answer["text"]) == (200, "Grüße")
    (seen,) = site.seen
    assert (seen["method"], seen["path"], seen["body"]) == ("POST", "/v1/a?b=c", "ü".encode())
    assert seen["headers"]["Idempotency-Key"] == "key-1" and seen["headers"]["X-More"] == "1"
    assert seen["headers"]["Host"] == f"127.0.0.1:{site.port}"


async def test_a_request_of_which_nobody_knows_is_looked_for_under_its_key(site: Site) -> None:
    def probe(path: str, allow: str) -> Any:
        config = {"allow": [allow], "probe": f"{site.url}{path}"}
        return http_request.ask_probe(Context(key="key-1", config=config), {"url": f"{site.url}/v1", "method": "POST"})

    found = await probe("/v1/{key}", f"{site.url}/v1")
    assert (found.answer, found.result["text"]) == ("happened", "Grüße")
    (seen,) = site.seen
    assert (seen["method"], seen["path"], seen["body"]) == ("GET", "/v1/key-1", b"")
    assert (await probe("/missing/{key}", site.url)).answer == "not_happened"
    assert (await probe("/broken/{key}", site.url)).answer == "unknown"
    with pytest.raises(ToolFailed, match="not on this agent's list"):
        await probe("/v2/{key}", f"{site.url}/v1")


async def test_what_is_not_listed_is_not_asked(site: Site) -> None:
    for url in (
        f"{site.url}/v2", f"{site.url}/v1x", f"{site.url}/v1/../v2", f"{site.url}/v1/%2e%2e/v2", f"{site.url}/v1/%252e%252e/v2",
        f"http://127.0.0.1:{site.port + 1 if site.port < 65535 else 1}/v1", f"http://user@127.0.0.1:{site.port}/v1", f"https://127.0.0.1:{site.port}/v1",
        "file:///etc/passwd", "gopher://127.0.0.1", "http://", "nonsense", f"http://127.0.0.1:{site.port}\\@evil/v1", f"{site.url}/v1 x",
    ):  # fmt: skip
        with pytest.raises(ToolFailed):
            await get(url, [f"{site.url}/v1"])
    with pytest.raises(ToolFailed, match="no address"):
        await get(site.url, [])
    assert site.seen == []


async def test_a_private_address_is_asked_only_where_the_list_names_it(site: Site) -> None:
    for url in (
        site.url, f"http://localhost:{site.port}/", f"http://0.0.0.0:{site.port}/", f"http://[::ffff:127.0.0.1]:{site.port}/", f"http://2130706433:{site.port}/",
        f"http://0x7f.1:{site.port}/", f"http://127.1:{site.port}/", "http://169.254.169.254/latest/meta-data", "http://[::1]/", "http://10.0.0.1/",
    ):  # fmt: skip
        with pytest.raises(ToolFailed):
            await get(url, ["*"])
    assert site.seen == []
    assert (await get(f"http://localhost:{site.port}/", [f"http://localhost:{site.port}/"]))["status"] == 200


async def test_a_name_is_asked_for_once_and_its_checked_address_is_used(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that answers a public address first and a private one after (rebinding) gains nothing."""
    loop, asked = asyncio.get_running_loop(), []

    async def resolves(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1" if len(asked) > 1 else "192.0.2.1", port))]

    monkeypatch.setattr(loop, "getaddrinfo", resolves)
    monkeypatch.setattr(http, "is_public", lambda address: address == "192.0.2.1")
    monkeypatch.setattr(http, "SECONDS", 0.5)
    with pytest.raises(ToolFailed):
        await get(f"http://rebind.example:{site.port}/", ["*"])
    assert site.seen == [] and asked[0] == "rebind.example" and "127.0.0.1" not in asked
    with pytest.raises(ToolFailed, match="private"):
        await get(f"http://rebind.example:{site.port}/", ["*"])


async def test_redirects_are_checked_like_the_first_address(site: Site, other: Site) -> None:
    with pytest.raises(ToolFailed, match="not on this agent's list"):
        await get(f"{site.url}/redirect?to={other.url}/", [site.url])
    with pytest.raises(ToolFailed):
        await get(f"{site.url}/redirect?to=file:///etc/passwd", [site.url])
    assert other.seen == []
    with pytest.raises(ToolFailed, match="redirects"):
        await get(f"{site.url}/round", [site.url])
    headers = {"Authorization": "Bearer s3cret", "Cookie": "a=b", "X-Kept": "1"}
    answer = await get(f"{site.url}/redirect?to={other.url}/there", [site.url, other.url], headers=headers)
    assert answer["url"] == f"{other.url}/there" and other.seen[0]["headers"]["X-Kept"] == "1"
    assert not {"Authorization", "Cookie"} & set(other.seen[0]["headers"])


async def test_size_and_time_are_limited(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    large = await get(f"{site.url}/large", [site.url])
    assert len(large["text"]) == http.MAX_BYTES == large["cut_after_bytes"]
    monkeypatch.setattr(http, "SECONDS", 0.3)
    with pytest.raises(ToolFailed, match="did not answer"):
        await get(f"{site.url}/slow", [site.url])


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False), ("::1", False), ("::", False), ("fe80::1%eth0", False),
        ("fc00::1", False), ("::ffff:10.0.0.1", False), ("64:ff9b::a00:1", False), ("2002:0a00:0001::", False), ("::127.0.0.1", False),
        ("255.255.255.255", False), ("ff02::1", False), ("198.18.0.1", False),
    ],
)  # fmt: skip
def test_public_is_what_belongs_to_the_open_internet(address: str, public: bool) -> None:
    assert is_public(address) is public
