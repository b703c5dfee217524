"""A checkpoint folder in the released layout -> the components of a pipeline, loaded strictly.

`DiffusionPipeline.from_pretrained` cannot read the released folder: its `model_index.json` names classes that only the
reference implementation's fork has. And stock `WanTransformer3DModel` reads it with a warning and without the expert.
So the parts are loaded one by one, by their folder, and every missing or surplus tensor is an error.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLWan
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import CLIPVisionModel, T5TokenizerFast, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.errors import ModelError
from pipeline.transformer import VideoAsPromptTransformer3DModel

FOLDERS = ("transformer", "vae", "text_encoder", "tokenizer", "image_encoder", "image_processor", "scheduler")
OPTIONS = ("render_size", "num_inference_steps")  # what our own checkpoints add to model_index.json

# Stored by some exporters of the base model, read by no Wan network.
IGNORED_KEY_PARTS = ("norm_added_q",)
# UMT5 keeps its one embedding under `shared`; the encoder's own name is an alias of it.
ALIASED_KEYS = frozenset({"encoder.embed_tokens.weight"})


def fetch_checkpoint(
    location: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Give the local folder of a checkpoint: a folder as it is, a hub repository downloaded.

    Raises ModelError when it is neither.
    """
    if Path(location).is_dir():
        return Path(location)
    patterns = ["model_index.json", *(f"{folder}/*" for folder in FOLDERS)]
    try:
        folder = snapshot_download(
            str(location),
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=patterns,
        )
    except RepositoryNotFoundError as error:
        raise ModelError(f"The hub has no model “{location}”; check its name.", "model") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        message = f"The model “{location}” is neither a folder here nor to be had from the hub right now."
        raise ModelError(message, "model") from error
    except ValueError as error:  # huggingface_hub's HFValidationError: not a repository's name
        raise ModelError(f"“{location}” is neither a folder nor a hub repository.", "model") from error
    return Path(folder)


def load_components(folder: Path, dtype: torch.dtype, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Load all parts of a checkpoint, with the number formats of the reference implementation.

    dtype: of the text encoder and the transformer (whose norms and time embedders stay float32); VAE and CLIP are
        always float32.
    given: parts to use as they are instead of loading them.
    Raises ModelError, naming the tensors, when a part is missing, not whole, or holds what its class does not know.
    """
    given = given or {}
    options = _read_model_index(folder)
    parts = {name: given[name] if name in given else _load_part(folder, name, dtype) for name in FOLDERS}
    return parts | {name: options[name] for name in OPTIONS if name in options}


def _read_model_index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} holds no model_index.json, so it is not a model folder.", "model") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON; fetch the model again.", "model") from error


def _load_part(folder: Path, name: str, dtype: torch.dtype) -> Any:
    if not (folder / name).is_dir():
        raise ModelError(f"{folder} has no folder “{name}”; fetch the model again.", "model")
    try:
        return _LOADERS[name](folder, dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"The model's {name} could not be loaded from {folder / name}: {error}", "model") from error


def _load_whole(model_class: Any, folder: Path, part: str, dtype: torch.dtype) -> Any:
    model, info = model_class.from_pretrained(folder, subfolder=part, dtype=dtype, output_loading_info=True)
    _require_whole(part, model, info)
    return model


def _load_transformer(folder: Path, dtype: torch.dtype) -> VideoAsPromptTransformer3DModel:
    return _load_whole(VideoAsPromptTransformer3DModel, folder, "transformer", dtype)


def _load_vae(folder: Path, dtype: torch.dtype) -> AutoencoderKLWan:
    return _load_whole(AutoencoderKLWan, folder, "vae", torch.float32)


def _load_text_encoder(folder: Path, dtype: torch.dtype) -> UMT5EncoderModel:
    model = _load_whole(UMT5EncoderModel, folder, "text_encoder", dtype)
    # Some versions of transformers leave the embedding at zero when only `shared` is stored (their issue 43880).
    if not model.get_input_embeddings().weight.any():
        raise ModelError("The text encoder's embedding came out empty; install the pinned transformers.", "model")
    return model


def _load_image_encoder(folder: Path, dtype: torch.dtype) -> CLIPVisionModel:
    return _load_whole(CLIPVisionModel, folder, "image_encoder", torch.float32)


def _load_tokenizer(folder: Path, dtype: torch.dtype) -> T5TokenizerFast:
    return T5TokenizerFast.from_pretrained(folder, subfolder="tokenizer")


def _load_image_processor(folder: Path, dtype: torch.dtype) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil.from_pretrained(folder, subfolder="image_processor")


def _load_scheduler(folder: Path, dtype: torch.dtype) -> Any:
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    scheduler_class = getattr(diffusers, config.get("_class_name", ""), None)
    if scheduler_class is None:
        raise ModelError(f"The model's scheduler “{config.get('_class_name')}” is not known to diffusers.", "model")
    return scheduler_class.from_config(config)


_LOADERS = {
    "transformer": _load_transformer,
    "vae": _load_vae,
    "text_encoder": _load_text_encoder,
    "tokenizer": _load_tokenizer,
    "image_encoder": _load_image_encoder,
    "image_processor": _load_image_processor,
    "scheduler": _load_scheduler,
}


def _require_whole(part: str, model: torch.nn.Module, info: dict[str, Any]) -> None:
    # diffusers believes a shard index: what that names but no shard holds is not reported, and stays without data.
    unfilled = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    missing = sorted(set(info["missing_keys"]) - ALIASED_KEYS | unfilled)
    surplus = sorted(key for key in info["unexpected_keys"] if not any(known in key for known in IGNORED_KEY_PARTS))
    misshapen = sorted(str(entry[0]) for entry in info["mismatched_keys"])
    faults = (("lacks", missing), ("has tensors it should not have:", surplus), ("has misshapen", misshapen))
    for verb, keys in faults:
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ModelError(f"The model's {part} {verb} {', '.join(keys[:3])}{more}; it is not this model.", "model")
