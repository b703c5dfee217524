"""Every profile end to end on a processor, compared with the plain run; and a run that is out of memory."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import ContextParallelConfig, ParallelConfig
from diffusers.hooks import HookRegistry, group_offloading
from PIL import Image
from torch import Tensor

from pipeline import VideoAsPromptPipeline, media, profiles
from pipeline.errors import InvalidInputError, OutOfMemoryError, StudioError, Suggestion
from pipeline.estimate import ModelShape, read_shape
from pipeline.generate import Progress
from pipeline.hardware import PROFILES, Profile
from pipeline.history import History
from pipeline.lora_shelf import NO_LORAS, LoraShelf
from pipeline.machine import look_at_machine
from pipeline.models import NANO_FOLDER
from pipeline.planner import Planner, read_facts
from pipeline.profiles import Stopwatch, apply_profile, generate_as_planned, make_ready, require_equal_shares
from pipeline.spec import GenerationRequest, GenerationSpec, ModelFacts, settle
from pipeline.weights import load_in_profile
from tests.pipeline.conftest import GOLDEN, read_golden
from tests.pipeline.lora_files import lightx2v_weights, write_lora
from tests.pipeline.machines import card, processor
from tests.pipeline.weights_away import WeightsAway

BY_NAME = {profile.name: profile for profile in PROFILES}
CPU = torch.device("cpu")
WAITING = ["resident", "model", "stream", "sequential"]
FOLDERS = {"tiny": GOLDEN / "tiny_vap", "nano": NANO_FOLDER}
# Mean difference of the final latents from the plain run's, in units of their spread: as measured, and half again.
# bf16 with nano: 0.0426 with the weights of 28 November 2026, all of it from the transformer's own arithmetic; so less
# room than the others have.
TOLERANCES = {
    ("bf16", "tiny"): 0.027,
    ("bf16", "nano"): 0.045,
    ("fp8-cpu", "tiny"): 0.04,
    ("fp8-cpu", "nano"): 0.04,
    ("int8-cpu", "tiny"): 0.007,
    ("int8-cpu", "nano"): 0.04,
}


def load(model: str, profile: Profile) -> Any:
    return load_in_profile(FOLDERS[model], profile, processor())


def make_latents(pipe: Any) -> Tensor:
    """Run the pipeline to its final latents, as large as the smallest case."""
    arguments = read_golden("pipeline_a").arguments()
    return pipe(**arguments, generator=torch.Generator().manual_seed(1), output_type="latent").frames


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    """The final latents of both models with all weights in float32."""
    return {model: make_latents(load(model, BY_NAME["float32"])) for model in FOLDERS}


@pytest.mark.parametrize("model", FOLDERS)
@pytest.mark.parametrize("offload", WAITING)
def test_where_weights_wait_changes_no_bit(plain: dict[str, Tensor], model: str, offload: str) -> None:
    """Resident, part by part, layer by layer: the same numbers."""
    pipe = load(model, replace(BY_NAME[offload], weights="float32"))

    assert torch.equal(make_latents(pipe), plain[model])


@pytest.mark.parametrize("model", FOLDERS)
@pytest.mark.parametrize("name", ["bf16", "fp8-cpu", "int8-cpu"])
def test_another_format_stays_close(plain: dict[str, Tensor], model: str, name: str) -> None:
    """Within the stated tolerance; and it is another format indeed."""
    profile = BY_NAME[name]
    if profile.package and not find_spec(profile.package):
        pytest.skip(f"{profile.package} is not installed")

    latents = make_latents(load(model, profile))

    difference = (latents - plain[model]).abs().mean() / plain[model].std()
    assert 0 < difference < TOLERANCES[name, model]


def test_8_bit_storage_halves_the_transformer() -> None:
    """At rest its blocks take a quarter of float32; what results hang on is kept."""
    pipe = load("nano", BY_NAME["fp8-cpu"])

    linear = pipe.transformer.blocks[0].ffn.net[2]
    assert linear.weight.dtype == torch.float8_e4m3fn
    assert pipe.transformer.blocks[0].norm2.weight.dtype == torch.float32
    assert pipe.transformer.condition_embedder_mot_ref.time_proj.weight.dtype == torch.float32


def test_8_bit_storage_and_fetching_go_together(plain: dict[str, Tensor]) -> None:
    """Layers stored in 8 bits and fetched one by one give what they give when they stay."""
    resident = load("tiny", BY_NAME["fp8-cpu"])
    fetched = load("tiny", replace(BY_NAME["fp8-cpu"], name="fetched", offload="stream"))

    assert torch.equal(make_latents(resident), make_latents(fetched))


def test_profiles_of_a_format_can_follow_each_other(plain: dict[str, Tensor]) -> None:
    """A request may need another profile than the one before; the weights are not loaded anew."""
    pipe = load("tiny", BY_NAME["float32"])

    for name in [*WAITING, "float32", "stream"]:
        apply_profile(pipe, replace(BY_NAME[name], weights="float32"), CPU)
        assert torch.equal(make_latents(pipe), plain["tiny"]), name


def test_fetched_layer_by_layer_the_small_weights_stay() -> None:
    """Tables and norms are read while their owner is not called, so no hook may have to bring them first."""
    pipe = load("tiny", BY_NAME["float32"])

    apply_profile(pipe, replace(BY_NAME["stream"], weights="float32"), CPU)

    hooked = {
        type(module).__name__
        for module in pipe.transformer.modules()
        if HookRegistry.check_if_exists_or_initialize(module).get_hook("group_offloading")
    }
    assert hooked == {"Linear", "Conv3d", "VideoAsPromptTransformer3DModel"}


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_fetched_layer_by_layer_all_that_computes_is_there(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """No layer is called past what fetches it."""
    pipe = load("tiny", BY_NAME["float32"])
    weights = WeightsAway(getattr(pipe, part), monkeypatch)

    apply_profile(pipe, replace(BY_NAME["sequential"], weights="float32"), CPU)
    layers = [layer for layer in getattr(pipe, part).modules() if isinstance(layer, profiles.FETCHED_LAYERS)]
    weights.away &= {weight for layer in layers for weight in layer.parameters()}  # all others were brought back
    assert weights.away
    with weights:
        make_latents(pipe)

    assert not weights.missed


def test_tiles_change_little() -> None:
    """Frames larger than a tile, decoded in tiles, differ by what blending does at the seams."""
    pipe = load("nano", BY_NAME["float32"])
    latents = torch.randn(1, pipe.vae.config.z_dim, 1, 36, 34, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        whole = pipe.vae.decode(latents).sample
        pipe.vae.enable_tiling()
        tiled = pipe.vae.decode(latents).sample

    assert tiled.shape == whole.shape
    assert 0 < (tiled - whole).abs().mean() / whole.std() < 0.05


# A whole run, from the files of a request to its video.


@pytest.fixture
def spec(tmp_path: Path) -> GenerationSpec:
    """A small request to nano, on files."""
    frames = [Image.new("RGB", (96, 64), (20 * index, 90, 160)) for index in range(9)]
    media.write_video(frames, tmp_path / "clip.mp4", fps=12, height=64, width=96, settings=None)
    frames[0].save(tmp_path / "start.png")
    request = GenerationRequest(
        prompt="It glows.",
        video_description="It glows.",
        reference_video=tmp_path / "clip.mp4",
        image=tmp_path / "start.png",
        num_frames=9,
        num_inference_steps=2,
        seed=1,
        enable_safety_checker=False,
    )
    return settle(request, read_facts("nano", NANO_FOLDER), random.Random(0))


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    """nano's, on this machine."""
    facts, shape = read_facts("nano", NANO_FOLDER), read_shape(NANO_FOLDER)
    return Planner(facts, shape, look_at_machine(tmp_path), History(tmp_path / "runs.jsonl"))


