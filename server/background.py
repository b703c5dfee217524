"""Work that must not hold up the end of the program: threads that end with it, and an end that waits for none."""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import NoReturn, TypeVar

Value = TypeVar("Value")


def in_background(do: Callable[[], Value]) -> Future[Value]:
    """Begin something, and give the place where its value or its error will be."""
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(do())
        except Exception as error:  # noqa: BLE001 - raised again where the value is asked for
            future.set_exception(error)

    # A daemon, so that Ctrl-C ends the program in the middle of reading 30 GB.
    threading.Thread(target=run, daemon=True).start()
    return future


def leave(code: int) -> NoReturn:
    """End the process, everything in it being closed already.

    Python itself would first wait for every thread: for a step that takes minutes, for a receiver that does not answer.
    What those leave unfinished is in the database, to be taken up again.
    """
    atexit._run_exitfuncs()  # which waits for no thread, and ends what Gradio has started for --share
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
