"""The page's layout and its endpoints, as Gradio will serve them."""

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest

from pipeline.presets import load_presets
from pipeline.spec import default, limits
from server.events import ONE_MACHINE, connect
from server.form import FIELDS
from server.runs import Studio
from server.ui import Page, build_page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page with all its events, and a model that never comes."""

    async def build() -> Page:
        page = build_page(load_presets())
        connect(page, Studio(Future(), tmp_path_factory.mktemp("results")), "nano")
        return page

    # Within a loop, or Gradio makes loops of its own and never closes them, which is a warning and thus an error.
    return asyncio.run(build())


def test_the_form_has_a_field_and_a_place_for_a_problem_for_everything(page: Page) -> None:
    """Nothing of a request is out of reach, and nothing can be wrong without a place to say so."""
    assert set(page.form.fields) == set(page.form.problems) == set(FIELDS)


@pytest.mark.parametrize("field", ["num_frames", "fps", "guidance_scale"])
def test_sliders_have_the_limits_and_defaults_of_a_request(page: Page, field: str) -> None:
    """They are read from the spec, not typed again."""
    slider: Any = page.form.fields[field]

    assert (slider.minimum, slider.maximum) == limits(field)
    assert slider.value == default(field)


def test_one_endpoint_is_public(page: Page) -> None:
    """Programs find /generate and none of the page's inner workings."""
    endpoints = page.blocks.get_api_info()["named_endpoints"]

    assert list(endpoints) == ["/generate"]
    assert {parameter["parameter_name"] for parameter in endpoints["/generate"]["parameters"]} == set(FIELDS)
    assert [answer["label"] for answer in endpoints["/generate"]["returns"]] == ["video", "comparison", "settings"]


def test_one_generation_at_a_time(page: Page) -> None:
    """There is one machine; everything else on the page answers meanwhile."""
    events = [event for event in page.blocks.fns.values() if event.concurrency_id == ONE_MACHINE]

    assert [event.concurrency_limit for event in events] == [1, 1]
