"""What happens on the page: form -> request -> run -> progress and player."""

import secrets
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import gradio as gr

from pipeline import media
from pipeline.check import check_inputs
from pipeline.errors import MediaError, StoppedError, StudioError
from pipeline.presets import Preset
from pipeline.spec import DRAWN_SEED_BITS
from server import panels
from server.form import FIELDS, FOLDED_FIELDS, fill_form, find_problems, place_problem, read_form
from server.previews import make_preview
from server.runs import Model, News, Run, Studio, name_result
from server.ui import Form, Page

if TYPE_CHECKING:
    from pipeline.generate import GenerationResult

Updates = dict[Any, Any]  # component -> its new value or properties

MODEL_POLL_S = 1.0
QUIET: Mapping[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # the page shows its own progress
ONE_MACHINE = "generation"  # whoever asks, one video is made at a time


def connect(page: Page, studio: Studio, model_name: str) -> None:
    """Bring the page to life."""
    with page.blocks:
        _follow_model(page, studio.model, model_name)
        _fill_from_examples(page)
        _answer_edits(page)
        _Desk(page, studio).connect()
        _offer_endpoint(page, studio)


def _follow_model(page: Page, model: Future[Model], name: str) -> None:
    def describe_model() -> Updates:
        return {page.model: _describe_model(model, name), timer: gr.Timer(active=not model.done())}

    timer = gr.Timer(MODEL_POLL_S)
    for event in (page.blocks.load, timer.tick):
        event(describe_model, outputs=[page.model, timer], queue=False, **QUIET)


def _describe_model(model: Future[Model], name: str) -> str:
    if not model.done():
        return panels.model_loading(name)
    try:
        _, facts = model.result()
    except StudioError as error:
        return panels.model_failed(error.message)
    return panels.model_ready(facts)


def _fill_from_examples(page: Page) -> None:
    form = page.form

    def fill(preset: Preset) -> list[Any]:
        return [*fill_form(preset), *("" for _ in form.problems)]

    for button, preset in page.examples:
        button.click(
            lambda preset=preset: fill(preset),
            outputs=[*form.inputs, *form.problems.values()],
            queue=False,
            **QUIET,
        )


def _answer_edits(page: Page) -> None:
    """Take a problem away once its field is edited, say what a clip is, roll the dice."""
    form = page.form

    def show_clip(path: str | None) -> Updates:
        """Show a clip and its facts, or its problem."""
        nothing = {form.clip: gr.update(value=None, visible=False), form.clip_facts: ""}
        told = form.problems["reference_video"]
        if path is None:
            return {**nothing, told: ""}
        try:
            info = media.probe_video(Path(path))
            preview = make_preview(Path(path), info, Path(tempfile.gettempdir()) / "previews")
        except MediaError as error:
            return {**nothing, told: panels.problem_line("reference_video", error.message)}
        shown = gr.update(value=str(preview), visible=True)
        return {form.clip: shown, form.clip_facts: panels.clip_facts(info), told: ""}

    for name in FIELDS:
        if name != "reference_video":
            form.fields[name].change(fn=None, js="() => ''", outputs=form.problems[name], api_visibility="private")
    form.fields["reference_video"].change(
        show_clip,
        inputs=form.fields["reference_video"],
        outputs=[form.clip, form.clip_facts, form.problems["reference_video"]],
        queue=False,
        **QUIET,
    )
    form.dice.click(
        lambda: str(Random(secrets.randbits(64)).getrandbits(DRAWN_SEED_BITS)),
        outputs=form.fields["seed"],
        queue=False,
        **QUIET,
    )


class _Desk:
    """Takes the form's requests for one studio, follows their runs and shows what came of them."""

    def __init__(self, page: Page, studio: Studio) -> None:
        self.form, self.view, self.studio = page.form, page.result, studio
        self.run, self.seed = gr.State(), gr.State()
        # Changes with each accepted request, which is what starts the run: a refused one starts nothing.
        self.ticket = gr.State()
        self.busy = {self.form.generate: gr.update(interactive=False), self.form.stop: gr.update(interactive=True)}
        self.idle = {self.form.generate: gr.update(interactive=True), self.form.stop: gr.update(interactive=False)}

    def connect(self) -> None:
        """Tie the buttons to what they do."""
        form, view = self.form, self.view
        told = [*form.problems.values(), form.more, form.generate, form.stop, view.status]
        shown = [view.empty, view.finished, view.video, view.comparison, view.download, view.settings]
        form.generate.click(
            self.check,
            inputs=form.inputs,
            outputs=[*told, self.run, self.ticket],
            concurrency_limit=None,  # not queue=False: the page hears of a changed state from queued events only
            **QUIET,
        ).then(fn=None, js="() => window.studio.answerGenerate()", api_visibility="private")
        self.ticket.change(
            self.make_video,
            inputs=self.run,
            outputs=[*told, *shown, self.seed],
            concurrency_id=ONE_MACHINE,
            concurrency_limit=1,
            **QUIET,
        )
        form.stop.click(
            self.stop, inputs=self.run, outputs=[form.generate, form.stop, view.status], queue=False, **QUIET
        )
        view.use_seed.click(lambda seed: seed, inputs=self.seed, outputs=form.fields["seed"], queue=False, **QUIET)

    def check(self, *values: Any) -> Updates:
        """Tell every problem at its field, or take the request and wait for a free machine."""
        problems = find_problems(values, check_inputs)
        if problems:
            return {**_tell(self.form, problems), self.view.status: "", self.run: None}
        waiting = {self.view.status: panels.progress_bar(News("waiting"))}
        accepted = {self.run: self.studio.prepare(read_form(values)), self.ticket: secrets.token_hex(8)}
        return {**_tell(self.form, {}), **waiting, **accepted, **self.busy}

    def make_video(self, run: Run | None) -> Iterator[Updates]:
        """Make a video of a request, and show how far it is."""
        # Stopped while it waited, and the page told so; or begun by a ticket that stood in line before this one.
        if run is None or run.is_stopped or run.has_begun:
            yield {self.seed: gr.skip()}
            return
        share = 0.0
        for news in run.follow():
            share = max(share, panels.fraction_done(news))
            yield {self.view.status: panels.progress_bar(news, share)}
        yield {**self._end(run), **self.idle}

    def stop(self, run: Run | None) -> Updates:
        """Stop this visitor's run; one that has not begun is over at once."""
        if run is None:
            return {self.form.stop: gr.update(interactive=False)}
        run.stop()
        if not run.has_begun:
            return {self.view.status: panels.notice(StoppedError().message, "stopped"), **self.idle}
        return {self.form.stop: gr.update(interactive=False)}

    def _end(self, run: Run) -> Updates:
        try:
            return self._show(run.result())
        except StoppedError as error:
            return {self.view.status: panels.notice(error.message, "stopped")}
        except StudioError as error:
            return {**_tell(self.form, place_problem(error)), self.view.status: panels.notice(error.message)}

    def _show(self, result: "GenerationResult") -> Updates:
        video, view = str(name_result(result)), self.view
        return {
            view.status: "",
            view.empty: gr.update(visible=False),
            view.finished: gr.update(visible=True),
            view.video: video,
            view.comparison: str(result.comparison),
            view.download: video,
            view.settings: panels.settings_list(result.settings, result.seconds),
            self.seed: str(result.settings["seed"]),
        }


def _tell(form: Form, problems: Mapping[str, str]) -> Updates:
    """Put problems at their fields, and take away those that are gone; "More settings" opens for one inside."""
    told = {line: panels.problem_line(name, problems.get(name)) for name, line in form.problems.items()}
    return {**told, form.more: gr.update(open=True)} if problems.keys() & set(FOLDED_FIELDS) else told


def _offer_endpoint(page: Page, studio: Studio) -> None:
    """Offer /generate to programs: the form's fields by their names in, files and settings out."""
    door = gr.Button(visible=False)
    video, comparison = gr.Video(label="video", visible=False), gr.Video(label="comparison", visible=False)
    settings = gr.JSON(label="settings", visible=False)

    def generate(**fields: Any) -> tuple[str, str, dict[str, Any]]:
        values = [fields[name] for name in FIELDS]
        if problems := find_problems(values, check_inputs):
            raise gr.Error(" ".join(problems.values()), print_exception=False)
        run = studio.prepare(read_form(values))
        for _ in run.follow():
            pass
        try:
            result = run.result()
        except StudioError as error:
            raise gr.Error(error.message, print_exception=False) from error
        return str(name_result(result)), str(result.comparison), result.settings

    door.click(
        generate,
        inputs_kwargs=page.form.fields,
        outputs=[video, comparison, settings],
        concurrency_id=ONE_MACHINE,
        concurrency_limit=1,
        api_name="generate",
        api_description="Make a video in which the start image does what the reference clip does.",
    )
