"""The whole pipeline gives the reference implementation's numbers, and does what its docstring promises."""

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from pipeline import VideoAsPromptPipeline
from pipeline.conditioning import DEFAULT_NEGATIVE_PROMPT
from pipeline.errors import InvalidInputError, StoppedError
from tests.pipeline.conftest import GOLDEN, read_golden
from tests.pipeline.weights_away import WeightsAway

CASES = {"pipeline_a": (1e-3, 2), "pipeline_b_euler": (5e-3, 6), "pipeline_c_noguidance": (1e-3, 2)}


@pytest.mark.parametrize("name", CASES)
def test_a_run_gives_the_reference_latents_and_frames(tiny_pipe: VideoAsPromptPipeline, name: str) -> None:
    """From pictures and texts to final latents and frames, within the golden limits; step by step too."""
    golden = read_golden(name)
    latent_limit, frame_limit = CASES[name]
    if "scheduler_dir" in golden.case:
        tiny_pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(GOLDEN / golden.case["scheduler_dir"])
    per_step: list[torch.Tensor] = []

    def keep(pipe: VideoAsPromptPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        per_step.append(tensors["latents"])
        return tensors

    frames = tiny_pipe(**golden.arguments(), latents=golden["in.latents"], callback_on_step_end=keep).frames[0]

    difference = np.stack(frames).astype(int) - golden["out.frames_uint8"].numpy().astype(int)
    assert np.abs(difference).max() <= frame_limit
    torch.testing.assert_close(torch.stack(per_step), golden["out.latents_per_step"], atol=latent_limit, rtol=0)


@pytest.mark.parametrize("name", ["pipeline_a", "pipeline_b_euler"])
def test_conditions_are_the_references(tiny_pipe: VideoAsPromptPipeline, name: str) -> None:
    """Text and image states, condition latents and the reference stream's input agree to 1e-3."""
    golden = read_golden(name)
    given = golden.arguments()

    conditions = tiny_pipe.encode_conditions(
        image=given["image"],
        reference_video=given["reference_video"],
        texts=(given["prompt"], given["reference_prompt"]),
        negative_texts=(given["negative_prompt"], given["negative_reference_prompt"]),
        height=given["height"],
        width=given["width"],
        num_frames=given["num_frames"],
    )

    assert conditions.negative is not None
    pairs = {
        "embed.prompt": conditions.positive.target.states[:, :-1],
        "embed.reference_prompt": conditions.positive.reference.states[:, :-1],
        "embed.negative_prompt": conditions.negative.target.states[:, :-1],
        "embed.negative_reference_prompt": conditions.negative.reference.states[:, :-1],
        "embed.image": conditions.image_embeds,
        "embed.reference_image": conditions.reference_image_embeds,
        "cond.target_condition": conditions.condition_latents,
        "cond.reference_input": conditions.reference_latents,
    }
    for key, ours in pairs.items():
        # case b resizes, and Pillow's Lanczos differs between versions by up to two grey levels
        limit = 5e-3 if name == "pipeline_b_euler" and key.startswith("cond") else 1e-3
        torch.testing.assert_close(ours, golden[key], atol=limit, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


SMALL: dict[str, Any] = {"prompt": "a", "reference_prompt": "b", "num_inference_steps": 2, "output_type": "latent"}


def picture(colour: str = "orange", size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, colour)


def clip(frames: int = 5) -> list[Image.Image]:
    return [Image.new("RGB", (64, 48), (20 * index, 80, 120)) for index in range(frames)]


def small_run(pipe: VideoAsPromptPipeline, **changes: Any) -> Any:
    arguments = {"image": picture(), "reference_video": clip(), "height": 32, "width": 48, "num_frames": 5} | SMALL
    if "latents" not in changes and "generator" not in changes:
        changes["generator"] = torch.Generator().manual_seed(7)
    return pipe(**(arguments | changes)).frames


def test_a_seed_is_its_start_noise(tiny_pipe: VideoAsPromptPipeline) -> None:
    """A CPU generator seeded with s gives what start noise drawn with s gives."""
    noise = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(7))

    torch.testing.assert_close(small_run(tiny_pipe), small_run(tiny_pipe, latents=noise), atol=0, rtol=0)


def test_several_seeds_make_several_videos(tiny_pipe: VideoAsPromptPipeline) -> None:
    """A list of generators makes one video for each, the same as each alone."""
    seeds = (3, 4)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    together = small_run(tiny_pipe, generator=generators)

    assert together.shape[0] == 2
    for index, seed in enumerate(seeds):
        alone = small_run(tiny_pipe, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(64, 32), (32, 64), (16, 16)])
