"""The list of one's jobs as HTML: a card for each, with what can be done to it."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from server import panels
from server.files import split_key
from server.job import Job, JobStatus

MAX_LISTED = 100
NO_JOBS = f"""
<div class="no-jobs">
  <p class="lead">Nothing here yet</p>
  <p>Every video you make gets a place here, also when you close the page; the newest {MAX_LISTED} are shown.</p>
</div>
"""

_STATES: Mapping[JobStatus, str] = {
    JobStatus.WAITING: "Waiting",
    JobStatus.RUNNING: "In the making",
    JobStatus.SUCCEEDED: "Finished",
    JobStatus.FAILED: "Not made",
    JobStatus.CANCELLED: "Stopped",
}


def arrange(jobs: Sequence[Job]) -> list[Job]:
    """Order jobs as people look for them: the running one, those in line, then what has ended, newest first."""
    running = [job for job in jobs if job.status is JobStatus.RUNNING]
    waiting = [job for job in jobs if job.status is JobStatus.WAITING]
    ended = [job for job in jobs if job.status.is_final]
    return [
        *running,
        *sorted(waiting, key=lambda job: job.position or 0),
        *sorted(ended, key=lambda job: job.created_at, reverse=True),
    ]


def find_place(waiting: Sequence[str], job_id: str, step: int) -> str | None:
    """Give the job that another has to be put before to move one place up (-1) or down (1); None: to the end."""
    rest = [other for other in waiting if other != job_id]
    place = max(0, waiting.index(job_id) + step)
    return rest[place] if place < len(rest) else None


def job_list(jobs: Sequence[Job], told: str = "") -> str:
    """Show jobs in this order. told: a sentence about what could not be done."""
    notice = panels.notice(told) if told else ""
    if not jobs:
        return notice + NO_JOBS
    waiting = [job.job_id for job in jobs if job.status is JobStatus.WAITING]
    cards = "".join(_card(job, waiting) for job in jobs)
    return f'{notice}<ul class="jobs">{cards}</ul>'


def _card(job: Job, waiting: Sequence[str]) -> str:
    return (
        f'<li class="job {job.status}" data-id="{job.job_id}">{_picture(job)}<div class="job-text">'
        f"<h3>{escape(_title(job))}</h3><p>{_state(job)}</p>{_settings(job)}</div>"
        f'<div class="job-actions">{"".join(_actions(job, waiting))}</div></li>'
    )


def _picture(job: Job) -> str:
    if job.result is None:
        return '<div class="poster" aria-hidden="true"></div>'
    return f'<img class="poster" src="{panels.file_url(job.result.poster_key)}" alt="" loading="lazy">'


def _title(job: Job) -> str:
    return str(job.request.fields.get("prompt", "")) if job.request else "A request that could not be read"


def _state(job: Job) -> str:
    return f'<span class="state">{_STATES[job.status]}</span>{escape(_more(job))}'


def _more(job: Job) -> str:
    """Say what a person wants to know besides the state."""
    match job.status:
        case JobStatus.WAITING:
            return f", {panels.place_in_line(job.position)}"
        case JobStatus.RUNNING:
            return f", {round(panels.fraction_done(job.progress) * 100)} %" if job.progress else ""
        case JobStatus.SUCCEEDED if job.result:
            return f", {_facts(job.result.settings)}"
        case JobStatus.FAILED if job.error:
            return f": {job.error.message}"
        case _:
            return ""


def _facts(settings: Mapping[str, Any]) -> str:
    size = f"{settings['width']} × {settings['height']}"
    return f"{size}, {settings['num_frames']} frames, seed {settings['seed']}"


def _settings(job: Job) -> str:
    if job.result is None:
        return ""
    listed = panels.settings_list(job.result.settings, job.result.inference_s)
    return f"<details><summary>Settings</summary>{listed}</details>"


def _actions(job: Job, waiting: Sequence[str]) -> list[str]:
    """Give the buttons of a card."""
    reuse = [_button(job, "use", "Use these settings")] if job.request else []
    match job.status:
        case JobStatus.WAITING:
            up = _button(job, "up", "↑", "Move up", enabled=job.job_id != waiting[0])
            down = _button(job, "down", "↓", "Move down", enabled=job.job_id != waiting[-1])
            return [up, down, _button(job, "open", "Show"), _button(job, "stop", "Remove")]
        case JobStatus.RUNNING:
            return [_button(job, "open", "Show"), _button(job, "stop", "Stop")]
        case JobStatus.SUCCEEDED:
            return [_button(job, "open", "Show"), *reuse, *_download(job), _button(job, "delete", "Delete")]
        case _:
            return [*reuse, _button(job, "delete", "Delete")]


def _button(job: Job, action: str, text: str, label: str = "", *, enabled: bool = True) -> str:
    name = f"{label or text}: {_title(job)}"
    disabled = "" if enabled else " disabled"
    return (
        f'<button type="button" class="button" data-action="{action}" data-job="{job.job_id}"'
        f' aria-label="{escape(name)}"{disabled}>{text}</button>'
    )


def _download(job: Job) -> list[str]:
    if job.result is None:
        return []
    key = job.result.video_key
    name, url = escape(split_key(key).name), panels.file_url(key)
    return [
        f'<a class="button" href="{url}" download="{name}" aria-label="Download: {escape(_title(job))}">Download</a>'
    ]
