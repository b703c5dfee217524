"""An exported model is a checkpoint in the released layout, loaded by the pipeline like the 14B."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline import VideoAsPromptPipeline
from training import components
from training.autoencoder import build_autoencoder
from training.components import LAYERS, build_tokenizer
from training.denoiser import Nano, load_codec, load_nano, load_tokenizer
from training.export import TRAINING, export_nano, load_weights, resume_nano, write_checkpoint


def test_an_exported_model_loads_strictly_and_runs(tmp_path: Path) -> None:
    """The pipeline finds every tensor, the sizes and steps of the model, and makes frames."""
    torch.manual_seed(0)
    write_checkpoint(tmp_path, Nano(), build_autoencoder(), build_tokenizer())

    pipe = VideoAsPromptPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    picture = Image.new("RGB", (80, 48), "orange")
    frames = pipe(
        image=picture,
        reference_video=[picture] * 5,
        prompt="déjà vu ☕",
        reference_prompt="",
        height=48,
        width=80,
        num_frames=5,
        num_inference_steps=2,
        output_type="pt",
    ).frames

    assert frames.shape == (1, 5, 3, 48, 80)
    assert tuple(pipe.config.render_size) == (80, 144)
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    assert config["_class_name"] == "WanTransformer3DMOTModel"


def test_training_goes_on_from_an_exported_model(tmp_path: Path) -> None:
    """What is exported, taken up and exported again is the same model, with its samples counted."""
    torch.manual_seed(0)
    vae = build_autoencoder()
    z = vae.config.z_dim
    vae.register_to_config(latents_mean=[0.5] * z, latents_std=[2.0] * z)
    first, runs, second = (tmp_path / name for name in ("first", "runs", "second"))
    write_checkpoint(first, Nano(), vae, build_tokenizer())
    (first / TRAINING).write_text('{"samples": 77}')

    resume_nano(first, runs)
    export_nano(runs, second)

    weights = [path.relative_to(first) for path in first.rglob("*.safetensors")]
    tokenizer = [path.relative_to(first) for path in (first / "tokenizer").iterdir()]
    assert (len(weights), len(tokenizer)) == (4, 2)
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in weights + tokenizer)
    assert json.loads((second / TRAINING).read_text()) == {"samples": 77}
    _, saved = load_nano(runs)
    assert saved is not None
    assert saved["samples"] == 77
    assert load_codec(runs).std.flatten().tolist() == [2.0] * z
    assert load_tokenizer(runs)("a red star").input_ids == build_tokenizer()("a red star").input_ids
    with pytest.raises(FileExistsError, match="go on from it"):
        resume_nano(first, runs)


def write_filled(folder: Path, value: float, monkeypatch: pytest.MonkeyPatch, layers: int) -> None:
    """Write a model of some blocks, whose last map is filled with a value."""
    monkeypatch.setattr(components, "LAYERS", layers)
    nano, vae = Nano(), build_autoencoder()
    torch.nn.init.constant_(nano.transformer.proj_out.weight, value)
    vae.register_to_config(latents_mean=[0.0] * vae.config.z_dim, latents_std=[1.0] * vae.config.z_dim)
    write_checkpoint(folder, nano, vae, build_tokenizer())
    (folder / TRAINING).write_text('{"samples": 77}')


def test_a_model_is_given_more_blocks_that_change_nothing_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was learnt stays, and what the new blocks add to the tokens is nothing."""
    write_filled(tmp_path / "model", 0.5, monkeypatch, LAYERS)
    monkeypatch.setattr(components, "LAYERS", LAYERS + 1)

    resume_nano(tmp_path / "model", tmp_path / "runs")
    transformer = load_nano(tmp_path / "runs")[0].transformer

    assert (transformer.proj_out.weight == 0.5).all()
    assert len(transformer.blocks) == LAYERS + 1
    added = transformer.blocks[-1]
    assert not any(last.weight.any() for last in (added.attn1.to_out[0], added.attn2.to_out[0], added.ffn.net[2]))


def test_another_config_is_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More blocks than nano has would be lost without a word."""
    write_filled(tmp_path / "model", 0.5, monkeypatch, LAYERS + 1)
    monkeypatch.setattr(components, "LAYERS", LAYERS)

    with pytest.raises(RuntimeError, match="Unexpected key"):
        resume_nano(tmp_path / "model", tmp_path / "runs")


def test_other_experts_are_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model lacks within its own blocks is not made up."""
    monkeypatch.setattr(components, "EXPERT_BLOCKS", components.EXPERT_BLOCKS[:-1])
    write_filled(tmp_path / "model", 0.5, monkeypatch, LAYERS)
    monkeypatch.setattr(components, "EXPERT_BLOCKS", (*components.EXPERT_BLOCKS, len(components.EXPERT_BLOCKS)))

    with pytest.raises(RuntimeError, match="Missing key"):
        resume_nano(tmp_path / "model", tmp_path / "runs")


def test_weights_so_far_are_kept_in_a_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of 4 and three quarters of 8 are 7, also where the newest model has one block more."""
    write_filled(tmp_path / "newest", 8.0, monkeypatch, LAYERS + 1)
    resume_nano(tmp_path / "newest", tmp_path / "runs")
    write_filled(tmp_path / "model", 4.0, monkeypatch, LAYERS)
    monkeypatch.setattr(components, "LAYERS", LAYERS + 1)

    export_nano(tmp_path / "runs", tmp_path / "model", kept=0.25)

    assert (load_weights(tmp_path / "model")["transformer.proj_out.weight"] == 7).all()
