"""The page's layout and its endpoints, as Gradio will serve them."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from pipeline.presets import load_presets
from pipeline.spec import default, limits
from server.assembly import make_api, make_studio, open_files, open_queue
from server.code_tab import SNIPPETS
from server.events import connect
from server.form import FIELDS, SLIDERS, starting_values
from server.page_events import tell_problems
from server.settings import Settings
from server.ui import Page, build_page
from tests.server.absent_model import absent_model


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page with all its events, and a model that never comes."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    queue = open_queue(settings, open_files(settings))

    async def build() -> Page:
        studio = make_studio(settings, make_api(settings, queue), absent_model())
        page = build_page(load_presets(), "0" * 16, starts=starting_values(studio.guidance_scale))
        connect(page, studio)
        return page

    # Within a loop, or Gradio makes loops of its own and never closes them, which is a warning and thus an error.
    with closing(queue):
        yield asyncio.run(build())


def test_the_form_has_a_field_and_a_place_for_a_problem_for_everything(page: Page) -> None:
    """Nothing of a request is out of reach, and nothing can be wrong without a place to say so."""
    assert set(page.form.fields) == set(page.form.problems) == set(FIELDS)


@pytest.mark.parametrize("field", SLIDERS)
def test_sliders_have_the_limits_and_defaults_of_a_request(page: Page, field: str) -> None:
    """They are read from the spec, not typed again; guidance begins with the model's own, here nano's."""
    slider: Any = page.form.fields[field]

    assert (slider.minimum, slider.maximum) == limits(field)
    assert slider.value == (1.0 if field == "guidance_scale" else default(field))


def test_one_endpoint_is_public(page: Page) -> None:
    """Programs find /generate and none of the page's inner workings."""
    endpoints = page.blocks.get_api_info()["named_endpoints"]

    assert list(endpoints) == ["/generate"]
    assert {parameter["parameter_name"] for parameter in endpoints["/generate"]["parameters"]} == set(FIELDS)
    required = {
        one["parameter_name"] for one in endpoints["/generate"]["parameters"] if not one["parameter_has_default"]
    }
    assert required == {"reference_video", "image", "video_description", "prompt"}
    assert [answer["label"] for answer in endpoints["/generate"]["returns"]] == ["video", "comparison", "settings"]


def test_the_code_tab_shows_every_language_there_is_a_program_for(page: Page) -> None:
    """A new one needs its place on the page."""
    assert set(page.code) == set(SNIPPETS)


def test_nobody_switches_a_forced_safety_checker_off() -> None:
    """The box stays, ticked, and says why."""
    box: Any = asyncio.run(_build(forced=True)).form.fields["enable_safety_checker"]

    assert (box.value, box.interactive) == (True, False)


def test_loras_are_offered_where_there_are_some() -> None:
    """By name, with "none" first and chosen; any other name may be typed, to be told that it is not there."""
    without, with_some = (asyncio.run(_build(loras=loras)).form for loras in ((), ("fast", "style")))
    field: Any = with_some.fields["lora"]

    assert (without.offers_loras, with_some.offers_loras) == (False, True)
    assert (_is_shown(without.fields["lora"]), _is_shown(field)) == (False, True)
    assert field.choices == [("none", ""), ("fast", "fast"), ("style", "style")]
    assert (field.value, field.allow_custom_value) == ("", True)


def test_what_folds_away_is_closed_and_opens_for_a_problem_inside() -> None:
    """A problem of "Faster, less exact" opens "More settings" around it as well."""
    form = asyncio.run(_build()).form

    assert [fold.open for fold in form.folds] == [False, False]
    assert tell_problems(form, {"guidance_scale": "No."}).keys() & set(form.folds) == {form.more}
    assert tell_problems(form, {"guided_share": "No."}).keys() & set(form.folds) == {form.more, form.faster}
    assert tell_problems(form, {"seed": "No."}).keys() & set(form.folds) == set()


def _is_shown(block: Any) -> bool:
    return block is None or (bool(getattr(block, "visible", True)) and _is_shown(block.parent))


async def _build(*, forced: bool = False, loras: Sequence[str] = ()) -> Page:
    return build_page(load_presets(), "0" * 16, safety_forced=forced, loras=loras)
