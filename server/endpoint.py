"""/generate, for programs that speak Gradio: through the same queue as everything else."""

import asyncio
from typing import Any

import gradio as gr
from anyio.to_thread import run_sync

from pipeline.errors import StudioError
from server.form import FIELDS, find_problems, read_form
from server.job import Job
from server.keys import OPEN_OWNER
from server.page_events import into_cache
from server.studio import Studio
from server.ui import Page

POLL_S = 0.3


def offer_endpoint(page: Page, studio: Studio) -> None:
    """Offer /generate: the form's fields by their names in, files and settings out."""
    door = gr.Button(visible=False)
    video, comparison = gr.Video(label="video", visible=False), gr.Video(label="comparison", visible=False)
    settings = gr.JSON(label="settings", visible=False)

    async def generate(request: gr.Request, **fields: Any) -> tuple[str, str, Any]:
        try:
            values = [fields[name] for name in FIELDS]
            job = await run_sync(_submit, studio, values, request.username or OPEN_OWNER)
            while not job.status.is_final:
                await asyncio.sleep(POLL_S)
                job = await run_sync(_look_again, studio, job)
            return await run_sync(_hand_out, studio, job)
        except StudioError as error:
            raise gr.Error(error.message, print_exception=False) from error

    door.click(
        generate,
        inputs_kwargs=page.form.fields,
        outputs=[video, comparison, settings],
        concurrency_limit=None,  # they wait in our queue
        api_name="generate",
        api_description="Make a video in which the start image does what the reference clip does.",
    )


def _submit(studio: Studio, values: list[Any], owner: str) -> Job:
    if problems := find_problems(values, studio.check):
        raise StudioError(" ".join(problems.values()))
    return studio.submit(read_form(values), owner)


def _look_again(studio: Studio, job: Job) -> Job:
    latest = studio.find(job.job_id)
    if latest is None:
        raise StudioError("The generation was deleted in the meantime.")
    return latest


def _hand_out(studio: Studio, job: Job) -> tuple[str, str, Any]:
    """Give the files and settings of a job that has ended."""
    if job.result is None:
        raise StudioError(job.error.message if job.error else "The generation ended without a result.")
    video, comparison = (studio.files.local(key) for key in (job.result.video_key, job.result.comparison_key))
    return into_cache(video), into_cache(comparison), dict(job.result.settings)
