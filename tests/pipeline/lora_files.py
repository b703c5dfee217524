"""LoRAs for the tiny checkpoint, in the formats people have them in."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

DIM, RANK = 48, 4
# Layers of the tiny checkpoint by diffusers' names, and by those of lightx2v's files.
LAYERS = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_v": "self_attn.v",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
}


def make_halves(layer: str, block: int) -> tuple[Tensor, Tensor]:
    """Give a layer's two halves, (RANK, DIM) and (DIM, RANK), always the same."""
    generator = torch.Generator().manual_seed(list(LAYERS).index(layer) * 10 + block)
    down, up = torch.randn(RANK, DIM, generator=generator), torch.randn(DIM, RANK, generator=generator)
    return down * 0.3, up * 0.3


def diffusers_weights() -> dict[str, Tensor]:
    weights = {}
    for layer in LAYERS:
        for block in range(2):
            down, up = make_halves(layer, block)
            weights[f"transformer.blocks.{block}.{layer}.lora_A.weight"] = down
            weights[f"transformer.blocks.{block}.{layer}.lora_B.weight"] = up
    return weights


def lightx2v_weights() -> dict[str, Tensor]:
    """The same LoRA under lightx2v's names."""
    weights = {}
    for layer, name in LAYERS.items():
        for block in range(2):
            down, up = make_halves(layer, block)
            weights[f"diffusion_model.blocks.{block}.{name}.lora_down.weight"] = down
            weights[f"diffusion_model.blocks.{block}.{name}.lora_up.weight"] = up
    return weights


def write_lora(path: Path, weights: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: value.contiguous() for key, value in weights.items()}, path, metadata)
    return path
