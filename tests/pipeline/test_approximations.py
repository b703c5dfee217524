"""What makes the loop quicker by giving something up: off it is exact, on it does what it says."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from torch import Tensor

from pipeline import VideoAsPromptPipeline
from pipeline.denoise import EXACT, Approximations
from pipeline.hardware import PROFILES
from pipeline.weights import load_in_profile
from tests.pipeline.conftest import GOLDEN, read_golden
from tests.pipeline.machines import processor
from tests.pipeline.test_exact_savings import counted_calls

STEPS = 6
Run = Callable[..., Tensor]


@pytest.fixture
def run(tiny_pipe: VideoAsPromptPipeline) -> Run:
    """Gives final latents under approximations, at guidance 5 unless told otherwise."""
    golden = read_golden("pipeline_a")

    def run(approximations: Approximations = EXACT, guidance_scale: float = 5.0) -> Tensor:
        changes = {"num_inference_steps": STEPS, "guidance_scale": guidance_scale, "output_type": "latent"}
        noise = golden["in.latents"]
        return tiny_pipe(**golden.arguments() | changes, latents=noise, approximations=approximations).frames

    return run


def test_a_cache_that_never_finds_steps_alike_is_exact(run: Run) -> None:
    """With a threshold below every change, all blocks run in every step."""
    assert torch.equal(run(Approximations(cache_threshold=1e-9)), run())


def test_the_cache_skips_blocks_and_stays_near(tiny_pipe: VideoAsPromptPipeline, run: Run) -> None:
    """The first block runs in every step, the others in fewer; both guidance branches decide together."""
    exact = run()
    with counted_calls(tiny_pipe.transformer) as calls:
        cached = run(Approximations(cache_threshold=0.6))

    assert calls["blocks.0.ffn.net.2"] == STEPS
    assert 1 <= calls["blocks.1.ffn.net.2"] < STEPS
    assert not torch.equal(cached, exact)
    assert torch.nn.functional.cosine_similarity(cached.flatten(), exact.flatten(), dim=0) > 0.9


def test_a_cached_step_fetches_no_layer_of_a_skipped_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer, a step that repeats others brings the first block's layers and those at the ends alone."""
    stream = next(profile for profile in PROFILES if profile.name == "stream")
    pipe = load_in_profile(GOLDEN / "tiny_vap", replace(stream, weights="float32"), processor())
    names = {module: name for name, module in pipe.transformer.named_modules()}
    fetched: list[set[str]] = [set()]
    fetch = ModuleGroup.onload_

    def note(group: ModuleGroup) -> None:
        fetched[-1] |= {names[module] for module in group.modules if module in names}
        fetch(group)

    def next_step(pipe: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        fetched.append(set())

    monkeypatch.setattr(ModuleGroup, "onload_", note)
    changes = {"num_inference_steps": STEPS, "output_type": "latent", "callback_on_step_end": next_step}
    pipe(**read_golden("pipeline_a").arguments() | changes, approximations=Approximations(cache_threshold=0.6))

    cached = [step for step in fetched[1:STEPS] if "blocks.1.ffn.net.2" not in step]
    assert cached
    for step in cached:
        assert {name.split(".")[1] for name in step if name.startswith("blocks.")} == {"0"}
        assert "proj_out" in step


def test_a_cached_run_leaves_nothing_behind(run: Run) -> None:
    """The next run, cached or not, is what it would have been alone."""
    exact, cached = run(), run(Approximations(cache_threshold=0.6))

    assert torch.equal(run(Approximations(cache_threshold=0.6)), cached)
    assert torch.equal(run(), exact)


def test_guidance_for_all_steps_is_exact(run: Run) -> None:
    """A share of 1 is the plain run, a share of 0 the run without guidance."""
    assert torch.equal(run(Approximations(guided_share=1.0)), run())
    torch.testing.assert_close(run(Approximations(guided_share=0.0)), run(guidance_scale=1.0), atol=2e-5, rtol=0)


def test_guidance_for_a_part_of_the_steps(tiny_pipe: VideoAsPromptPipeline, run: Run) -> None:
    """The first half of the steps runs two branches, the second one; with the cache as well."""
    rows: list[int] = []
    tiny_pipe.transformer.blocks[3].register_forward_hook(lambda module, args, out: rows.append(len(out[0])))

    run(Approximations(guided_share=0.5))
    assert rows == [2, 2, 2, 1, 1, 1]

    assert run(Approximations(guided_share=0.5, cache_threshold=0.6)).isfinite().all()
