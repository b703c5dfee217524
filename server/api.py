"""Routes of the fal API: body -> job, job -> body. `api_routes` gives all; docs/fal-api.md says how to use them."""

import asyncio
import hashlib
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Literal

from fastapi import APIRouter, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Host, Match, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from server import examples, uploads
from server.calls import (
    MAX_INPUT_BYTES,
    ApiServices,
    CallError,
    CallUrls,
    Owner,
    RequestIds,
    Services,
    parse_json,
    read_body,
    refusal,
    respond,
    wanted_lifetime,
)
from server.database import UnreachableError
from server.fetch import ForbiddenAddressError, check_url
from server.files import UnknownFileError
from server.inputs import InputFiles
from server.job import Job, JobStatus
from server.jobs import OtherRequestError, QueueFullError
from server.proxy import MOUNTS, PROXY_PATH, HostDoor, Proxy
from server.reference import API_DESCRIPTION, render_reference
from server.schema import APP, InvalidBodyError, Urls, input_schema, outcome, read_input, status, submitted
from server.webhooks import WebhookAddress

POLL_S = 0.1  # between two looks at a job that a client waits for
KEEP_ALIVE_S = 15.0
LONGEST_WAIT_S = 10 * 365 * 86_400.0  # to begin; beyond what a database can hold of times, nobody waits

EXPOSED_HEADERS = ("x-fal-request-id", "x-fal-error-type", "x-fal-request-timeout-type", "etag")
INPUT_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": input_schema()}}}}
NOT_HERE = "There is nothing at this address; this server speaks for fal-ai/video-as-prompt."

queue = APIRouter(prefix=f"/queue/{APP}", tags=["Queue"])
run = APIRouter(prefix="/run", tags=["Synchronous call"])


@queue.post("", openapi_extra=INPUT_BODY, responses=examples.SUBMITTED)
async def submit(request: Request, owner: Owner, services: Services, urls: CallUrls) -> Response:
    """Put a request in the queue. Faults of the input do not fail this call: they become the request's result."""
    job = await _submit(request, owner, services, urls)
    return JSONResponse(submitted(job, urls), headers=_id(job))


@queue.get("/requests/{job_id}/status", responses=examples.STATUS)
def read_status(job_id: str, owner: Owner, services: Services, urls: CallUrls, logs: str = "") -> Response:
    """Tell how far a request is: 202 until it is completed, then 200. `logs` is true, false, 1 or 0."""
    wants_logs = _is_true(logs)
    job = _find(services, owner, job_id, with_logs=wants_logs)
    body = status(job, urls, job.logs if wants_logs else None)
    return JSONResponse(body, 200 if job.status.is_final else 202, _id(job))


@queue.get("/requests/{job_id}/status/stream")
async def stream_status(job_id: str, owner: Owner, services: Services, urls: CallUrls, logs: str = "") -> Response:
    """Tell each change of a request as a server-sent event, with the new log lines; ends when it is completed."""
    job = await run_in_threadpool(_find, services, owner, job_id)
    events = _status_events(services, job, urls, wants_logs=_is_true(logs))
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **_id(job)}
    return StreamingResponse(events, headers=headers, media_type="text/event-stream")


@queue.get("/requests/{job_id}", responses=examples.RESULT)
def read_result(job_id: str, owner: Owner, services: Services, urls: CallUrls) -> Response:
    """Give the result of a request, or its error; 400 while it is still in progress."""
    job = _find(services, owner, job_id)
    if not job.status.is_final:
        return JSONResponse({"detail": "Request is still in progress"}, 400, _id(job))
    return _result(services, job, urls)


@queue.put("/requests/{job_id}/cancel", responses=examples.CANCELLED)
def cancel(job_id: str, owner: Owner, services: Services) -> Response:
    """Stop a request: a waiting one at once, a running one at its next step."""
    headers = {"x-fal-request-id": job_id}
    job = services.queue.get(job_id, with_logs=False)
    answer = services.queue.cancel(job_id) if job is not None and _may_see(services, owner, job) else "not_found"
    match answer:
        case "requested":
            return JSONResponse({"status": "CANCELLATION_REQUESTED"}, 202, headers)
        case "already_finished":
            return JSONResponse({"status": "ALREADY_COMPLETED"}, 400, headers)
        case _:
            return JSONResponse({"status": "NOT_FOUND"}, 404)


