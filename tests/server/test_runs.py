"""Runs: followed, stopped, failed; and the model that comes in the background."""

import threading
from pathlib import Path

import pytest

from pipeline.errors import MediaError, ModelError, StoppedError, StudioError
from pipeline.generate import GenerationResult, Progress
from server.runs import Model, News, Report, Run, StepClock, Studio, load_in_background, name_download

RESULT = GenerationResult(Path("output.mp4"), Path("comparison.mp4"), Path("poster.jpg"), {"seed": 1}, 2.0)


def test_a_run_gives_its_news_in_order_and_then_its_result() -> None:
    """Following ends when the work ends."""

    def work(report: Report) -> GenerationResult:
        report(News("reading"))
        report(News("denoising", 1, 1))
        return RESULT

    run = Run(work)

    assert list(run.follow()) == [News("reading"), News("denoising", 1, 1)]
    assert run.result() is RESULT


def test_a_stopped_run_ends_at_its_next_step() -> None:
    """Work that would go on for ever hears of the stop when it reports."""

    def work(report: Report) -> GenerationResult:
        while True:
            report(News("denoising", 1, 2))

    run = Run(work)
    news = run.follow()
    next(news)
    run.stop()
    list(news)

    with pytest.raises(StoppedError):
        run.result()


def test_a_run_stopped_while_it_waits_does_nothing() -> None:
    """It ends at its first report."""
    done = []

    def work(report: Report) -> GenerationResult:
        report(News("reading"))
        done.append("read")
        return RESULT

    run = Run(work)
    run.stop()

    assert not run.has_begun
    assert list(run.follow()) == []
    assert done == []


def test_leaving_a_run_stops_it() -> None:
    """A visitor who closes the page does not keep the machine busy."""
    run = Run(lambda report: RESULT)
    news = run.follow()
    list(news)
    news.close()  # type: ignore[attr-defined]

    assert run.is_stopped


def test_a_failed_run_tells_its_sentence() -> None:
    """Errors of the studio's own family pass as they are."""

    def work(report: Report) -> GenerationResult:
        raise MediaError("image", "The picture is broken.")

    run = Run(work)
    list(run.follow())

    with pytest.raises(MediaError, match="picture is broken"):
        run.result()


def test_an_unforeseen_failure_is_a_sentence_and_a_log_entry(caplog: pytest.LogCaptureFixture) -> None:
    """The person hears that something went wrong, the log has the traceback."""
    run = Run(lambda report: 1 / 0)  # type: ignore[arg-type, return-value]
    list(run.follow())

    with pytest.raises(StudioError, match="Something went wrong"):
        run.result()
    assert "ZeroDivisionError" in caplog.text


def test_the_time_left_comes_from_the_pace_of_the_steps() -> None:
    """The first step tells nothing yet: what lies before it is not a step."""
    times = iter([100.0, 102.0, 106.0])
    clock = StepClock(lambda: next(times))

    news = [clock.read(Progress("denoising", step, 5)) for step in (1, 2, 3)]

    assert [one.seconds_left for one in news] == [None, 6.0, 6.0]
    assert clock.read(Progress("saving")) == News("saving")


def test_a_model_loads_in_the_background() -> None:
    """The caller goes on at once; the model arrives when it arrives."""
    gate = threading.Event()

    def load(name: str) -> Model:
        gate.wait(5)
        return name, None  # type: ignore[return-value]

    model = load_in_background("nano", load)

    assert not model.done()
    gate.set()
    assert model.result(timeout=5)[0] == "nano"  # type: ignore[comparison-overlap]


def test_a_model_that_cannot_be_loaded_is_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    """Known failures speak for themselves, unknown ones point to the log."""

    def miss(name: str) -> Model:
        raise ModelError("There is no model “x”.")

    def explode(name: str) -> Model:
        raise RuntimeError("out of memory")

    with pytest.raises(ModelError, match="There is no model “x”"):
        load_in_background("x", miss).result(timeout=5)
    with pytest.raises(ModelError, match="The model “y” could not be loaded; the log"):
        load_in_background("y", explode).result(timeout=5)
    assert "out of memory" in caplog.text


def test_a_run_waits_for_its_model_and_fails_with_it() -> None:
    """The person hears the model's own reason."""

    def miss(name: str) -> Model:
        raise ModelError("There is no model “x”.")

    studio = Studio(load_in_background("x", miss), Path("unused"))
    run = studio.prepare(None)  # type: ignore[arg-type]

    assert set(run.follow()) == {News("loading")}
    with pytest.raises(ModelError, match="There is no model “x”"):
        run.result()


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("The red mushroom grows.", "the-red-mushroom-grows-7.mp4"),
        ("One two three four five six seven", "one-two-three-four-five-six-7.mp4"),
        ("../../etc/passwd", "etc-passwd-7.mp4"),
        ("Ein Käfer läuft — 走る", "ein-käfer-läuft-走る-7.mp4"),
        ("!?", "7.mp4"),
        ("a" * 300, "a" * 60 + "-7.mp4"),
    ],
)
def test_a_download_has_a_name_that_tells_it_from_others(prompt: str, name: str) -> None:
    """The first words and the seed, and nothing that a file name cannot hold."""
    assert name_download({"prompt": prompt, "seed": 7}) == name
