"""The model's arithmetic, held to the released checkpoint and to the published table."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from benchmarks.live_memory import peak_bytes
from pipeline import matrix_products
from pipeline.errors import ModelError
from pipeline.estimate import (
    ModelShape,
    Workload,
    activation_bytes,
    count_weights,
    exchange_bytes,
    forward_work,
    read_shape,
    step_flop,
    vae_bytes,
)
from pipeline.models import NANO_FOLDER
from pipeline.transformer import VideoAsPromptTransformer3DModel
from tests.pipeline.conftest import GOLDEN

RELEASED = ModelShape()
# TFLOP of one forward with nothing saved: tokens, linear of target and reference, attention self and joint, cross, all.
TABLE = [
    ((480, 832, 49), 20_280, 485, 121, 253, 337, 20, 1_216),
    ((576, 1024, 49), 29_952, 716, 179, 551, 735, 28, 2_209),
    ((720, 1280, 49), 46_800, 1_119, 280, 1_346, 1_794, 41, 4_580),
    ((480, 832, 81), 32_760, 783, 196, 659, 879, 30, 2_548),
    ((720, 1280, 81), 75_600, 1_807, 452, 3_512, 4_682, 64, 10_517),
]


@pytest.mark.parametrize(("size", "tokens", "target", "reference", "self_", "joint", "cross", "total"), TABLE)
def test_the_work_of_a_forward_is_the_tables(
    size: tuple[int, int, int],
    tokens: int,
    target: int,
    reference: int,
    self_: int,
    joint: int,
    cross: int,
    total: int,
) -> None:
    """Within 1 %, or within what rounding to whole TFLOP hides."""
    load = Workload(*size, num_inference_steps=50)

    work = forward_work(RELEASED, RELEASED.tokens(load))

    parts = (work.linear_target, work.linear_reference, work.self_attention, work.joint_attention, work.cross_attention)
    assert RELEASED.tokens(load) == tokens
    assert [part / 1e12 for part in parts] == pytest.approx([target, reference, self_, joint, cross], rel=0.01, abs=0.5)
    assert work.total / 1e12 == pytest.approx(total, rel=0.01)


def test_the_weights_are_the_released_checkpoints() -> None:
    """Counted by formula, they are those of the manifest to the last one."""
    manifest = json.loads(gzip.decompress((GOLDEN / "wan21_14b_vap_manifest.json.gz").read_bytes()))

    assert RELEASED.transformer_weights == manifest["parameter_count"] == 20_674_265_664


def test_the_loop_reads_less_than_is_stored() -> None:
    """In bf16 10.5 GB are projections of the context, and 29.4 of 41.3 GB are left for the loop."""
    streams = RELEASED.layers + len(RELEASED.experts)

    assert streams * RELEASED.context_weights * 2 / 1e9 == pytest.approx(10.5, rel=0.01)
    assert RELEASED.loop_weights * 2 / 1e9 == pytest.approx(29.4, rel=0.01)


@pytest.mark.parametrize("folder", [NANO_FOLDER, GOLDEN / "tiny_vap"])
def test_a_folders_sizes_are_those_of_its_files(folder: Path) -> None:
    """The formula counts what the file holds, for any configuration."""
    assert read_shape(folder).transformer_weights == count_weights(folder / "transformer")


def test_a_folder_without_configurations_is_named(tmp_path: Path) -> None:
    """The sentence says where and what to do."""
    with pytest.raises(ModelError, match=r"cannot be read from .*fetch the model again"):
        read_shape(tmp_path)


def test_a_step_does_less_than_two_forwards() -> None:
    """At 480p, 49 frames, 4.5 to 5 % are saved: the dead ends, the shared first attention, the context."""
    load = Workload(480, 832, 49, 50)

    plain = 2 * forward_work(RELEASED, RELEASED.tokens(load)).total

    assert 1 - step_flop(RELEASED, load) / plain == pytest.approx(0.045, abs=0.005)


def test_branches_after_each_other_share_no_first_attention() -> None:
    """Of the released model's 40 blocks that is 1.7 %; of a network of three it is more."""
    load, small = Workload(480, 832, 49, 50), replace(RELEASED, layers=3, experts=(0,))

    released, three = (step_flop(each, load, split=True) / step_flop(each, load) for each in (RELEASED, small))

    assert released == pytest.approx(1.017, abs=0.002)
    assert three > 1.1


