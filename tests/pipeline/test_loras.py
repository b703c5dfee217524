"""LoRAs on the tiny checkpoint: put on, changed, taken off; in every profile; and files that fit nothing."""

import json
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import VideoAsPromptPipeline, profiles
from pipeline.errors import InvalidInputError
from pipeline.hardware import PROFILES, Profile
from pipeline.lora_shelf import NO_LORAS, LoraShelf
from pipeline.loras import ADAPTER, put_on, take_off
from pipeline.profiles import apply_lora, apply_profile
from pipeline.weights import load_in_profile
from tests.pipeline.conftest import GOLDEN, read_golden
from tests.pipeline.lora_files import LAYERS, RANK, diffusers_weights, lightx2v_weights, make_halves, write_lora
from tests.pipeline.machines import processor

CPU = torch.device("cpu")
BY_NAME = {profile.name: profile for profile in PROFILES}
FLOAT32 = BY_NAME["float32"]


@pytest.fixture
def shelf(tmp_path: Path) -> LoraShelf:
    """A folder with one LoRA in each format, and a file that is none."""
    write_lora(tmp_path / "style.safetensors", diffusers_weights())
    write_lora(tmp_path / "fast.v2.safetensors", lightx2v_weights())
    (tmp_path / "notes.txt").write_text("-")
    return LoraShelf(tmp_path)


@pytest.fixture
def pipe(tiny_pipe: VideoAsPromptPipeline) -> VideoAsPromptPipeline:
    """The tiny checkpoint with all weights on the processor."""
    apply_profile(tiny_pipe, FLOAT32, CPU)
    return tiny_pipe


@pytest.fixture
def wear(pipe: VideoAsPromptPipeline, shelf: LoraShelf) -> Callable[..., Tensor]:
    """Gives final latents with a LoRA of the shelf at a strength."""

    def run(name: str | None, strength: float = 1.0) -> Tensor:
        apply_lora(pipe, shelf.find(name), strength, FLOAT32)
        apply_profile(pipe, FLOAT32, CPU)
        return make_latents(pipe)

    return run


def make_latents(pipe: Any) -> Tensor:
    golden = read_golden("pipeline_a")
    arguments = golden.arguments() | {"num_inference_steps": 2, "output_type": "latent"}
    return pipe(**arguments, latents=golden["in.latents"]).frames


def test_the_shelf_lists_its_safetensors_files_by_name(shelf: LoraShelf, tmp_path: Path) -> None:
    """Other files and folders are none; without a folder there is nothing."""
    (tmp_path / "folder.safetensors").mkdir()

    assert shelf.names() == ["fast.v2", "style"]
    assert NO_LORAS.names() == []
    assert NO_LORAS.find(None) is None


@pytest.mark.parametrize("name", ["../style", "style.safetensors", "/etc/passwd", "Style", "notes.txt", ".."])
def test_only_a_listed_name_finds_a_file(shelf: LoraShelf, name: str) -> None:
    """Whatever is no name of the list is refused, paths among them, and the list is told."""
    with pytest.raises(InvalidInputError, match=r"there are fast\.v2, style") as caught:
        shelf.find(name)

    assert caught.value.field == "lora"
    assert caught.value.message.startswith(f"There is no LoRA “{name}” here")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """As a setting's problem, not a request's."""
    with pytest.raises(InvalidInputError, match="cannot be read; make it, or give another --lora-dir") as caught:
        LoraShelf(tmp_path / "nothing").names()

    assert caught.value.field == "lora_dir"


def test_strength_goes_from_nothing_to_all(wear: Callable[..., Tensor]) -> None:
    """0 is the plain run bit for bit, 1 is another one, and half as much lies elsewhere again."""
    plain = wear(None)

    assert torch.equal(wear("style", 0.0), plain)
    full, half = wear("style", 1.0), wear("style", 0.5)
    assert (full - plain).abs().max() > 1e-3
    assert 1e-3 < (half - plain).abs().max() < (full - plain).abs().max()
    assert torch.equal(wear("style", 0.0), plain)


