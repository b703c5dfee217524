"""Carrying out a plan: weights loaded in a profile's format, waiting where it says, and a run under it.

What runs where is diffusers' own doing; this module says which of its switches belong to a profile.
"""

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import BitsAndBytesConfig, ContextParallelConfig, TorchAoConfig
from diffusers.hooks import HookRegistry, apply_group_offloading
from torch import nn

from pipeline.errors import InvalidInputError, OutOfMemoryError, StudioError, is_out_of_memory
from pipeline.estimate import ModelShape, Workload
from pipeline.generate import GenerationResult, OnProgress, Progress, generate
from pipeline.hardware import Plan, Profile, spell_needs
from pipeline.lora_shelf import NO_LORAS, LoraFile, LoraShelf
from pipeline.loras import put_on, set_strength, take_off
from pipeline.machine import Machine, spell_bytes
from pipeline.planner import Measured, Planner
from pipeline.ranks import find_rank, is_parallel
from pipeline.spec import FRAME_STRIDE, GenerationSpec, limits

log = logging.getLogger(__name__)
# It warns of layers that were not called, and names them all. Those that no step needs are none to be fetched in time.
logging.getLogger("diffusers.hooks.group_offloading").setLevel(logging.ERROR)

# What is small, and what the results hang on, keeps its format: embedders, norms, the read-out.
KEPT_IN_FORMAT = ["patch_embedding", "patch_embedding_mot_ref", "condition_embedder", "condition_embedder_mot_ref"]
KEPT_IN_FORMAT += ["proj_out"]
MODELS = ("transformer", "text_encoder", "image_encoder", "vae")
GROUP_HOOKS = ("lazy_prefetch_group_offloading", "layer_execution_tracker", "group_offloading")
WITHOUT_LORAS = ("int8", "nf4")  # never tried with them
# The layers that diffusers fetches one by one. All else that holds weights (norms, modulation tables) is small.
FETCHED_LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def compute_dtype(profile: Profile, machine: Machine) -> torch.dtype:
    """Give the format a profile computes in: bf16, on a processor float32 unless the profile is about bf16."""
    computes_in_float32 = machine.device == "cpu" and profile.weights != "bf16"
    return torch.float32 if computes_in_float32 or profile.weights == "float32" else torch.bfloat16


def find_device(machine: Machine) -> torch.device:
    """Give the device that this process computes on: of several processes, each has a card of its own.

    diffusers takes a card without a number for the first one, whichever torch was told to use.
    """
    if machine.device == "cuda" and is_parallel():
        return torch.device("cuda", find_rank())
    return torch.device(machine.device)


def quantization(profile: Profile, dtype: torch.dtype) -> Any:
    """Give diffusers' configuration for loading a transformer in a profile's format; None where there is none."""
    match profile.weights:
        case "int8":
            from torchao.quantization import Int8WeightOnlyConfig

            return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=KEPT_IN_FORMAT)
        case "nf4":
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=KEPT_IN_FORMAT,
            )
        case _:
            return None


def store_weights(transformer: Any, profile: Profile, dtype: torch.dtype) -> None:
    """Bring a loaded transformer's weights into a profile's format. dtype: what it computes in."""
    if profile.weights == "fp8":
        transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)


def apply_profile(pipe: Any, profile: Profile, device: torch.device) -> None:
    """Let a pipeline's weights wait where a profile says; an earlier profile of the same format is taken back first.

    device: the one that computes.
    """
    if getattr(pipe, "memory_profile", None) == profile:
        return
    _take_back(pipe)
    match profile.offload:
        case "none":
            pipe.to(device)
        case "model":
            pipe.enable_model_cpu_offload(device=device)
        case "stream" | "sequential":
            for name in MODELS:
                # Others than the transformer are visited once or twice a run: not worth locking their pages in RAM.
                streams = profile.offload == "stream" and name == "transformer" and device.type == "cuda"
                _fetch_layers(getattr(pipe, name), device, streams=streams)
    pipe.memory_profile = profile


