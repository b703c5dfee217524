"""Writes nano as a checkpoint folder in the released layout, whole or not at all."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from transformers import T5TokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from training.autoencoder import build_autoencoder
from training.components import IMAGE_SIZE, build_tokenizer
from training.denoiser import Nano, load_nano
from training.samples import LONG_SIDE, SHORT_SIDE

FLOW_SHIFT = 5.0
NUM_INFERENCE_STEPS = 12
# the names the released 14B carries; the first two exist in its own fork only
MODEL_INDEX = {
    "_class_name": "WanImageToVideoMOTPipeline",
    "_diffusers_version": "0.42.1",
    "image_encoder": ["transformers", "CLIPVisionModel"],
    "image_processor": ["transformers", "CLIPImageProcessor"],
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DMOTModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
    "render_size": [SHORT_SIDE, LONG_SIDE],
    "num_inference_steps": NUM_INFERENCE_STEPS,
}


def export_nano(runs: Path, folder: Path) -> None:
    """Write the newest model to a folder, replacing what the folder held of it; the model card stays."""
    nano, _ = load_nano(runs, averaged=True)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    write_checkpoint(part, nano, load_autoencoder(runs), build_tokenizer())
    folder.mkdir(parents=True, exist_ok=True)
    for new in sorted(part.iterdir(), key=lambda path: path.is_file()):  # the index comes last
        old = folder / new.name
        if old.is_dir():
            shutil.rmtree(old)
        new.replace(old)
    part.rmdir()


def load_autoencoder(runs: Path) -> AutoencoderKLWan:
    """Load the autoencoder with its latents' statistics in its config."""
    vae = build_autoencoder()
    vae.load_state_dict(torch.load(runs / "autoencoder.pt")["vae"])
    statistics = torch.load(runs / "latents.pt")
    vae.register_to_config(
        latents_mean=statistics["mean"].flatten().tolist(), latents_std=statistics["std"].flatten().tolist()
    )
    return vae


def write_checkpoint(folder: Path, nano: Nano, vae: AutoencoderKLWan, tokenizer: T5TokenizerFast) -> None:
    """Write all parts to a new folder, weights in bfloat16."""
    nano.transformer.to(torch.bfloat16).save_pretrained(folder / "transformer")
    _edit_json(folder / "transformer" / "config.json", {"_class_name": "WanTransformer3DMOTModel"})
    vae.to(torch.bfloat16).save_pretrained(folder / "vae")
    nano.text_encoder.to(torch.bfloat16).save_pretrained(folder / "text_encoder")
    nano.image_encoder.to(torch.bfloat16).save_pretrained(folder / "image_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    ).save_pretrained(folder / "image_processor")
    _edit_json(folder / "image_processor" / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"})
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT
    ).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")


def _edit_json(path: Path, changes: dict[str, str]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2) + "\n")
