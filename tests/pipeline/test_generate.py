"""From a spec to files, on the tiny random checkpoint and real media code."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline import VideoAsPromptPipeline, media
from pipeline.errors import InvalidInputError, StoppedError, UnsafeContentError
from pipeline.generate import GenerationResult, Progress, generate
from pipeline.spec import GenerationRequest, GenerationSpec, ModelFacts, settle
from tests.pipeline.test_safety import blobs_that_fool_the_classifier

SMALL = ModelFacts("tiny", num_inference_steps=7, render_size=(16, 32))


@pytest.fixture
def request_fields(tmp_path: Path) -> dict[str, Any]:
    """A small clip and picture on disk, and the texts."""
    frames = [Image.new("RGB", (96, 64), (10 * index, 90, 160)) for index in range(12)]
    media.write_video(frames, tmp_path / "clip.mp4", fps=12, height=64, width=96, settings=None)
    Image.new("RGB", (120, 80), "orange").save(tmp_path / "start.png")
    return {
        "prompt": "The square glows.",
        "video_description": "A wall changes its colour.",
        "reference_video": tmp_path / "clip.mp4",
        "image": tmp_path / "start.png",
        "num_frames": 9,
        "aspect_ratio": "16:9",
        "seed": 5,
    }


@pytest.fixture
def spec(request_fields: dict[str, Any]) -> GenerationSpec:
    """What is made of that request, in a small file."""
    made = settle(GenerationRequest(**request_fields), SMALL, random.Random(0))
    return replace(made, height=64, width=96)


@pytest.fixture
def make(tiny_pipe: VideoAsPromptPipeline, spec: GenerationSpec, tmp_path: Path) -> Callable[..., GenerationResult]:
    """Generate the spec, with changes, into a folder."""

    def run(folder: str = "job", on_progress: Callable[[Progress], None] = lambda _: None, **changes: Any) -> Any:
        (tmp_path / folder).mkdir(exist_ok=True)
        return generate(replace(spec, **changes), tiny_pipe, tmp_path / folder, on_progress)

    return run


@pytest.fixture
def decoded(tiny_pipe: VideoAsPromptPipeline, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Keep every run's final latents: x264 may encode the same pictures in more than one way."""
    latents: list[Tensor] = []
    decode = tiny_pipe.decode_latents
    monkeypatch.setattr(tiny_pipe, "decode_latents", lambda *args: latents.append(args[0]) or decode(*args))
    return latents


def test_the_file_is_what_was_asked_for(make: Callable[..., GenerationResult]) -> None:
    """Size, frame count and rate are the request's, though the model renders at a size of its own."""
    info = media.probe_video(make(fps=10).video)

    assert (info.height, info.width, info.num_frames) == (64, 96, 9)
    assert info.fps == pytest.approx(10)


def test_the_settings_stand_in_the_file(make: Callable[..., GenerationResult], spec: GenerationSpec) -> None:
    """The video alone tells how to make it again."""
    result = make()

    assert media.read_settings(result.video) == result.settings == json.loads(json.dumps(spec.settings()))


def test_what_is_looked_at_beside_it_is_there(make: Callable[..., GenerationResult]) -> None:
    """A comparison twice as wide, as long as the result, and a poster of the result's size."""
    result = make()

    comparison = media.probe_video(result.comparison)
    assert (comparison.width, comparison.height, comparison.num_frames) == (192, 64, 9)
    with Image.open(result.poster) as poster:
        assert poster.size == (96, 64)


def test_a_seed_makes_the_same_video_again(make: Callable[..., GenerationResult], decoded: list[Tensor]) -> None:
    """Same seed, same latents to the last bit; another seed, others."""
    make("a")
    make("b")
    make("c", seed=6)

    first, again, other = decoded
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_progress_goes_through_every_stage_and_step(make: Callable[..., GenerationResult]) -> None:
    """The stages come in order, each denoising step is told once with a look at it."""
    seen: list[Progress] = []

    make(on_progress=seen.append)

    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages == ["reading", "checking", "encoding", "denoising", "decoding", "saving"]
    steps = [progress for progress in seen if progress.stage == "denoising"]
    assert [(progress.step, progress.total) for progress in steps] == [(step, 7) for step in range(1, 8)]
    assert all(len(progress.preview.frames()) == 3 for progress in steps)


