"""What a job tells while it waits for its model."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.model_progress import ModelProgress
from pipeline.spec import MAX_SEED, ModelFacts
from server import workshop
from server.files import RESULTS
from server.job import News
from server.workshop import Model, name_result
from tests.server.fake_generation import FakeGeneration, make_files, make_request, make_workshop

GB = 10**9


@pytest.fixture
def wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[ModelProgress | None]], list[News]]:
    """Run a job while its model is as far as each of these tells, one after another; give the job's news."""
    monkeypatch.setattr(workshop, "LOADING_POLL_S", 0.01)
    is_loaded = threading.Event()

    def load() -> Model:
        is_loaded.wait(20)
        return None, ModelFacts("fake", num_inference_steps=3)

    def run(told: list[ModelProgress | None]) -> list[News]:
        news: list[News] = []

        def how_far() -> ModelProgress | None:
            if not told:
                is_loaded.set()
            return told.pop(0) if told else None

        shop = make_workshop(tmp_path, make_files(tmp_path), FakeGeneration(), load=load, how_far=how_far)
        outcome = shop.run("id", make_request(), None, news.append)
        assert outcome.error is None
        return news

    return run


def test_a_job_that_waits_tells_how_far_its_model_is(
    wait_for: Callable[[list[ModelProgress | None]], list[News]],
) -> None:
    """Every look is told, so that the page goes on; the log has a line for each hundredth."""
    news = wait_for(
        [
            None,
            ModelProgress("downloading", 6 * GB, 60 * GB),
            ModelProgress("downloading", 6 * GB + 1, 60 * GB),
            ModelProgress("downloading", 30 * GB, 60 * GB),
            ModelProgress("loading", 3, 7),
        ]
    )

    shown = [(each.progress.stage, each.progress.step) for each in news if each.progress.total != 1]
    assert shown[:3] == [("downloading", 6 * GB), ("downloading", 6 * GB + 1), ("downloading", 30 * GB)]
    lines = [line.message for line in news[-1].logs]
    told = ["downloading 6.0 of 60.0 GB", "downloading 30.0 of 60.0 GB", "loading 3 of 7"]
    assert lines[:6] == ["fetching", "loading", *told, "encoding"]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("The Balloon, rising!", "the-balloon-rising-7"),
        ("one two three four five six seven", "one-two-three-four-five-six-7"),
        ("?!", "7"),
        ("x" * 200, "x" * 60 + "-7"),
        ("字" * 200, "字" * 20 + "-7"),
        ("𝐚" * 70, "𝐚" * 15 + "-7"),
        ("x" * 59 + " y", "x" * 59 + "-7"),
    ],
)
def test_a_result_is_named_by_its_words_and_its_seed(prompt: str, name: str) -> None:
    """However long the words are, the seed tells one video from the next."""
    assert name_result({"prompt": prompt, "seed": 7}) == name


@pytest.mark.parametrize("letter", ["x", "字", "𝐚"])
def test_the_names_of_a_result_are_kept_whole(tmp_path: Path, letter: str) -> None:
    """The largest seed and the longest ending have room behind words of any letters."""
    shop = make_workshop(tmp_path, make_files(tmp_path), FakeGeneration())

    outcome = shop.run("id", make_request(letter * 70, seed=MAX_SEED), None, lambda news: None)

    assert outcome.result is not None
    ends = [f"{MAX_SEED}.mp4", f"{MAX_SEED}-comparison.mp4", f"{MAX_SEED}.jpg"]
    assert all(key.endswith(f"{letter}-{end}") for key, end in zip(outcome.result.keys, ends, strict=True))


class CrashError(BaseException):
    """The end of the program: nothing that follows is done."""


def test_a_crash_while_storing_leaves_nothing_that_no_job_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys are told before a file is there, and whoever takes the job up uses the same."""
    news: list[News] = []
    files = make_files(tmp_path)
    shop = make_workshop(tmp_path, files, FakeGeneration())
    put = files.put

    def put_and_crash(source: Path, key: str) -> None:
        put(source, key)
        if key.startswith(RESULTS):
            raise CrashError

    with monkeypatch.context() as patched:
        patched.setattr(files, "put", put_and_crash)
        with pytest.raises(CrashError):
            shop.run("id", make_request(), None, news.append)
    left = [file.key for file in files.stored(RESULTS)]

    outcome = shop.run("id", make_request(), news[-1], news.append)

    assert outcome.result is not None
    assert left == [outcome.result.video_key]
    assert {file.key for file in files.stored(RESULTS)} == set(outcome.result.keys)


def test_what_cannot_be_stored_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job fails, and half a result would be of use to nobody."""
    files = make_files(tmp_path)
    put = files.put

    def put_videos_only(source: Path, key: str) -> None:
        put(source, key)
        if source.suffix == ".jpg":
            raise OSError("no room")

    monkeypatch.setattr(files, "put", put_videos_only)

    outcome = make_workshop(tmp_path, files, FakeGeneration()).run("id", make_request(), None, lambda news: None)

    assert outcome.error is not None
    assert list(files.stored(RESULTS)) == []
