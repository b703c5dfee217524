"""Which of the processes that `torchrun` started this one is. Imports no torch; `parallel.py` does the work."""

import os


def count_processes() -> int:
    """Give how many processes make each video together, a device each."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def count_processes_here() -> int:
    """Give how many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count_processes()))


def is_parallel() -> bool:
    """Tell whether this process is one of several that do."""
    return count_processes() > 1


def is_follower() -> bool:
    """Tell whether this process takes part in what another, the one of rank 0, serves."""
    return is_parallel() and int(os.environ.get("RANK", "0")) > 0


def find_rank() -> int:
    """Give the number of this process among those of its machine, which is that of its card."""
    return int(os.environ.get("LOCAL_RANK", "0"))
