"""LoRAs on the base transformer: read from diffusers' or lightx2v's format, checked, put on, taken off.

The reference expert has weights of its own that no LoRA was made for; it stays as it is.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import InvalidInputError
from pipeline.lora_shelf import LoraFile

ADAPTER = "lora"  # what peft knows the one that is on by
PREFIX = "transformer."
DOWN, UP, BIAS = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"
WHOLE_CHANGES = (".diff", ".diff_b", ".diff_m")  # in lightx2v's format: of norms and others that have no low rank


def put_on(pipe: Any, lora: LoraFile) -> list[str]:
    """Put a LoRA on a pipeline that has none, at full strength. Its weights lie where the transformer's do.

    Gives the names of what the file would change but diffusers leaves out: changes of whole weights, such as norms.
    Raises InvalidInputError, naming the file, when it cannot be read, or has anything that fits no layer.
    """
    weights, metadata, left_out = read_lora(pipe, lora)
    transformer = pipe.transformer
    dtype = transformer.dtype  # what it computes in
    pipe.load_lora_into_transformer(weights, transformer, ADAPTER, metadata=metadata, low_cpu_mem_usage=True)
    parameters = dict(transformer.named_parameters())
    for key, value in weights.items():
        # Once more, from the file: peft took them through the type that the layer's weights are stored in, and where
        # that is 8 bits, most of them are lost.
        layer, kind = key.removeprefix(PREFIX).rsplit(".", 1)
        parameters[f"{layer}.{ADAPTER}.{kind}"].data = value.to(transformer.device, dtype)
    return left_out


def take_off(pipe: Any) -> None:
    """Remove the LoRA, and with it all it took; nothing of it stays."""
    pipe.unload_lora_weights()


def set_strength(pipe: Any, strength: float) -> None:
    """Let the LoRA that is on act with a strength, 0 to 2."""
    pipe.set_adapters(ADAPTER, strength)


def read_lora(pipe: Any, lora: LoraFile) -> tuple[dict[str, Tensor], dict[str, Any] | None, list[str]]:
    """Read a file and check it against the transformer: weights by diffusers' keys, its metadata, what is left out.

    Raises InvalidInputError as `put_on` does.
    """
    try:
        stored = load_file(lora.path)
    except (OSError, SafetensorError) as error:
        raise _refuse(lora, "is damaged or no safetensors file; fetch it again") from error
    if any("dora_scale" in key for key in stored):
        raise _refuse(lora, "is a DoRA, which is not supported")
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # what it would say of keys is told below, as an error
    try:
        weights, metadata = pipe.lora_state_dict(
            str(lora.path), use_safetensors=True, local_files_only=True, return_lora_metadata=True
        )
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise _refuse(lora, "is in no format of LoRAs for this model") from error
    finally:
        diffusers_logging.set_verbosity(verbosity)
    _check_layers(lora, weights, pipe.transformer)
    return _with_all_biases(weights), metadata, _find_left_out(stored, weights)


def _check_layers(lora: LoraFile, weights: Mapping[str, Tensor], transformer: torch.nn.Module) -> None:
    """Require that every weight belongs to a layer, and fits it, and that no layer has one half only."""
    layers = dict(transformer.named_modules())
    unknown, misshapen = [], []
    for key, value in weights.items():
        name, part = _split(key)
        layer = getattr(layers.get(name), "base_layer", layers.get(name))
        weight = getattr(layer, "weight", None)
        if not key.startswith(PREFIX) or part is None or not isinstance(weight, Tensor) or weight.ndim < 2:
            unknown.append(key)
        elif not _fits(part, value, weight):
            misshapen.append(key)
    halves = {_split(key)[0] for key in weights if _other_half(key) not in weights}
    for keys, fault in (
        (unknown, "changes what this model does not have"),
        (misshapen, "was made for a model of another size"),
        (halves, "lacks a part of what it changes"),
    ):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise _refuse(lora, f"{fault} ({', '.join(sorted(keys)[:3])}{more})")
    if not weights:
        raise _refuse(lora, "changes nothing")


def _split(key: str) -> tuple[str, str | None]:
    """Give a layer's name and which part of its LoRA a key is; None for what we know nothing of."""
    name = key.removeprefix(PREFIX)
    part = next((part for part in (DOWN, UP, BIAS) if name.endswith(part)), None)
    return name.removesuffix(part or ""), part


def _other_half(key: str) -> str:
    return key.removesuffix(DOWN) + UP if key.endswith(DOWN) else key.removesuffix(UP).removesuffix(BIAS) + DOWN


def _fits(part: str, value: Tensor, weight: Tensor) -> bool:
    if part == BIAS:
        return value.shape == weight.shape[:1]
    along = 1 if part == DOWN else 0
    return value.ndim == weight.ndim and value.shape[along] == weight.shape[along]


def _find_left_out(stored: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Give the changes of whole weights that are not zero and that diffusers did not take, by the file's names."""
    taken = {_recognise(value) for value in weights.values()}
    changes = {key: value for key, value in stored.items() if key.endswith(WHOLE_CHANGES) and value.any()}
    return sorted(key for key, value in changes.items() if _recognise(value) not in taken)


def _recognise(value: Tensor) -> tuple[tuple[int, ...], float, float]:
    numbers = value.float()
    return tuple(value.shape), float(numbers.sum()), float(numbers.abs().sum())


def _with_all_biases(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add zeros where one layer changes its bias and another does not: peft knows all or none."""
    if not any(key.endswith(BIAS) for key in weights):
        return weights
    ups = {key: value for key, value in weights.items() if key.endswith(UP)}
    zeros = {key.removesuffix(UP) + BIAS: value.new_zeros(len(value)) for key, value in ups.items()}
    return zeros | weights


def _refuse(lora: LoraFile, fault: str) -> InvalidInputError:
    return InvalidInputError("lora", f"The LoRA “{lora.name}” {fault}.")
