"""The model store: a model of the hub and its place on this machine. Fetched once, checked once, from one commit.

The files lie in huggingface_hub's own cache, where other programs find them too. Beside them we keep which commit we
use, as a ref, and what the hub said that this commit holds. So a model that is here needs no hub.
"""

import os
import queue
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import constants, snapshot_download
from huggingface_hub.file_download import repo_folder_name
from pydantic import TypeAdapter

from pipeline.errors import ModelError
from pipeline.hub import FOLDERS, INDEX, HubAwayError, Release, RemoteFile, Repository, size_of, work_off
from pipeline.model_progress import ModelProgress, OnModel, ignore

POLL_S = 0.5
STOP_S = 0.2
SPARE_BYTES = 10**9  # left free on the disk, for what is made with the model
OURS = "video-as-prompt-studio"  # our ref, and our folder beside the download
COMMIT = re.compile(r"[0-9a-f]{40}")

_releases = TypeAdapter(Release)


@dataclass(frozen=True)
class Stock:
    """How much of a model is here, and how much its disk has free, in bytes."""

    commit: str
    total_bytes: int
    here_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class HubModel:
    """A model of the hub, and its place on this machine.

    revision: a commit, branch or tag; None: the commit that `main` was at when it was first fetched. cache_dir: None is
    huggingface_hub's own.
    """

    repository: Repository
    revision: str | None = None
    cache_dir: Path | None = None

    def fetch(self, on_progress: OnModel = ignore) -> Path:
        """Give the folder with all files, fetching what is not here.

        Raises ModelError when the hub has no such model or is away, when a file does not arrive whole, or when the disk
        has not the room.
        """
        release = self._recall()
        if release is None:
            try:
                release = self._ask()
            except (HubAwayError, OSError) as error:  # OSError: a cache that others filled and we may only read
                if folder := self._find_anothers_download():
                    return folder
                if isinstance(error, ModelError):
                    raise
                way_out = "set HF_HUB_CACHE to a folder that can be written"
                raise ModelError(f"{self._cache} cannot be written ({error.strerror}); {way_out}.", "model") from error
        if self._unverified(release):
            with self._alone(release, on_progress):
                # Another program may have brought it meanwhile.
                self._complete(self._read(release.commit) or release, on_progress)
        return self._snapshot(release)

    def take_stock(self) -> Stock:
        """Tell what a fetch would fetch; asks the hub about a model that was never fetched. Raises ModelError."""
        release = self._recall() or self._ask()
        return Stock(release.commit, release.size_bytes, self._measure_here_bytes(release), self._measure_free_bytes())

    def verify(self, on_progress: OnModel = ignore) -> list[str]:
        """Compare all files with the hub's digests, as once told; give the paths of those that are damaged or missing.

        `fetch` then brings exactly these. Raises ModelError when the model was never fetched.
        """
        release = self._recall()
        if release is None:
            message = (
                f"“{self.repository.name}” was not downloaded yet, so there is nothing to check; download it first."
            )
            raise ModelError(message, "model")
        with self._alone(release, on_progress):
            _, broken = self._find_broken(release, release.files, on_progress)
        return [file.path for file in broken]

    def update(self, on_progress: OnModel = ignore) -> tuple[str | None, str]:
        """Fetch what `main` is now and use it from then on; give the commits before and after.

        Raises ModelError as `fetch`; then the model stays what it was.
        """
        before, after = self._pinned(), self.repository.ask_release(constants.DEFAULT_REVISION)
        self._keep(after)
        replace(self, revision=after.commit).fetch(on_progress)
        self._pin(after.commit)
        return before, after.commit

    @property
    def _cache(self) -> Path:
        return self.cache_dir or Path(constants.HF_HUB_CACHE)

    @property
    def _folder(self) -> Path:
        return self._cache / repo_folder_name(repo_id=self.repository.name, repo_type="model")

    def _snapshot(self, release: Release) -> Path:
        return self._folder / "snapshots" / release.commit

    def _blob(self, file: RemoteFile) -> Path:
        return self._folder / "blobs" / file.digest

    def _part(self, file: RemoteFile) -> Path:
        # The path, too: two files that are alike are fetched at the same time.
        return self._folder / OURS / f"{file.digest[:16]}-{file.path.replace('/', '-')}.part"

    def _record_path(self, commit: str) -> Path:
        return self._folder / OURS / f"{commit}.json"

    def _pinned(self) -> str | None:
        try:
            return (self._folder / "refs" / OURS).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None

    def _pin(self, commit: str) -> None:
        # A ref, since `hf cache prune` removes what no ref points to.
        _write(self._folder / "refs" / OURS, commit.encode("ascii"))

    def _ask(self) -> Release:
        """Ask the hub what our revision holds, and remember that."""
        release = self.repository.ask_release(self.revision or constants.DEFAULT_REVISION)
        self._keep(release)
        if self.revision is None:
            self._pin(release.commit)
        return self._read(release.commit) or release

    def _recall(self) -> Release | None:
        """Give what the hub once said of our commit."""
        commit = self._pinned() if self.revision is None else self.revision
        return self._read(commit) if commit and COMMIT.fullmatch(commit) else None

    def _read(self, commit: str) -> Release | None:
        try:
            return _releases.validate_json(self._record_path(commit).read_bytes())
        except (FileNotFoundError, ValueError):  # ValueError: not whole; the hub will say it again
            return None

    def _keep(self, release: Release) -> None:
        self._snapshot(release).mkdir(parents=True, exist_ok=True)
        if self._read(release.commit) is None:
            self._record(release)

    def _record(self, release: Release) -> None:
        _write(self._record_path(release.commit), _releases.dump_json(release, indent=1))

    def _find_anothers_download(self) -> Path | None:
        """Give what another program has brought of this repository, if it is whole as far as one can tell."""
        try:
            found = snapshot_download(
                self.repository.name,
                revision=self.revision,
                cache_dir=self._cache,
                allow_patterns=[INDEX, *(f"{folder}/*" for folder in FOLDERS)],
                local_files_only=True,
            )
        except (FileNotFoundError, ValueError):  # not here, or no repository's name; huggingface_hub's own are of these
            return None
        return Path(found) if (Path(found) / INDEX).is_file() else None

    @contextmanager
    def _alone(self, release: Release, on_progress: OnModel) -> Iterator[None]:
        """Keep other programs of this machine from the same work; while they are at it, tell how far they are."""
        lock = FileLock(self._folder / OURS / "lock")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=POLL_S)
            except Timeout:
                on_progress(ModelProgress("downloading", self._measure_here_bytes(release), release.size_bytes))
        try:
            yield
        finally:
            lock.release()

    def _unverified(self, release: Release) -> list[RemoteFile]:
        folder = self._snapshot(release)
        return [file for file in release.files if release.verified.get(file.path, ()) != _stamp(folder / file.path)]

    def _complete(self, release: Release, on_progress: OnModel) -> None:
        release, broken = self._find_broken(release, self._unverified(release), on_progress)
        if not broken:
            return
        self.repository.require_online(f"“{self.repository.name}” lacks {_list(broken)}")
        self._require_room(broken)
        self._download(release, broken, on_progress)

    def _find_broken(
        self, release: Release, files: Sequence[RemoteFile], on_progress: OnModel
    ) -> tuple[Release, list[RemoteFile]]:
        """Read files and compare their digests; remember which are right, and give the others."""
        folder = self._snapshot(release)
        present = [file for file in files if self._find(release, file)]
        verified = {path: stamp for path, stamp in release.verified.items() if path not in {f.path for f in files}}
        total = sum(file.size_bytes for file in present)
        done = 0

        def count(size_bytes: int) -> None:
            nonlocal done
            done += size_bytes
            on_progress(ModelProgress("verifying", done, total))

        for file in present:
            stamp = _stamp(folder / file.path)
            if file.matches(folder / file.path, count) and stamp:
                verified[file.path] = stamp
        checked = replace(release, verified=verified)
        self._record(checked)
        return checked, [file for file in files if file.path not in verified]

    def _find(self, release: Release, file: RemoteFile) -> bool:
        """Whether a file of the right size is here, be it of another commit."""
        place = self._snapshot(release) / file.path
        if not place.exists() and self._blob(file).exists():
            _link(self._blob(file), place)
        return place.exists() and size_of(place) == file.size_bytes

    def _measure_here_bytes(self, release: Release) -> int:
        folder = self._snapshot(release)
        lacking = [file for file in release.files if size_of(folder / file.path) != file.size_bytes]
        return release.size_bytes - self._left(lacking)

    def _left(self, files: Sequence[RemoteFile]) -> int:
        return sum(file.size_bytes - min(size_of(self._part(file)), file.size_bytes) for file in files)

    def _measure_free_bytes(self) -> int:
        there = next(folder for folder in (self._cache, *self._cache.absolute().parents) if folder.exists())
        return shutil.disk_usage(there).free

    def _require_room(self, files: Sequence[RemoteFile]) -> None:
        needed, free = self._left(files), self._measure_free_bytes()
        if needed + SPARE_BYTES > free:
            lack = (
                f"“{self.repository.name}” needs {needed / 1e9:.1f} GB more in {self._cache}, where {free / 1e9:.1f} GB"
            )
            way_out = (
                f"make room for {(needed + SPARE_BYTES - free) / 1e9:.1f} GB, or set HF_HUB_CACHE to a larger disk"
            )
            raise ModelError(f"{lack} are free; {way_out}.", "model")

    def _download(self, release: Release, files: Sequence[RemoteFile], on_progress: OnModel) -> None:
        """Fetch files, and tell how far that is twice a second."""
        lacking = {file.path: file for file in files}
        stop = threading.Event()
        here = release.size_bytes - self._left(files)
        on_progress(ModelProgress("downloading", here, release.size_bytes))  # before the first byte comes
        done, threads = work_off(files, lambda file: self._bring(release.commit, file, stop), stop)
        verified, damage = release.verified, None
        try:
            while lacking:
                here = max(here, release.size_bytes - self._left(list(lacking.values())))
                progress = ModelProgress("downloading", here, release.size_bytes)
                on_progress(progress)
                try:
                    file, error = done.get(timeout=POLL_S)
                except queue.Empty:
                    continue
                del lacking[file.path]
                if isinstance(error, ModelError):  # the file's own: the others can still come
                    damage = error
                elif error is not None:
                    raise self.repository.explain_break(error, progress.amount) from error
                elif stamp := _stamp(self._snapshot(release) / file.path):
                    verified = verified | {file.path: stamp}
                    self._record(replace(release, verified=verified))
        finally:
            stop.set()
            for thread in threads:  # one may be about to write; the others learn of it at the next piece they get
                thread.join(STOP_S)
        if damage:
            raise damage
        on_progress(ModelProgress("downloading", release.size_bytes, release.size_bytes))

    def _bring(self, commit: str, file: RemoteFile, stop: threading.Event) -> None:
        """Fetch one file and put it in its place."""
        self.repository.fetch_file(commit, file, self._part(file), stop)
        blob = self._blob(file)
        blob.parent.mkdir(exist_ok=True)
        self._part(file).replace(blob)
        _link(blob, self._folder / "snapshots" / commit / file.path)


def _list(files: Sequence[RemoteFile]) -> str:
    more = f" and {len(files) - 3} more files" if len(files) > 3 else ""
    return ", ".join(file.path for file in files[:3]) + more


def _stamp(path: Path) -> tuple[int, int] | None:
    """Give what changes when a file does."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


def _link(blob: Path, place: Path) -> None:
    """Show a blob in a snapshot, as huggingface_hub does."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        place.symlink_to(os.path.relpath(blob, place.parent))
    except OSError:  # Windows, where not everybody may link
        blob.replace(place)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.replace(path)