@run.post(f"/{APP}", openapi_extra=INPUT_BODY, responses=examples.RESULT)
async def run_to_end(request: Request, owner: Owner, services: Services, urls: CallUrls) -> Response:
    """Make a video and answer when it is done. A dropped connection cancels it; long ones belong in the queue."""
    job = await _submit(request, owner, services, urls)
    while not job.status.is_final:
        if await request.is_disconnected():
            await run_in_threadpool(services.queue.cancel, job.job_id)
            return Response(status_code=499)  # nobody reads it
        await asyncio.sleep(POLL_S)
        job = await run_in_threadpool(_find, services, owner, job.job_id, with_logs=False)
    return await run_in_threadpool(_result, services, job, urls)


def api_routes(services: ApiServices) -> list[BaseRoute]:
    """Give all routes of the API, for any Starlette app; see `ahead_of_page` for Gradio's."""
    uploads.clear_scratch(services.scratch_dir, time.time())
    fal = _make_app(services)
    door = RequestIds(_allow_origins(fal, services.cors_origins))
    proxy = RequestIds(_allow_origins(Proxy(fal), services.cors_origins))
    return [
        Mount("/fal", app=door),
        # The second spares callers a redirect, which Python's async client takes for an error.
        Route(PROXY_PATH, endpoint=proxy),
        Route(f"{PROXY_PATH}/", endpoint=proxy),
        Route("/openapi.json", endpoint=RequestIds(JSONResponse(fal.openapi()))),
        Route("/docs", endpoint=RequestIds(HTMLResponse(render_reference(fal.openapi())))),
        *(Host(name, app=HostDoor(door, mount)) for name, mount in MOUNTS.items()),
    ]


def ahead_of_page(services: ApiServices) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """Give a lifespan for the app of a Gradio page with which the API answers its calls before the page sees them.

    Among the page's routes it would come after Gradio's own rule for other origins, which answers a browser's question
    whether it may call, and allows what the operator has not.
    """
    routes = api_routes(services)

    @asynccontextmanager
    async def lead(page: Starlette) -> AsyncIterator[None]:
        # All layers are built by now, and no call has come yet; Gradio's would go around any of ours.
        inner = page.middleware_stack or page.build_middleware_stack()

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                for route in routes:
                    match, found = route.matches(scope)
                    if match is not Match.NONE:
                        await route.handle({**scope, **found}, receive, send)
                        return
            await inner(scope, receive, send)

        page.middleware_stack = answer
        yield

    return lead


def _make_app(services: ApiServices) -> FastAPI:
    fal = FastAPI(
        title="Video-As-Prompt Studio",
        description=API_DESCRIPTION,
        servers=[{"url": "/fal"}],
        root_path_in_servers=False,
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers={
            CallError: _answer_call_error,
            HTTPException: _answer_http_error,
            RequestValidationError: _answer_bad_path,
            ClientDisconnect: _answer_nobody,
            UnreachableError: _answer_unreachable,
            Exception: _answer_failure,
        },
    )
    fal.state.services = services
    for router in (queue, run, uploads.rest, uploads.cdn):
        fal.include_router(router)
    return fal


def _allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST", "PUT"),
        allow_headers=("*",),
        expose_headers=EXPOSED_HEADERS,
    )


