"""What a computation needs of memory, counted: what it holds at its peak, and which weights it reads.

On torch's meta device, where nothing has data, that goes at any size.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Counter(TorchDispatchMode):
    """Counts the storages that are alive, but for some known ones."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._live = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        self._live.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._live.discard(key)
        self.now -= size


class _Reads(TorchDispatchMode):
    """Notes which of some known storages are read."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in known}
        self._read: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor))
        self._read |= {tensor.untyped_storage()._cdata for tensor in given} & self._known.keys()
        return function(*args, **(kwargs or {}))

    @property
    def bytes(self) -> int:
        """Give how many bytes were read, each counted once."""
        return sum(self._known[key] for key in self._read)


def bytes_read(weights: Iterable[torch.Tensor], run: Callable[[], Any]) -> int:
    """Run something. Gives the size of those weights that it read."""
    with torch.no_grad(), _Reads(weights) as reads:
        run()
    return reads.bytes


def peak_bytes(known: Iterable[torch.Tensor], run: Callable[[], Any]) -> int:
    """Run something on the meta device. Gives the most bytes that were alive at once beside what was known before."""
    with torch.no_grad(), _Counter(known) as counter:
        run()
    return counter.peak
