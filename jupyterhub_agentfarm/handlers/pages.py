"""The farm pages: one HTML skeleton behind the Hub's sign-in; script and style sheet are built from labextension/."""

from __future__ import annotations

import html
import json
import logging
import secrets
from pathlib import Path
from string import Template
from typing import Any

from jupyterhub.services.auth import HubOAuthCallbackHandler, HubOAuthenticated
from tornado.web import RequestHandler, StaticFileHandler

import jupyterhub_agentfarm

from ..errors import AgentFarmError, Forbidden, Transient
from .asking import asker_of
from .operations import default_model
from .routes import Parts

log = logging.getLogger(__name__)
FILES = Path(jupyterhub_agentfarm.__file__).parent / "pages"
BUILT = FILES / "build"
ROUTES = r"(?:(?!api/|static/|oauth_callback)[a-z][A-Za-z0-9._:@%/-]*)?"  # the script knows which of them are pages
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class _Page(HubOAuthenticated, RequestHandler):  # type: ignore[misc]
    def initialize(self, parts: Parts) -> None:
        self.parts = parts
        self.hub_auth = parts.door.auth

    def set_default_headers(self) -> None:
        self.nonce = secrets.token_urlsafe(16)  # CodeMirror writes its style sheet into the page
        self.set_header("Content-Security-Policy", CSP.format(nonce=self.nonce))
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")
        self.clear_header("Server")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = (kwargs.get("exc_info") or (None, None, None))[1]
        if isinstance(error, AgentFarmError):
            self.set_status(error.status)
            if isinstance(error, Transient):
                self.set_header("Retry-After", str(max(1, round(error.retry_after))))
            text = f"{error.title}. {error.detail}. {error.hint}"
        else:
            text = f"{status_code}: {self._reason}"
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(f"<!doctype html><title>AgentFarm</title><p>{html.escape(text)}</p>")

    def log_exception(self, kind: Any, error: Any, trace: Any) -> None:
        if not isinstance(error, AgentFarmError):
            super().log_exception(kind, error, trace)


class FarmPage(_Page):
    """`/services/agentfarm/` and every route below it: for whoever is signed in at the Hub."""

    async def get(self) -> None:
        model = await self._model()
        if model is None:
            self.redirect(self.get_login_url())
            return
        asker = asker_of(model, "cookie")
        if asker.kind != "person":
            raise Forbidden("agents have no farm page", hint="sign in as yourself")
        chosen = default_model(self.parts.models.upstreams)
        words = {
            "base": self.parts.prefix,
            "xsrf": self.xsrf_token.decode(),
            "person": asker.name,
            "approver": "yes" if asker.may_approve else "",
            "operator": "yes" if asker.operator else "",
            "nonce": self.nonce,
            "hub": self.parts.public_hub,
            "version": jupyterhub_agentfarm.__version__,
            "model": chosen["name"] if chosen else "none",
            "note": _model_note(chosen),
            **_built(),
        }
        text = Template((FILES / "farm.html").read_text()).substitute(
            {name: html.escape(str(word), quote=True) for name, word in words.items()}
        )
        self.finish(text)

    async def _model(self) -> dict[str, Any] | None:
        """Return who is signed in, as the Hub tells it. Raises Transient."""
        try:
            found: dict[str, Any] | None = await self.hub_auth.get_user(self, sync=False)
        except Exception as error:
            raise self.parts.door.away() from error
        return found


def _built() -> dict[str, str]:
    """Return the names of the built script (`js`) and style sheet (`css`). Raises Transient."""
    try:
        names: dict[str, str] = json.loads((BUILT / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise Transient("the farm pages are not built", hint="operators: make setup") from error
    return names


def _model_note(chosen: dict[str, Any] | None) -> str:
    way = "set HF_API_URL and HUGGING_FACE_AUTH_TOKEN in .env, and start the farm again"
    if chosen is None:
        return f"This farm has no model: {way}."
    if chosen["embedded"]:
        return (
            "The embedded model has 135 million parameters: it shows how the farm works, and answers simple things only. "
            f"For a real one {way}."
        )
    return f"Served by {chosen['upstream']}."


class SignedIn(HubOAuthCallbackHandler):  # type: ignore[misc]
    """Where the Hub sends the browser back to after the sign-in."""

    def initialize(self, parts: Parts) -> None:
        self.hub_auth = parts.door.auth


class _Static(StaticFileHandler):
    def set_extra_headers(self, path: str) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-cache")
        self.clear_header("Server")


class _Built(_Static):
    """A file whose name is its content's hash."""

    def set_extra_headers(self, path: str) -> None:
        super().set_extra_headers(path)
        self.set_header("Cache-Control", "public, max-age=31536000, immutable")


def specs(parts: Parts) -> list[tuple[str, Any, dict[str, Any]]]:
    """Return tornado's handlers of the pages."""
    return [
        (rf"{parts.prefix}oauth_callback", SignedIn, {"parts": parts}),
        (rf"{parts.prefix}static/(farm\.svg)", _Static, {"path": str(FILES)}),
        (rf"{parts.prefix}static/(farm\.[0-9A-Z]+\.(?:js|css))", _Built, {"path": str(BUILT)}),
        (rf"{parts.prefix}{ROUTES}", FarmPage, {"parts": parts}),
        (parts.prefix.rstrip("/"), _Slash, {"to": parts.prefix}),
    ]


class _Slash(RequestHandler):
    def initialize(self, to: str) -> None:
        self.to = to

    def get(self) -> None:
        self.redirect(self.to)


def log_request(handler: RequestHandler) -> None:
    """Log a request's path without its query, and no header: neither tokens nor keys reach the log."""
    status, took = handler.get_status(), handler.request.request_time() * 1000
    level = logging.INFO if status >= 500 else logging.DEBUG
    log.log(level, "%d %s %s %.1f ms", status, handler.request.method, handler.request.path, took)
