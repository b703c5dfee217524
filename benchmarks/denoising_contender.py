"""One contender of `benchmarks.denoising`, in a process of its own; see there."""

import ctypes
import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.live_memory import bytes_read

LAYERS, TEXT_DIM, IMAGE_DIM, FREQ_DIM = 40, 4096, 1280, 256
EXPERTS = list(range(0, LAYERS, 4))
GUIDANCE = 5.0
TEXT_ROWS = {"positive": 31, "negative": 126}  # tokens of an ordinary prompt, and of the default negative one


@dataclass(frozen=True)
class Network:
    """What the loop runs on. folder: of weights.safetensors, or of shapes.json for weights on the meta device."""

    heads: int
    ffn_dim: int
    latent_shape: tuple[int, ...]
    folder: Path | None = None

    @property
    def width(self) -> int:
        """Give the length of a token."""
        return self.heads * 128

    @property
    def config(self) -> dict[str, Any]:
        """Give the transformer's configuration."""
        return {
            "num_attention_heads": self.heads,
            "attention_head_dim": 128,
            "in_channels": 36,
            "out_channels": 16,
            "text_dim": TEXT_DIM,
            "freq_dim": FREQ_DIM,
            "ffn_dim": self.ffn_dim,
            "num_layers": LAYERS,
            "image_dim": IMAGE_DIM,
            "added_kv_proj_dim": self.width,
            "block_idx_with_mot_ref": EXPERTS,
        }

    def build(self) -> Any:
        """Give the project's own network on the meta device."""
        from pipeline.transformer import VideoAsPromptTransformer3DModel

        with torch.device("meta"):
            return VideoAsPromptTransformer3DModel(**self.config)

    def load(self, dtype: torch.dtype, kept: Sequence[str] = ()) -> dict[str, Tensor]:
        """Give the weights in their final types; those with one of the kept names in their path are float32.

        Read into memory: left mapped, their pages would count as the loop's when it first reads them; converted later,
        they would leave the heap full of holes, of which the loop would take one after the other.
        """

        def own(name: str) -> torch.dtype:
            return torch.float32 if set(name.split(".")) & set(kept) else dtype

        assert self.folder is not None
        if (shapes := self.folder / "shapes.json").exists():
            sizes = json.loads(shapes.read_text())
            return {name: torch.empty(size, dtype=own(name), device="meta") for name, size in sizes.items()}
        with safe_open(self.folder / "weights.safetensors", "pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name).to(own(name), copy=True) for name in names}


TWIN = Network(heads=3, ffn_dim=1040, latent_shape=(1, 16, 13, 18, 26))  # 49 frames of 144 x 208
# predict(step index, latents) -> velocities of both branches, (2, z, T, h, w)
Predict = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Loop:
    """One implementation, loaded. begin(steps): prepares a request. weights: all it has loaded."""

    begin: Callable[[int], Predict]
    weights: list[Tensor]


def write(folder: Path) -> None:
    """Write weights and inputs that all contenders share."""
    from pipeline.transformer import VideoAsPromptTransformer3DModel

    torch.manual_seed(0)
    model = VideoAsPromptTransformer3DModel(**TWIN.config)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    save_file(draw_inputs(TWIN), folder / "inputs.safetensors")


def draw_inputs(network: Network) -> dict[str, Tensor]:
    """Give all that a network is given, at random."""
    inputs = {
        "noise": torch.randn(network.latent_shape),
        "condition": torch.randn(1, 20, *network.latent_shape[2:]),
        "reference": torch.randn(1, 36, *network.latent_shape[2:]),
        "image": torch.randn(1, 257, IMAGE_DIM),
        "reference_image": torch.randn(1, 257, IMAGE_DIM),
    }
    for branch, rows in TEXT_ROWS.items():
        for stream in ("target", "reference"):
            inputs[f"{branch}_{stream}"] = torch.randn(1, rows, TEXT_DIM)
    return inputs


def pad(text: Tensor) -> Tensor:
    """Fill a text (1, n, dim) up to 512 rows with zeros."""
    return torch.nn.functional.pad(text, (0, 0, 0, 512 - text.shape[1]))


def sigmas(steps: int) -> list[float]:
    """Give an even schedule from 1 to 0."""
    return [1 - index / steps for index in range(steps + 1)]


def timesteps(steps: int) -> Tensor:
    """Give the timesteps of a schedule."""
    return torch.tensor([sigma * 1000 for sigma in sigmas(steps)[:-1]])


def build_studio(network: Network, inputs: dict[str, Tensor], dtype: torch.dtype, split: bool = False) -> Loop:
    """Give the project's own network. split: with one guidance branch after the other."""
    from pipeline.conditioning import Conditions, Texts, TextStates
    from pipeline.denoise import prepare_request
    from pipeline.joint_attention import fold_padding

    model = network.build()
    model.load_state_dict(network.load(dtype, model._keep_in_fp32_modules), assign=True)
    model.eval().requires_grad_(False)

    def texts(branch: str) -> Texts:
        return Texts(
            *(TextStates(*fold_padding(inputs[f"{branch}_{stream}"], 512)) for stream in ("target", "reference"))
        )

    conditions = Conditions(
        texts("positive"),
        texts("negative"),
        inputs["image"],
        inputs["reference_image"],
        inputs["condition"],
        inputs["reference"],
    )

    def begin(steps: int) -> Predict:
        request = prepare_request(model, conditions, timesteps(steps), inputs["noise"])
        branches = [request.branch(0), request.branch(1)] if split else [request]

        def predict(index: int, latents: Tensor) -> Tensor:
            model_input = torch.cat([latents, inputs["condition"]], dim=1).to(dtype)
            return torch.cat([model(model_input, request.times.at(index), branch) for branch in branches])

        return predict

    return Loop(begin, [*model.parameters()])


def build_reference(network: Network, inputs: dict[str, Tensor], dtype: torch.dtype) -> Loop:
    """Give the reference implementation's network, out of its own diffusers."""
    module = importlib.import_module("diffusers.models.transformers.transformer_wan_mot")
    with torch.device("meta"):
        model = module.WanTransformer3DMOTModel(**network.config)
    kept = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
    model.load_state_dict(network.load(dtype, kept), assign=True)
    # its rotary table is no buffer, so it was made on the meta device as well
    model.rope = type(model.rope)(128, model.config.patch_size, model.config.rope_max_seq_len)
    model.eval().requires_grad_(False)
    given = {name: tensor.to(dtype) for name, tensor in inputs.items()}

    def begin(steps: int) -> Predict:
        times = timesteps(steps)

        def predict(index: int, latents: Tensor) -> Tensor:
            model_input = torch.cat([latents, inputs["condition"]], dim=1).to(dtype)
            return torch.cat(
                [
                    model(
                        hidden_states=model_input,
                        timestep=times[index : index + 1],
                        encoder_hidden_states=pad(given[f"{branch}_target"]),
                        encoder_hidden_states_image=given["image"],
                        hidden_states_mot_ref=given["reference"],
                        timestep_list_mot_ref=[torch.ones(1)],
                        encoder_hidden_states_mot_ref=pad(given[f"{branch}_reference"]),
                        encoder_hidden_states_image_mot_ref=given["reference_image"],
                        return_dict=False,
                    )[0]
                    for branch in TEXT_ROWS
                ]
            )

        return predict

    return Loop(begin, [*model.parameters()])


def build_diffsynth(network: Network, inputs: dict[str, Tensor], dtype: torch.dtype) -> Loop:
    """Give DiffSynth-Studio's network."""
    pipeline = import_with_stand_ins("diffsynth.pipelines.wan_video")
    converters = "diffsynth.utils.state_dict_converters.wan_video_"
    weights = network.load(dtype)
    base = {name: weight for name, weight in weights.items() if "_mot_ref" not in name}
    sizes = {"dim": network.width, "num_heads": network.heads, "ffn_dim": network.ffn_dim}
    sizes |= {"freq_dim": FREQ_DIM, "text_dim": TEXT_DIM}
    convert = importlib.import_module(converters + "dit").WanVideoDiTFromDiffusers
    with init_empty_weights(include_buffers=False):  # it computes its rotary tables here
        dit = pipeline.WanModel(
            in_dim=36, out_dim=16, eps=1e-6, patch_size=(1, 2, 2), num_layers=LAYERS, has_image_input=True, **sizes
        )
        expert = pipeline.MotWanModel(mot_layers=tuple(EXPERTS), **sizes)
    dit.load_state_dict(convert(base), assign=True)
    convert = importlib.import_module(converters + "mot").WanVideoMotStateDictConverter
    expert_weights = {name: weight for name, weight in weights.items() if "_mot_ref" in name}
    expert.load_state_dict(convert(expert_weights), assign=True)
    for model in (dit, expert):
        model.eval().requires_grad_(False)
    given = {name: tensor.to(dtype) for name, tensor in inputs.items()}

    def begin(steps: int) -> Predict:
        times = timesteps(steps)

        def predict(index: int, latents: Tensor) -> Tensor:
            return torch.cat(
                [
                    pipeline.model_fn_wan_video(
                        dit,
                        vap=expert,
                        latents=latents.to(dtype),
                        timestep=times[index : index + 1].to(dtype),
                        context=pad(given[f"{branch}_target"]),
                        clip_feature=given["image"],
                        y=given["condition"],
                        vap_hidden_state=given["reference"],
                        vap_clip_feature=given["reference_image"],
                        context_vap=pad(given[f"{branch}_reference"]),
                    )
                    for branch in TEXT_ROWS
                ]
            )

        return predict

    return Loop(begin, [*dit.parameters(), *expert.parameters()])


BUILDERS = {
    "studio": build_studio,
    "split": partial(build_studio, split=True),  # with one guidance branch after the other, as on small cards
    "reference": build_reference,
    "diffsynth": build_diffsynth,
}


def import_with_stand_ins(name: str) -> Any:
    """Import a module; packages that it wants and that are missing (for video files and downloads) stay empty."""
    import transformers

    # while torchvision is still known to be missing; a stand-in for it would mislead transformers' lazy imports
    _ = transformers.Wav2Vec2Processor
    while True:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = str(error.name)
            if missing in sys.modules or error.name is None or missing.startswith(("diffsynth", "einops")):
                raise
            sys.modules[missing] = MagicMock(__path__=[], __spec__=ModuleSpec(missing, None))


@torch.no_grad()
def count_weights(loop: Loop, noise: Tensor) -> int:
    """Give the size of the weights that a step reads, once all is prepared."""
    predict = loop.begin(1)
    return bytes_read(loop.weights, lambda: predict(0, noise))


@torch.no_grad()
def run(begin: Callable[[int], Predict], noise: Tensor, steps: int) -> Tensor:
    """Run the whole loop: preparation, and guided Euler steps."""
    latents, levels = noise, sigmas(steps)
    predict = begin(steps)
    for index in range(steps):
        positive, negative = predict(index, latents).float().chunk(2)
        velocity = negative + GUIDANCE * (positive - negative)
        latents = latents + (levels[index + 1] - levels[index]) * velocity
    return latents


def resident_mb(peak: bool) -> float:
    """Give the process's memory, or its peak since `reset_peak`, in MB (Linux)."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(wanted))


def return_freed_memory() -> None:
    """Give the system back what loading has freed, or the loop would take its first memory from there (glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    """Let the peak begin anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Build the contender that was asked for; then run the loop for every line on standard input."""
    name, folder, output, dtype_name, steps = sys.argv[1:]
    torch.set_num_threads(1)
    if name == "write":
        write(Path(folder))
        return
    network = replace(TWIN, folder=Path(folder))
    inputs = load_file(Path(folder) / "inputs.safetensors")
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not mix with the answers
    loop = BUILDERS[name](network, inputs, getattr(torch, dtype_name))
    return_freed_memory()
    loaded = resident_mb(peak=False)
    print(json.dumps({"weights_mb": count_weights(loop, inputs["noise"]) / 2**20}), file=answers, flush=True)
    for _ in sys.stdin:
        return_freed_memory()  # of the round before, or it would count as this one's
        reset_peak()
        began = time.process_time()
        latents = run(loop.begin, inputs["noise"], int(steps))
        figures = {"cpu_s": time.process_time() - began, "peak_mb": resident_mb(peak=True) - loaded}
        torch.save(latents, output)
        print(json.dumps(figures), file=answers, flush=True)


if __name__ == "__main__":
    main()
