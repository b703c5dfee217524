"""What stands in for the package that ZeroGPU Spaces have: it lends no GPU, and notes what it is asked for.

What a decorated generator yields goes through pickle, as out of the real one's fork, and only Gradio's errors come out.
"""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.context import LocalContext


@dataclass
class Book:
    """Notes. sizes: of the decorated functions. lent: seconds asked for, and the request they counted for."""

    sizes: list[str] = field(default_factory=list)
    lent: list[tuple[int, Any]] = field(default_factory=list)
    is_exhausted: bool = False


BOOK = Book()


def GPU(*, duration: Callable[..., int], size: str) -> Callable[[Callable[..., Iterator[Any]]], Any]:  # noqa: N802
    """Decorate as the real one does."""
    BOOK.sizes.append(size)

    def decorate(task: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def lend(*args: Any) -> Iterator[Any]:
            BOOK.lent.append((duration(*args), LocalContext.request.get(None)))
            if BOOK.is_exhausted:
                raise gr.Error("You have exceeded your free ZeroGPU quota.", print_exception=False)
            running = task(*pickle.loads(pickle.dumps(args)))
            try:
                for item in running:
                    yield pickle.loads(pickle.dumps(item))
            finally:
                running.close()  # type: ignore[attr-defined]

        return lend

    return decorate
