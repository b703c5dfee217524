"""Encodings of texts, pictures and clips, kept by content: a second request with the same reference encodes none of it.

In memory, and on disk if a folder is given; both bounded, what was used longest ago goes first. Several processes may
share a folder.
"""

import hashlib
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import PIL
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MEMORY_BYTES = 512 * 2**20
DISK_BYTES = 4 * 2**30
# another version may round otherwise
VERSIONS = (torch.__version__, diffusers.__version__, transformers.__version__, PIL.__version__)

Tensors = dict[str, Tensor]

log = logging.getLogger(__name__)


class EncodingCache:
    """Keeps what `compute` gave, by a key that stands for all that went into it.

    memory_bytes, disk_bytes: how much to keep at most. folder: None keeps nothing on disk.
    """

    def __init__(
        self, folder: Path | None = None, memory_bytes: int = MEMORY_BYTES, disk_bytes: int = DISK_BYTES
    ) -> None:
        self._memory: OrderedDict[str, Tensors] = OrderedDict()
        self._folder, self._memory_bytes, self._disk_bytes = folder, memory_bytes, disk_bytes

    def get(self, key: str, compute: Callable[[], Tensors]) -> Tensors:
        """Give what is kept under a key, or compute and keep it; on the CPU. Nobody may change the tensors."""
        tensors = self._memory.get(key)
        if tensors is None:
            tensors = self._read(key)
            if tensors is None:
                tensors = {name: tensor.cpu() for name, tensor in compute().items()}
                self._write(key, tensors)
            self._memory[key] = tensors
        self._memory.move_to_end(key)
        while len(self._memory) > 1 and sum(map(_count_bytes, self._memory.values())) > self._memory_bytes:
            self._memory.popitem(last=False)
        return tensors

    def _read(self, key: str) -> Tensors | None:
        if self._folder is None:
            return None
        path = self._path(self._folder, key)
        try:
            tensors = load_file(path)
            os.utime(path)  # used just now
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError):
            path.unlink(missing_ok=True)  # broken, such as by a full disk; it is computed again
            return None
        return tensors

    def _write(self, key: str, tensors: Tensors) -> None:
        if self._folder is None:
            return
        path = self._path(self._folder, key)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=self._folder, suffix=".part")
            os.close(handle)
            try:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
                Path(part).replace(path)
            finally:
                Path(part).unlink(missing_ok=True)
            self._prune(self._folder)
        except (OSError, SafetensorError):
            log.warning("An encoding could not be kept in %s.", self._folder, exc_info=True)

    def _prune(self, folder: Path) -> None:
        files = []
        for path in folder.glob("*.safetensors"):
            try:
                files.append((path.stat(), path))
            except FileNotFoundError:
                continue  # another process was quicker
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if total <= self._disk_bytes:
                break
            path.unlink(missing_ok=True)
            total -= stat.st_size

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / f"{key}.safetensors"


def make_key(*parts: Any) -> str:
    """Give a key for texts, numbers, tuples of them, and pictures: equal parts, equal key."""
    digest = hashlib.blake2b(digest_size=24)
    for part in (VERSIONS, *parts):
        if isinstance(part, Image.Image):
            digest.update(f"picture {part.mode} {part.size} ".encode())
            digest.update(part.tobytes())
        else:
            text = repr(part)
            digest.update(f"{len(text)} {text}".encode())
    return digest.hexdigest()


def fingerprint_files(folder: Path, parts: Sequence[str]) -> str:
    """Give a short name of a checkpoint's parts, from their files' names, sizes and times."""
    return make_key(*(_describe(path, folder) for path in _list_files(folder, parts)))


def _list_files(folder: Path, parts: Sequence[str]) -> Iterable[Path]:
    return sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file())


def _describe(path: Path, folder: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns


def _count_bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
