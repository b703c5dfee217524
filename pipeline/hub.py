"""What the hub says of a model, and fetching one of its files: from where it broke off, and with its checksum.

The fetching is huggingface_hub's `http_get`, not its `snapshot_download`: that one, in 2.x, throws away what it has of
a file when the program ends, and a file of the large model has up to 10 GB.
"""

import hashlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, yet not in its __all__

from pipeline.errors import ModelError, StoppedError

INDEX = "model_index.json"
FOLDERS = ("transformer", "vae", "text_encoder", "tokenizer", "image_encoder", "image_processor", "scheduler")

HUB_TIMEOUT_S = 4.0  # for the first word: a hub that is away should be known at once
CONNECTIONS = 4
PIECE_BYTES = 8 * 2**20

Answer = TypeVar("Answer")


class HubAwayError(ModelError):
    """The hub cannot be asked: no connection, no answer, an error of its own, or we are told to stay offline."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub describes it. digest: SHA-256 of a large file; of a small one, kept in git, git's SHA-1."""

    path: str
    size_bytes: int
    digest: str

    def matches(self, local: Path, on_read: Callable[[int], None] = lambda size_bytes: None) -> bool:
        """Compare a file here with the digest. on_read: told the size in bytes of each piece that was read."""
        digest = hashlib.sha256() if len(self.digest) == 64 else hashlib.sha1(usedforsecurity=False)
        if digest.name == "sha1":
            digest.update(b"blob %d\0" % self.size_bytes)  # git hashes a file with this before it
        with local.open("rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                digest.update(piece)
                on_read(len(piece))
        return digest.hexdigest() == self.digest


@dataclass(frozen=True)
class Release:
    """What one commit of a repository holds of a model.

    verified: path -> size in bytes and time of last change in ns of the file here, when its digest was found right.
    """

    commit: str
    files: tuple[RemoteFile, ...]
    verified: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Give the size of all files."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class Repository:
    """A repository of the hub. token: None is the one huggingface_hub knows. offline: as with HF_HUB_OFFLINE=1."""

    name: str
    token: str | None = None
    offline: bool = False

    def require_online(self, lack: str) -> None:
        """Raise HubAwayError, which begins with `lack`, when we are told to stay offline."""
        if self.offline or constants.is_offline_mode():
            way_out = "unset HF_HUB_OFFLINE once, or use the model nano"
            raise HubAwayError(f"{lack}, and the hub is not to be asked (offline mode); {way_out}.", "model")

    def ask_release(self, revision: str) -> Release:
        """Ask the hub what a commit, branch or tag holds; once, and without patience.

        Raises HubAwayError when it does not answer, ModelError when it has no such model.
        """
        self.require_online(f"“{self.name}” is neither a folder here nor a model that was downloaded")
        api = HfApi(token=self.token)
        try:
            info = _within(
                HUB_TIMEOUT_S,
                lambda: api.model_info(self.name, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT_S),
            )
        except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
            raise self._explain_refusal(error, revision) from error
        files = tuple(_describe(sibling) for sibling in info.siblings or () if _is_wanted(sibling.rfilename))
        if not any(file.path == INDEX for file in files):
            raise ModelError(
                f"The repository “{self.name}” holds no {INDEX}, so it is not a model of this kind.", "model"
            )
        return Release(str(info.sha), files)

    def fetch_file(self, commit: str, file: RemoteFile, part: Path, stop: threading.Event) -> None:
        """Write a file to `part`, going on from what is there.

        stop: once set, nothing more is written, and StoppedError is raised.
        Raises ModelError when the digest is wrong, and removes the part. Lets through what the connection raises.
        """
        if size_of(part) > file.size_bytes:
            part.unlink()
        with part.open("ab") as stream:
            http_get(
                hf_hub_url(self.name, file.path, revision=commit),
                stream,
                resume_size=stream.tell(),
                # A compressed answer cannot be gone on with.
                headers={**build_hf_headers(token=self.token), "Accept-Encoding": "identity"},
                expected_size=file.size_bytes,
                displayed_filename=file.path,
                tqdm_class=_make_brake(stop),
            )
        if not file.matches(part):
            part.unlink()
            what = f"{file.path} of “{self.name}” arrived damaged: its checksum is wrong"
            raise ModelError(f"{what}; try again, which fetches only what is missing.", "model")

    def explain_break(self, error: Exception, amount: str) -> ModelError:
        """Turn what ended a download into a sentence. amount: how much is here."""
        if isinstance(error, OSError) and error.errno is not None:
            return ModelError(f"“{self.name}” cannot be written to the disk: {error.strerror}.", "model")
        broke = f"The download of “{self.name}” broke off at {amount} ({_reason(error)})"
        return ModelError(f"{broke}; try again, it goes on from there.", "model")

    def _explain_refusal(self, error: Exception, revision: str) -> ModelError:
        match error:
            case GatedRepoError():
                terms = f"accept its terms at {constants.ENDPOINT}/{self.name}, then log in with `hf auth login`"
                return ModelError(f"“{self.name}” is only for those who accept its terms; {terms}.", "model")
            case RepositoryNotFoundError():
                return ModelError(f"The hub has no model “{self.name}”; check its name.", "model")
            case RevisionNotFoundError():
                return ModelError(f"The hub has no revision “{revision}” of “{self.name}”; try main.", "model")
            case HfHubHTTPError() if error.response.status_code < 500:
                status = error.response.status_code
                return ModelError(f"The hub refuses “{self.name}” (status {status}); check its name.", "model")
            case HFValidationError():
                return ModelError(f"“{self.name}” is neither a folder nor a repository of the hub.", "model")
        away = f"the hub at {constants.ENDPOINT} cannot be reached ({_reason(error)})"
        way_out = "check the connection and try again, or use the model nano"
        return HubAwayError(f"“{self.name}” is not on this machine, and {away}; {way_out}.", "model")


def work_off(
    files: Sequence[RemoteFile], work: Callable[[RemoteFile], None], stop: threading.Event
) -> tuple["queue.SimpleQueue[tuple[RemoteFile, Exception | None]]", list[threading.Thread]]:
    """Do some work for each file, several at a time; the queue tells of each that is done, or why it could not be.

    The threads end with the program: those of an executor would hold it until all is here.
    """
    waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[RemoteFile, Exception | None]] = queue.SimpleQueue()
    for file in files:
        waiting.put(file)

    def run() -> None:
        while not stop.is_set() and not waiting.empty():
            try:
                file = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                work(file)
            except Exception as error:  # noqa: BLE001 - handed to the thread that waits
                done.put((file, error))
            else:
                done.put((file, None))

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(CONNECTIONS, len(files)))]
    for thread in threads:
        thread.start()
    return done, threads