def test_taken_off_it_leaves_nothing(wear: Callable[..., Tensor], pipe: VideoAsPromptPipeline) -> None:
    """The plain run is back bit for bit, and no layer or weight is left."""
    plain, names = wear(None), [name for name, _ in pipe.transformer.named_parameters()]

    wear("style")

    assert torch.equal(wear(None), plain)
    assert [name for name, _ in pipe.transformer.named_parameters()] == names


def test_both_formats_are_one_lora(wear: Callable[..., Tensor]) -> None:
    """lightx2v's names stand for the same layers; one takes the other's place."""
    assert torch.equal(wear("fast.v2"), wear("style"))


def test_a_lora_changes_what_a_request_computes_once(
    wear: Callable[..., Tensor], shelf: LoraShelf, tmp_path: Path
) -> None:
    """One of the cross-attention alone acts on keys and values that are computed before the first step."""
    cross = {key: value for key, value in diffusers_weights().items() if "attn2" in key}
    write_lora(tmp_path / "cross.safetensors", cross)

    assert (wear("cross") - wear(None)).abs().max() > 1e-3


def test_a_lora_is_read_once(
    wear: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch, shelf: LoraShelf, tmp_path: Path
) -> None:
    """While requests want the same one it stays on; a file that was replaced is another one."""
    reads: list[str] = []
    monkeypatch.setattr(profiles, "put_on", lambda pipe, lora: [reads.append(lora.name), *put_on(pipe, lora)][1:])

    first = wear("style")
    wear("style", 0.5)
    assert reads == ["style"]

    write_lora(tmp_path / "style.safetensors", {key: value * 2 for key, value in diffusers_weights().items()})
    os.utime(tmp_path / "style.safetensors", (1, 1))
    assert not torch.equal(wear("style"), first)
    assert reads == ["style", "style"]


def test_scale_and_biases_of_a_file_count(wear: Callable[..., Tensor], tmp_path: Path) -> None:
    """An alpha in lightx2v's or in diffusers' way scales it; a bias may be changed in one layer alone."""
    weights = lightx2v_weights()
    alphas = {key.replace("lora_down.weight", "alpha"): torch.tensor(2.0) for key in weights if "down" in key}
    write_lora(tmp_path / "alpha.safetensors", weights | alphas)  # of rank 4: half as strong
    bias = {"diffusion_model.blocks.1.self_attn.q.diff_b": torch.full((48,), 0.5)}
    write_lora(tmp_path / "bias.safetensors", weights | bias)
    config = {"transformer.r": 4, "transformer.lora_alpha": 2, "transformer.target_modules": ["to_q"]}
    layers = sorted({key.removeprefix("transformer.").split(".lora_")[0] for key in diffusers_weights()})
    config |= {"transformer.target_modules": layers}
    metadata = {"lora_adapter_metadata": json.dumps(config), "format": "pt"}
    write_lora(tmp_path / "metadata.safetensors", diffusers_weights(), metadata)

    half, full = wear("style", 0.5), wear("style")
    torch.testing.assert_close(wear("alpha"), half, atol=1e-5, rtol=0)
    torch.testing.assert_close(wear("metadata"), half, atol=1e-5, rtol=0)
    assert (wear("bias") - full).abs().max() > 1e-4


def test_what_diffusers_leaves_out_is_told(pipe: VideoAsPromptPipeline, shelf: LoraShelf, tmp_path: Path) -> None:
    """Changes of whole norms are named; those that are zero, as in most files, are no loss."""
    norms = {
        "diffusion_model.blocks.0.cross_attn.norm_q.diff": torch.zeros(48),
        "diffusion_model.blocks.1.cross_attn.norm_q.diff": torch.ones(48),
        "diffusion_model.blocks.1.self_attn.q.diff_b": torch.full((48,), 0.5),
    }
    write_lora(tmp_path / "norms.safetensors", lightx2v_weights() | norms)

    left_out = apply_lora(pipe, shelf.find("norms"), 1.0, FLOAT32)

    assert left_out == ["diffusion_model.blocks.1.cross_attn.norm_q.diff"]


