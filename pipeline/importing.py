"""Imports of large packages without Python's garbage collector, which would look through all of their objects again
and again: 800,000 that stay, for a fifth of the time, once torch, diffusers and gradio are there.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_lock = Lock()
_under_way = 0


@contextmanager
def importing(package: str) -> Iterator[None]:
    """Let nothing be collected while a package is imported for the first time, nor what it brought ever after.

    For a few seconds at a program's start: what is garbage in them stays in memory. Threads may overlap.
    """
    if package in sys.modules:
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _under_way
    with _lock:
        if not _under_way:
            gc.collect()  # or what is garbage already would stay with what is not
            gc.disable()
        _under_way += 1


def _leave() -> None:
    global _under_way
    with _lock:
        _under_way -= 1
        if not _under_way:
            gc.freeze()
            gc.enable()
