"""The file services of the fal API: upload tokens and addresses (rest), uploads and downloads (cdn)."""

import hashlib
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from server.calls import (
    MAX_JSON_BYTES,
    ApiServices,
    CallUrls,
    Owner,
    Services,
    authenticate,
    credentials,
    limited,
    parse_json,
    read_body,
    refusal,
    too_large,
    wanted_lifetime,
)
from server.files import PRIVATE, UPLOADS, UnknownFileError, split_key
from server.schema import Urls
from server.signing import TokenError

TOKEN_LIFETIME_S = 3600
SCRATCH_LIFETIME_S = 24 * 3600
MAX_PART_NUMBER = 10_000

# What a token is good for.
ANY_FILE, ONE_FILE = "any file", "one file"

# Types that a browser shows without running anything; all others it keeps in a sandbox, away from our page.
_PASSIVE = re.compile(r"video/.*|audio/.*|image/(?!svg).*")

rest = APIRouter(prefix="/rest", tags=["Files"])
cdn = APIRouter(prefix="/cdn", tags=["Files"])


@rest.post("/storage/auth/token")
async def issue_token(owner: Owner, services: Services, urls: CallUrls) -> Any:
    """Give a token to upload files with, good for an hour."""
    expires_at = int(time.time()) + TOKEN_LIFETIME_S
    return {
        "token": services.signer.issue(ANY_FILE, owner, expires_at),
        "token_type": "Bearer",
        "base_url": urls.cdn,
        "expires_at": datetime.fromtimestamp(expires_at, UTC).isoformat(),
    }


@rest.post("/storage/upload/initiate")
@rest.post("/storage/upload/initiate-multipart", name="initiate_multipart")
async def initiate(request: Request, owner: Owner, services: Services, urls: CallUrls) -> Any:
    """Give an address to put a file to, whole or in parts, and the address where it will be."""
    body = parse_json(await read_body(request, MAX_JSON_BYTES) or b"{}")
    if not isinstance(body, dict):
        raise refusal(400, "The body must be an object with content_type and file_name.", "bad_request")
    key = await _reserve(request, services, _text(body, "file_name"), _text(body, "content_type"))
    return {"upload_url": urls.upload(_ticket(services, key)), "file_url": urls.file(key)}


@rest.get("/.well-known/jwks.json", tags=["Webhooks"])
async def webhook_keys(services: Services) -> Any:
    """Give the public key that webhooks are signed with."""
    return services.signer.public_keys()


@cdn.put("/upload/{token}")
async def put_file(token: str, request: Request, services: Services) -> Any:
    """Take a whole file at a handed-out address; the address is the permission."""
    key = _redeem(services, token)
    await _receive_file(request, services, key)
    return {}


@cdn.put("/upload/{token}/{number}")
async def put_part(token: str, number: int, request: Request, services: Services) -> Any:
    """Take one part of a file at a handed-out address."""
    etag = await _receive_part(request, services, _redeem(services, token), number)
    return JSONResponse({"partNumber": number, "etag": etag}, headers={"ETag": etag})


@cdn.post("/upload/{token}/complete")
async def complete_upload(token: str, request: Request, services: Services, urls: CallUrls) -> Any:
    """Join the parts put to a handed-out address."""
    return await _complete(request, services, urls, _redeem(services, token))


async def authorize_upload(request: Request, services: Services) -> None:
    """Require an upload token, or a key."""
    try:
        services.signer.check(credentials(request.headers), ANY_FILE, time.time())
    except TokenError:
        await authenticate(request, services)


UploadAllowed = Depends(authorize_upload)


@cdn.post("/files/upload", dependencies=[UploadAllowed])
async def upload_file(request: Request, services: Services, urls: CallUrls) -> Any:
    """Take a whole file."""
    key = await _reserve_by_headers(request, services)
    await _receive_file(request, services, key)
    return {"access_url": urls.file(key)}


@cdn.post("/files/upload/multipart", dependencies=[UploadAllowed])
async def begin_parts(request: Request, services: Services, urls: CallUrls) -> Any:
    """Begin a file that comes in parts."""
    key = await _reserve_by_headers(request, services)
    return {"access_url": urls.file(key), "uploadId": _ticket(services, key)}


@cdn.put("/files/{key:path}/multipart/{upload_id}/{number}", dependencies=[UploadAllowed])
async def upload_part(key: str, upload_id: str, number: int, request: Request, services: Services) -> Any:
    """Take one part of a file."""
    etag = await _receive_part(request, services, _redeem(services, upload_id, key), number)
    return JSONResponse({"partNumber": number, "etag": etag}, headers={"ETag": etag})


@cdn.post("/files/{key:path}/multipart/{upload_id}/complete", dependencies=[UploadAllowed])
async def complete_parts(key: str, upload_id: str, request: Request, services: Services, urls: CallUrls) -> Any:
    """Join the parts of a file."""
    return await _complete(request, services, urls, _redeem(services, upload_id, key))


@cdn.head("/files/{key:path}", include_in_schema=False)
@cdn.get("/files/{key:path}")
def download(key: str, request: Request, services: Services) -> Response:
    """Give a file, or the range of it that was asked for. The address is the permission."""
    try:
        if split_key(key).folder in PRIVATE:
            raise UnknownFileError
        size = services.files.size(key)
    except UnknownFileError as error:
        raise refusal(404, error.message) from error
    content_type = services.files.content_type(key)
    headers = _file_headers(key, content_type)
    span = parse_range(request.headers, size, headers["ETag"])
    if span is None:
        start, end, status_code = 0, size, 200
    elif (start := span[0]) < (end := span[1]):
        status_code = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    else:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{size}"})
    headers["Content-Length"] = str(end - start)
    body: Iterator[bytes] = iter(()) if request.method == "HEAD" else services.files.read(key, start, end)
    return StreamingResponse(body, status_code, headers, media_type=content_type)