def spoil(change: str) -> dict[str, Tensor]:
    key, weights = "transformer.blocks.0.attn1.to_q.lora_A.weight", diffusers_weights()
    match change:
        case "a layer too many":
            halves = {"A": torch.ones(4, 48), "B": torch.ones(48, 4)}
            return weights | {f"transformer.blocks.9.attn1.to_q.lora_{half}.weight": halves[half] for half in halves}
        case "another model's layers":
            return {"unet.down.0.lora_A.weight": torch.ones(4, 8), "unet.down.0.lora_B.weight": torch.ones(8, 4)}
        case "no prefix":
            return {name.removeprefix("transformer."): value for name, value in weights.items()}
        case "another size":
            return weights | {key: torch.ones(4, 64)}
        case "half a layer":
            return {name: value for name, value in weights.items() if name != key}
        case "a norm":
            halves = {"A": torch.ones(4, 48), "B": torch.ones(48, 4)}
            return weights | {f"transformer.blocks.0.attn1.norm_q.lora_{half}.weight": halves[half] for half in halves}
        case "an unknown part":
            return weights | {"transformer.blocks.0.attn1.to_q.alpha": torch.ones(1)}
        case "another format":
            return {"diffusion_model.blocks.0.self_attn.strange.weight": torch.ones(4)}
        case "a DoRA":
            return weights | {"transformer.blocks.0.attn1.to_q.dora_scale": torch.ones(48)}
        case _:
            return {}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("a layer too many", "changes what this model does not have (transformer.blocks.9.attn1.to_q.lora_A"),
        ("another model's layers", "changes what this model does not have (unet.down.0.lora_A.weight"),
        ("no prefix", "changes what this model does not have (blocks.0.attn1.to_q.lora_A.weight"),
        ("another size", "was made for a model of another size (transformer.blocks.0.attn1.to_q.lora_A.weight)."),
        ("half a layer", "lacks a part of what it changes (blocks.0.attn1.to_q)."),
        ("a norm", "changes what this model does not have (transformer.blocks.0.attn1.norm_q.lora_A.weight"),
        ("an unknown part", "changes what this model does not have (transformer.blocks.0.attn1.to_q.alpha)."),
        ("another format", "is in no format of LoRAs for this model."),
        ("a DoRA", "is a DoRA, which is not supported."),
        ("nothing", "changes nothing."),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_its_name(
    wear: Callable[..., Tensor], pipe: VideoAsPromptPipeline, tmp_path: Path, change: str, sentence: str
) -> None:
    """No key is ignored, and the next run without it is the plain one."""
    plain = wear(None)
    write_lora(tmp_path / "wrong.safetensors", spoil(change))

    with pytest.raises(InvalidInputError) as caught:
        wear("wrong")

    assert caught.value.message.startswith(f"The LoRA “wrong” {sentence}")
    assert caught.value.field == "lora"
    assert torch.equal(wear(None), plain)


def test_a_damaged_file_is_refused(wear: Callable[..., Tensor], tmp_path: Path) -> None:
    """One that is no safetensors file at all, or was cut short."""
    whole = (tmp_path / "style.safetensors").read_bytes()
    for content in (b"not one", whole[:1000]):
        (tmp_path / "cut.safetensors").write_bytes(content)

        with pytest.raises(InvalidInputError, match="“cut” is damaged or no safetensors file; fetch it again"):
            wear("cut")