@pytest.fixture
def run(spec: GenerationSpec, planner: Planner, tmp_path: Path) -> Callable[..., Any]:
    """Make a spec, with changes, as planned."""
    pipe = load_in_profile(NANO_FOLDER, planner.start.profile, planner.machine)

    def make(on_progress: Callable[[Progress], None] = lambda _: None, **changes: Any) -> Any:
        (tmp_path / "job").mkdir(exist_ok=True)
        return generate_as_planned(replace(spec, **changes), pipe, tmp_path / "job", on_progress, planner)

    return make


def test_a_run_says_before_what_it_will_take(run: Callable[..., Any]) -> None:
    """Seconds, a step's, memory and profile, before anything else."""
    notes: list[str] = []

    run(lambda progress: notes.append(progress.note))

    assert notes[0].startswith("Estimate: ")
    assert notes[0].endswith("of disk; profile float32")
    assert not any(notes[1:])


def test_a_run_puts_on_the_lora_it_names(spec: GenerationSpec, planner: Planner, tmp_path: Path) -> None:
    """It stays for the next run, which may want another strength, and is gone for one that names none."""
    pipe = load_in_profile(GOLDEN / "tiny_vap", planner.start.profile, planner.machine)
    shelf = LoraShelf(tmp_path)
    norm = {"diffusion_model.blocks.1.self_attn.norm_q.diff": torch.ones(48)}
    write_lora(tmp_path / "fast.safetensors", lightx2v_weights() | norm)
    notes: list[str] = []

    def make(**changes: Any) -> set[float]:
        made = replace(spec, render_height=16, render_width=32, **changes)
        (tmp_path / "job").mkdir(exist_ok=True)
        generate_as_planned(made, pipe, tmp_path / "job", lambda told: notes.append(told.note), planner, shelf)
        layer = pipe.transformer.blocks[0].attn1.to_q
        return set(getattr(layer, "scaling", {}).values())

    assert make(lora="fast") == {1.0}
    assert (
        "Of the LoRA “fast” 1 changes cannot be used, such as diffusion_model.blocks.1.self_attn.norm_q.diff" in notes
    )
    assert make(lora="fast", lora_strength=0.5) == {0.5}
    assert make() == set()
    with pytest.raises(InvalidInputError, match="There is no LoRA “slow” here; there are fast"):
        make(lora="slow")


