"""A Hugging Face Space: its front matter, the settings nobody has to make there, and what its page says."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import ModelError
from pipeline.estimate import ModelShape
from pipeline.history import History
from pipeline.machine import Machine
from pipeline.planner import Planner
from pipeline.spec import ModelFacts
from server import panels, space
from server.settings import Settings, read_settings
from server.space import can_hold_the_queue, choose_model, describe_space, is_zero_gpu, space_defaults
from tests.pipeline.machines import card, processor

ROOT = Path(__file__).parents[2]
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
SPACE = {"SPACE_ID": "ann/studio"}


@pytest.fixture
def on_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STUDIO_MODEL", "STUDIO_HOST", "STUDIO_PORT", "STUDIO_DATA_DIR", "SPACES_ZERO_GPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPACE_ID", SPACE["SPACE_ID"])


def front_matter() -> dict[str, Any]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_the_front_matter_is_that_of_a_gradio_space() -> None:
    """The keys that Spaces read, with values they take; Gradio is the one that the program is written for."""
    told = front_matter()

    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert told["sdk"] == "gradio"
    assert f"\ngradio=={told['sdk_version']}\n" in requirements
    assert (ROOT / told["app_file"]).is_file()
    assert len(told["short_description"]) <= 60
    assert {told["colorFrom"], told["colorTo"]} <= COLOURS
    assert told["python_version"] == "3.12.12", "one of the two that ZeroGPU has; the other is too old for us"
    assert "preload_from_hub" not in told, "most Spaces run nano, which is in the repository"
    assert told["license"] == "apache-2.0"


def test_a_space_is_open_to_its_proxy_and_its_api_is_closed(on_a_space: None) -> None:
    """Nothing has to be set there, and nobody uses the API without a key."""
    settings = read_settings([])

    assert (settings.host, settings.port) == ("0.0.0.0", 7860)
    assert not settings.serves_itself_only


def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No SPACE_ID, no Space."""
    monkeypatch.delenv("SPACE_ID", raising=False)

    assert (space_defaults(), describe_space(Settings())) == ({}, "")
    assert choose_model(settings := Settings()) is settings


def test_what_outlives_a_restart_holds_the_data(tmp_path: Path) -> None:
    """Where storage is mounted that does for a database, and only there; no trace of the trial is left."""
    mounted = space_defaults(SPACE, tmp_path)
    missing = space_defaults(SPACE, tmp_path / "none")

    assert mounted["data_dir"] == tmp_path
    assert "data_dir" not in missing
    assert list(tmp_path.iterdir()) == []


def test_a_mount_that_cannot_hold_a_database_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some mounted buckets refuse what SQLite needs."""

    def refuse(*args: Any) -> Any:
        raise OSError("not supported")

    monkeypatch.setattr(space.sqlite3, "connect", refuse)

    assert not can_hold_the_queue(tmp_path)


@pytest.mark.parametrize(
    ("machine", "model"),
    [
        (processor(), "nano"),
        (card(16, ram_gib=15), "nano"),  # t4-small
        (card(80, ram_gib=142), "14b"),  # a100-large
    ],
)
def test_the_model_is_the_largest_that_fits(on_a_space: None, machine: Machine, model: str) -> None:
    """By the planner; nano where there is no GPU or a small one."""
    planner = Planner(ModelFacts("14b"), ModelShape(), machine, History(None))

    assert choose_model(Settings(), lambda settings: planner).model == model


def test_a_model_that_was_named_stays(on_a_space: None) -> None:
    """Whoever sets it knows why."""
    assert choose_model(Settings(model="nano"), lambda settings: pytest.fail("asked")).model == "nano"


def test_a_disk_without_room_leaves_nano(on_a_space: None) -> None:
    """And so does a hub that is away."""

    def refuse(settings: Settings) -> Planner:
        raise ModelError("The disk has no room for the model.")

    assert choose_model(Settings(), refuse).model == "nano"


def test_the_page_says_what_does_not_work_there(on_a_space: None, tmp_path: Path) -> None:
    """Only what is so: what is kept is not said to be lost, nor a large model missed where it runs."""
    plain = describe_space(Settings(data_dir=tmp_path / "else"), storage=tmp_path / "data")
    large = describe_space(Settings(data_dir=tmp_path / "data", model="14b"), storage=tmp_path / "data")

    for words in ("one line", "gone when the Space restarts", "Only the small model", "without a key"):
        assert words in plain
    assert re.search("gone|small|ZeroGPU", large) is None
    assert panels.space_line(plain).count("<p") == 1
    assert panels.space_line("") == ""


def test_zero_gpu_is_told_by_its_variable_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either alone is not enough."""
    zero = {**SPACE, "SPACES_ZERO_GPU": "true"}

    assert not is_zero_gpu(zero)
    monkeypatch.syspath_prepend(ROOT / "tests" / "server" / "fake_spaces")
    assert is_zero_gpu(zero)
    assert not is_zero_gpu(SPACE)
