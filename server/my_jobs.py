"""The tab "My jobs": everything this visitor has in the queue and has made, and what can be done to each."""

from typing import Any

import gradio as gr

from pipeline.errors import StudioError
from server import panels
from server.database import UnreachableError
from server.following import GONE, Desk
from server.job import Job, JobStatus
from server.job_cards import MAX_LISTED, arrange, find_place, job_list
from server.page_events import QUIET, Updates, owner_behind
from server.studio import Studio
from server.ui import CREATE_TAB, Page

LIST_POLL_S = 2.0
STEPS = {"up": -1, "down": 1}


class MyJobs:
    """Lists the jobs of whoever looks, and obeys the buttons of its cards."""

    def __init__(self, page: Page, studio: Studio, desk: Desk) -> None:
        self.page, self.studio, self.desk = page, studio, desk
        self.timer = gr.Timer(LIST_POLL_S, active=False)

    def connect(self) -> None:
        """Keep the list fresh while it is looked at."""
        page = self.page
        for happens in (page.jobs_tab.select, self.timer.tick):
            happens(self.list_jobs, inputs=page.visitor, outputs=[page.jobs, self.timer], queue=False, **QUIET)
        for elsewhere in (page.create_tab.select, page.code_tab.select):
            elsewhere(lambda: gr.Timer(active=False), outputs=self.timer, queue=False, **QUIET)
        obeyed = page.jobs.click(
            self.obey,
            inputs=page.visitor,
            outputs=[page.jobs, page.job, *self.desk.shown, *self.desk.refilled],
            queue=False,
            trigger_mode="multiple",  # two buttons pressed quickly are two wishes
            **QUIET,
        )
        obeyed.then(fn=None, inputs=page.job, js="(job) => window.studio.answerJobs(job)", api_visibility="private")
        self.desk.go_on_after(obeyed)

    def list_jobs(self, request: gr.Request, visitor: str | None) -> Updates:
        """Show the list as it is now."""
        return {self.page.jobs: self._list(owner_behind(request, visitor)), self.timer: gr.Timer(active=True)}

    def obey(self, request: gr.Request, pressed: gr.EventData, visitor: str | None) -> Updates:
        """Do what a card's button says, to one's own jobs only."""
        owner = owner_behind(request, visitor)
        try:
            job = self.studio.find(pressed._data["job"])
            if job is None or job.owner != owner:
                return {self.page.jobs: self._list(owner, GONE)}
            return self._do(pressed._data["action"], job)
        except StudioError as error:  # it began, ended or went in the meantime, or the queue is out of reach
            return {self.page.jobs: self._list(owner, error.message)}

    def _do(self, action: str, job: Job) -> Updates:
        queue = self.studio.queue
        match action:
            case "open":
                shown = self.desk.show(job, may_stop=True)
                return {self.page.job: job.job_id, self.page.tabs: gr.Tabs(selected=CREATE_TAB), **shown}
            case "use":
                return self.desk.use_settings(job.job_id)
            case "up" | "down":
                waiting = [one.job_id for one in self._jobs(job.owner) if one.status is JobStatus.WAITING]
                if job.job_id in waiting:
                    queue.move(job.job_id, job.owner, find_place(waiting, job.job_id, STEPS[action]))
            case "stop":
                queue.cancel(job.job_id)
            case "delete":
                queue.delete(job.job_id, job.owner)
        return {self.page.jobs: self._list(job.owner)}

    def _jobs(self, owner: str) -> list[Job]:
        return arrange(self.studio.queue.jobs_of(owner, MAX_LISTED))

    def _list(self, owner: str | None, told: str = "") -> Any:
        try:
            return job_list(self._jobs(owner) if owner else [], told)
        except UnreachableError:
            return panels.notice(panels.QUEUE_AWAY)
