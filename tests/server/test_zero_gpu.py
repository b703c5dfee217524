"""ZeroGPU: each run goes through a function that `spaces` decorated. The package is a fake, see fake_spaces."""

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from gradio.context import LocalContext

from pipeline.errors import InvalidInputError, OutOfMemoryError, StudioError, Suggestion
from pipeline.estimate import ModelShape
from pipeline.generate import Progress
from pipeline.history import History
from pipeline.model_progress import ignore
from pipeline.planner import Planner
from pipeline.spec import GenerationRequest, GenerationSpec, ModelFacts, settle
from server.assembly import make_load
from server.loading import Gauge
from server.settings import Settings
from server.zero_gpu import MAX_DURATION_S, START_S, LentGpu, Visitors, look_at_lent_machine
from tests.server.fake_generation import FakeGeneration

FAKE = Path(__file__).parent / "fake_spaces"


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What the fake package notes."""
    monkeypatch.syspath_prepend(FAKE)
    monkeypatch.setenv("SPACE_ID", "ann/studio")
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    yield importlib.import_module("spaces").BOOK
    del sys.modules["spaces"]


@pytest.fixture
def gauge(tmp_path: Path) -> Gauge:
    """It knows the cost of the large model on a lent card."""
    gauge = Gauge()
    machine = look_at_lent_machine("14b", tmp_path)
    gauge.planner = Planner(ModelFacts("14b"), ModelShape(), roomy(machine), History(None))
    return gauge


def roomy(machine: Any) -> Any:
    return type(machine)(**{**vars(machine), "ram_bytes": 256 * 2**30, "disk_bytes": 500 * 2**30})


def make_spec(**fields: Any) -> GenerationSpec:
    request = GenerationRequest(prompt="a", video_description="b", reference_video="c", image="d", **fields)
    return settle(request, ModelFacts("14b"), Random(1))


def lend(gauge: Gauge, run: Callable[..., Any], visitors: Visitors | None = None) -> LentGpu:
    return LentGpu(
        "14b",
        gauge,
        visitors or Visitors(),
        lambda spec, pipe, folder, report, planner: run(spec, pipe, folder, report),
    )


def test_a_run_is_lent_a_gpu_for_about_as_long_as_it_takes(book: Any, gauge: Gauge, tmp_path: Path) -> None:
    """The seconds come from the estimate of this very request; reports and result come through as they are."""
    generation, told = FakeGeneration(), []
    short, long = make_spec(num_inference_steps=5), make_spec(num_inference_steps=20)
    gpu = lend(gauge, generation)

    results = [gpu.generate(spec, None, folder_of(tmp_path, spec), told.append) for spec in (short, long)]

    assert book.sizes == ["xlarge"]
    assert gauge.planner is not None
    for spec, (seconds, _) in zip((short, long), book.lent, strict=True):
        assert START_S + gauge.planner.plan(spec).estimate.seconds < seconds < MAX_DURATION_S
    assert book.lent[0][0] < book.lent[1][0]
    assert [result.settings["num_inference_steps"] for result in results] == [5, 20]
    assert [progress.stage for progress in told[:4]] == ["encoding", "denoising", "denoising", "denoising"]
    assert [progress.preview is not None for progress in told[:4]] == [False, True, False, False]
    assert told[1].preview.frames()[0].size == (8, 8)


def folder_of(tmp_path: Path, spec: GenerationSpec) -> Path:
    folder = tmp_path / f"job-{spec.num_inference_steps}"
    folder.mkdir()
    return folder


def test_the_time_counts_for_the_visitor_who_asked(book: Any, gauge: Gauge, tmp_path: Path) -> None:
    """In the worker's thread there is no Gradio request: that of the submission stands in, once and only there."""
    visitors, folder = Visitors(), tmp_path / "job-1"
    folder.mkdir()
    asked = SimpleNamespace(headers={"x-ip-token": "ann's"})
    token = LocalContext.request.set(asked)
    visitors.remember("job-1")
    LocalContext.request.reset(token)
    gpu, spec = lend(gauge, FakeGeneration(), visitors), make_spec(num_inference_steps=5)

    gpu.generate(spec, None, folder, ignore)
    gpu.generate(spec, None, folder, ignore)

    assert [request for _, request in book.lent] == [asked, None]
    assert LocalContext.request.get(None) is None


