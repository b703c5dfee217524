"""The worker as a program: what it needs is put together from settings alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pipeline.errors import InvalidInputError
from pipeline.lora_shelf import LoraShelf
from pipeline.model_progress import ignore
from pipeline.spec import GenerationRequest, ModelFacts, settle
from server import assembly
from server.assembly import (
    check_machine,
    make_api,
    make_load,
    make_studio,
    make_worker,
    open_files,
    open_queue,
    run_worker,
)
from server.jobs import JobQueue, QueueFullError
from server.loading import Gauge
from server.settings import Settings
from tests.server.fake_generation import make_request, wait_for_end

ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, max_active_jobs=1)


@pytest.fixture
def queue(settings: Settings) -> Iterator[JobQueue]:
    with closing(open_queue(settings, open_files(settings))) as queue:
        yield queue


def test_all_lies_in_the_data_folder_by_default(queue: JobQueue, tmp_path: Path) -> None:
    """Nothing has to be set up on one machine."""
    (tmp_path / "some.mp4").write_text("some")

    key = queue.files.add(tmp_path / "some.mp4", folder="uploads")

    assert (tmp_path / "queue.sqlite").exists()
    assert (tmp_path / "files" / key).exists()


def test_the_limits_come_from_the_settings(queue: JobQueue) -> None:
    """What the operator allows is what the queue takes."""
    queue.submit(make_request(), owner="ann")

    with pytest.raises(QueueFullError):
        queue.submit(make_request(), owner="ann")


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--database-url", "postgresql://ann:secret@127.0.0.1:1/queue", "check --database-url"),
        ("--keep-days", "0", "--keep-days"),
    ],
)
def test_a_setting_that_cannot_work_ends_with_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    sentence: str,
) -> None:
    """Exit code 2, the option's name, and no password."""
    monkeypatch.setattr("server.assembly.prepare_environment", lambda settings: None)

    code = run_worker([option, value, "--data-dir", str(tmp_path)])

    told = capsys.readouterr().err
    assert code == 2
    assert sentence in told
    assert "secret" not in told


def test_the_api_has_the_operators_settings(tmp_path: Path, queue: JobQueue) -> None:
    """Who may call from a browser, where we are, and what may be fetched."""
    settings = Settings(
        data_dir=tmp_path,
        public_url="https://studio.example",
        cors_origins="https://a.example/, https://b.example",
        allow_private_urls=True,
    )

    api = make_api(settings, queue)

    assert (api.queue, api.files) == (queue, queue.files)
    assert (api.public_url, api.rules.allow_private) == ("https://studio.example", True)
    assert api.cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize("forced", [True, False])
def test_an_operator_can_force_the_safety_checker(
    tmp_path: Path, queue: JobQueue, monkeypatch: pytest.MonkeyPatch, forced: bool
) -> None:
    """A request that switches it off is checked all the same, before the run and after it."""
    checked: list[bool] = []
    monkeypatch.setattr(assembly, "_check_media", lambda request: checked.append(request.enable_safety_checker))
    monkeypatch.setattr(assembly, "_generate", lambda spec, *rest: checked.append(spec.enable_safety_checker))
    workshop = make_worker(Settings(data_dir=tmp_path, force_safety_checker=forced), queue)._workshop
    request = GenerationRequest(
        prompt="a", video_description="b", reference_video="c", image="d", enable_safety_checker=False
    )

    workshop.check_media(request)
    workshop.generate(settle(request, ModelFacts("x"), Random()), None, tmp_path, lambda progress: None)

    assert checked == [forced, forced]


