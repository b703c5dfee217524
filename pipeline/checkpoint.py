"""A checkpoint folder in the released layout -> the components of a pipeline, loaded strictly.

`DiffusionPipeline.from_pretrained` cannot read the released folder: its `model_index.json` names classes that only the
reference implementation's fork has. And stock `WanTransformer3DModel` reads it with a warning and without the expert.
So the parts are loaded one by one, by their folder, and every missing or surplus tensor is an error.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLWan
from transformers import CLIPVisionModel, T5TokenizerFast, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline import hub
from pipeline.errors import ModelError
from pipeline.models import read_index
from pipeline.spec import OWN_FIELDS
from pipeline.store import HubModel
from pipeline.transformer import VideoAsPromptTransformer3DModel

FOLDERS = hub.FOLDERS
OPTIONS = ("render_size", *OWN_FIELDS)  # what our own checkpoints add to model_index.json

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

    Raises ModelError when it is neither; see `store.HubModel` for what else can go wrong.
    """
    if Path(location).is_dir():
        return Path(location)
    if str(location).count("/") != 1:
        message = f"“{location}” is neither a folder here nor a repository of the hub; check its name."
        raise ModelError(message, "model")
    repository = hub.Repository(str(location), token, offline=local_files_only)
    return HubModel(repository, revision, Path(cache_dir) if cache_dir else None).fetch()


def load_components(
    folder: Path,
    dtype: torch.dtype,
    given: dict[str, Any] | None = None,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Load all parts of a checkpoint, with the number formats of the reference implementation.

    dtype: of the text encoder and the transformer (whose norms and time embedders stay float32); VAE and CLIP are
        always float32.
    given: parts to use as they are instead of loading them.
    on_part: told before each part how many are done, of how many.
    Raises ModelError, naming the tensors, when a part is missing, not whole, or holds what its class does not know.
    """
    given = given or {}
    options = read_index(folder)
    parts = {}
    for number, name in enumerate(FOLDERS):
        on_part(number, len(FOLDERS))
        parts[name] = given[name] if name in given else _load_part(folder, name, dtype)
    return parts | {name: options[name] for name in OPTIONS if name in options}


def load_transformer(folder: Path, dtype: torch.dtype, quantization: Any) -> VideoAsPromptTransformer3DModel:
    """Load the transformer alone, as strictly. quantization: diffusers' configuration for it; None: as `dtype` says."""
    return _load_part(folder, "transformer", dtype, quantization_config=quantization)


def _load_part(folder: Path, name: str, dtype: torch.dtype, **options: Any) -> Any:
    if not (folder / name).is_dir():
        raise ModelError(f"{folder} has no folder “{name}”; fetch the model again.", "model")
    try:
        return _LOADERS[name](folder, dtype, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"The model's {name} could not be loaded from {folder / name}: {error}", "model") from error


def _load_whole(model_class: Any, folder: Path, part: str, dtype: torch.dtype, **options: Any) -> Any:
    model, info = model_class.from_pretrained(folder, subfolder=part, dtype=dtype, output_loading_info=True, **options)
    _require_whole(part, model, info)
    return model


def _load_transformer(folder: Path, dtype: torch.dtype, **options: Any) -> VideoAsPromptTransformer3DModel:
    return _load_whole(VideoAsPromptTransformer3DModel, folder, "transformer", dtype, **options)


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
