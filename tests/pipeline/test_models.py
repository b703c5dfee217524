"""Models by their names, and the command that looks after their files."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.errors import ModelError
from pipeline.models import MODELS, ModelSource, find_model, run_models
from tests.pipeline.conftest import GOLDEN
from tests.pipeline.fake_hub import REPOSITORY, FakeHub

VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def tiny(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of the list, on a hub on this machine, with a cache of its own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delitem(MODELS, "14b")
    monkeypatch.setitem(MODELS, "tiny", ModelSource("tiny", "A tiny one", REPOSITORY))
    return "tiny"


def test_a_model_has_a_short_name_or_is_a_folder_or_a_repository() -> None:
    """The name of a folder is its last part."""
    assert find_model("nano").folder is not None
    assert find_model("14b").location == "ByteDance/Video-As-Prompt-Wan2.1-14B"
    assert find_model(str(GOLDEN / "tiny_vap")).name == "tiny_vap"
    assert find_model("someone/model").folder is None


@pytest.mark.parametrize("name", ["15b", "/no/such/folder", str(GOLDEN)])
def test_a_name_that_is_none_of_these_is_refused(name: str) -> None:
    """The sentence says what there is."""
    with pytest.raises(ModelError, match=r"There is no model “.*”; try nano, 14b, or a folder"):
        find_model(name)


def test_the_list_tells_name_size_place_and_revision(
    tiny: str, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that is not here is listed with the size the hub tells; nothing is fetched for that."""
    run_models([])
    before = capsys.readouterr().out.splitlines()
    run_models(["download", tiny])
    capsys.readouterr()
    run_models(["list"])
    after = capsys.readouterr().out.splitlines()

    assert [line.split()[0] for line in before] == ["nano", "tiny"]
    assert before[0].split()[3] == "here"
    assert f"{hub.total_bytes / 1e6:.1f} MB  not here" in before[1]
    assert after[1].split()[3:] == ["here", REPOSITORY, "at", hub.main]


def test_the_list_does_not_fail_without_a_hub(tiny: str, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    """What is here is listed; of the rest it says why not more is known."""
    hub.status = 503

    run_models(["list"])

    nano, absent = capsys.readouterr().out.splitlines()
    assert nano.startswith("nano")
    assert "?  not here" in absent
    assert "cannot be reached (it answers with status 503)" in absent


def test_a_download_says_first_what_it_will_take(tiny: str, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    """Size, what of it is here, and what the disk has; at the end where it is."""
    run_models(["download", tiny])

    first, last = capsys.readouterr().out.splitlines()
    assert (
        f"{REPOSITORY} at {hub.main}: {hub.total_bytes / 1e6:.1f} MB, of which 0.0 MB are here; the disk has" in first
    )
    assert last.startswith("tiny is here and whole, in ")


def test_a_damaged_file_is_named_and_a_download_mends_it(
    tiny: str, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` ends with an error that names the file and the way out; after that it has nothing to say."""
    run_models(["download", tiny])
    file = next((tmp_path / "hub").rglob(VAE))
    file.write_bytes(bytes(file.stat().st_size))

    with pytest.raises(ModelError, match=rf"tiny is not whole; `python -m pipeline models download tiny`.*\n  {VAE}$"):
        run_models(["verify", tiny])
    run_models(["download", tiny])
    run_models(["verify", tiny])

    assert capsys.readouterr().out.endswith("tiny is whole: every file has the checksum the hub told.\n")


def test_an_update_tells_from_where_to_where(tiny: str, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    """And that there was none, when there was none."""
    run_models(["download", tiny])
    first = hub.main
    run_models(["update", tiny])
    same = capsys.readouterr().out
    second = hub.add_commit(vae__added=b"another")
    run_models(["update", tiny])

    assert f"tiny is at {first}, the newest revision." in same
    assert f"tiny went from {first} to {second}; `hf cache prune` frees" in capsys.readouterr().out


def test_a_pinned_model_is_updated_with_the_studio(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commit stands in the program."""
    monkeypatch.setitem(MODELS, "tiny", ModelSource("tiny", "A tiny one", REPOSITORY, "0" * 40))

    with pytest.raises(ModelError, match=r"tiny is pinned to 0000.* in this version of the studio"):
        run_models(["update", "tiny"])


@pytest.mark.parametrize("action", ["verify", "update"])
def test_a_folder_has_nothing_to_be_compared_with(action: str) -> None:
    """What lies in a folder is a person's own."""
    with pytest.raises(ModelError, match="nano is a folder of its own; there"):
        run_models([action, "nano"])