def test_a_step_without_guidance_takes_a_little_more_than_half() -> None:
    """What both branches share is saved only where there are two."""
    guided, alone = (step_flop(RELEASED, Workload(480, 832, 49, 50, guided=guided)) for guided in (True, False))

    assert 0.5 < alone / guided < 0.52


@pytest.mark.parametrize(("frames", "height"), [(81, 480), (49, 720)])
def test_more_frames_or_pixels_take_more(frames: int, height: int) -> None:
    """Memory and work grow with both."""
    small, large = Workload(480, 832, 49, 50), Workload(height, math.ceil(height * 1.75), frames, 50)

    assert activation_bytes(RELEASED, large, 2) > activation_bytes(RELEASED, small, 2)
    assert step_flop(RELEASED, large) > step_flop(RELEASED, small)


def test_tiles_need_a_fraction_of_a_whole_frames_memory() -> None:
    """At 720p the VAE takes 18 GB whole, and little more than the frames themselves in tiles."""
    load = Workload(720, 1280, 49, 50)

    assert vae_bytes(RELEASED, load, tiled=False) / 1e9 == pytest.approx(19, abs=1)
    assert vae_bytes(RELEASED, load, tiled=True) / 1e9 < 4


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "element_bytes"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_the_activations_are_those_of_a_step(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, element_bytes: int
) -> None:
    """Three blocks of the 14B, all with experts, hold at most what is predicted, and not much less."""
    # On the meta device torch would spell attention out; the kernels in use never hold the table of all pairs.
    monkeypatch.setattr(matrix_products, "dispatch_attention_fn", lambda query, *_, **__: torch.empty_like(query))
    with torch.device("meta"):
        model = VideoAsPromptTransformer3DModel(num_layers=3, block_idx_with_mot_ref=[0, 1, 2])
    model.to(dtype)
    load = Workload(480, 832, 49, 50)

    counted = peak_bytes(model.state_dict(keep_vars=True).values(), lambda: run_guided_step(model, dtype))

    predicted = activation_bytes(replace(RELEASED, layers=3, experts=(0, 1, 2)), load, element_bytes)
    assert 0.85 * predicted < counted < predicted


def run_guided_step(model: VideoAsPromptTransformer3DModel, dtype: torch.dtype) -> None:
    def states(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    latents = states(1, 36, 13, 60, 104)
    texts, counts = [states(1, 512, 4096)] * 2, [torch.empty(1, 512, device="meta")] * 2
    request = model.prepare(
        timesteps=torch.empty(50, device="meta"),
        encoder_hidden_states=texts,
        encoder_hidden_states_image=states(1, 257, 1280),
        reference_hidden_states=latents,
        reference_encoder_hidden_states=texts,
        reference_encoder_hidden_states_image=states(1, 257, 1280),
        text_row_counts=counts,
        reference_text_row_counts=counts,
    )
    model(latents, request.times.at(0), request)


@pytest.mark.slow
def test_the_vaes_memory_is_that_of_coding() -> None:
    """Whole frames and tiles of the released VAE hold at most what is predicted, and not much less."""
    with torch.device("meta"):
        vae = AutoencoderKLWan()
    load = Workload(480, 832, 5, 50)

    whole = peak_bytes(
        vae.state_dict(keep_vars=True).values(), lambda: vae.decode(torch.empty(1, 16, 2, 60, 104, device="meta"))
    )
    vae.enable_tiling()
    tiled = peak_bytes(
        vae.state_dict(keep_vars=True).values(), lambda: vae.decode(torch.empty(1, 16, 2, 60, 104, device="meta"))
    )

    assert 0.85 < whole / vae_bytes(RELEASED, load, tiled=False) < 1
    assert 0.8 < tiled / vae_bytes(RELEASED, load, tiled=True) < 1


def test_several_processes_hold_a_share_of_the_tokens_each_and_exchange_the_rest() -> None:
    """Contexts are whole in all of them; one alone sends nothing, eight send seven eighths of their share."""
    load = Workload(480, 832, 49, num_inference_steps=50)
    tokens_bytes = RELEASED.tokens(load) * RELEASED.dim * 2

    alone, shared = (activation_bytes(RELEASED, load, 2, sharing=sharing) for sharing in (1, 8))

    assert alone - shared == pytest.approx((2 * 14.5 + 4) * tokens_bytes * 7 / 8)
    assert exchange_bytes(RELEASED, load, 2, 1) == 0
    # two branches, 30 plain blocks and 10 with two streams, four times tokens
    assert exchange_bytes(RELEASED, load, 2, 8) == pytest.approx(2 * 50 * 4 * tokens_bytes / 8 * 7 / 8)
