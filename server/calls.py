"""What every route of the API needs of a call: who calls, from where, with what body; and how we answer."""

import json
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import StudioError
from server.fetch import FetchRules
from server.files import FileStore
from server.jobs import JobQueue
from server.keys import OPEN_OWNER, KeyRing
from server.schema import ERROR_TYPE_HEADER, REQUEST_ID_HEADER, Answer, Urls
from server.signing import Signer

MAX_JSON_BYTES = 1024 * 1024  # of bodies that hold no files
# Of an input, whose data URIs are a third longer than their files. Larger files are better uploaded.
MAX_INPUT_BYTES = 128 * 1024 * 1024
MAX_IGNORED_BYTES = 32 * 1024 * 1024  # three parts of an upload

# In the scope of a call that came by the proxy route: who is logged in on the page in the browser it is from, or None.
LOGIN = "studio.login"

LIFETIME_HEADERS = ("X-Fal-Object-Lifecycle", "X-Fal-Object-Lifecycle-Preference")
LONGEST_LIFETIME_S = 100 * 365 * 86_400.0  # what is wanted longer is wanted for good

_HOST = re.compile(r"[\w.-]+(:\d+)?|\[[0-9a-fA-F:.]+\](:\d+)?")
_SCHEMES = ("Key", "Bearer")


@dataclass(frozen=True)
class ApiServices:
    """What the API stands on.

    public_url: our address as clients see it; None: told from each call. cors_origins: pages of other origins that may
    call from a browser. scratch_dir: where uploads lie until they are whole; best on the disk of the store.
    """

    queue: JobQueue
    files: FileStore
    keys: KeyRing
    signer: Signer
    scratch_dir: Path
    rules: FetchRules = field(default_factory=FetchRules)
    public_url: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_upload_bytes: int = 200 * 1024 * 1024


class CallError(Exception):
    """A call that cannot be answered as asked."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


def refusal(status_code: int, detail: str, error_type: str | None = None) -> CallError:
    """Make the error of a call: a sentence, and fal's word for its kind where there is one."""
    if error_type is None:
        return CallError(Answer(status_code, {"detail": detail}))
    return CallError(Answer(status_code, {"detail": detail, "error_type": error_type}, {ERROR_TYPE_HEADER: error_type}))


def respond(answer: Answer, request_id: str | None = None) -> JSONResponse:
    """Turn an answer into a response, with the queue's id where there is one."""
    headers = dict(answer.headers) | ({REQUEST_ID_HEADER: request_id} if request_id else {})
    return JSONResponse(dict(answer.body), answer.status_code, headers)


# Asynchronous though they wait for nothing: FastAPI would hand each to a thread, on every poll.
async def get_services(request: Request) -> ApiServices:
    """Give what the API stands on."""
    return request.app.state.services


Services = Annotated[ApiServices, Depends(get_services)]


async def get_urls(request: Request, services: Services) -> Urls:
    """Give the addresses to hand out in this answer."""
    return Urls(base_url(request.headers, request.url.scheme, services.public_url))


CallUrls = Annotated[Urls, Depends(get_urls)]


def base_url(headers: Headers, scheme: str, public_url: str | None) -> str:
    """Tell our own address: as configured, else as the reverse proxy says, else as the client called us."""
    if public_url:
        return public_url.rstrip("/")
    host = _first(headers.get("x-forwarded-host")) or headers.get("host", "")
    if not _HOST.fullmatch(host):
        raise refusal(400, "The Host header does not name a host.", "bad_request")
    forwarded = _first(headers.get("x-forwarded-proto")).lower()
    return f"{forwarded if forwarded in ('http', 'https') else scheme}://{host}"


async def authenticate(request: Request, services: Services) -> str:
    """Give the owner whose key came with the call, or who is logged in. An open server takes any key and none."""
    if services.keys.is_open:
        _refuse_foreign_page(request, services.cors_origins, services.public_url)
        return OPEN_OWNER
    login: str | None = request.scope.get(LOGIN)
    if login is not None and "authorization" not in request.headers:
        _require_own_page(request, services.public_url)
        return login
    owner = services.keys.owner_of(credentials(request.headers))
    if owner is None:
        raise refusal(401, "This server needs a key: send the header “Authorization: Key <your key>”.")
    return owner


Owner = Annotated[str, Depends(authenticate)]


