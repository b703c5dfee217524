"""Bodies of the fal API, in the wire's own words: input -> job request, job -> status, result, error, webhook."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import ValidationError

from pipeline.spec import GenerationRequest, ModelFacts
from server.files import split_key
from server.job import Fault, Job, JobError, JobStatus, LogLine

APP = "fal-ai/video-as-prompt"

SizeOf = Callable[[str], int]  # key of a stored file -> its bytes

REQUEST_ID_HEADER = "X-Fal-Request-Id"
ERROR_TYPE_HEADER = "X-Fal-Error-Type"
TIMEOUT_TYPE_HEADER = "X-Fal-Request-Timeout-Type"

# Our names -> the wire's, where they differ.
WIRE_NAMES: Mapping[str, str] = {"reference_video": "video_url", "image": "image_url"}
SOURCES = tuple(WIRE_NAMES)
# The wire's fields, in the order fal documents them, then our additions, which no fal program sends.
FIELDS = (
    "prompt",
    "reference_video",
    "image",
    "video_description",
    "seed",
    "num_frames",
    "fps",
    "enable_safety_checker",
    "aspect_ratio",
    "resolution",
    "guidance_scale",
    "negative_prompt",
    "num_inference_steps",
    "reference_start_s",
    "reference_end_s",
    "cache_threshold",
    "guided_share",
    "lora",
    "lora_strength",
)

# What fal documents where a request may leave it to the model: the released one's own. Another model takes its own.
DOCUMENTED_DEFAULTS: Mapping[str, float] = {"guidance_scale": ModelFacts.guidance_scale}

_URL_STARTS = ("http://", "https://", "data:")
_STAND_IN = "stand-in"  # what validation sees for a source: it is settled apart from the other fields
_SOURCE_TEXT: Mapping[str, str] = {
    "reference_video": "URL of the clip whose effect is wanted: http(s), or data:video/mp4;base64,...",
    "image": "URL of the picture the effect is applied to: http(s), or data:image/png;base64,...",
}

EXAMPLE_INPUT: Mapping[str, Any] = {
    "prompt": "The statue turns into balloons and floats away.",
    "video_url": "https://example.com/reference.mp4",
    "image_url": "https://example.com/statue.png",
    "video_description": "A man turns into balloons and floats away.",
    "resolution": "480p",
}


@dataclass(frozen=True)
class WireInput:
    """A body whose fields are all in order. fields: by our names, without the two sources, which are URLs here."""

    fields: Mapping[str, Any]
    reference_video: str
    image: str


@dataclass(frozen=True)
class Answer:
    """What a finished job answers with."""

    status_code: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Urls:
    """The addresses we hand out. base: of this server, as the client sees it, without a final slash."""

    base: str

    def request(self, job_id: str) -> str:
        """Give the address of a request, where its result will be."""
        return f"{self.base}/fal/queue/{APP}/requests/{job_id}"

    def file(self, key: str) -> str:
        """Give the address of a stored file."""
        return f"{self.base}/fal/cdn/files/{quote(key)}"

    def upload(self, token: str) -> str:
        """Give the address to put an upload to."""
        return f"{self.base}/fal/cdn/upload/{token}"

    @property
    def cdn(self) -> str:
        """Give the address of the file service."""
        return f"{self.base}/fal/cdn"


class InvalidBodyError(Exception):
    """The input is not in order. Not an error of the call: it becomes the request's result."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__(faults)
        self.faults = faults

    @property
    def job_error(self) -> JobError:
        """Give the error the request ends with."""
        return JobError("invalid_input", " ".join(_sentence(fault) for fault in self.faults), self.faults)


def read_input(body: Any) -> WireInput:
    """Take the input of a call. Unknown fields are ignored, and null means the default.

    Raises InvalidBodyError with every fault, in the order of the fields.
    """
    if not isinstance(body, dict):
        raise InvalidBodyError((Fault(None, "Input should be a JSON object with the fields.", "dict_type"),))
    values = _by_our_names(body)
    faults = [fault for name in SOURCES if name in values and (fault := _source_fault(name, values[name]))]
    request = None
    try:
        request = GenerationRequest(**values | {name: _STAND_IN for name in SOURCES if name in values})
    except ValidationError as error:
        faults += [_to_fault(finding) for finding in error.errors(include_url=False, include_input=False)]
    if faults or request is None:
        raise InvalidBodyError(tuple(sorted(faults, key=lambda fault: FIELDS.index(fault.field or FIELDS[-1]))))
    fields = request.model_dump(mode="json", exclude=set(SOURCES), exclude_unset=True)
    return WireInput(fields, values["reference_video"], values["image"])


def input_schema() -> dict[str, Any]:
    """Describe the input as a JSON schema, with the limits and defaults of the request."""
    schema = GenerationRequest.model_json_schema()
    properties = {to_wire(name): dict(schema["properties"][name]) for name in FIELDS}
    for name, value in DOCUMENTED_DEFAULTS.items():
        number, _ = properties[name].pop("anyOf")  # or null
        description = (
            "How strongly the texts push, 1: no push, in about half the time. Left out: the model's own, which is "
            f"{value:g} for the released one and stands in model_index.json for others."
        )
        properties[name] |= {**number, "default": value, "description": description}
    for name in SOURCES:
        properties[to_wire(name)] = {"type": "string", "description": _SOURCE_TEXT[name]}
    return {
        "title": "VideoAsPromptInput",
        "type": "object",
        "properties": {name: {**values, "title": name} for name, values in properties.items()},
        "required": [to_wire(name) for name in FIELDS if name in schema["required"]],
        "example": dict(EXAMPLE_INPUT),
    }


