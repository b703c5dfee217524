"""Calls meant for fal's hosts, answered by our own routes: through the proxy route, or under the hosts' own names.

Nobody is ever called.
"""

from collections.abc import Mapping
from urllib.parse import quote, unquote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from server.calls import LOGIN, refusal, respond

PROXY_PATH = "/api/fal/proxy"
TARGET_HEADER = "x-fal-target-url"

MOUNTS: Mapping[str, str] = {
    "queue.fal.run": "/queue",
    "fal.run": "/run",
    "rest.fal.ai": "/rest",
    "rest.alpha.fal.ai": "/rest",
    "v3.fal.media": "/cdn",
}


class Proxy:
    """Hands a call to our routes as if it had come there, streams included, and says who is logged in on the page."""

    def __init__(self, app: ASGIApp) -> None:
        """app: what is mounted at /fal."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        target = redirect(scope)
        if target is None:
            hosts = ", ".join(MOUNTS)
            message = f"The header {TARGET_HEADER} must hold the https address of one of {hosts}."
            await respond(refusal(400, message, "bad_request").answer)(scope, receive, send)
            return
        await self._app({**target, LOGIN: read_login(scope)}, receive, send)


class HostDoor:
    """Answers calls under one of fal's own host names, where name service or a proxy lead these here."""

    def __init__(self, app: ASGIApp, mount: str) -> None:
        """app: what is mounted at /fal."""
        self._app = app
        self._mount = mount

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        await self._app(_move(scope, self._mount, scope["path"]), receive, send)


def redirect(scope: Scope) -> Scope | None:
    """Give the call with the address of its target; None where that is missing or not one of fal's own."""
    try:
        parts = urlsplit(Headers(scope=scope).get(TARGET_HEADER, ""))
    except ValueError:
        return None
    mount = MOUNTS.get(parts.netloc)
    if parts.scheme != "https" or mount is None:
        return None
    headers = [(name, value) for name, value in scope["headers"] if name != TARGET_HEADER.encode()]
    moved = _move(scope, mount, unquote(parts.path))
    return {**moved, "query_string": parts.query.encode(), "headers": headers}


def read_login(scope: Scope) -> str | None:
    """Give the name under which a browser is logged in on the page, by Gradio's own table of its sessions.

    None for everybody else, and where no page with a login is served beside the API.
    """
    page = scope.get("app")
    sessions, cookie_id = getattr(page, "tokens", None), getattr(page, "cookie_id", None)
    if not sessions or cookie_id is None:
        return None
    cookies = HTTPConnection(scope).cookies
    # The second is the one that Gradio sets for browsers without https; both hold the same session.
    session = cookies.get(f"access-token-{cookie_id}") or cookies.get(f"access-token-unsecure-{cookie_id}")
    return sessions.get(session)


def _move(scope: Scope, mount: str, path: str) -> Scope:
    """Give the call as if it had come to one of our mounts."""
    root = scope.get("root_path", "") + "/fal"
    path = f"{root}{mount}{path}"
    return {**scope, "root_path": root, "path": path, "raw_path": quote(path).encode()}
