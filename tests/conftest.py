"""Settings of the whole test run."""

import gc

import pytest
import torch

gc.disable()  # until all tests are imported, and with them nearly all of the project's packages

# The models here are tiny: a second thread would cost more in waiting than it brings, above all on a busy machine.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring files with slow tests first: `make test` deals whole files out to its processes, and none of them should
    begin a long one when the others have nothing left.
    """
    slow = {item.path for item in items if any(item.iter_markers("slow")) or any(item.iter_markers("browser"))}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Let garbage be collected from here on, and not be looked for among what was imported."""
    gc.freeze()
    gc.enable()