async def _submit(request: Request, owner: str, services: ApiServices, urls: Urls) -> Job:
    start_timeout_s = _start_timeout(request.headers.get("x-fal-request-timeout"))
    webhook = _webhook(request.query_params.get("fal_webhook"), services, urls)
    keep_s = wanted_lifetime(request.headers)
    idempotency_key = request.headers.get("idempotency-key")
    body = await read_body(request, MAX_INPUT_BYTES)
    inputs = InputFiles(services.files, services.scratch_dir, services.max_upload_bytes)
    priority: Literal["normal", "low"] = "low" if request.headers.get("x-fal-queue-priority") == "low" else "normal"

    def decide() -> Job:
        given = parse_json(body)
        try:
            wire = read_input(given)
            digest = hashlib.sha256(body).hexdigest() if idempotency_key else None
            asked = replace(inputs.to_request(wire, urls), keep_s=keep_s, digest=digest)
        except InvalidBodyError as error:
            return services.queue.submit_invalid(
                error.job_error, owner=owner, webhook_url=webhook, idempotency_key=idempotency_key
            )
        try:
            job = services.queue.submit(
                asked,
                owner=owner,
                priority=priority,
                idempotency_key=idempotency_key,
                webhook_url=webhook,
                start_timeout_s=start_timeout_s,
            )
        except (QueueFullError, OtherRequestError):  # after any other error the job may be there, and need them
            inputs.discard(wire, asked.sources)
            raise
        if job.request is not None:  # the job of an earlier call has files of its own
            inputs.discard(wire, asked.sources, kept=job.request.sources.values())
        return job

    try:
        return await run_in_threadpool(decide)
    except QueueFullError as error:
        # Both clients try again for half a minute and more: there may be room by then.
        raise refusal(429, error.message) from error
    except OtherRequestError as error:
        raise refusal(422, error.message, "bad_request") from error


async def _status_events(services: ApiServices, job: Job, urls: Urls, *, wants_logs: bool) -> AsyncIterator[str]:
    told: tuple[JobStatus, int | None, int] | None = None
    sent_lines, sent_at = 0, time.monotonic()
    while True:
        now = (job.status, job.position, len(job.logs) if wants_logs else 0)
        if now != told:
            body = status(job, urls, job.logs[sent_lines:] if wants_logs else None)
            yield f"data: {json.dumps(body)}\n\n"
            told, sent_lines, sent_at = now, len(job.logs), time.monotonic()
        elif time.monotonic() - sent_at >= KEEP_ALIVE_S:
            yield ": still there\n\n"
            sent_at = time.monotonic()
        if job.status.is_final:
            return
        await asyncio.sleep(POLL_S)
        latest = await run_in_threadpool(services.queue.get, job.job_id, with_logs=wants_logs)
        if latest is None:
            return  # deleted: the client's question for the result tells it
        job = latest


def _result(services: ApiServices, job: Job, urls: Urls) -> Response:
    try:
        return respond(outcome(job, urls, services.files.size), job.job_id)
    except UnknownFileError as error:
        raise refusal(404, "The video of this request was deleted.") from error


def _find(services: ApiServices, owner: str, job_id: str, *, with_logs: bool = True) -> Job:
    """Give a job that this owner may see. Raises CallError 404."""
    job = services.queue.get(job_id, with_logs=with_logs)
    if job is None or not _may_see(services, owner, job):
        raise refusal(404, "There is no such request, or it was deleted.")
    return job


def _may_see(services: ApiServices, owner: str, job: Job) -> bool:
    return services.keys.is_open or job.owner == owner


def _start_timeout(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise refusal(400, f"X-Fal-Request-Timeout is {text!r}; it must be a number of seconds.", "bad_request")
    return min(seconds, LONGEST_WAIT_S)


def _webhook(url: str | None, services: ApiServices, urls: Urls) -> str | None:
    if url is None:
        return None
    try:
        check_url(url, services.rules)
    except ForbiddenAddressError as error:
        raise refusal(400, f"The webhook cannot be called: {error.message}", "bad_request") from error
    return WebhookAddress(url, urls.base).to_text()


def _is_true(text: str) -> bool:
    return text.lower() in ("1", "true")


def _id(job: Job) -> dict[str, str]:
    return {"x-fal-request-id": job.job_id}


async def _answer_call_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CallError)
    return respond(error.answer)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = NOT_HERE if error.status_code == 404 else error.detail
    return JSONResponse({"detail": detail}, error.status_code, error.headers)


async def _answer_bad_path(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": NOT_HERE}, 404)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return respond(refusal(499, "The connection broke.", "client_disconnected").answer)


async def _answer_unreachable(request: Request, error: Exception) -> Response:
    assert isinstance(error, UnreachableError)
    return respond(refusal(503, error.message, "internal_error").answer)


async def _answer_failure(request: Request, error: Exception) -> Response:
    answer = refusal(500, "Something went wrong here; the log of the server says what.", "internal_error").answer
    return respond(answer)
