"""An exported model is a checkpoint in the released layout, loaded by the pipeline like the 14B."""

import json
from pathlib import Path

import torch
from PIL import Image

from pipeline import VideoAsPromptPipeline
from training.autoencoder import build_autoencoder
from training.components import build_tokenizer
from training.denoiser import Nano
from training.export import write_checkpoint


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