@pytest.mark.parametrize("name", ["resident", "model", "stream", "sequential"])
def test_offload_changes_no_number(pipe: VideoAsPromptPipeline, shelf: LoraShelf, name: str) -> None:
    """Wherever weights wait, a run with a LoRA gives the same; put on before or after, changed and taken off."""
    profile, style = BY_NAME[name], shelf.find("style")
    expected = {strength: run_in(pipe, FLOAT32, style, strength) for strength in (0.0, 0.5, 1.0)}

    for strength in (0.0, 1.0, 0.5, 0.0):
        latents = run_in(pipe, profile, style, strength)
        torch.testing.assert_close(latents, expected[strength], atol=1e-6, rtol=0)
    assert torch.equal(run_in(pipe, FLOAT32, style, 0.0), expected[0.0])


def run_in(pipe: Any, profile: Profile, lora: Any, strength: float) -> Tensor:
    apply_lora(pipe, lora, strength, profile)
    apply_profile(pipe, profile, CPU)
    return make_latents(pipe)


@pytest.mark.parametrize("name", ["bf16", "fp8-cpu"])
def test_smaller_weights_take_a_lora(shelf: LoraShelf, name: str) -> None:
    """It computes in the format the model computes in, whatever its file and the weights are stored in."""
    pipe = load_in_profile(GOLDEN / "tiny_vap", BY_NAME[name], processor())
    style = shelf.find("style")

    plain, full = run_in(pipe, BY_NAME[name], None, 1.0), run_in(pipe, BY_NAME[name], style, 1.0)

    assert full.isfinite().all()
    assert (full - plain).abs().max() > 1e-2
    assert torch.equal(run_in(pipe, BY_NAME[name], None, 1.0), plain)


@pytest.mark.parametrize("weights", [diffusers_weights(), lightx2v_weights()], ids=["diffusers", "lightx2v"])
@pytest.mark.parametrize("name", ["bf16", "fp8-cpu"])
def test_a_lora_keeps_its_numbers_where_layers_are_stored_in_8_bits(
    tmp_path: Path, name: str, weights: dict[str, Tensor]
) -> None:
    """Most of a real one's numbers are smaller than the least that 8 bits hold; they never go through them."""
    small = {key: value * (0.05 if value.shape[0] == RANK else 0.005) for key, value in weights.items()}
    write_lora(tmp_path / "small.safetensors", small)
    pipe: Any = load_in_profile(GOLDEN / "tiny_vap", BY_NAME[name], processor())

    apply_lora(pipe, LoraShelf(tmp_path).find("small"), 1.0, BY_NAME[name])

    dtype = pipe.transformer.dtype
    for block, layer in product(range(2), LAYERS):
        down, up = make_halves(layer, block)
        adapted = pipe.transformer.blocks[block].get_submodule(layer)
        assert torch.equal(adapted.lora_A[ADAPTER].weight, (down * 0.05).to(dtype))
        assert torch.equal(adapted.lora_B[ADAPTER].weight, (up * 0.005).to(dtype))


@pytest.mark.parametrize("name", ["int8", "nf4", "int8-cpu"])
def test_a_profile_that_takes_none_says_so(pipe: VideoAsPromptPipeline, shelf: LoraShelf, name: str) -> None:
    """Before anything is changed; without a LoRA nothing is said."""
    apply_lora(pipe, None, 1.0, BY_NAME[name])

    with pytest.raises(InvalidInputError, match=f"The profile “{name}” takes no LoRA"):
        apply_lora(pipe, shelf.find("style"), 1.0, BY_NAME[name])


def test_several_processes_take_none(
    pipe: VideoAsPromptPipeline, shelf: LoraShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others would not have it on."""
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(InvalidInputError, match="several processes make together takes no LoRA"):
        apply_lora(pipe, shelf.find("style"), 1.0, FLOAT32)


def test_a_lora_can_be_put_on_by_hand(tiny_pipe: VideoAsPromptPipeline, shelf: LoraShelf) -> None:
    """Without profiles, as from a Python prompt."""
    plain, style = make_latents(tiny_pipe), shelf.find("style")
    assert style is not None

    put_on(tiny_pipe, style)
    changed = make_latents(tiny_pipe)
    take_off(tiny_pipe)

    assert not torch.equal(changed, plain)
    assert torch.equal(make_latents(tiny_pipe), plain)