def to_wire(name: str) -> str:
    """Give the wire's name of one of our fields."""
    return WIRE_NAMES.get(name, name)


def submitted(job: Job, urls: Urls) -> dict[str, Any]:
    """Answer a submit."""
    return {
        "status": "IN_QUEUE",
        "request_id": job.job_id,
        "gateway_request_id": job.job_id,
        "queue_position": job.position or 0,
        **_addresses(job, urls),
    }


def status(job: Job, urls: Urls, logs: tuple[LogLine, ...] | None) -> dict[str, Any]:
    """Tell how far a job is. logs: the lines to send; None where none were asked for."""
    common = {"request_id": job.job_id, **_addresses(job, urls)}
    if job.status is JobStatus.WAITING:
        return {"status": "IN_QUEUE", "queue_position": job.position or 0, **common}
    lines = None if logs is None else [_log_line(line) for line in logs]
    if job.status is JobStatus.RUNNING:
        return {"status": "IN_PROGRESS", "logs": lines, **common}
    metrics = {"inference_time": round(job.result.inference_s, 3)} if job.result else {}
    completed = {"status": "COMPLETED", "logs": lines, "metrics": metrics, **common}
    if job.error is None:
        return completed
    _, error_type = _KINDS[job.error.kind]
    return completed | {"error": job.error.message} | ({"error_type": error_type} if error_type else {})


def outcome(job: Job, urls: Urls, size_of: SizeOf) -> Answer:
    """Give the answer of a finished job: the file, or the error. Raises what size_of does."""
    if job.result is not None:
        return Answer(200, {"video": _file(job.result.video_key, urls, size_of)})
    error = job.error or JobError("internal", "The request ended without a result.")
    status_code, error_type = _KINDS[error.kind]
    if error_type is None:
        return Answer(status_code, {"detail": faults_detail(error)})
    headers = {ERROR_TYPE_HEADER: error_type}
    if error.kind == "start_timeout":
        headers[TIMEOUT_TYPE_HEADER] = "user"
    return Answer(status_code, {"detail": error.message, "error_type": error_type, **_way_out(error)}, headers)


def _way_out(error: JobError) -> dict[str, Any]:
    """Give the fields to change for a request to work, where that is known. fal has no such field; clients skip it."""
    if error.suggestion is None:
        return {}
    return {"suggestion": {to_wire(name): value for name, value in error.suggestion.fields.items()}}


def webhook_body(job: Job, urls: Urls, size_of: SizeOf) -> dict[str, Any]:
    """Tell the end of a job to its webhook."""
    answer = outcome(job, urls, size_of)
    failed = answer.status_code != 200
    return {
        "request_id": job.job_id,
        "gateway_request_id": job.job_id,
        "status": "ERROR" if failed else "OK",
        "error": f"Invalid status code: {answer.status_code}" if failed else None,
        "payload": answer.body,
    }


def faults_detail(error: JobError) -> list[dict[str, Any]]:
    """Give the faults of an input as FastAPI would."""
    faults = error.faults or (Fault(None, error.message, "value_error"),)
    return [{"loc": _location(fault.field), "msg": fault.message, "type": fault.type} for fault in faults]


# The kind of an error -> status code, and fal's error type; none for faults of the input, which have a list instead.
_KINDS: Mapping[str, tuple[int, str | None]] = {
    "invalid_input": (422, None),
    "cancelled": (499, "client_cancelled"),
    "start_timeout": (504, "request_timeout"),
    "worker_lost": (503, "runner_disconnected"),
    "out_of_memory": (500, "runner_server_error"),
    "disk_full": (500, "runner_server_error"),
    "internal": (500, "internal_error"),
}


def _by_our_names(body: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the fields we know. A null counts as left out, for required fields too: they are then missing."""
    return {name: value for name in FIELDS if (value := body.get(to_wire(name))) is not None}


def _source_fault(name: str, value: Any) -> Fault | None:
    if not isinstance(value, str):
        return Fault(name, "Input should be a valid string", "string_type")
    if not value.lower().startswith(_URL_STARTS):
        return Fault(name, "Input should be a URL that starts with http://, https:// or data:", "url_scheme")
    try:
        urlsplit(value)
    except ValueError:
        return Fault(name, "Input should be a valid URL", "url_parsing")
    return None


def _to_fault(finding: Mapping[str, Any]) -> Fault:
    # Only the check of the window spans two fields, and it has no location of its own.
    name = str(finding["loc"][0]) if finding["loc"] else "reference_end_s"
    return Fault(name, str(finding["msg"]).removeprefix("Value error, "), str(finding["type"]))


def _sentence(fault: Fault) -> str:
    """Tell a fault where nothing else says which field it is about."""
    about = f"{to_wire(fault.field)}: " if fault.field else ""
    return f"{about}{fault.message.removesuffix('.')}."


def _location(name: str | None) -> list[str]:
    return ["body"] if name is None else ["body", to_wire(name)]


def _addresses(job: Job, urls: Urls) -> dict[str, str]:
    request = urls.request(job.job_id)
    return {"response_url": request, "status_url": f"{request}/status", "cancel_url": f"{request}/cancel"}


def _log_line(line: LogLine) -> dict[str, str]:
    timestamp = line.timestamp.isoformat(timespec="microseconds")
    return {"message": line.message, "level": line.level, "source": "USER", "timestamp": timestamp}


def _file(key: str, urls: Urls, size_of: SizeOf) -> dict[str, Any]:
    name = split_key(key).name
    return {"url": urls.file(key), "content_type": "video/mp4", "file_name": name, "file_size": size_of(key)}
