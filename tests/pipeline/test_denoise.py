"""Schedule and guidance."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from pipeline.denoise import apply_guidance, prepare_scheduler
from tests.pipeline.conftest import read_json

SCHEDULES = read_json("schedules.json")


@pytest.mark.parametrize("case", SCHEDULES)
def test_the_schedule_is_the_one_the_model_was_published_with(case: str) -> None:
    """Timesteps and sigmas are bit-equal to the reference's for UniPC and Euler, at every shift and step count."""
    kind, shift, steps = case.split("/")
    value = float(shift.removeprefix("shift="))
    scheduler = (
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=value)
        if kind == "unipc"
        else FlowMatchEulerDiscreteScheduler(shift=value)
    )

    prepared = prepare_scheduler(scheduler, int(steps.removeprefix("steps=")), torch.device("cpu"))

    assert prepared.timesteps.tolist() == SCHEDULES[case]["timesteps"]
    assert prepared.sigmas.tolist() == SCHEDULES[case]["sigmas"]


def test_every_run_has_a_scheduler_of_its_own() -> None:
    """Preparing a run leaves the pipeline's scheduler as it was: schedulers keep state from step to step."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    before = scheduler.timesteps.clone()

    first = prepare_scheduler(scheduler, 4, torch.device("cpu"))
    second = prepare_scheduler(scheduler, 7, torch.device("cpu"))

    assert (len(first.timesteps), len(second.timesteps)) == (4, 7)
    assert torch.equal(scheduler.timesteps, before)


@pytest.mark.parametrize(("guidance_scale", "expected"), [(0.0, 1.0), (1.0, 3.0), (5.0, 11.0)])
def test_guidance_goes_from_the_unconditional_prediction_through_the_conditional(
    guidance_scale: float, expected: float
) -> None:
    """0 gives the unconditional prediction, 1 the conditional one, more goes beyond."""
    guided = apply_guidance(torch.tensor([3.0]), torch.tensor([1.0]), guidance_scale)

    assert guided.item() == expected
