"""Uploads in, results out: files under keys that nobody can guess, in a folder or behind any fsspec URL.

A key reads `folder/token/name`, or `folder/token/type/subtype/name` where the name does not tell the content type.
A stored file never changes.
"""

import mimetypes
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import fsspec  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from pipeline.errors import StudioError

UPLOADS, RESULTS = "uploads", "results"
INPUTS = "inputs"  # what was fetched for a job
PARTS = "parts"  # of uploads under way
LIFETIMES = "lifetimes"  # notes of files that their senders want kept for a while only
PRIVATE = frozenset({INPUTS, PARTS})  # all else is for whoever knows the key

CHUNK_BYTES = 256 * 1024
TOKEN_BYTES = 24  # 192 bits: 32 letters
MAX_NAME_BYTES = 100  # of a new name in UTF-8, before an extension it lacks
MAX_STORED_BYTES = 255  # what file systems take; names were longer once
UNKNOWN_TYPE = "application/octet-stream"

_TYPE_PART = r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}"
_TYPE = re.compile(rf"{_TYPE_PART}/{_TYPE_PART}")
_KEY = re.compile(
    rf"(?P<folder>[a-z]+)/(?P<token>[\w-]{{32}})/(?:(?P<type>{_TYPE.pattern})/)?(?P<name>[^/]+)", re.ASCII
)

# Python's own table without the machine's, so that every machine gives the same names.
_TYPES = mimetypes.MimeTypes()
for _type, _extension in {"image/webp": ".webp", "video/x-matroska": ".mkv", "image/heic": ".heic"}.items():
    _TYPES.add_type(_type, _extension)


class UnknownFileError(StudioError):
    """There is no file under this key, or not any more."""

    def __init__(self) -> None:
        super().__init__("There is no such file here, or not any more; upload it again.")


@dataclass(frozen=True)
class KeyParts:
    """What a key says. content_type: as uploaded, where the name tells another one."""

    folder: str
    token: str
    content_type: str | None
    name: str


@dataclass(frozen=True)
class StoredFile:
    """A file in the store, for retention."""

    key: str
    size_bytes: int
    modified_at: datetime


