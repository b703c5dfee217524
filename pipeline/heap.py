"""How the process's allocator treats memory that tensors free on a processor: glibc's, which is Linux's usual one.

A block above a limit is one of its own: the system clears it page by page when it is asked for and gets it back when it
is freed. One below comes out of the heap, stays there for the next, and leaves a hole when it is freed before its
neighbours. Source: mallopt(3).

And torch's for locked pages, from which a card fetches layers: it rounds blocks up to a power of two, and keeps them.
"""

import ctypes
import sys
from collections.abc import MutableMapping
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
USUAL_LIMIT = 128 * 2**10
HIGHEST_LIMIT = 32 * 2**20  # that glibc takes

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
# Blocks above so many MB have the size asked for, and are freed, not kept. Not `pinned_max_round_threshold_mb`: those
# of several sizes would be kept in one list, of which torch 2.13 takes the last, also where that is too small (its pull
# request 192722). From torch's headers; no card has measured it.
LOCKED_LIMIT, LOCKED_LIMIT_MB = "pinned_max_cached_size_mb", 1


def keep_freed_memory() -> None:
    """Let the process keep what a step frees for the next one. Without, a step takes a twenty-fifth longer."""
    _set_limit(HIGHEST_LIMIT)


def give_back_freed_memory() -> None:
    """Give the system back all that is free, and from now on what is freed in blocks above the usual limit.

    So what a request keeps lies apart, and the heap has no holes when the loop begins, which would take them all.
    """
    _set_limit(USUAL_LIMIT)
    if glibc := _load_glibc():
        glibc.malloc_trim(0)


def lock_pages_exactly(environment: MutableMapping[str, str]) -> None:
    """Let torch lock as many bytes as the weights have, unless the environment says how much it is to keep.

    To be called before CUDA is first used. The 14B's layers would take half as much again in bf16: 62 GB instead of 41.
    """
    given = [name for name in ALLOCATOR_VARIABLES if environment.get(name)]
    for name in given or ALLOCATOR_VARIABLES[:1]:  # which of several counts differs from setting to setting
        settings = environment.get(name, "")
        if LOCKED_LIMIT not in settings:
            environment[name] = ",".join(filter(None, (settings, f"{LOCKED_LIMIT}:{LOCKED_LIMIT_MB}")))


def _set_limit(size: int) -> None:
    if glibc := _load_glibc():
        glibc.mallopt(M_MMAP_THRESHOLD, size)
        glibc.mallopt(M_TRIM_THRESHOLD, 2 * size)


def _load_glibc() -> Any:
    """Give the C library if it is glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