@pytest.mark.parametrize("num_frames", [1, 5, 17])
def test_any_size_and_frame_count_works(
    tiny_pipe: VideoAsPromptPipeline, height: int, width: int, num_frames: int
) -> None:
    """Upright, wide and square; one frame, few, many: the frames have the size and count asked for."""
    frames = small_run(tiny_pipe, height=height, width=width, num_frames=num_frames, output_type="np")

    assert frames.shape == (1, num_frames, height, width, 3)
    assert np.isfinite(frames).all()


@pytest.mark.parametrize(("output_type", "shape"), [("pt", (1, 5, 3, 32, 48)), ("latent", (1, 16, 2, 4, 6))])
def test_tensors_come_in_the_promised_shape(
    tiny_pipe: VideoAsPromptPipeline, output_type: str, shape: tuple[int, ...]
) -> None:
    """Each output type has its documented shape."""
    frames = small_run(tiny_pipe, output_type=output_type)

    assert tuple(frames.shape) == shape
    assert frames.dtype == torch.float32


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_without_guidance_there_is_no_unconditional_pass(
    tiny_pipe: VideoAsPromptPipeline, guidance_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guidance of 1 or less calls the transformer once a step, and the negative prompt changes nothing."""
    calls: list[None] = []
    forward = tiny_pipe.transformer.forward
    monkeypatch.setattr(tiny_pipe.transformer, "forward", lambda *a, **k: calls.append(None) or forward(*a, **k))

    plain = small_run(tiny_pipe, guidance_scale=guidance_scale)
    other = small_run(tiny_pipe, guidance_scale=guidance_scale, negative_prompt="anything")

    assert len(calls) == 2 * SMALL["num_inference_steps"]
    torch.testing.assert_close(plain, other, atol=0, rtol=0)


def test_steps_and_guidance_left_out_are_the_checkpoints_own(tiny_pipe: VideoAsPromptPipeline) -> None:
    """Of the released one 50 and 5; of another what its model_index.json says."""
    own = {"num_inference_steps": 3, "guidance_scale": 2.5}
    assert {name: tiny_pipe.config[name] for name in own} == {"num_inference_steps": 50, "guidance_scale": 5.0}
    other = VideoAsPromptPipeline(**tiny_pipe.components, **own)
    other.set_progress_bar_config(disable=True)

    torch.testing.assert_close(small_run(other, **dict.fromkeys(own)), small_run(tiny_pipe, **own), atol=0, rtol=0)


def test_no_negative_prompt_means_the_published_one(tiny_pipe: VideoAsPromptPipeline) -> None:
    """None stands for the model's default text; the empty text is another thing."""
    unsaid = small_run(tiny_pipe)
    said = small_run(
        tiny_pipe, negative_prompt=DEFAULT_NEGATIVE_PROMPT, negative_reference_prompt=DEFAULT_NEGATIVE_PROMPT
    )
    empty = small_run(tiny_pipe, negative_prompt="", negative_reference_prompt="")

    torch.testing.assert_close(unsaid, said, atol=0, rtol=0)
    assert (unsaid - empty).abs().max() > 1e-3


@pytest.mark.parametrize("argument", ["reference_video", "reference_prompt", "image", "prompt"])
def test_everything_given_matters(tiny_pipe: VideoAsPromptPipeline, argument: str) -> None:
    """The result depends on the reference clip, its description, the image and the prompt."""
    others = {
        "reference_video": clip()[::-1],
        "reference_prompt": "something else",
        "image": picture("blue"),
        "prompt": "something else",
    }

    changed = small_run(tiny_pipe, **{argument: others[argument]})

    assert (changed - small_run(tiny_pipe)).abs().max() > 1e-3


def test_a_last_image_is_seen(tiny_pipe: VideoAsPromptPipeline) -> None:
    """Where to end changes the video; the last frame's mask says that it is given."""
    plain = small_run(tiny_pipe)

    ended = small_run(tiny_pipe, last_image=picture("navy"))

    assert ended.shape == plain.shape
    assert (ended - plain).abs().max() > 1e-3


def test_a_callback_can_stop_the_run(tiny_pipe: VideoAsPromptPipeline) -> None:
    """What the callback raises ends the run at that step and reaches the caller; the next run works."""
    seen: list[int] = []

    def stop(pipe: VideoAsPromptPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        raise StoppedError

    with pytest.raises(StoppedError):
        small_run(tiny_pipe, callback_on_step_end=stop)

    assert seen == [0]
    assert small_run(tiny_pipe).shape == (1, 16, 2, 4, 6)


def test_a_callback_can_end_early_or_go_on_with_other_latents(tiny_pipe: VideoAsPromptPipeline) -> None:
    """`_interrupt` decodes what there is; returned latents take the place of the loop's."""
    marked = torch.full((1, 16, 2, 4, 6), 0.25)

    def interrupt(pipe: VideoAsPromptPipeline, *args: Any) -> dict[str, Any]:
        pipe._interrupt = True
        return {"latents": marked}

    torch.testing.assert_close(small_run(tiny_pipe, callback_on_step_end=interrupt), marked)


def test_nothing_of_the_callers_is_changed(tiny_pipe: VideoAsPromptPipeline) -> None:
    """Pictures, lists, start noise and the pipeline's scheduler are as before the run."""
    frames, start, noise = clip(9), picture(), torch.zeros(1, 16, 2, 4, 6)
    before = (list(frames), [frame.tobytes() for frame in frames], start.tobytes(), noise.clone())
    timesteps = tiny_pipe.scheduler.timesteps.clone()

    small_run(tiny_pipe, image=start, reference_video=frames, latents=noise)

    assert frames == before[0]
    assert [frame.tobytes() for frame in frames] == before[1]
    assert start.tobytes() == before[2]
    assert torch.equal(noise, before[3])
    assert torch.equal(tiny_pipe.scheduler.timesteps, timesteps)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P"])
def test_pictures_of_any_mode_are_taken(tiny_pipe: VideoAsPromptPipeline, mode: str) -> None:
    """Transparent, grey and palette pictures work as image and as frames."""
    frames = small_run(tiny_pipe, image=picture().convert(mode), reference_video=[f.convert(mode) for f in clip()])

    assert torch.isfinite(frames).all()


REFUSED = [
    ({"num_frames": 8}, "num_frames", "A video cannot have 8 frames; try 5 or 9."),
    ({"num_frames": 0}, "num_frames", "A video cannot have 0 frames; try 1 or 5."),
    ({"height": 40}, "height", "A video cannot be 40 pixels in height; try 32 or 48."),
    ({"width": 0}, "width", "A video cannot be 0 pixels in width; try 16 or 32."),
    ({"num_inference_steps": 0}, "num_inference_steps", "0 steps make nothing; try 1 or more."),
    ({"prompt": ["a", "b"]}, "prompt", "`prompt` must be one text; give one video at a time."),
    ({"reference_prompt": ["b"]}, "reference_prompt", "`reference_prompt` must be one text; give one video at a time."),
    ({"reference_video": []}, "reference_video", "`reference_video` must be a list of at least one picture."),
    ({"image": "horse.png"}, "image", "`image` takes PIL pictures, not str."),
    ({"last_image": 3}, "last_image", "`last_image` takes PIL pictures, not int."),
    ({"output_type": "gif"}, "output_type", "There is no output type 'gif'; try one of pil, np, pt, latent."),
    (
        {"latents": torch.zeros(1, 16, 3, 4, 6)},
        "latents",
        "The start noise has the shape (1, 16, 3, 4, 6); for this size it is (1, 16, 2, 4, 6).",
    ),
]


@pytest.mark.parametrize(("changes", "field", "sentence"), REFUSED)
def test_what_cannot_be_made_is_refused_with_a_way_out(
    tiny_pipe: VideoAsPromptPipeline, changes: dict[str, Any], field: str, sentence: str
) -> None:
    """A wrong argument is named, with its value and what would work."""
    with pytest.raises(InvalidInputError) as refusal:
        small_run(tiny_pipe, **changes)

    assert (refusal.value.field, refusal.value.message) == (field, sentence)


def test_a_saved_pipeline_loads_and_gives_the_same(tiny_pipe: VideoAsPromptPipeline, tmp_path: Path) -> None:
    """`save_pretrained` writes what `from_pretrained` reads."""
    tiny_pipe.save_pretrained(tmp_path)
    again = VideoAsPromptPipeline.from_pretrained(tmp_path)

    torch.testing.assert_close(small_run(again), small_run(tiny_pipe), atol=0, rtol=0)


def test_a_lora_changes_the_base_transformer(tiny_pipe: VideoAsPromptPipeline) -> None:
    """A LoRA in diffusers' format loads, acts with its strength, and leaves when unloaded."""
    plain = small_run(tiny_pipe)
    layer = "transformer.blocks.0.attn1.to_q"
    weights = {f"{layer}.lora_A.weight": torch.ones(4, 48), f"{layer}.lora_B.weight": torch.ones(48, 4)}

    tiny_pipe.load_lora_weights(weights, adapter_name="style")
    full = small_run(tiny_pipe)
    tiny_pipe.set_adapters("style", 0.0)
    none = small_run(tiny_pipe)
    tiny_pipe.unload_lora_weights()

    assert (full - plain).abs().max() > 1e-3
    torch.testing.assert_close(none, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(small_run(tiny_pipe), plain, atol=0, rtol=0)


def test_under_model_offload_the_card_holds_one_part_at_a_time(
    tiny_pipe: VideoAsPromptPipeline, on_card: set[str]
) -> None:
    """Whatever is encoded already, and so does not make room for what comes after it."""
    moments: list[set[str]] = []
    for name in ("text_encoder", "image_encoder", "transformer", "vae"):
        for layer in getattr(tiny_pipe, name).modules():
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d):
                layer.register_forward_pre_hook(lambda *_: moments.append(set(on_card)))

    def run(**changes: Any) -> list[set[str]]:
        moments.clear()
        small_run(tiny_pipe, **changes | {"output_type": "pil"})
        assert on_card == set()
        return [held for held, _ in groupby(moments)]

    text, image, transformer, vae = ({name} for name in tiny_pipe.model_cpu_offload_seq.split("->"))
    assert run() == [text, image, vae, transformer, vae]
    assert run() == [transformer, vae]
    assert run(prompt="another") == [text, transformer, vae]
    assert run(image=picture("red")) == [image, vae, transformer, vae]
    assert run(prompt="a third", last_image=picture("red")) == [text, vae, transformer, vae]


def test_a_run_that_ends_early_leaves_nothing_on_the_card(tiny_pipe: VideoAsPromptPipeline, on_card: set[str]) -> None:
    """Wherever it ends: in a callback, or in a part itself."""

    def stop(pipe: VideoAsPromptPipeline, *_: Any) -> None:
        assert on_card == {"transformer"}
        raise StoppedError

    def fail(*_: Any) -> None:
        raise RuntimeError("no space left")

    with pytest.raises(StoppedError):
        small_run(tiny_pipe, callback_on_step_end=stop)
    assert on_card == set()

    for layer in (tiny_pipe.vae.decoder.conv_in, tiny_pipe.vae.encoder.conv_in, tiny_pipe.text_encoder.shared):
        layer.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="no space left"):
            small_run(tiny_pipe, prompt="another", image=picture("red"), output_type="pil")
        assert on_card == set()


@pytest.mark.parametrize("num_blocks_per_group", [1, 3])
def test_group_offload_changes_no_number(
    tiny_pipe: VideoAsPromptPipeline, monkeypatch: pytest.MonkeyPatch, num_blocks_per_group: int
) -> None:
    """Streaming the transformer block by block gives the plain run's latents, and brings all it computes with."""
    plain = small_run(tiny_pipe)
    weights = WeightsAway(tiny_pipe.transformer, monkeypatch)

    tiny_pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=num_blocks_per_group
    )
    with weights:
        latents = small_run(tiny_pipe)

    torch.testing.assert_close(latents, plain, atol=0, rtol=0)
    assert not weights.missed
    assert weights.away == set(tiny_pipe.transformer.parameters())


@pytest.mark.parametrize("backend", ["_native_math", "native"])
def test_attention_backends_go_through_diffusers(tiny_pipe: VideoAsPromptPipeline, backend: str) -> None:
    """`set_attention_backend` reaches both streams' attention and changes rounding only."""
    plain = small_run(tiny_pipe)

    tiny_pipe.transformer.set_attention_backend(backend)
    try:
        result = small_run(tiny_pipe)
    finally:
        tiny_pipe.transformer.reset_attention_backend()

    torch.testing.assert_close(result, plain, atol=1e-4, rtol=0)
