"""What happens on the page, piece by piece: see also following.py, my_jobs.py, code_tab.py and endpoint.py."""

import secrets
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import gradio as gr

from pipeline import wall
from pipeline.errors import MediaError, StudioError
from pipeline.presets import Preset
from pipeline.spec import DRAWN_SEED_BITS
from server import panels
from server.code_tab import CodeTab
from server.endpoint import offer_endpoint
from server.estimate_line import EstimateLine
from server.following import Desk
from server.form import FIELDS, fill_form
from server.keeping import FormKeeper
from server.my_jobs import MyJobs
from server.page_events import QUIET, Updates
from server.previews import make_preview
from server.studio import Studio
from server.ui import Page

MODEL_POLL_S = 1.0


def connect(page: Page, studio: Studio) -> None:
    """Bring the page to life."""
    with page.blocks:
        _follow_model(page, studio)
        _fill_from_examples(page)
        _answer_edits(page)
        desk = Desk(page, studio)
        desk.connect()
        MyJobs(page, studio, desk).connect()
        CodeTab(page, studio).connect()
        FormKeeper(page, studio).connect()
        EstimateLine(page, studio).connect(desk.settled)
        offer_endpoint(page, studio)


def _follow_model(page: Page, studio: Studio) -> None:
    def describe_model() -> Updates:
        described, is_final = _describe_model(studio)
        about = panels.space_line(studio.about_space)
        return {page.model: described + about, timer: gr.Timer(active=not is_final)}

    timer = gr.Timer(MODEL_POLL_S)
    for event in (page.blocks.load, timer.tick):
        event(describe_model, outputs=[page.model, timer], queue=False, **QUIET)


def _describe_model(studio: Studio) -> tuple[str, bool]:
    """Give what to say of the model, and whether that will stay so: the next generation tries a failed one anew."""
    if studio.model is None:
        return panels.model_elsewhere(), True
    try:
        model = studio.model.peek()
    except StudioError as error:
        return panels.model_failed(error.message), False
    if model is None:
        return panels.model_loading(studio.model_name, studio.how_far()), False
    _, facts = model
    planner = studio.planner()
    return panels.model_ready(facts, planner.start if planner else None), True


def _fill_from_examples(page: Page) -> None:
    form = page.form

    def fill(preset: Preset) -> list[Any]:
        return [*fill_form(preset, form.starts), *("" for _ in form.problems)]

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
            info = wall.probe_video(Path(path))
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
