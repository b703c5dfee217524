"""Files are kept under keys that nobody can guess, here or behind an fsspec URL."""

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import fsspec  # type: ignore[import-untyped]
import pytest

from pipeline.errors import StudioError
from server.files import FileStore, UnknownFileError, clean_name, split_key
from tests.server.s3 import BUCKET, run_s3

TOKEN = "a" * 32


@pytest.fixture(scope="module")
def s3_variables() -> Iterator[Mapping[str, str]]:
    """An S3 server for this file."""
    with run_s3() as variables:
        yield variables


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileStore]:
    """A store in a folder, and two whose files are no files of this machine."""
    urls = {"folder": str(tmp_path / "files"), "memory": f"memory://{uuid4()}", "s3": f"s3://{BUCKET}/{uuid4()}"}
    if request.param == "s3":
        for name, value in request.getfixturevalue("s3_variables").items():
            monkeypatch.setenv(name, value)
    yield FileStore(urls[request.param], tmp_path / "cache")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A file of ten bytes."""
    (path := tmp_path / "a clip.mp4").write_bytes(b"0123456789")
    return path


def test_a_place_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    """A wrong URL ends the start with a sentence."""
    with pytest.raises(StudioError, match="Files cannot be kept at nowhere://bucket"):
        FileStore("nowhere://bucket", tmp_path)


def test_a_stored_file_comes_back(store: FileStore, clip: Path) -> None:
    """A key gives the file, its size and its type; the source stays where it was."""
    key = store.add(clip, folder="results")

    assert key.startswith("results/")
    assert key.endswith("/a_clip.mp4")
    assert (store.size(key), store.content_type(key)) == (10, "video/mp4")
    assert store.local(key).read_bytes() == clip.read_bytes() == b"".join(store.read(key))


def test_a_part_of_a_file_can_be_read(store: FileStore, clip: Path) -> None:
    """Reading begins and ends where one asks, and a file can be opened and sought in."""
    key = store.add(clip, folder="results")

    with store.open(key) as file:
        file.seek(8)
        tail = file.read()

    assert (b"".join(store.read(key, 2, 5)), tail) == (b"234", b"89")


def test_taking_a_file_moves_it(store: FileStore, clip: Path) -> None:
    """A file taken under a reserved key is gone from where it was."""
    key = store.reserve("uploads", "clip.mp4")

    store.take(clip, key)

    assert not clip.exists()
    assert store.size(key) == 10


def test_no_two_keys_are_alike(store: FileStore) -> None:
    """The same name gives another key each time, with 192 random bits."""
    tokens = {split_key(store.reserve("uploads", "a.mp4")).token for _ in range(100)}

    assert len(tokens) == 100
    assert {len(token) for token in tokens} == {32}


@pytest.mark.parametrize(
    ("name", "content_type", "ending", "stored_type"),
    [
        ("a.mp4", "video/mp4", "/a.mp4", "video/mp4"),
        (None, "image/png", "/file.png", "image/png"),
        ("clip", "video/mp4", "/clip.mp4", "video/mp4"),
        ("a.mp4", "application/octet-stream", "/application/octet-stream/a.mp4", "application/octet-stream"),
        ("a.bin", "text/plain; charset=utf-8", "/text/plain/a.bin", "text/plain"),
        ("a.webp", "image/webp", "/a.webp", "image/webp"),
        ("a.mp4", "../../etc", "/application/octet-stream/a.mp4", "application/octet-stream"),
        ("a.mp4", None, "/a.mp4", "video/mp4"),
    ],
)
def test_a_file_keeps_the_type_it_came_with(
    store: FileStore, name: str | None, content_type: str | None, ending: str, stored_type: str
) -> None:
    """The type is in the name or, where that says another one, in the key; a missing extension is made from it."""
    key = store.reserve("uploads", name, content_type)

    assert key.endswith(ending)
    assert store.content_type(key) == stored_type


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("my holiday clip.mp4", "my_holiday_clip.mp4"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\a.mov", "a.mov"),
        (".htaccess", "htaccess"),
        ("..", "file"),
        ("", "file"),
        ("a\r\nSet-Cookie: x.png", "a_Set-Cookie_x.png"),
        ("Füße 日本.webp", "Füße_日本.webp"),
        ("x" * 300 + ".mp4", "x" * 96 + ".mp4"),
        ("字" * 120 + ".mp4", "字" * 32 + ".mp4"),
        ("𝐚" * 120, "𝐚" * 25),
        ("𝐚" * 120 + "." + "字" * 20, "𝐚" * 13 + "." + "字" * 15),
    ],
)
def test_names_are_safe_anywhere(given: str, cleaned: str) -> None:
    """A name keeps its letters and extension, and nothing that a path, a header or a shell would read."""
    assert clean_name(given) == cleaned
    assert clean_name(cleaned) == cleaned


@pytest.mark.parametrize("letter", ["x", "字", "𝐚"])
def test_a_long_name_can_be_stored(store: FileStore, clip: Path, letter: str) -> None:
    """Whatever its letters take, with the extension it lacked; and a copy of it can be made."""
    key = store.reserve("uploads", letter * 120, "video/mp4")

    store.take(clip, key)

    assert key.endswith(f"{letter}.mp4")
    assert store.local(key).stat().st_size == store.size(key) == 10


@pytest.mark.parametrize("name", ["字" * 80 + ".mp4", "字" * 83 + ".mp4"])
def test_names_of_old_are_still_keys(store: FileStore, clip: Path, name: str) -> None:
    """What was stored under a longer name than a new file gets stays within reach."""
    key = f"results/{TOKEN}/{name}"

    store.put(clip, key)

    assert store.local(key).stat().st_size == 10


@pytest.mark.parametrize(
    "key",
    [
        "",
        f"uploads/{TOKEN}/{'字' * 84}.mp4",
        "../secret",
        f"uploads/{TOKEN}/../../secret",
        f"uploads/{TOKEN}/..",
        f"uploads/{TOKEN}/a/b/c/d",
        f"uploads/{TOKEN}/../x/a.mp4",
        f"uploads/{TOKEN}//a.mp4",
        f"/uploads/{TOKEN}/a.mp4",
        "uploads/short/a.mp4",
        f"../{TOKEN}/a.mp4",
        f"uploads/{TOKEN}/a\0.mp4",
        f"uploads/{TOKEN}/a.mp4\n",
        f"uploads/{TOKEN}/.hidden",
    ],
)
def test_no_key_leads_out_of_the_store(store: FileStore, key: str) -> None:
    """Text that no store gave out is refused before any file is looked for."""
    assert not store.exists(key)
    for use in (store.size, store.local, store.open, store.delete, store.content_type):
        with pytest.raises(UnknownFileError):
            use(key)


def test_a_missing_file_is_told(store: FileStore) -> None:
    """A good key without a file raises a sentence."""
    key = f"uploads/{TOKEN}/a.mp4"

    assert not store.exists(key)
    for use in (store.size, store.local, store.open):
        with pytest.raises(UnknownFileError, match="no such file here"):
            use(key)


def test_a_deleted_file_is_gone_everywhere(store: FileStore, clip: Path, tmp_path: Path) -> None:
    """Deleting takes the copy on this machine along, and doing it twice does nothing."""
    key = store.add(clip, folder="results")
    copy = store.local(key)

    store.delete(key)
    store.delete(key)

    assert not store.exists(key)
    assert not copy.exists()
    assert list(store.stored("results")) == []


@pytest.mark.parametrize("kind", ["video/mp4", "video/x-odd"])
def test_copies_that_nobody_uses_go(store: FileStore, clip: Path, tmp_path: Path, kind: str) -> None:
    """What was asked for since then stays; the file itself stays too, and can be copied again."""
    used, unused = (store.add(clip, folder="results", content_type=kind) for _ in range(2))
    copies = [store.local(key) for key in (used, unused)]
    for place in (tmp_path / "cache").rglob("*"):
        os.utime(place, (0, 0))
    store.local(used)

    store.clear_copies(datetime.now(UTC) - timedelta(days=1))

    assert [copy.exists() for copy in copies] == [True, store.is_local]
    assert store.local(unused).read_bytes() == clip.read_bytes()


def test_files_are_listed_with_their_age(store: FileStore, clip: Path) -> None:
    """Retention sees each key with its size and when it was stored."""
    keys = {store.add(clip, folder="results") for _ in range(2)}
    store.add(clip, folder="uploads")

    found = list(store.stored("results"))

    assert {file.key for file in found} == keys
    assert {file.size_bytes for file in found} == {10}
    assert all(abs(datetime.now(UTC) - file.modified_at) < timedelta(minutes=1) for file in found)


def test_parts_are_joined_by_their_numbers(store: FileStore, tmp_path: Path) -> None:
    """Parts come in any order, the last of the same number counts, and none is left afterwards."""
    key = store.reserve("uploads", "a.mp4")
    for number, text in ((2, "world"), (1, "wrong"), (10, "!"), (1, "hello ")):
        (part := tmp_path / "part").write_text(text)
        store.add_part(key, number, part)
    size, others = store.parts_size(key), store.parts_size(key, without=2)

    store.join_parts(key, [10, 1, 2, 2], tmp_path / "scratch")

    assert (size, others) == (len("hello world!"), len("hello !"))
    assert store.local(key).read_text() == "hello world!"
    assert list(store.stored("parts")) == []


def test_files_whose_time_is_over_are_known(store: FileStore) -> None:
    """From the moment that was noted until the note is removed; nobody can download a note."""
    soon, later = store.reserve("uploads", "ä.mp4", "video/x-odd"), store.reserve("uploads", "b.mp4")
    moment = datetime(2026, 11, 22, tzinfo=UTC)
    store.limit_life(soon, moment)
    store.limit_life(later, moment + timedelta(hours=1))

    before, after = store.overdue(moment - timedelta(seconds=1)), store.overdue(moment)
    store.forget_life(soon, moment)
    store.forget_life(soon, moment)

    assert (before, after) == ({}, {soon: moment})
    assert store.overdue(moment + timedelta(hours=1)) == {later: moment + timedelta(hours=1)}
    with pytest.raises(UnknownFileError):
        store.size(f"lifetimes/{int(moment.timestamp())}-{split_key(later).token}")
