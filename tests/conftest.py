"""Settings of the whole test run."""

import pytest
import torch

# The models here are tiny: a second thread would cost more in waiting than it brings, above all on a busy machine.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the work (`make test`), keep together what shares an app, a server or a model.

    That is a file, or all tests of the browser: Playwright's event loop must not run beside other packages' tests.
    pytest-xdist 3.8 does not read these groups with pytest 9.2, though: as yet, it hands out one test after the other.
    What is slow comes first, so that no process ends with a long file while the others have nothing left.
    """
    slow = {item.path for item in items if any(item.iter_markers("slow")) or any(item.iter_markers("browser"))}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        folder = item.path.parent
        item.add_marker(pytest.mark.xdist_group(str(folder if folder.name == "browser" else item.path)))