def credentials(headers: Mapping[str, str]) -> str:
    """Give what the Authorization header holds after its scheme; nothing for schemes we do not know."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.title() in _SCHEMES else ""


def _refuse_foreign_page(request: Request, allowed: tuple[str, ...], public_url: str | None) -> None:
    """Keep pages of other origins from using an open server through the browser of someone who may reach it.

    A page may set X-Forwarded-Host, and may come under a name of its own that it has lead here, so that both headers
    agree (DNS rebinding); therefore only names that are this machine's anyway, or the operator's, are our own.
    """
    origin = request.headers.get("origin")
    if origin is None or request.method in ("GET", "HEAD") or origin in allowed or "*" in allowed:
        return
    if not _is_own(origin, request, public_url) or not _is_trusted(urlsplit(origin).hostname, public_url):
        raise refusal(403, f"Pages of {origin} may not call this server; its operator can allow them.")


def _is_own(origin: str, request: Request, public_url: str | None) -> bool:
    return urlsplit(origin).netloc in (request.headers.get("host"), urlsplit(public_url or "").netloc or None)


def _is_trusted(hostname: str | None, public_url: str | None) -> bool:
    """Say whether a name leads here whatever name service says: this machine's own, or the configured one."""
    if hostname in ("localhost", urlsplit(public_url or "").hostname or "localhost"):
        return True
    try:
        return ip_address(hostname or "").is_loopback
    except ValueError:
        return False


def _require_own_page(request: Request, public_url: str | None) -> None:
    """Keep pages of other origins from using the login: a browser sends its cookie along, whoever makes it call.

    Sec-Fetch-Site is the browser's own word, but over plain http not all send it; all send Origin with what changes
    anything, and with what a page of another origin adds headers to, as it has to for the proxy route. Such a page may
    set X-Forwarded-Host, which therefore says nothing here: Gradio lets any origin send any header.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        is_own = site == "same-origin"
    elif origin is not None:
        is_own = _is_own(origin, request, public_url)
    else:
        is_own = request.method in ("GET", "HEAD")
    if not is_own:
        raise refusal(403, "The login of the page holds for calls from the page itself; send a key from elsewhere.")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read a whole body. Raises CallError 413."""
    body = bytearray()
    async for chunk in limited(request, max_bytes, too_large(max_bytes)):
        body += chunk
    return bytes(body)


async def limited(request: Request, max_bytes: int, error: CallError) -> AsyncIterator[bytes]:
    """Give the body in chunks; raise the error when there is more than that.

    Reads on for a while before it does: who is cut off while sending sees a broken connection, and sends it all again.
    """
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= max_bytes:
            yield chunk
        elif size > max_bytes + MAX_IGNORED_BYTES:
            break
    if size > max_bytes:
        raise error


def wanted_lifetime(headers: Headers) -> float | None:
    """Give how many seconds the sender wants files kept; None: as long as we like. Raises CallError 400.

    Clients send one header or both, for what they upload and for what a request makes.
    """
    for name in LIFETIME_HEADERS:
        try:
            wish = json.loads(headers.get(name, "{}"))
            seconds = float(wish.get("expiration_duration_seconds") or 0)
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            message = f'{name} must be JSON such as {{"expiration_duration_seconds": 3600}}.'
            raise refusal(400, message, "bad_request") from error
        if 0 < seconds < LONGEST_LIFETIME_S:
            return seconds
    return None


def parse_json(body: bytes) -> Any:
    """Read JSON. Raises CallError 400."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise refusal(400, "The body is not valid JSON.", "bad_request") from error


def too_large(max_bytes: int) -> CallError:
    """Make the error of a body that is too large."""
    return refusal(413, f"The body is larger than {max_bytes // 2**20} MB; send a smaller file.")


def from_studio_error(error: StudioError, status_code: int) -> CallError:
    """Make the error of a call from one of ours."""
    return refusal(status_code, error.message)


def _first(text: str | None) -> str:
    """Give the first of a list in a header: the one that the outermost proxy wrote."""
    return (text or "").partition(",")[0].strip()


class RequestIds:
    """Puts an x-fal-request-id on every response; routes that know the queue's id have set it already."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault(REQUEST_ID_HEADER, str(uuid.uuid4()))
            await send(message)

        await self._app(scope, receive, send_with_id)
