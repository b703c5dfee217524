"""What the process keeps of freed memory, and what it gives back."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.heap import (
    ALLOCATOR_VARIABLES,
    LOCKED_LIMIT,
    give_back_freed_memory,
    keep_freed_memory,
    lock_pages_exactly,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's limits are what it moves")
def test_freed_memory_is_used_again() -> None:
    """A tensor of some MB made again and again takes new pages from the system only at first."""
    keep_freed_memory()
    for _ in range(8):  # until the heap has found its shape
        torch.ones(2 * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    for _ in range(8):
        torch.ones(2 * 2**20)

    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults * resource.getpagesize() < 2 * 8 * 2**20  # of eight times 8 MB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no other library is asked for it")
def test_what_is_kept_can_be_returned() -> None:
    """Freed memory goes back to the system when asked for, also below what is still in use."""
    keep_freed_memory()
    tensors = [torch.ones(2**20) for _ in range(16)]  # 4 MB each
    del tensors[:-1]
    kept = psutil.Process().memory_info().rss

    give_back_freed_memory()

    assert kept - psutil.Process().memory_info().rss > 40 * 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's limits are what it moves")
def test_after_giving_back_freed_blocks_go_back_by_themselves() -> None:
    """In a process whose heap is new: what is free in it would be used first."""
    program = """
import psutil
from pipeline.heap import give_back_freed_memory, keep_freed_memory

for prepare in (give_back_freed_memory, keep_freed_memory):
    prepare()
    blocks = [b"x" * (4 * 2**20) for _ in range(16)]
    held = psutil.Process().memory_info().rss
    del blocks[:-1]
    print((held - psutil.Process().memory_info().rss) // 2**20)
"""
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)

    given_back, kept = (int(line) for line in told.stdout.split())
    assert kept < 10
    assert given_back > 40


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "pinned_max_cached_size_mb:1"}),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
            {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,pinned_max_cached_size_mb:1"},
        ),
        ({"PYTORCH_ALLOC_CONF": f"{LOCKED_LIMIT}:64"}, {"PYTORCH_ALLOC_CONF": f"{LOCKED_LIMIT}:64"}),
    ],
)
def test_locked_pages_are_not_rounded_up(given: dict[str, str], settled: dict[str, str]) -> None:
    """What a person has set stays beside it, or in its place."""
    lock_pages_exactly(given)

    assert given == settled


def test_torch_knows_the_setting_and_finds_it() -> None:
    """It is there once the package is imported; a value that is no number is refused."""
    assert any(LOCKED_LIMIT in os.environ.get(name, "") for name in ALLOCATOR_VARIABLES)
    with pytest.raises(ValueError, match="stoull"):
        torch._C._accelerator_setAllocatorSettings(f"{LOCKED_LIMIT}:some")
