"""The two files of a request, as a body names them -> sources that the queue can keep."""

import base64
import binascii
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.file_kind import HEAD_BYTES, Medium, file_kind
from server.files import PRIVATE, UPLOADS, FileStore, UnknownFileError, split_key
from server.job import FILE_SCHEME, Fault, JobRequest
from server.schema import InvalidBodyError, Urls, WireInput

FILES_PATH = "/fal/cdn/files/"

_MEDIUM_OF = {"reference_video": Medium.VIDEO, "image": Medium.PICTURE}
_TYPE_OF_WRONG_MEDIUM = {"reference_video": "unsupported_video_format", "image": "image_load_error"}


@dataclass(frozen=True)
class InputFiles:
    """Where the files of requests go, and how large they may be."""

    files: FileStore
    scratch_dir: Path
    max_bytes: int

    def to_request(self, given: WireInput, urls: Urls) -> JobRequest:
        """Make a request for the queue. Files inside the body are stored; our own addresses become keys.

        Raises InvalidBodyError with the faults of both files.
        """
        sources: dict[str, str] = {}
        faults: list[Fault] = []
        for name in _MEDIUM_OF:
            try:
                sources[name] = self._to_source(name, getattr(given, name), urls)
            except InvalidBodyError as error:
                faults += error.faults
        if faults:
            self.discard(given, sources)
            raise InvalidBodyError(tuple(faults))
        return JobRequest(given.fields, sources["reference_video"], sources["image"])

    def discard(self, given: WireInput, sources: Mapping[str, str], kept: Collection[str] = ()) -> None:
        """Remove the files that came inside a body, of the sources made of it by field, but those that are kept."""
        for name, source in sources.items():
            if _is_inside(getattr(given, name)) and source not in kept:
                self.files.delete(source.removeprefix(FILE_SCHEME))

    def _to_source(self, name: str, url: str, urls: Urls) -> str:
        if _is_inside(url):
            return FILE_SCHEME + self._store(name, url)
        path = unquote(urlsplit(url).path)
        key = path.partition(FILES_PATH)[2]
        # Nobody can guess a key: whoever names one that we have means our file, by whatever name he reaches us.
        if key and self.files.exists(key) and split_key(key).folder not in PRIVATE:
            return FILE_SCHEME + key
        if url.startswith(urls.base + FILES_PATH):
            raise InvalidBodyError((Fault(name, UnknownFileError().message, "file_download_error"),))
        return url

    def _store(self, name: str, url: str) -> str:
        """Keep the file of a data URI. Its length is checked before it is decoded, and its content looked at."""
        head, comma, encoded = url.partition(",")
        content_type, *parameters = head[5:].split(";")
        if not comma or "base64" not in [parameter.strip().lower() for parameter in parameters]:
            message = "The data URI has no base64 content: data:<type>;base64,<content>"
            raise _fault(name, message, "file_download_error")
        if len(encoded) * 3 // 4 > self.max_bytes:
            limit = self.max_bytes // 2**20
            raise _fault(name, f"The file is larger than {limit} MB; give a smaller one.", "file_too_large")
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise _fault(name, "The data URI is not valid base64.", "file_download_error") from None
        kind = file_kind(data[:HEAD_BYTES])
        if kind.medium is not _MEDIUM_OF[name]:
            message = f"This is {kind.name}, where a {_MEDIUM_OF[name]} is needed."
            raise _fault(name, message, _TYPE_OF_WRONG_MEDIUM[name])
        return self._write(data, content_type)

    def _write(self, data: bytes, content_type: str) -> str:
        self.scratch_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.scratch_dir, delete=False) as file:
            file.write(data)
        key = self.files.reserve(UPLOADS, None, content_type)
        self.files.take(Path(file.name), key)
        return key


def _is_inside(url: str) -> bool:
    """Say whether a file lies in the body itself."""
    return url[:5].lower() == "data:"


def _fault(name: str, message: str, kind: str) -> InvalidBodyError:
    return InvalidBodyError((Fault(name, message, kind),))