def test_a_job_without_a_visitor_is_remembered_as_none(book: Any) -> None:
    """As those of the API, which no Gradio event brings."""
    visitors = Visitors()

    visitors.remember("job-1")

    with visitors.stand_in("job-1"):
        assert LocalContext.request.get(None) is None


def test_what_takes_longer_than_is_lent_is_refused(book: Any, gauge: Gauge, tmp_path: Path) -> None:
    """Before a second of anybody's time is used."""
    gpu = lend(gauge, FakeGeneration())

    with pytest.raises(InvalidInputError, match=r"about \d+ min, and ZeroGPU lends a GPU for at most 26 min"):
        gpu.generate(make_spec(num_inference_steps=100, num_frames=81, resolution="720p"), None, tmp_path, ignore)

    assert book.lent == []


def test_a_visitor_without_minutes_left_is_told(book: Any, gauge: Gauge, tmp_path: Path) -> None:
    """In the platform's words, which name the quota."""
    book.is_exhausted = True

    with pytest.raises(StudioError, match=r"ZeroGPU did not make this video: You have exceeded your free"):
        lend(gauge, FakeGeneration()).generate(make_spec(num_inference_steps=5), None, tmp_path, ignore)


def test_an_error_of_the_run_comes_out_whole(book: Any, gauge: Gauge, tmp_path: Path) -> None:
    """With the field it concerns and the way out, although errors with more than a message do not survive pickling."""
    errors = [
        InvalidInputError("image", "No picture."),
        OutOfMemoryError("Full.", Suggestion({"num_frames": 5}, "Try")),
    ]

    for error in errors:
        generation = FakeGeneration()
        generation.failure = error
        with pytest.raises(type(error)) as caught:
            lend(gauge, generation).generate(make_spec(num_inference_steps=5), None, tmp_path, ignore)
        (tmp_path / "state").unlink()
        assert (caught.value.message, vars(caught.value)) == (error.message, vars(error))


def test_a_fault_of_the_program_is_no_sentence_for_people(
    book: Any, gauge: Gauge, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its traceback is in the log; out of memory is still known as such."""
    generation = FakeGeneration()
    generation.failure = RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="RuntimeError: CUDA out of memory"):
        lend(gauge, generation).generate(make_spec(num_inference_steps=5), None, tmp_path, ignore)

    assert "A run on a lent GPU failed." in caplog.text


def test_a_stopped_run_gives_the_gpu_back_at_its_next_step(book: Any, gauge: Gauge, tmp_path: Path) -> None:
    """What the queue raises in a report ends the run, and nothing still uses the GPU when it comes out."""

    class CancelledError(BaseException):
        """As DBOS says it."""

    steps: list[int] = []

    def run(spec: Any, pipe: Any, folder: Path, report: Callable[[Progress], None]) -> None:
        for step in range(1000):
            report(Progress("denoising", step, 1000))
            steps.append(step)
            time.sleep(0.005)

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise CancelledError

    with pytest.raises(CancelledError):
        lend(gauge, run).generate(make_spec(num_inference_steps=5), None, tmp_path, stop)

    ended_at = len(steps)
    time.sleep(0.05)
    assert 3 <= len(steps) == ended_at < 1000


def test_a_model_waits_in_memory_until_a_gpu_is_lent(book: Any, tmp_path: Path) -> None:
    """Planned for the lent card, and on no device that is only there during a run."""
    gauge = Gauge()

    pipe, _ = make_load(Settings(data_dir=tmp_path, model="nano"), gauge)("nano", ignore)

    assert gauge.planner is not None
    assert gauge.planner.start.profile.name == "resident"
    assert gauge.planner.machine.name == "a lent half of an RTX PRO 6000"
    assert pipe.device.type == "cpu"
