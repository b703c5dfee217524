"""From Generate to the player: hands the form's request in, follows the job by its id, and shows what came of it.

The job is the queue's; the page only looks at it. So a reload, another tab and another device see the same.
"""

import base64
from typing import Any

import gradio as gr

from pipeline.errors import StudioError
from server import panels
from server.database import UnreachableError
from server.files import UnknownFileError
from server.form import fill_from_settings, find_problems, read_form
from server.job import Job, JobError, JobResult
from server.page_events import QUIET, Updates, into_cache, owner_behind, tell_problems, told_in_a_corner
from server.studio import Studio, new_visitor, request_settings
from server.ui import CREATE_TAB, Page

FOLLOW_POLL_S = 0.7
GONE = "There is no such video, or it was deleted."
NO_JOB = "none"
FILE_GONE = "The file of that time is no longer kept; choose it again."


class Desk:
    """Takes requests in and shows one job: the one this page submitted, was opened for, or saw last.

    settled: the id of the job of which nothing more will come, NO_JOB where there is none to follow. The answer to an
    event may be overtaken by that to a later one, so no answer says whether to go on looking: after each of them the
    browser decides, by whether what has settled is the job it has on show by then.
    """

    def __init__(self, page: Page, studio: Studio) -> None:
        self.page, self.form, self.view, self.studio = page, page.form, page.result, studio
        self.timer = gr.Timer(FOLLOW_POLL_S, active=False)
        self.settled = gr.Textbox(visible=False)
        self.shown_preview = gr.State()
        view = self.view
        self.shown = [
            *(view.status, view.preview, view.empty, view.finished, view.video, view.comparison, view.download),
            *(view.settings, view.copy_link, view.try_smaller, self.form.stop, self.settled, self.shown_preview),
        ]

    def connect(self) -> None:
        """Tie the buttons to what they do."""
        page, form, view = self.page, self.form, self.view
        told = [*form.problems.values(), *form.folds]
        private = {"api_visibility": "private"}
        follows = {"inputs": [page.job, page.visitor, self.shown_preview], "queue": False, **QUIET}
        submitted = form.generate.click(
            self.submit,
            inputs=[page.visitor, *form.inputs],
            outputs=[*told, *self.shown, page.job, page.visitor],
            concurrency_limit=None,
            **QUIET,
        )
        submitted.then(fn=None, inputs=page.job, js="(job) => window.studio.answerGenerate(job)", **private)
        opened = page.blocks.load(
            self.welcome,
            inputs=[page.job, page.visitor],
            outputs=[*self.shown, page.job, page.visitor],
            queue=False,
            **QUIET,
        )
        opened.then(fn=None, inputs=page.job, js="(job) => window.studio.nameJob(job)", **private)
        looked = self.timer.tick(self.follow, outputs=[*told, *self.shown], **follows)
        stopped = form.stop.click(self.stop, outputs=[*told, *self.shown], **follows)
        for answered in (submitted, opened, looked, stopped):
            self.go_on_after(answered)
        view.use_seed.click(self.give_seed, inputs=page.job, outputs=form.fields["seed"], queue=False, **QUIET)
        view.use_settings.click(self.use_settings, inputs=page.job, outputs=self.refilled, queue=False, **QUIET)
        view.try_smaller.click(self.use_settings, inputs=page.job, outputs=self.refilled, queue=False, **QUIET)
        view.copy_link.click(fn=None, inputs=page.job, js="(job) => window.studio.copyLink(job)", **private)

    def go_on_after(self, answered: Any) -> None:
        """Let the browser decide, after an event that shows a job or changes which, whether to look again."""
        shown_and_settled = [self.page.job, self.settled]
        js = "(job, settled) => window.studio.goOn(job, settled)"
        answered.then(fn=None, inputs=shown_and_settled, outputs=self.timer, js=js, api_visibility="private")

    @property
    def refilled(self) -> list[Any]:
        """Give what `use_settings` changes."""
        return [self.page.tabs, *self.form.inputs, *self.form.problems.values(), *self.form.folds]

    def submit(self, request: gr.Request, visitor: str | None, *values: Any) -> Updates:
        """Tell every problem at its field, or put the request in the queue."""
        problems = find_problems(values, self.studio.check)
        if problems:
            return tell_problems(self.form, problems)
        visitor = visitor or new_visitor()
        try:
            job = self.studio.submit(read_form(values), owner_behind(request, visitor) or "")
        except StudioError as error:  # the queue is full, or out of reach
            return {**tell_problems(self.form, {}), self.view.status: panels.notice(error.message)}
        kept = {self.page.job: job.job_id, self.page.visitor: visitor}
        return {**tell_problems(self.form, {}), **kept, **self.show(job, may_stop=True)}

    def welcome(self, request: gr.Request, last_job: str | None, visitor: str | None) -> Updates:
        """Show the job that the page's address names, or the one this browser saw last.

        While the queue is out of reach the page opens all the same, says so, and shows the job once it is back.
        """
        visitor = visitor or new_visitor()
        named = request.query_params.get("job")
        try:
            job = self.studio.find(named or last_job)
        except StudioError as error:
            return {self.page.visitor: visitor, self.page.job: named or last_job, **self._tell(error)}
        kept = {self.page.visitor: visitor, self.page.job: job.job_id if job else None}
        if job is None:
            told = {self.view.status: panels.notice(GONE)} if named else {}
            return {**kept, **told, self.settled: NO_JOB}
        return {**kept, **self.show(job, may_stop=job.owner == owner_behind(request, visitor))}

    def follow(
        self, request: gr.Request, job_id: str | None, visitor: str | None, shown_preview: str | None
    ) -> Updates:
        """Show how far the job is by now; at its end, what came of it."""
        try:
            job = self.studio.find(job_id)
        except StudioError as error:
            return self._tell(error)
        if job is None:
            told = {self.view.status: panels.notice(GONE) if job_id else "", self.view.preview: ""}
            return {**told, self.settled: job_id or NO_JOB, self.form.stop: gr.update(interactive=False)}
        faults = job.error.faults if job.error else ()
        problems = {fault.field or "": fault.message for fault in faults if fault.field in self.form.problems}
        told = tell_problems(self.form, problems) if problems else {}
        may_stop = job.owner == owner_behind(request, visitor)
        return {**told, **self.show(job, may_stop=may_stop, shown_preview=shown_preview)}

    def stop(self, request: gr.Request, job_id: str | None, visitor: str | None, shown_preview: str | None) -> Updates:
        """Stop this visitor's job, be it waiting or running; nobody else's."""
        try:
            job = self.studio.find(job_id)
            if job is not None and job.owner == owner_behind(request, visitor):
                self.studio.queue.cancel(job.job_id)
        except StudioError as error:
            return self._tell(error)
        return self.follow(request, job_id, visitor, shown_preview)

    def give_seed(self, job_id: str | None) -> Any:
        """Give the seed of the job on show."""
        with told_in_a_corner():
            job = self.studio.find(job_id)
        return str(job.result.settings["seed"]) if job and job.result else gr.skip()

    def use_settings(self, job_id: str | None) -> Updates:
        """Fill the form with what made a job, or with what would work instead, its files as well, and turn to it."""
        with told_in_a_corner():
            job = self.studio.find(job_id)
        if job is None or job.request is None:
            return {self.page.tabs: gr.skip()}
        found = self.studio.find_files(job.request)
        files = {name: into_cache(path) for name, path in found.items()}
        way_out = job.error.suggestion.fields if job.error and job.error.suggestion else {}
        values = fill_from_settings({**request_settings(job), **way_out}, files, self.form.starts)
        lost = {name: FILE_GONE for name in ("reference_video", "image") if name not in files}
        filled = dict(zip(self.form.inputs, values, strict=True))
        if not self.form.offers_loras:
            filled[self.form.fields["lora"]] = ""
        return {self.page.tabs: gr.Tabs(selected=CREATE_TAB), **filled, **tell_problems(self.form, lost)}

    def show(self, job: Job, *, may_stop: bool, shown_preview: str | None = None) -> Updates:
        """Show a job in the result's place."""
        view = self.view
        common = {
            view.copy_link: gr.update(visible=True),
            view.try_smaller: _way_out(job.error),
            self.form.stop: gr.update(interactive=False),
        }
        if job.result is not None:
            return {**common, **self._show_result(job.result), self.settled: job.job_id}
        nothing_made = {view.empty: gr.update(visible=True), view.finished: gr.update(visible=False)}
        if job.error is not None:
            kind = "stopped" if job.error.kind == "cancelled" else "failed"
            told = {view.status: panels.notice(job.error.message, kind), view.preview: "", self.shown_preview: None}
            return {**common, **nothing_made, **told, self.settled: job.job_id}
        return {
            **common,
            **nothing_made,
            **self._show_preview(job, shown_preview),
            view.status: panels.job_progress(job, self.studio.queue.now()),
            self.form.stop: gr.update(interactive=may_stop),
        }

    def _tell(self, error: StudioError) -> Updates:
        """Say what is wrong; nothing has settled, so the page goes on looking."""
        told = panels.QUEUE_AWAY if isinstance(error, UnreachableError) else error.message
        return {self.view.status: panels.notice(told)}

    def _show_preview(self, job: Job, shown: str | None) -> Updates:
        """Show the newest picture of the latents, sent within the page: a moment later its file is gone."""
        key = job.progress.preview_key if job.progress else None
        if key is None:
            return {self.view.preview: "", self.shown_preview: None}
        if key == shown:
            return {}
        try:
            picture = base64.b64encode(b"".join(self.studio.files.read(key))).decode()
        except UnknownFileError:  # a newer one has replaced it
            return {}
        return {self.view.preview: panels.preview_picture(f"data:image/webp;base64,{picture}"), self.shown_preview: key}

    def _show_result(self, result: JobResult) -> Updates:
        view = self.view
        return {
            view.status: "",
            view.preview: "",
            self.shown_preview: None,
            view.empty: gr.update(visible=False),
            view.finished: gr.update(visible=True),
            view.video: panels.player(result.video_key, "Your video"),
            view.comparison: panels.player(result.comparison_key, "Your video beside the reference clip"),
            view.download: panels.download_link(result),
            view.settings: panels.settings_list(result.settings, result.inference_s),
        }


def _way_out(error: JobError | None) -> Any:
    """Offer what would work instead, where that is known."""
    suggestion = error.suggestion if error else None
    return gr.update(visible=suggestion is not None, value=suggestion.label if suggestion else "")
