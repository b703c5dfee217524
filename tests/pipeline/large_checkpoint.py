"""A checkpoint in the released layout of a size one can measure, and a fresh process that loads it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from pipeline import VideoAsPromptTransformer3DModel
from tests.pipeline.conftest import GOLDEN

SHARD_BYTES = 64 * 2**20
WIDTH = {"num_attention_heads": 8, "attention_head_dim": 128, "ffn_dim": 4096, "added_kv_proj_dim": 1024}
TEXT = {"d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 2048, "num_layers": 4, "vocab_size": 32000}

# What the fresh process does: all it imports is in memory before, so that the rest is the model. A first touch of
# every weight brings in those that are only mapped from their file.
LOAD = """
import json, sys, time
from pathlib import Path
import pipeline.checkpoint as checkpoint
import diffusers.utils, torch

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

checkpoint.load_components(Path(sys.argv[1]), torch.float32)
before, before_anonymous, began = memory("VmRSS"), memory("RssAnon"), time.perf_counter()
Path("/proc/self/clear_refs").write_text("5")
parts = checkpoint.load_components(Path(sys.argv[2]), getattr(torch, sys.argv[3]))
seconds = time.perf_counter() - began
models = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
weights = [weight for model in models for weight in (*model.parameters(), *model.buffers())]
for weight in weights:
    weight.sum()
print(json.dumps({
    "weights_bytes": sum(weight.nbytes for weight in weights),
    "peak_bytes": memory("VmHWM") - before,
    "anonymous_bytes": memory("RssAnon") - before_anonymous,
    "seconds": seconds,
    "is_parallel": diffusers.utils.HF_ENABLE_PARALLEL_LOADING,
}))
"""


@dataclass(frozen=True)
class Loading:
    """What a fresh process needed.

    peak_bytes: resident memory at its highest, mapped files included, above that before the loading. anonymous_bytes:
    what of it no file holds, at the end.
    """

    weights_bytes: int
    peak_bytes: int
    anonymous_bytes: int
    seconds: float
    is_parallel: bool


def write_checkpoint(folder: Path, num_layers: int, dtype: torch.dtype) -> Path:
    """Write random weights; each layer is 38 MB in bfloat16, and 3 more such in every fourth for its expert's."""
    shutil.copytree(GOLDEN / "tiny_vap", folder)
    _write_transformer(folder / "transformer", num_layers, dtype)
    _write_text_encoder(folder / "text_encoder", dtype)
    return folder


def load_in_a_fresh_process(folder: Path, dtype: str, **environment: str) -> Loading:
    """Load a checkpoint and tell what it took."""
    command = [sys.executable, "-c", LOAD, str(GOLDEN / "tiny_vap"), str(folder), dtype]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Loading(**json.loads(done.stdout))


def _write_transformer(folder: Path, num_layers: int, dtype: torch.dtype) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= WIDTH | {"num_layers": num_layers, "block_idx_with_mot_ref": list(range(0, num_layers, 4))}
    shutil.rmtree(folder)
    with init_empty_weights():
        model = VideoAsPromptTransformer3DModel.from_config(config)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    _write_shards(folder, model, dtype)


def _write_text_encoder(folder: Path, dtype: torch.dtype) -> None:
    config = UMT5Config(**json.loads((folder / "config.json").read_text()) | TEXT)
    with init_empty_weights():
        model = UMT5EncoderModel(config)
    config.save_pretrained(folder)
    weights = _draw(model, dtype)
    weights.pop("encoder.embed_tokens.weight", None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _draw(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: torch.rand(weight.shape).to(dtype) for name, weight in model.state_dict().items()}


def _write_shards(folder: Path, model: nn.Module, dtype: torch.dtype) -> None:
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, weight in _draw(model, dtype).items():
        if sum(each.nbytes for each in shards[-1].values()) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = weight
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"diffusion_pytorch_model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    total = sum(weight.nbytes for shard in shards for weight in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
