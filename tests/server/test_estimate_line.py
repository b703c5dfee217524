"""What the page says beside its button, and what it offers after a run that was out of memory."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from pipeline.errors import Suggestion
from pipeline.estimate import ModelShape
from pipeline.hardware import Correction
from pipeline.history import History
from pipeline.planner import Planner
from pipeline.presets import load_presets
from pipeline.spec import ModelFacts
from server import panels
from server.assembly import make_api, make_studio, open_files, open_queue
from server.estimate_line import EstimateLine
from server.following import Desk
from server.job import Job, JobError
from server.jobs import JobQueue
from server.loading import Gauge
from server.settings import Settings
from server.ui import build_page
from tests.pipeline.machines import card
from tests.server.absent_model import absent_model
from tests.server.fake_generation import make_request

USUAL: tuple[Any, ...] = ("480p", 49, "", 5.0, 1.0)


@pytest.fixture
def planner() -> Planner:
    """The 14B's, on a machine with 24 GB."""
    return Planner(ModelFacts("14b"), ModelShape(), card(24), History(None))


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    """An empty queue."""
    settings = Settings(data_dir=tmp_path)
    with closing(open_queue(settings, open_files(settings))) as queue:
        yield queue


@pytest.fixture
def build(tmp_path: Path, queue: JobQueue) -> Callable[..., Any]:
    """Build something that stands on a page and a studio, whose model is still on its way."""
    settings = Settings(data_dir=tmp_path)

    def make(kind: Any, gauge: Gauge | None = None) -> Any:
        async def within_a_loop() -> Any:
            page = build_page(load_presets(), "0" * 16)
            with page.blocks:
                return kind(page, make_studio(settings, make_api(settings, queue), absent_model(), gauge))

        return asyncio.run(within_a_loop())

    return make


@pytest.fixture
def line(build: Callable[..., Any], planner: Planner) -> EstimateLine:
    """The line of a page whose machine was looked at."""
    gauge = Gauge()
    gauge.planner = planner
    return build(EstimateLine, gauge)


def test_the_line_tells_time_memory_and_profile(line: EstimateLine) -> None:
    """All that a person wants to know before pressing the button."""
    told = line.tell(*USUAL)

    assert "About 28 min (predicted)" in told
    assert "10 GB on the card" in told
    assert "55 GB of RAM" in told
    assert "of disk, profile stream" in told


@pytest.mark.parametrize("values", [("580p", *USUAL[1:]), ("480p", 81, "", 5.0, 1.0), ("480p", 49, "60", 5.0, 1.0)])
def test_more_takes_longer(line: EstimateLine, values: tuple[Any, ...]) -> None:
    """Resolution, frames and steps change the line."""
    assert line.tell(*values) != line.tell(*USUAL)


def test_unguided_steps_take_less_time(line: EstimateLine) -> None:
    """A share of 0, which nothing may take for an empty field, is told as quicker; without guidance it is no matter."""
    assert line.tell(*USUAL[:4], 0) not in ("", line.tell(*USUAL))
    assert line.tell("480p", 49, "", 1.0, 0) == line.tell("480p", 49, "", 1.0, 1.0)


def test_what_does_not_fit_is_told_with_what_does(line: EstimateLine) -> None:
    """Before it is asked for."""
    told = line.tell("720p", 121, "", 5.0, 1.0)

    assert "estimate failed" in told
    assert "Try 580p." in told


@pytest.mark.parametrize(
    "values", [("480p", 50, "", 5.0, 1.0), ("480p", 49, "many", 5.0, 1.0), ("480p", None, "", 500, 1.0)]
)
def test_a_field_that_is_not_in_order_is_no_error_here(line: EstimateLine, values: tuple[Any, ...]) -> None:
    """Its problem is told at the field."""
    assert line.tell(*values) == ""


def test_before_the_machine_was_looked_at_there_is_nothing_to_tell(build: Callable[..., Any]) -> None:
    """And the page asks again."""
    line = build(EstimateLine, Gauge())

    answer = line.look(*USUAL)

    assert answer[line.page.form.estimate] == ""
    assert answer[line.timer].active


def test_the_line_says_what_it_is_based_on(planner: Planner) -> None:
    """A prediction is called one; runs of this machine are counted."""
    plan = planner.start
    learned = replace(plan, estimate=replace(plan.estimate, correction=Correction(runs=3)))

    assert "(predicted)" in panels.estimate(plan, planner.machine)
    assert "(from 3 runs here)" in panels.estimate(learned, planner.machine)


def test_the_models_card_names_the_profile_and_why(planner: Planner) -> None:
    """A person sees what was chosen for this machine."""
    told = panels.model_ready(planner.facts, planner.start)

    assert "Profile “stream”: Each layer is fetched" in told
    assert "“model” would take 45 GB on the card" in told


def test_every_end_of_a_run_has_the_line_told_anew(line: EstimateLine) -> None:
    """A failed one, too, may have taught something; no edit of the form is needed for it to show."""

    async def connect_within_a_loop() -> gr.Textbox:
        with line.page.blocks:
            settled = gr.Textbox(visible=False)
            line.connect(settled)
            return settled

    settled = asyncio.run(connect_within_a_loop())
    events = line.page.blocks.fns.values()
    told = [event.outputs for event in events if (settled._id, "change") in event.targets]

    assert told == [[line.page.form.estimate]]


def fail(queue: JobQueue, error: JobError) -> Job:
    return queue.submit_invalid(error, owner="someone", request=make_request(num_frames=49, resolution="580p"))


def test_a_way_out_is_one_button(build: Callable[..., Any], queue: JobQueue) -> None:
    """After running out of memory it is offered by name, and fills the form with what would work."""
    desk = build(Desk)
    way_out = Suggestion({"resolution": "480p"}, "Try 480p")
    job = fail(queue, JobError("out_of_memory", "The machine ran out of memory.", suggestion=way_out))

    shown = desk.show(job, may_stop=False)[desk.view.try_smaller]
    filled = desk.use_settings(job.job_id)

    assert (shown["visible"], shown["value"]) == (True, "Try 480p")
    assert filled[desk.form.fields["resolution"]] == "480p"
    assert filled[desk.form.fields["num_frames"]] == 49


def test_without_a_way_out_there_is_no_button(build: Callable[..., Any], queue: JobQueue) -> None:
    """Other errors offer nothing."""
    desk = build(Desk)

    shown = desk.show(fail(queue, JobError("internal", "It did not work.")), may_stop=False)

    assert shown[desk.view.try_smaller]["visible"] is False
