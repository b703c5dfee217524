"""What the page stands on: files kept once, owners told apart, a secret that stays."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.spec import GenerationRequest
from server.files import FileStore
from server.jobs import JobQueue
from server.keys import KEYS_FILE, KeyRing
from server.signing import Signer
from server.studio import Studio, Uploads, load_secret, new_visitor, owner_of, request_settings
from tests.server.fake_generation import make_files


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    return make_files(tmp_path)


@pytest.fixture
def studio(tmp_path: Path, files: FileStore) -> Iterator[Studio]:
    with closing(JobQueue(f"sqlite:///{tmp_path / 'queue.sqlite'}", files)) as queue:
        yield Studio(queue, Uploads(files), KeyRing(tmp_path / KEYS_FILE), "nano", None, "secret", Signer(bytes(32)))


@pytest.fixture
def request_(tmp_path: Path) -> GenerationRequest:
    for name in ("clip.mp4", "picture.png"):
        (tmp_path / name).write_text(name)
    return GenerationRequest(
        prompt="It grows.",
        video_description="A star grows.",
        reference_video=tmp_path / "clip.mp4",
        image=tmp_path / "picture.png",
        seed=7,
    )


def test_a_request_goes_into_the_queue_with_its_files(studio: Studio, request_: GenerationRequest) -> None:
    """Whatever happens to the originals; what was left out stays left out."""
    job = studio.submit(request_, "ann")
    request_.image.unlink()

    found = studio.find(job.job_id)

    assert found is not None
    assert found.request is not None
    assert found.owner == "ann"
    assert request_settings(found) == {"prompt": "It grows.", "video_description": "A star grows.", "seed": 7}
    kept = studio.find_files(found.request)
    assert {name: path.read_text() for name, path in kept.items()} == {
        "reference_video": "clip.mp4",
        "image": "picture.png",
    }


def test_files_that_are_gone_or_never_were_here_are_not_found(studio: Studio, request_: GenerationRequest) -> None:
    """The page says so at their fields."""
    asked = studio.submit(request_, "ann").request
    assert asked is not None
    studio.files.delete(asked.image.removeprefix("file:"))

    assert list(studio.find_files(asked)) == ["reference_video"]


def test_a_file_is_stored_once(tmp_path: Path, files: FileStore) -> None:
    """And again when the store has it no longer."""
    clip = tmp_path / "clip.mp4"
    clip.write_text("clip")
    uploads = Uploads(files)

    first, second = uploads.keep(clip), uploads.keep(clip)
    files.delete(first)
    third = uploads.keep(clip)

    assert first == second != third
    assert files.exists(third)


def test_an_owner_is_who_is_logged_in_or_else_the_browser() -> None:
    """A browser's own id never names a person, and without either there is no owner."""
    assert owner_of("ann", "123") == "ann"
    assert owner_of(None, "ann") == "browser:ann"
    assert owner_of(None, None) is None
    assert new_visitor() != new_visitor()


def test_the_browsers_secret_outlives_a_restart(tmp_path: Path) -> None:
    """Else every browser would forget its jobs."""
    path = tmp_path / "data" / "browser.key"

    first = load_secret(path)

    assert load_secret(path) == first
    assert len(first) == 16
    assert path.stat().st_mode & 0o077 == 0