def parse_range(headers: Mapping[str, str], size: int, etag: str) -> tuple[int, int] | None:
    """Give start and end of the bytes asked for; None for the whole file, an empty span for one outside of it.

    Several ranges at once, other units and ranges of another version count as not asked for: RFC 9110, 14.2.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("range", "").replace(" ", ""))
    if match is None or match.group() == "bytes=-" or headers.get("if-range", etag) != etag:
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


def _file_headers(key: str, content_type: str) -> dict[str, str]:
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": f'"{split_key(key).token}"',  # a stored file never changes
        "Cache-Control": "private, max-age=86400, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    if not _PASSIVE.fullmatch(content_type):
        headers["Content-Security-Policy"] = "sandbox"
    return headers


async def _reserve_by_headers(request: Request, services: ApiServices) -> str:
    headers = request.headers
    return await _reserve(request, services, headers.get("x-fal-file-name"), headers.get("content-type"))


async def _reserve(request: Request, services: ApiServices, name: str | None, content_type: str | None) -> str:
    """Give a new key for an upload, and note when the sender wants it gone."""
    key = services.files.reserve(UPLOADS, name, content_type)
    seconds = wanted_lifetime(request.headers)
    if seconds is not None:
        ends_at = services.queue.now() + timedelta(seconds=seconds)
        await run_in_threadpool(services.files.limit_life, key, ends_at)
    return key


def _ticket(services: ApiServices, key: str) -> str:
    return services.signer.issue(ONE_FILE, key, int(time.time()) + TOKEN_LIFETIME_S)


def _redeem(services: ApiServices, token: str, key: str | None = None) -> str:
    """Give the key that a token lets one write. key: the one it has to be for, where the address names one."""
    try:
        allowed = services.signer.check(token, ONE_FILE, time.time())
    except TokenError as error:
        raise refusal(403, error.message) from error
    if key not in (None, allowed):
        raise refusal(403, "The upload token is for another file.")
    return allowed


async def _receive_file(request: Request, services: ApiServices, key: str) -> None:
    file, _ = await _receive(request, services, services.max_upload_bytes)
    await run_in_threadpool(_keep, services, file, key)


def _keep(services: ApiServices, file: Path, key: str) -> None:
    """Store a file, once: a repeated call, or a late one with other content, changes nothing."""
    if services.files.exists(key):
        file.unlink()
    else:
        services.files.take(file, key)


async def _receive_part(request: Request, services: ApiServices, key: str, number: int) -> str:
    """Keep one part and give its entity tag."""
    if not 1 <= number <= MAX_PART_NUMBER:
        raise refusal(400, f"Parts are numbered from 1 to {MAX_PART_NUMBER}.", "bad_request")
    others = await run_in_threadpool(partial(services.files.parts_size, key, without=number))
    file, digest = await _receive(request, services, services.max_upload_bytes - others)
    await run_in_threadpool(services.files.add_part, key, number, file)
    return f'"{digest}"'


async def _receive(request: Request, services: ApiServices, max_bytes: int) -> tuple[Path, str]:
    """Write the body to a scratch file; give it with its digest. Raises CallError 413, and leaves nothing then."""
    services.scratch_dir.mkdir(parents=True, exist_ok=True)
    file = services.scratch_dir / secrets.token_hex(16)
    digest = hashlib.sha256()
    try:
        async with await anyio.open_file(file, "wb") as scratch:
            async for chunk in limited(request, max_bytes, too_large(services.max_upload_bytes)):
                digest.update(chunk)
                await scratch.write(chunk)
    except BaseException:  # a dropped connection cancels us
        file.unlink(missing_ok=True)
        raise
    return file, digest.hexdigest()[:32]


def clear_scratch(folder: Path, now: float) -> None:
    """Remove what uploads left that a crash of the server ended. now: Unix seconds."""
    for file in folder.iterdir() if folder.exists() else ():
        if now - file.stat().st_mtime > SCRATCH_LIFETIME_S:
            file.unlink(missing_ok=True)


async def _complete(request: Request, services: ApiServices, urls: Urls, key: str) -> Any:
    """Join parts, in the order of their numbers: clients list them as they were completed."""
    body = parse_json(await read_body(request, MAX_JSON_BYTES))
    try:
        numbers = [int(part["partNumber"]) for part in body["parts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise refusal(400, "The body must list the parts with their partNumber.", "bad_request") from error
    await run_in_threadpool(_join, services, key, numbers)
    return {"access_url": urls.file(key), "file_url": urls.file(key)}


def _join(services: ApiServices, key: str, numbers: list[int]) -> None:
    if services.files.exists(key):
        return  # the answer to the first call was lost, and the client asks again
    if not numbers:
        raise refusal(400, "An upload without parts has no content.", "bad_request")
    if services.files.parts_size(key) > services.max_upload_bytes:  # each had room when it began, not all together
        services.files.delete_parts(key)
        raise too_large(services.max_upload_bytes)
    scratch = services.scratch_dir / secrets.token_hex(16)
    try:
        services.files.join_parts(key, numbers, scratch)
    except UnknownFileError as error:
        raise refusal(400, "A part that the list names was not uploaded.", "bad_request") from error
    finally:
        scratch.unlink(missing_ok=True)


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) and value else None
