"""Sample answers for the API's description, made by the functions that make the real ones."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from server.job import Fault, Job, JobError, JobResult, JobStatus, LogLine
from server.schema import Urls, outcome, status, submitted

_URLS = Urls("http://127.0.0.1:7860")
_MOMENT = datetime(2026, 1, 31, 12, tzinfo=UTC)
_TOKEN = "hJ2Jx0kQy3Vd9TqWb7LmZc4RfNs8PgXa"  # noqa: S105 - a sample, 32 letters as in every key

_WAITING = Job(
    job_id="764cabcf-b745-4b3e-ae38-1200304cf45b",
    owner="",
    status=JobStatus.WAITING,
    position=0,
    request=None,
    progress=None,
    logs=(LogLine("step 3/50", "INFO", _MOMENT),),
    result=None,
    error=None,
    created_at=_MOMENT,
    started_at=None,
    finished_at=None,
)
_SIZE_BYTES = 4404019
_RESULT = JobResult(f"results/{_TOKEN}/output.mp4", "", "", _SIZE_BYTES, {}, 41.7)
_DONE = replace(_WAITING, status=JobStatus.SUCCEEDED, result=_RESULT)
_FAULTS = (Fault("prompt", "Field required", "missing"),)
_REFUSED = replace(_WAITING, status=JobStatus.FAILED, error=JobError("invalid_input", "Field required", _FAULTS))


def _answers(examples: dict[int, tuple[str, Any]]) -> dict[int | str, dict[str, Any]]:
    return {
        code: {"description": description, "content": {"application/json": {"example": example}}}
        for code, (description, example) in examples.items()
    }


SUBMITTED = _answers({200: ("Taken.", submitted(_WAITING, _URLS))})
STATUS = _answers(
    {
        202: ("Waiting or running.", status(replace(_WAITING, status=JobStatus.RUNNING), _URLS, _WAITING.logs)),
        200: ("Completed, well or not.", status(_DONE, _URLS, None)),
    }
)
RESULT = _answers(
    {
        200: ("The video.", outcome(_DONE, _URLS, lambda key: _SIZE_BYTES).body),
        422: ("The input was not in order.", outcome(_REFUSED, _URLS, lambda key: _SIZE_BYTES).body),
    }
)
CANCELLED = _answers({202: ("It stops.", {"status": "CANCELLATION_REQUESTED"})})
