"""Imports during which nothing is collected."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pipeline.importing import importing

NEW = "a_package_that_nobody_has_imported"


class Link:
    """Something that can point to itself."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def _thaw() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_imported_is_looked_through_neither_then_nor_later() -> None:
    """The collector rests meanwhile, works afterwards, and leaves what came alone."""
    with importing(NEW):
        assert not gc.isenabled()
        brought = Link()

    assert gc.isenabled()
    assert not any(one is brought for one in gc.get_objects())
    seen = weakref.ref(Link())
    gc.collect()
    assert seen() is None


def test_garbage_from_before_does_not_stay() -> None:
    """It is collected first, or it would be kept with the rest."""
    gc.disable()
    seen = weakref.ref(Link())
    gc.enable()

    with importing(NEW):
        assert seen() is None


def test_imports_of_two_threads_may_overlap() -> None:
    """The collector works again when the last of them is done, whichever began first."""
    first, second = ExitStack(), ExitStack()
    first.enter_context(importing(NEW))
    second.enter_context(importing(NEW))

    first.close()
    between = gc.isenabled()
    second.close()

    assert (between, gc.isenabled()) == (False, True)


def test_a_failed_import_leaves_the_collector_at_work() -> None:
    """The error goes on its way."""
    with pytest.raises(ModuleNotFoundError), importing(NEW):
        import a_package_that_nobody_has_imported  # noqa: F401 - it is missing, which is the point

    assert gc.isenabled()


def test_what_is_there_already_changes_nothing() -> None:
    """A second request for the same package does not hold up the collector."""
    before = gc.get_freeze_count()

    with importing("pytest"):
        assert gc.isenabled()

    assert gc.get_freeze_count() <= before