def _fetch_layers(model: nn.Module, device: torch.device, *, streams: bool) -> None:
    """Bring layers to the device one by one as they are called. streams: the next one while one computes.

    Layers, not blocks: a step does not use all of a block's, and layers are called outside the blocks as well.
    """
    apply_group_offloading(
        model,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        use_stream=streams,
        record_stream=streams,
    )
    for module in model.modules():
        if module is model or isinstance(module, FETCHED_LAYERS):
            continue
        # Tables and norms stay on the device: they are a few MB, and some are read while their owner is not called.
        registry: Any = getattr(module, "_diffusers_hook", None)
        for hook in GROUP_HOOKS if registry else ():
            registry.remove_hook(hook, recurse=False)
        for values in (*module._parameters.values(), *module._buffers.values()):
            if values is not None:
                values.data = values.data.to(device)


def _take_back(pipe: Any) -> None:
    if getattr(pipe, "memory_profile", None) is None:
        return
    pipe.remove_all_hooks()
    for name in MODELS:
        registry = HookRegistry.check_if_exists_or_initialize(getattr(pipe, name))
        for hook in GROUP_HOOKS:
            registry.remove_hook(hook, recurse=True)
    pipe.to("cpu")
    pipe.memory_profile = None


def apply_lora(pipe: Any, lora: LoraFile | None, strength: float, profile: Profile) -> list[str]:
    """Put a LoRA on a pipeline, in the place of the one before. None, or strength 0: none is on.

    One that is on already stays, and only its strength changes. The profile is to be applied afterwards: to put layers
    in, weights that wait elsewhere are brought back.
    Gives what of the file cannot be used, as `loras.put_on`. Raises InvalidInputError when the file does not fit, or
    weights in this profile take none.
    """
    wanted = lora if strength else None
    left_out: list[str] = []
    if getattr(pipe, "worn_lora", None) != wanted:
        if wanted is not None:
            _require_lora_support(profile)
        if getattr(pipe, "memory_profile", None) == profile and profile.offload == "none":
            pipe.memory_profile = None  # nothing waits elsewhere; what is new goes to the device with the profile
        _take_back(pipe)
        if getattr(pipe, "worn_lora", None) is not None:
            pipe.worn_lora = None
            take_off(pipe)
        if wanted is not None:
            left_out = put_on(pipe, wanted)
            pipe.worn_lora = wanted
    if wanted is not None:
        set_strength(pipe, strength)
    return left_out


def _require_lora_support(profile: Profile) -> None:
    if profile.weights in WITHOUT_LORAS:
        message = f"The profile “{profile.name}” takes no LoRA; start the program with another --profile for that."
        raise InvalidInputError("lora", message)
    if is_parallel():
        raise InvalidInputError("lora", "A video that several processes make together takes no LoRA; use one process.")


def generate_as_planned(
    spec: GenerationSpec,
    pipe: Any,
    folder: Path,
    on_progress: OnProgress,
    planner: Planner,
    loras: LoraShelf = NO_LORAS,
) -> GenerationResult:
    """Make a video as `generate` does, in the profile planned for it, and learn from what it took.

    loras: where the LoRA that a spec names is; it stays on until a spec wants another, or none.
    Raises InvalidInputError, naming what would fit, when it cannot fit; OutOfMemoryError, all memory given back, when
    it does not after all; and what `generate` does.
    """
    if is_parallel():
        _refuse_what_ranks_cannot_share(spec, pipe, planner)
    plan = planner.plan(spec)
    stopwatch = Stopwatch(on_progress)
    on_progress(Progress("reading", note=describe_plan(plan, planner.machine)))
    try:
        make_ready(spec, pipe, plan, planner.machine, loras, on_progress)
        result = _generate_measured(spec, pipe, folder, stopwatch)
    except Exception as error:
        if isinstance(error, StudioError) or not is_out_of_memory(error):
            raise
        log.exception("A run in the profile %s was out of memory.", plan.profile.name)
        told = _explain_out_of_memory(spec, plan, planner)
    else:
        planner.learn(spec, plan, stopwatch.measure(result.seconds))
        return result
    # Only here: inside the handler the error's traceback still holds the tensors of every frame it went through.
    free_memory(pipe)
    raise told


def make_ready(
    spec: GenerationSpec, pipe: Any, plan: Plan, machine: Machine, loras: LoraShelf, on_progress: OnProgress
) -> None:
    """Bring a pipeline into a plan's profile, with the LoRA that a spec names."""
    left_out = apply_lora(pipe, loras.find(spec.lora), spec.lora_strength, plan.profile)
    apply_profile(pipe, plan.profile, find_device(machine))
    if left_out:
        note = f"Of the LoRA “{spec.lora}” {len(left_out)} changes cannot be used, such as {left_out[0]}"
        on_progress(Progress("reading", note=note))
    pipe.splits_guidance = plan.estimate.split
    if plan.estimate.tiled:
        pipe.vae.enable_tiling()
    else:
        pipe.vae.disable_tiling()