class FileStore:
    """Files in one place: a folder of this machine, or any URL that fsspec knows, such as s3://bucket/folder."""

    def __init__(self, url: str | Path, cache_dir: Path) -> None:
        """cache_dir: where copies of remote files go when a path is needed.

        Raises StudioError when the URL cannot be used on this machine.
        """
        try:
            # Without listings kept in memory: other fronts and workers write to the same place.
            self._fs, root = fsspec.core.url_to_fs(str(url), use_listings_cache=False)
        except ImportError as error:
            how = "Name it after “pip install -r requirements.txt”, so that the versions fit."
            raise StudioError(f"Files cannot be kept at {url} without another package: {error}. {how}") from error
        except ValueError as error:
            raise StudioError(f"Files cannot be kept at {url}: {error}.") from error
        self._root = root.rstrip("/")
        self._cache_dir = cache_dir

    @property
    def is_local(self) -> bool:
        """Whether the files lie in a folder of this machine."""
        return isinstance(self._fs, LocalFileSystem)

    def reserve(self, folder: str, name: str | None, content_type: str | None = None) -> str:
        """Give a new key, for `put` or `take` to fill."""
        return "/".join([folder, secrets.token_urlsafe(TOKEN_BYTES), *_name_parts(name, content_type)])

    def add(self, source: Path, *, folder: str, name: str | None = None, content_type: str | None = None) -> str:
        """Store a copy of a file and give its key."""
        key = self.reserve(folder, name or source.name, content_type)
        self.put(source, key)
        return key

    def put(self, source: Path, key: str) -> None:
        """Store a copy of a file under a reserved key."""
        self._fs.makedirs(self._path(key).rpartition("/")[0], exist_ok=True)
        self._fs.put_file(str(source), self._path(key))

    def take(self, source: Path, key: str) -> None:
        """Move a file of this machine into the store, under a reserved key."""
        path = self._path(key)
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if self.is_local:
            shutil.move(source, path)
        else:
            self._fs.put_file(str(source), path)
            source.unlink()

    def exists(self, key: str) -> bool:
        """Say whether there is a file under this key. Text that is no key at all has none."""
        try:
            return bool(self._fs.isfile(self._path(key)))
        except UnknownFileError:
            return False

    def size(self, key: str) -> int:
        """Give the size in bytes. Raises UnknownFileError, as all that follow."""
        try:
            return int(self._fs.size(self._path(key)))
        except FileNotFoundError:
            raise UnknownFileError from None

    def content_type(self, key: str) -> str:
        """Give the type it was stored with."""
        parts = split_key(key)
        return parts.content_type or guess_type(parts.name)

    def open(self, key: str) -> BinaryIO:
        """Open a file for reading; it can seek."""
        try:
            return self._fs.open(self._path(key), "rb")
        except FileNotFoundError:
            raise UnknownFileError from None

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Give the bytes from start up to, not including, end, in chunks."""
        with self.open(key) as file:
            file.seek(start)
            left = (self.size(key) if end is None else end) - start
            while left > 0 and (chunk := file.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                yield chunk

    def local(self, key: str) -> Path:
        """Give a path on this machine: the file itself, or a copy where the store is remote."""
        if not self.exists(key):
            raise UnknownFileError
        if self.is_local:
            return Path(self._path(key))
        copy = self._cache_dir / key
        place = self._place_of_copy(key)
        place.mkdir(parents=True, exist_ok=True)
        os.utime(place)  # for clear_copies
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            unfinished = copy.with_name(f"{secrets.token_hex(8)}.part")  # a longer name than the copy's may be too long
            self._fs.get_file(self._path(key), str(unfinished))
            unfinished.rename(copy)
        return copy

    def delete(self, key: str) -> None:
        """Remove a file, and its copy on this machine. Removing it again does nothing."""
        parts = split_key(key)
        if self._fs.exists(place := f"{self._root}/{parts.folder}/{parts.token}"):
            self._fs.rm(place, recursive=True)
        shutil.rmtree(self._place_of_copy(key), ignore_errors=True)

    def clear_copies(self, than: datetime) -> None:
        """Remove the copies on this machine that nobody has asked for since then."""
        for place in self._cache_dir.glob("*/*"):
            with suppress(FileNotFoundError):  # another worker of this machine was quicker
                if place.stat().st_mtime < than.timestamp():
                    shutil.rmtree(place, ignore_errors=True)

    def stored(self, folder: str) -> Iterator[StoredFile]:
        """Give all files of a folder, for retention by age and size. Those of remote copies are not among them."""
        for path, facts in self._fs.find(f"{self._root}/{folder}", detail=True).items():
            key = path.removeprefix(f"{self._root}/")
            if _KEY.fullmatch(key):
                yield StoredFile(key, int(facts["size"]), _to_utc(self._fs.modified(path)))

    def limit_life(self, key: str, ends_at: datetime) -> None:
        """Note that a file, be it here already or not, is wanted until then only."""
        note = self._note(key, ends_at)
        self._fs.makedirs(note.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(note, key.encode())

    def overdue(self, now: datetime) -> dict[str, datetime]:
        """Give the files whose noted time is over, and when it was."""
        found = {}
        for note in self._fs.find(f"{self._root}/{LIFETIMES}"):
            ends_at = datetime.fromtimestamp(int(note.rpartition("/")[2].partition("-")[0]), UTC)
            if ends_at <= now:
                found[self._fs.cat_file(note).decode()] = ends_at
        return found

    def forget_life(self, key: str, ends_at: datetime) -> None:
        """Remove the note of a file that `overdue` gave. Removing it again does nothing."""
        if self._fs.exists(note := self._note(key, ends_at)):
            self._fs.rm_file(note)

    def add_part(self, key: str, number: int, source: Path) -> None:
        """Keep one part of a file that comes in parts, number counted from 1. The same part again replaces it."""
        self.take(source, _part_key(key, number))

    def parts_size(self, key: str, *, without: int | None = None) -> int:
        """Give the bytes of all parts kept so far. without: the number of one that does not count."""
        folder = f"{self._root}/{PARTS}/{split_key(key).token}"
        left_out = None if without is None else self._path(_part_key(key, without))
        found = self._fs.find(folder, detail=True)
        return sum(int(facts["size"]) for path, facts in found.items() if path != left_out)

    def delete_parts(self, key: str) -> None:
        """Remove all parts kept so far."""
        self.delete(_part_key(key, 1))

    def join_parts(self, key: str, numbers: Iterable[int], scratch: Path) -> None:
        """Make the file of its parts, in the order of their numbers. scratch: a file name on this machine to use."""
        numbers = sorted(set(numbers))
        with scratch.open("wb") as whole:
            for number in numbers:
                whole.writelines(self.read(_part_key(key, number)))
        self.take(scratch, key)
        self.delete_parts(key)

    def _place_of_copy(self, key: str) -> Path:
        parts = split_key(key)
        return self._cache_dir / parts.folder / parts.token

    def _note(self, key: str, ends_at: datetime) -> str:
        return f"{self._root}/{LIFETIMES}/{int(ends_at.timestamp())}-{split_key(key).token}"

    def _path(self, key: str) -> str:
        split_key(key)
        return f"{self._root}/{key}"


def split_key(key: str) -> KeyParts:
    """Take a key apart. Raises UnknownFileError for text that no store gave out, such as a path out of it."""
    match = _KEY.fullmatch(key)
    if match is None or not _is_safe(match["name"]):
        raise UnknownFileError
    return KeyParts(match["folder"], match["token"], match["type"], match["name"])


def clean_name(name: str) -> str:
    """Give a file name that is safe anywhere: no white space, no path, not too long; its extension stays."""
    plain = _plain_name(name)
    suffix = PurePosixPath(plain).suffix[:16]
    return cut_text(plain.removesuffix(suffix), MAX_NAME_BYTES - len(suffix.encode())) + suffix or "file"


def cut_text(text: str, max_bytes: int) -> str:
    """Give the beginning of a text, of so many bytes in UTF-8 at most: file systems count these, not letters."""
    return text.encode()[:max_bytes].decode(errors="ignore")


def _plain_name(name: str) -> str:
    plain = unicodedata.normalize("NFC", name).replace("\\", "/").rpartition("/")[2].strip()
    return re.sub(r"[^\w.-]+", "_", plain).lstrip(".-")


def _is_safe(name: str) -> bool:
    return name == _plain_name(name) and len(name.encode()) <= MAX_STORED_BYTES


def clean_type(content_type: str | None) -> str:
    """Give a content type without its parameters, or the unknown one where it is none."""
    plain = (content_type or "").partition(";")[0].strip().lower()
    return plain if _TYPE.fullmatch(plain) else UNKNOWN_TYPE


def guess_type(name: str) -> str:
    """Tell the content type from a name."""
    return _TYPES.guess_type(name, strict=False)[0] or UNKNOWN_TYPE


def extension_of(content_type: str) -> str:
    """Give the usual extension of a content type, with its dot."""
    return _TYPES.guess_extension(content_type, strict=False) or ".bin"


def _name_parts(name: str | None, content_type: str | None) -> list[str]:
    cleaned = clean_name(name or "file")
    kind = guess_type(cleaned) if content_type is None else clean_type(content_type)
    if not PurePosixPath(cleaned).suffix:
        cleaned += extension_of(kind)
    return [cleaned] if guess_type(cleaned) == kind else [*kind.split("/"), cleaned]


def _part_key(key: str, number: int) -> str:
    return f"{PARTS}/{split_key(key).token}/{number:05}.part"


def _to_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