def test_several_processes_cannot_repeat_steps(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would decide by its own tokens, and wait for the others for ever; it is refused before anything is done."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen: list[Progress] = []

    with pytest.raises(InvalidInputError, match="steps cannot repeat others") as caught:
        run(seen.append, cache_threshold=0.1)

    assert caught.value.field == "cache_threshold"
    assert seen == []


@pytest.mark.parametrize(
    ("processes", "ring_degree", "frames", "sentence"),
    [
        (8, 2, 49, None),
        (16, 1, 49, None),
        (16, 16, 49, None),
        (16, 2, 45, None),
        (
            16,
            2,
            49,
            "16 processes in rings of 2 cannot share 49 frames of 832 x 480 equally; "
            "try 45 or 53 frames, or a start with --ring-degree 1 or 16.",
        ),
        (
            14,
            2,
            49,
            "14 processes in rings of 2 cannot share 49 frames of 832 x 480 equally; "
            "try 25 or 53 frames, or a start with --ring-degree 1 or 14.",
        ),
        (
            86,
            2,
            49,
            "86 processes in rings of 2 cannot share 49 frames of 832 x 480 equally; "
            "try a start with --ring-degree 1 or 86.",
        ),
    ],
)
def test_rings_beside_a_sharing_out_by_heads_need_equal_shares(
    spec: GenerationSpec, processes: int, ring_degree: int, frames: int, sentence: str | None
) -> None:
    """Where the tokens do not divide, the person hears what would."""
    made = replace(spec, num_frames=frames, render_height=480, render_width=832)
    config = ContextParallelConfig(ring_degree=ring_degree, ulysses_degree=processes // ring_degree)

    with pytest.raises(InvalidInputError) if sentence else nullcontext() as told:
        require_equal_shares(made, config, ModelShape())

    assert sentence is None or (told.value.field, told.value.message) == ("num_frames", sentence)


def test_unequal_shares_are_refused_before_any_work(
    spec: GenerationSpec, planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by an assertion of every process, in the middle of the run."""
    monkeypatch.setenv("WORLD_SIZE", "8")
    config = ContextParallelConfig(ring_degree=2, ulysses_degree=4)
    pipe = SimpleNamespace(transformer=SimpleNamespace(_parallel_config=ParallelConfig(config)))
    seen: list[Progress] = []

    with pytest.raises(InvalidInputError, match="try 5 or 13 frames"):
        generate_as_planned(spec, pipe, tmp_path, seen.append, planner)

    assert seen == []


@pytest.mark.parametrize(("processes", "device"), [("1", "cuda"), ("4", "cuda:3")])
def test_each_process_computes_on_its_own_card(
    planner: Planner, spec: GenerationSpec, monkeypatch: pytest.MonkeyPatch, processes: str, device: str
) -> None:
    """When the weights are loaded, and for each run; diffusers takes a card without a number for the first one."""
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setenv("LOCAL_RANK", "3")
    seen: list[torch.device] = []
    monkeypatch.setattr(VideoAsPromptPipeline, "enable_model_cpu_offload", lambda pipe, *, device: seen.append(device))
    plan = replace(planner.plan(spec), profile=BY_NAME["model"])

    pipe = load_in_profile(FOLDERS["tiny"], BY_NAME["model"], card(24))
    pipe.memory_profile = None
    make_ready(spec, pipe, plan, card(24), NO_LORAS, lambda _: None)

    assert seen == [torch.device(device)] * 2


def test_a_finished_run_corrects_the_next_estimate(
    run: Callable[..., Any], planner: Planner, spec: GenerationSpec, tmp_path: Path
) -> None:
    """The next request of the same is predicted to take about as long."""
    result = run()

    assert planner.plan(spec).estimate.seconds == pytest.approx(result.seconds, rel=0.2)
    assert json.loads((tmp_path / "runs.jsonl").read_text())["profile"] == "float32"


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("encoding", torch.OutOfMemoryError("CUDA out of memory.")),
        ("denoising", MemoryError()),
        ("decoding", RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")),
    ],
)
def test_out_of_memory_anywhere_ends_in_a_sentence_and_a_way_out(
    run: Callable[..., Any], error: Exception, stage: str
) -> None:
    """And the pipeline makes the next video."""

    def fail(progress: Progress) -> None:
        if progress.stage == stage:
            raise error

    with pytest.raises(OutOfMemoryError) as told:
        run(fail, num_frames=13)

    assert told.value.message == "The machine ran out of memory while making 13 frames of 80 x 144. Try 9 frames."
    assert told.value.suggestion == Suggestion({"num_frames": 9}, "Try 9 frames")
    assert told.value.__context__ is None  # its traceback would hold every tensor of the run
    assert run(num_frames=5).video.exists()


def test_other_errors_are_let_through(run: Callable[..., Any]) -> None:
    """A bug is no lack of memory."""

    def fail(progress: Progress) -> None:
        if progress.stage == "decoding":
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(fail)


def test_what_cannot_fit_is_refused_before_any_work(
    spec: GenerationSpec, planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No stage is reached, and the pipeline is not touched."""
    monkeypatch.setattr(planner, "machine", replace(planner.machine, ram_bytes=2**30))
    seen: list[Progress] = []

    with pytest.raises(StudioError):
        generate_as_planned(spec, None, tmp_path, seen.append, planner)

    assert seen == []


def test_the_median_step_counts() -> None:
    """A step during which the machine was busy does not move the estimate; the rest is all but the steps."""
    clock = iter([10.0, 12.0, 14.0, 24.0, 26.0])
    stopwatch = Stopwatch(lambda progress: None, lambda: next(clock))

    for step in range(1, 6):
        stopwatch(Progress("denoising", step, 5))

    measured = stopwatch.measure(30.0)
    assert (measured.step_s, measured.rest_s) == (2.0, 20.0)


def test_the_released_models_facts_need_no_folder() -> None:
    """Before its files are here, the 14B is planned for by its published configuration."""
    assert read_facts("14b", None) == ModelFacts("14b", 50, None)


# Streams, imitated: without a card there are none, but what is fetched when can be followed all the same.


class FakeStream:
    """A stream on which everything is done at once."""

    def synchronize(self) -> None:
        """Wait for nothing."""


class FakeStreams:
    """What diffusers asks a device for."""

    Stream = FakeStream

    def __init__(self, device: torch.device) -> None:
        self.current_stream = FakeStream

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        """Do on a stream."""
        yield


@pytest.mark.parametrize("weights", ["float32", "fp8"])
def test_layers_that_are_fetched_ahead_are_the_right_ones(
    plain: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, weights: Any
) -> None:
    """In the first run the order is learned, from the second on the next layer is fetched ahead: the same numbers."""
    monkeypatch.setattr(group_offloading, "TorchDeviceBackend", FakeStreams)
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)
    monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: True)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    pipe = load("tiny", replace(BY_NAME["fp8-cpu"], weights=weights))
    expected = plain["tiny"] if weights == "float32" else make_latents(pipe)

    monkeypatch.setattr(profiles, "apply_group_offloading", _apply_on_fake_streams)
    profiles._fetch_layers(pipe.transformer, CPU, streams=True)

    assert torch.equal(make_latents(pipe), expected)
    assert torch.equal(make_latents(pipe), expected)


def _apply_on_fake_streams(model: Any, **options: Any) -> None:
    """Do as diffusers does, which refuses streams on a processor before it asks for one."""
    options = {name: value for name, value in options.items() if name not in ("offload_type", "use_stream")}
    config = group_offloading.GroupOffloadingConfig(
        **options,
        offload_type=group_offloading.GroupOffloadingType.LEAF_LEVEL,
        non_blocking=False,
        low_cpu_mem_usage=False,
        stream=FakeStream(),
    )
    group_offloading._apply_group_offloading(model, config)
