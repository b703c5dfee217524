"""What a request gets on a machine, and what it is offered when that is too little."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InvalidInputError, ModelError
from pipeline.estimate import ModelShape, read_shape
from pipeline.hardware import CARD_OVERHEAD
from pipeline.history import History
from pipeline.machine import Machine
from pipeline.models import NANO_FOLDER
from pipeline.planner import Measured, Planner, read_facts
from pipeline.spec import GenerationRequest, GenerationSpec, ModelFacts, settle
from tests.pipeline.machines import card, processor

RELEASED = ModelFacts("14b")
NANO = read_facts("nano", NANO_FOLDER)


def make_spec(facts: ModelFacts = RELEASED, **fields: Any) -> GenerationSpec:
    texts = {"prompt": "It glows.", "video_description": "It glows.", "reference_video": "a.mp4", "image": "a.png"}
    return settle(GenerationRequest(**texts, **fields), facts, random.Random(0))


def make(machine: Machine, tmp_path: Path, wanted: str = "auto") -> Planner:
    return Planner(RELEASED, ModelShape(), machine, History(tmp_path / "runs.jsonl"), wanted)


def test_each_request_gets_the_profile_it_needs(tmp_path: Path) -> None:
    """A small request has one part of the model at a time on the card; a large one has each layer fetched."""
    planner = make(card(48), tmp_path)

    assert planner.plan(make_spec()).profile.name == "model"
    assert planner.plan(make_spec(resolution="720p", num_frames=81)).profile.name == "stream"


@pytest.mark.parametrize("left_out", [{"cache_threshold": 0.1}, {"guided_share": 0.5}])
def test_a_run_that_leaves_work_out_teaches_no_times(tmp_path: Path, left_out: dict[str, float]) -> None:
    """Estimates of whole runs would otherwise promise its speed; what memory it took is remembered."""
    planner, spec = make(card(80), tmp_path), make_spec(**left_out)
    plan = planner.plan(spec)
    before = planner.plan(make_spec()).estimate

    planner.learn(spec, plan, Measured(step_s=0.01, rest_s=1.0, allocated_bytes=plan.estimate.allocated_bytes))

    after = planner.plan(make_spec()).estimate
    assert (after.seconds, after.step_s) == (before.seconds, before.step_s)
    assert after.correction.runs == 1


def test_a_request_never_changes_the_format_of_the_weights(tmp_path: Path) -> None:
    """The same request makes the same video, whatever was made before."""
    planner = make(card(24, ram_gib=48), tmp_path)

    plans = [planner.plan(make_spec(num_frames=frames)) for frames in (5, 49, 81)]

    assert {plan.profile.weights for plan in plans} == {planner.start.profile.weights} == {"fp8"}


def test_a_chosen_profile_is_kept_to(tmp_path: Path) -> None:
    """Also where another would be faster."""
    assert make(card(80), tmp_path, "stream").plan(make_spec()).profile.name == "stream"


def test_a_small_card_starts_with_what_small_requests_need(tmp_path: Path) -> None:
    """A long request does not fit 8 GB; shorter ones do, and the long one is refused with what fits."""
    planner = make(card(8), tmp_path)

    assert planner.start.profile.name == "stream"
    with pytest.raises(InvalidInputError, match=r"81 frames of 480 x 832 do not fit .*\. Try \d+ frames\.$") as refusal:
        planner.plan(make_spec(num_frames=81))
    assert refusal.value.field == "num_frames"


def test_a_model_too_large_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    """With the smallest request as the last attempt."""
    with pytest.raises(ModelError, match=r"^5 frames of 832 x 480 do not fit .* needs a machine that has that"):
        _ = make(processor(), tmp_path).start


@pytest.mark.parametrize(
    ("fields", "offered"),
    [
        ({"resolution": "720p", "num_frames": 49}, {"resolution": "580p"}),
        ({"resolution": "720p", "num_frames": 121}, {"resolution": "580p"}),
        ({"resolution": "480p", "num_frames": 121}, {"num_frames": 93}),
    ],
)
def test_the_next_smaller_setting_that_fits_is_offered(
    tmp_path: Path, fields: dict[str, Any], offered: dict[str, Any]
) -> None:
    """A lower resolution keeps the length; where there is none, fewer frames."""
    suggestion = make(card(24 if "720p" in fields.values() else 18), tmp_path).suggest(make_spec(**fields))

    assert suggestion is not None
    assert suggestion.fields == offered


def test_what_fits_together_only_is_offered_together(tmp_path: Path) -> None:
    """Lower and shorter at once."""
    suggestion = make(card(8), tmp_path).suggest(make_spec(resolution="720p", num_frames=121))

    assert suggestion is not None
    assert suggestion.fields.keys() >= {"num_frames"}
    assert suggestion.label.startswith("Try ")


def test_a_model_of_one_size_is_offered_fewer_frames_alone(tmp_path: Path) -> None:
    """Another resolution would change the file, not the memory."""
    planner = Planner(NANO, read_shape(NANO_FOLDER), processor(), History(None))

    suggestion = planner.suggest(make_spec(NANO, resolution="720p"))

    assert suggestion is not None
    assert suggestion.fields == {"num_frames": 37}


def test_finished_runs_correct_the_estimate(tmp_path: Path) -> None:
    """Twice as slow as predicted, so is the next."""
    planner, spec = make(card(24), tmp_path), make_spec()
    plan = planner.plan(spec)
    rest_s = plan.estimate.seconds - plan.estimate.step_s * spec.num_inference_steps

    allocated = round(0.9 * plan.estimate.allocated_bytes)
    planner.learn(spec, plan, Measured(2 * plan.estimate.step_s, 3 * rest_s, allocated))

    learned = planner.plan(spec).estimate
    assert learned.step_s == pytest.approx(2 * plan.estimate.step_s)
    assert learned.seconds == pytest.approx(2 * plan.estimate.step_s * spec.num_inference_steps + 3 * rest_s)
    assert learned.card_bytes - CARD_OVERHEAD == pytest.approx(0.9 * (plan.estimate.card_bytes - CARD_OVERHEAD))


@pytest.mark.parametrize(("gib", "fields"), [(8, {"num_frames": 17}), (24, {}), (80, {"resolution": "720p"})])
def test_a_run_that_took_what_was_predicted_changes_nothing(tmp_path: Path, gib: int, fields: dict[str, Any]) -> None:
    """What torch counts holds neither CUDA's own share nor gaps, and is compared with a prediction of the same."""
    planner, spec = make(card(gib), tmp_path), make_spec(**fields)
    before = planner.plan(spec)

    planner.learn(spec, before, Measured(before.estimate.step_s, 10.0, before.estimate.allocated_bytes))

    after = planner.plan(spec)
    assert (after.estimate.correction.peak, after.estimate.correction.runs) == (1.0, 1)
    assert (after.profile, after.estimate.card_bytes) == (before.profile, before.estimate.card_bytes)
    assert before.estimate.allocated_bytes < before.estimate.card_bytes - CARD_OVERHEAD