def size_of(path: Path) -> int:
    """Give a file's size in bytes; 0 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _is_wanted(path: str) -> bool:
    return path == INDEX or path.partition("/")[0] in FOLDERS


def _describe(sibling: Any) -> RemoteFile:
    if sibling.lfs is not None:
        return RemoteFile(sibling.rfilename, sibling.lfs.size, sibling.lfs.sha256)
    return RemoteFile(sibling.rfilename, sibling.size, sibling.blob_id)


def _make_brake(stop: threading.Event) -> type:
    """Give what `http_get` takes for a progress bar: it shows nothing, and ends the download when told to."""

    class Brake:
        def __init__(self, **options: Any) -> None:
            pass

        def __enter__(self) -> "Brake":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, size_bytes: int) -> None:
            if stop.is_set():
                raise StoppedError("The download was stopped.")

    return Brake


def _within(timeout_s: float, ask: Callable[[], Answer]) -> Answer:
    """Wait this long for an answer. A connection's own timeout counts anew for each address that a name has."""
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer.result(timeout_s)


def _reason(error: Exception) -> str:
    match error:
        case HfHubHTTPError():
            return f"it answers with status {error.response.status_code}"
        case TimeoutError() | httpx2.TimeoutException():
            return "no answer"
        case httpx2.ConnectError():
            return "no connection"
        case ValueError():  # as from the page of a hotel's network that wants a login
            return "something else answers in its place"
        case _:
            return "the connection broke"
