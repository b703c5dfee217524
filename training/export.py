"""Writes nano as a checkpoint folder in the released layout, whole or not at all, and takes one up to train it on."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from torch import Tensor
from transformers import CLIPVisionModel, T5TokenizerFast, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.transformer import VideoAsPromptTransformer3DModel
from training.autoencoder import build_autoencoder
from training.components import IMAGE_SIZE
from training.denoiser import Nano, load_nano, load_tokenizer
from training.samples import LONG_SIDE, SHORT_SIDE
from training.sittings import save_checkpoint

TRAINING = "training.json"  # how far the training has come
FLOW_SHIFT = 5.0
# tell as many effects apart as six guided steps, two at a time a little fewer: see the model card
NUM_INFERENCE_STEPS = 2
GUIDANCE_SCALE = 1.0
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
    "guidance_scale": GUIDANCE_SCALE,
}


def export_nano(runs: Path, folder: Path, kept: float = 0.0) -> None:
    """Write the newest model to a folder, replacing what the folder held of it; the model card stays.

    kept: the share, 0 to 1, of the weights that the folder held in a mean with the newest (arXiv:2203.05482), which
    forgets less of what was learnt before. Blocks that those did not have, and the autoencoder, are the newest alone.
    """
    nano, saved = load_nano(runs, averaged=True)
    if kept:
        held, weights = load_weights(folder), nano.state_dict()
        nano.load_state_dict(weights | {name: weights[name].lerp(held[name], kept) for name in held})
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    write_checkpoint(part, nano, load_autoencoder(runs), load_tokenizer(runs))
    (part / TRAINING).write_text(json.dumps({"samples": saved["samples"] if saved else 0}) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    for new in sorted(part.iterdir(), key=lambda path: path.is_file()):  # the index comes last
        old = folder / new.name
        if old.is_dir():
            shutil.rmtree(old)
        new.replace(old)
    part.rmdir()


def resume_nano(folder: Path, runs: Path) -> None:
    """Write the checkpoints from which training goes on with a model that `export_nano` wrote.

    What only helps to train is not in the model and starts anew: the optimizers and the reader. Blocks that nano has
    been given since, behind those that the model has, begin as new ones do and change nothing yet.
    Raises FileExistsError if there are checkpoints already, FileNotFoundError if the folder does not tell its samples.
    """
    taken = next((path for path in (runs / "autoencoder.pt", runs / "denoiser.pt") if path.exists()), None)
    if taken is not None:
        raise FileExistsError(f"{taken} is there already; go on from it, or give another folder with --runs.")
    samples = json.loads((folder / TRAINING).read_text())["samples"]
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    statistics = {
        name: torch.tensor(getattr(vae.config, f"latents_{name}")).view(-1, 1, 1, 1) for name in ("mean", "std")
    }
    nano, held = Nano(), load_weights(folder)
    count = 1 + max(_block_of(name) for name in held)
    weights = {name: weight for name, weight in nano.state_dict().items() if _block_of(name) >= count} | held
    nano.load_state_dict(weights)  # tells at once if these are another config's
    runs.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / "tokenizer", runs / "tokenizer", dirs_exist_ok=True)
    save_checkpoint(runs / "latents.pt", **statistics)
    save_checkpoint(runs / "autoencoder.pt", vae=vae.state_dict(), step=0, decoder_only=True)
    save_checkpoint(runs / "denoiser.pt", samples=samples, nano=weights, average=weights)


def _block_of(name: str) -> int:
    """Give the number of the transformer's block that a weight of `Nano` is in; -1: in none."""
    _, found, rest = name.partition("transformer.blocks.")
    return int(rest.split(".")[0]) if found else -1


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Give what `Nano` holds, float32, of a model that `export_nano` wrote."""
    parts = {
        "transformer": VideoAsPromptTransformer3DModel.from_pretrained(
            folder / "transformer", torch_dtype=torch.float32
        ),
        "text_encoder": UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        "image_encoder": CLIPVisionModel.from_pretrained(folder / "image_encoder", dtype=torch.float32),
    }
    return {f"{part}.{name}": weight for part, model in parts.items() for name, weight in model.state_dict().items()}


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
    for name in ("is_local", "local_files_only"):  # where it was read from is nobody's business
        tokenizer.init_kwargs.pop(name, None)
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