def test_a_lora_that_is_not_there_is_refused_before_the_model_is_asked(
    tmp_path: Path, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker looks in the operator's folder, by name; where none is given there are none."""
    monkeypatch.setattr(assembly, "_check_media", lambda request: None)
    loras: list[object] = []
    monkeypatch.setattr(assembly, "_generate", lambda *given: loras.append(given[-1]))
    (tmp_path / "fast.safetensors").touch()
    texts = {"prompt": "a", "video_description": "b", "reference_video": "c", "image": "d"}
    request = GenerationRequest(**texts, lora="fast")
    workshop = make_worker(Settings(data_dir=tmp_path, lora_dir=tmp_path), queue)._workshop

    workshop.check_media(request)
    workshop.generate(settle(request, ModelFacts("x"), Random()), None, tmp_path, lambda progress: None)

    assert loras == [LoraShelf(tmp_path)]
    with pytest.raises(InvalidInputError, match="There is no LoRA “other” here; there are fast"):
        workshop.check_media(GenerationRequest(**texts, lora="other"))
    with pytest.raises(InvalidInputError, match="there are none to choose from"):
        make_worker(Settings(data_dir=tmp_path), queue)._workshop.check_media(request)


def test_the_page_tells_of_a_lora_that_is_not_there(tmp_path: Path, queue: JobQueue) -> None:
    """Before the request waits."""
    settings = Settings(data_dir=tmp_path, lora_dir=tmp_path)
    studio = make_studio(settings, make_api(settings, queue), None)
    texts = {"prompt": "a", "video_description": "b", "reference_video": "c", "image": "d"}

    with pytest.raises(InvalidInputError, match="There is no LoRA “fast” here"):
        studio.check(GenerationRequest(**texts, lora="fast"))


@pytest.mark.parametrize(
    ("changes", "guidance_scale"),
    [
        ({}, 1.0),
        ({"model": "14b"}, 5.0),
        ({"model": "no/such/model"}, 5.0),
        ({"worker": False}, 5.0),
    ],
)
def test_the_page_begins_with_the_models_own_guidance(
    tmp_path: Path, queue: JobQueue, changes: dict[str, Any], guidance_scale: float
) -> None:
    """With the released model's where this program does not know it: then others make the videos, or nobody can."""
    settings = Settings(data_dir=tmp_path, **changes)

    assert make_studio(settings, make_api(settings, queue), None).guidance_scale == guidance_scale


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lora_dir": Path("/nowhere")}, "The folder “/nowhere” for LoRAs cannot be read"),
        ({"attention": "quick"}, "The attention “quick” cannot be used: there is none of that name"),
    ],
)
def test_what_this_machine_has_not_is_told_at_the_start(changes: dict[str, Any], sentence: str) -> None:
    """A folder, an attention; a program without a worker needs no attention."""
    check_machine(Settings())
    check_machine(Settings(attention="quick", worker=False))

    with pytest.raises(InvalidInputError, match=sentence):
        check_machine(Settings(**changes))


def test_the_model_is_loaded_with_the_attention_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker, and a follower of several processes, use what the operator named."""
    named: list[str] = []

    def use(transformer: Any, name: str) -> None:
        named.append(name)
        raise InvalidInputError("attention", "Not here.")  # which ends the loading

    monkeypatch.setattr("pipeline.weights.use_attention", use)

    with pytest.raises(InvalidInputError, match="Not here"):
        make_load(Settings(data_dir=tmp_path, attention="flash"), Gauge())("nano", ignore)

    assert named == ["flash"]


@pytest.mark.slow
def test_a_worker_alone_serves_the_queue_of_another_process(queue: JobQueue, tmp_path: Path) -> None:
    """`python -m server.worker` takes what this process submits, refuses it before any model is loaded, and ends."""
    job = queue.submit(make_request(), owner="ann")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "server" / "guard")}
    command = [sys.executable, "-m", "server.worker", "--data-dir", str(tmp_path)]
    worker = subprocess.Popen(command, cwd=ROOT, env=environment)

    error = wait_for_end(queue, job.job_id, timeout_s=60).error
    worker.send_signal(signal.SIGTERM)

    # The file store has no clip.mp4, and that is found out first.
    assert (error.kind, error.faults[0].field) == ("invalid_input", "reference_video")
    assert worker.wait(60) == 0


def test_the_model_is_loaded_as_planned_for_this_machine(tmp_path: Path) -> None:
    """And whoever looks at the gauge knows the plan, the page for its estimates, the worker for its runs."""
    gauge = Gauge()

    pipe, facts = make_load(Settings(data_dir=tmp_path), gauge)("nano", ignore)

    assert gauge.planner is not None
    assert pipe.memory_profile == gauge.planner.start.profile
    assert facts == gauge.planner.facts