def _refuse_what_ranks_cannot_share(spec: GenerationSpec, pipe: Any, planner: Planner) -> None:
    # Each process would compare its own share of the tokens, decide otherwise than the others, and wait for ever.
    if spec.cache_threshold:
        message = "Where several processes make a video together, steps cannot repeat others; set this to 0."
        raise InvalidInputError("cache_threshold", message)
    require_equal_shares(spec, pipe.transformer._parallel_config.context_parallel_config, planner.shape)


def require_equal_shares(spec: GenerationSpec, config: ContextParallelConfig, shape: ModelShape) -> None:
    """Require tokens that all processes can have equally many of, which rings beside a sharing out by heads need.

    Raises InvalidInputError, naming what would work.
    """
    ring_degree, processes = config.ring_degree, config.ring_degree * config.ulysses_degree
    load = Workload.of(spec)
    if ring_degree in (1, processes) or shape.tokens(load) % processes == 0:
        return
    fewest, most = limits("num_frames")
    fitting = [
        frames
        for frames in range(fewest, most + 1, FRAME_STRIDE)
        if shape.tokens(replace(load, num_frames=frames)) % processes == 0
    ]
    nearest = [frames for frames in fitting if frames < spec.num_frames][-1:]
    nearest += [frames for frames in fitting if frames > spec.num_frames][:1]
    frames = f"{' or '.join(map(str, nearest))} frames, or " if nearest else ""
    message = (
        f"{processes} processes in rings of {ring_degree} cannot share {spec.num_frames} frames of "
        f"{spec.render_width} x {spec.render_height} equally; try {frames}a start with --ring-degree 1 or {processes}."
    )
    raise InvalidInputError("num_frames", message)


def _generate_measured(spec: GenerationSpec, pipe: Any, folder: Path, on_progress: OnProgress) -> GenerationResult:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return generate(spec, pipe, folder, on_progress)


def _explain_out_of_memory(spec: GenerationSpec, plan: Plan, planner: Planner) -> OutOfMemoryError:
    suggestion = planner.learn_failure(spec, plan)
    way_out = f" {suggestion.label}." if suggestion else " Nothing smaller is left to try on this machine."
    size = f"{spec.num_frames} frames of {spec.render_width} x {spec.render_height}"
    return OutOfMemoryError(f"The machine ran out of memory while making {size}.{way_out}", suggestion)


def free_memory(pipe: Any) -> None:
    """Give back all memory that a failed run held, and let offloaded parts wait where they belong."""
    gc.collect()
    pipe.maybe_free_model_hooks()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe_plan(plan: Plan, machine: Machine) -> str:
    """Say before a run what it will take, for a log."""
    estimate = plan.estimate
    tiles = ", frames decoded in tiles" if estimate.tiled else ""
    tiles += ", guidance branches one after the other" if estimate.split else ""
    return (
        f"Estimate: {estimate.seconds:.0f} s ({estimate.step_s:.2f} s a step), {spell_needs(machine, estimate)}, "
        f"{spell_bytes(estimate.disk_bytes)} of disk; profile {plan.profile.name}{tiles}"
    )


class Stopwatch:
    """Passes progress on, and notes how long the steps take."""

    def __init__(self, on_progress: OnProgress, clock: Callable[[], float] = time.monotonic) -> None:
        self._on_progress, self._clock = on_progress, clock
        self._moments: list[float] = []

    def __call__(self, progress: Progress) -> None:
        """Note the moment of a step's end."""
        if progress.stage == "denoising":
            self._moments.append(self._clock())
        self._on_progress(progress)

    def measure(self, seconds: float) -> Measured:
        """Give what a run of so many seconds took. Its first step is counted as the others are."""
        steps = [after - before for before, after in zip(self._moments, self._moments[1:], strict=False)]
        step_s = median(steps) if steps else None
        rest_s = max(seconds - (step_s or 0.0) * len(self._moments), 0.0)
        allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        return Measured(step_s, rest_s, allocated)