def test_a_run_in_smaller_parts_than_planned_at_first_teaches_its_memory(tmp_path: Path) -> None:
    """After a failure it is made in tiles, and is compared with what was predicted of that."""
    planner, spec = make(card(80), tmp_path), make_spec(resolution="720p")
    planner.learn_failure(spec, planner.plan(spec))
    plan = planner.plan(spec)
    assert plan.estimate.tiled

    planner.learn(spec, plan, Measured(1.0, 10.0, plan.estimate.allocated_bytes))

    lesson = (tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(lesson)["peak"] == 1.0


def test_a_failed_run_counts_as_one_that_filled_the_card(tmp_path: Path) -> None:
    """And a little more: weights and activations beside CUDA's own share."""
    planner, spec = make(card(16), tmp_path, "stream"), make_spec(num_frames=81)
    plan = planner.plan(spec)

    planner.learn_failure(spec, plan)

    lesson = json.loads((tmp_path / "runs.jsonl").read_text(encoding="utf-8"))
    peak = plan.estimate.card_bytes - CARD_OVERHEAD
    assert lesson["peak"] == pytest.approx(max(1.1, 1.02 * (planner.machine.card_bytes - CARD_OVERHEAD) / peak))


def test_an_estimate_holds_whatever_speed_was_measured_at_the_start(tmp_path: Path) -> None:
    """The program starts on a busy machine, which seems a tenth as fast, and makes a video; later it starts anew."""
    facts, shape, spec = NANO, read_shape(NANO_FOLDER), make_spec(NANO)
    quiet, history = processor(), History(tmp_path / "runs.jsonl")
    busy = Planner(facts, shape, replace(quiet, tflops=quiet.tflops / 10), history)

    busy.learn(spec, busy.plan(spec), Measured(step_s=2.0, rest_s=7.0, allocated_bytes=None))

    later = Planner(facts, shape, quiet, history).plan(spec).estimate
    assert later.step_s == pytest.approx(2.0)
    assert later.seconds == pytest.approx(2.0 * spec.num_inference_steps + 7.0)
    assert busy.plan(spec).estimate.seconds == pytest.approx(later.seconds)


def test_runs_of_several_processes_teach_nothing_of_one(tmp_path: Path) -> None:
    """They are another kind of run."""
    alone, together, spec = make(card(80), tmp_path), make(replace(card(80), sharing=8), tmp_path), make_spec()
    plan = together.plan(spec)

    together.learn(spec, plan, Measured(2 * plan.estimate.step_s, 10.0, None))

    assert together.plan(spec).estimate.step_s == pytest.approx(2 * plan.estimate.step_s)
    assert alone.plan(spec).estimate.correction.runs == 0


def test_corrections_do_not_pile_up(tmp_path: Path) -> None:
    """What is learned compares with the arithmetic, not with an estimate that was corrected already."""
    planner, spec = make(card(24), tmp_path), make_spec()
    measured = Measured(planner.plan(spec).estimate.step_s * 2, 10.0, None)

    for _ in range(3):
        planner.learn(spec, planner.plan(spec), measured)

    assert planner.plan(spec).estimate.step_s == pytest.approx(measured.step_s)


def test_after_running_out_of_memory_a_lighter_profile_is_next(tmp_path: Path) -> None:
    """The same request again, nothing of it changed: first in smaller parts, then in the profile that takes less."""
    planner, spec = make(card(80), tmp_path), make_spec(resolution="720p")
    assert planner.plan(spec).profile.name == "resident"
    offered = []
    while planner.plan(spec).profile.name == "resident":
        suggestion = planner.learn_failure(spec, planner.plan(spec))
        assert suggestion is not None
        assert suggestion.fields == {}
        offered.append(suggestion.label)

    smaller_parts = "Try again, now in smaller parts at a time"
    assert offered == [smaller_parts, smaller_parts, "Try again, now in the lighter profile “model”"]
    assert planner.plan(spec).profile.name == "model"


def test_after_running_out_in_the_lightest_profile_something_smaller_is_next(tmp_path: Path) -> None:
    """And a request that failed is not refused for ever: what took the memory may be gone."""
    planner, spec = make(card(24), tmp_path, "stream"), make_spec(resolution="720p")

    offered = [planner.learn_failure(spec, planner.plan(spec)) for _ in range(3)]

    assert [suggestion and suggestion.fields for suggestion in offered] == [{}, {}, {"resolution": "580p"}]
    for _ in range(3):
        planner.learn_failure(spec, planner.plan(spec))
    assert planner.plan(spec).profile.name == "stream"


def test_the_smallest_setting_has_nothing_below_it(tmp_path: Path) -> None:
    """Five frames at the lowest resolution are all there is."""
    assert make(card(24), tmp_path).suggest(make_spec(num_frames=5)) is None


def test_wide_and_upright_cost_the_same(tmp_path: Path) -> None:
    """And a suggestion keeps the shape."""
    planner = make(card(24), tmp_path)

    upright, wide = (planner.plan(make_spec(aspect_ratio=ratio)) for ratio in ("9:16", "16:9"))

    assert upright.estimate == wide.estimate
    assert planner.suggest(replace(make_spec(aspect_ratio="16:9"), resolution="720p")) is not None