@pytest.mark.parametrize("field", ["cache_threshold", "guided_share"])
def test_approximations_reach_the_loop(
    make: Callable[..., GenerationResult], decoded: list[Tensor], field: str
) -> None:
    """What a spec gives up for speed makes another video, and stands in its settings."""
    result = make("quick", **{field: 0.9 if field == "cache_threshold" else 0.5})
    make("exact")

    quick, exact = decoded
    assert not torch.equal(quick, exact)
    assert result.settings[field] in (0.9, 0.5)


def test_a_lora_that_is_not_on_the_model_is_never_left_out(make: Callable[..., GenerationResult]) -> None:
    """Called without what puts it on, the run ends with a sentence; at strength 0 there is nothing to put on."""
    with pytest.raises(InvalidInputError, match="The LoRA wanted is “fast”, and on the model is “None”"):
        make(lora="fast")

    make("off", lora="fast", lora_strength=0.0)


@pytest.mark.parametrize("stops_at", [1, 5, 6, 7])
def test_a_run_cut_short_goes_on_and_makes_the_same_video(
    make: Callable[..., GenerationResult], decoded: list[Tensor], stops_at: int
) -> None:
    """Wherever it was cut, a second call does only what was not saved, and the video is the uninterrupted one."""
    make("whole")
    steps: list[int] = []

    def cut(progress: Progress) -> None:
        if progress.stage == "denoising" and progress.step == stops_at:
            raise StoppedError

    with pytest.raises(StoppedError):
        make("cut", on_progress=cut)
    resumed = make("cut", on_progress=lambda progress: steps.append(progress.step) if progress.preview else None)

    saved = 7 if stops_at == 7 else 5 * (stops_at // 5)
    assert steps == list(range(saved + 1, 8))
    assert torch.equal(*decoded)
    assert not (resumed.video.parent / "state.pt").exists()


@pytest.mark.parametrize(
    ("stage", "held"), [("encoding", set()), ("denoising", {"transformer"}), ("decoding", {"transformer"})]
)
def test_a_run_cut_short_leaves_nothing_on_the_card(
    make: Callable[..., GenerationResult], on_card: set[str], stage: str, held: set[str]
) -> None:
    """The next run may be long in coming, and others may need the memory."""

    def cut(progress: Progress) -> None:
        if progress.stage == stage:
            assert on_card == held
            raise StoppedError

    with pytest.raises(StoppedError):
        make(on_progress=cut)

    assert on_card == set()


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"half"), lambda path: None])
def test_a_state_that_does_not_fit_is_not_used(
    make: Callable[..., GenerationResult], decoded: list[Tensor], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A damaged state, or another seed's, costs the steps but not the run."""

    def cut(progress: Progress) -> None:
        if progress.step == 6:
            raise StoppedError

    with pytest.raises(StoppedError):
        make(on_progress=cut, seed=9)
    damage(tmp_path / "job" / "state.pt")

    make()
    make("fresh")

    assert torch.equal(*decoded)


def test_unsafe_inputs_are_declined_before_any_work(
    make: Callable[..., GenerationResult], request_fields: dict[str, Any]
) -> None:
    """The checker looks at texts and pictures before encoding, and its switch works."""
    blobs_that_fool_the_classifier().resize((96, 64)).save(request_fields["image"])
    stages: list[str] = []

    with pytest.raises(UnsafeContentError) as refusal:
        make(on_progress=lambda progress: stages.append(progress.stage))

    assert refusal.value.field == "image"
    assert "encoding" not in stages
    assert make(enable_safety_checker=False).video.exists()


def test_an_unsafe_result_is_not_handed_out(
    make: Callable[..., GenerationResult], tiny_pipe: VideoAsPromptPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checker looks at the result as well, and leaves no video behind."""
    blobs = blobs_that_fool_the_classifier()
    monkeypatch.setattr(tiny_pipe, "decode_latents", lambda *_: [[blobs] * 9])

    with pytest.raises(UnsafeContentError, match="The result looks like nudity") as refusal:
        make("declined")

    assert refusal.value.field == "prompt"
