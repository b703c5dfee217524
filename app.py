"""Video-As-Prompt Studio: settings -> queue -> worker -> API and page -> serve. `python app.py --help` has options."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.errors import StudioError
from pipeline.importing import importing
from pipeline.presets import PRESETS_FOLDER, Preset, load_presets
from pipeline.ranks import is_follower
from server.background import leave
from server.settings import Settings, prepare_environment, read_settings, settle_port
from server.space import choose_model

if TYPE_CHECKING:
    from gradio import Blocks

    from server.jobs import JobQueue
    from server.loading import BackgroundModel, Gauge

ASSETS = Path(__file__).resolve().parent / "assets"
STOP_TIMEOUT_S = 10.0  # for the running step; what takes longer goes on after the next start


def main(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C. A setting, preset or database that cannot work ends with a sentence and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = read_settings(arguments)
        if is_follower():  # one of several processes of `torchrun`; another one serves
            from server.assembly import follow

            follow(settings)
            return 0
        port = settle_port(settings)
        prepare_environment(settings)
        settings = choose_model(settings)
        presets = load_presets(model=Path(settings.model).name if settings.worker else None)
        # Imported late, as all below: --help should not wait for the queue and the page.
        from server.assembly import check_machine, make_tls_front, open_files, open_queue

        check_machine(settings)
        queue = open_queue(settings, open_files(settings))
        tls_front = make_tls_front(settings, queue)
    except StudioError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    with closing(queue), tls_front, suppress(KeyboardInterrupt):  # a second Ctrl-C waits for nothing
        run(settings, port, presets, queue)
    return 0


def run(settings: Settings, port: int, presets: Sequence[Preset], queue: "JobQueue") -> None:
    """Serve, and make the videos unless workers elsewhere do."""
    from server.assembly import make_load, make_tender, make_worker
    from server.loading import BackgroundModel, Gauge

    told = told_to_end()
    gauge = Gauge()
    model = BackgroundModel(settings.model, gauge, make_load(settings, gauge)) if settings.worker else None
    worker = make_worker(settings, queue, model.get, gauge) if model else make_tender(settings, queue)
    worker.start()
    try:
        page = open_page(settings, port, presets, queue, model, gauge)
        told.wait()
        page.close(verbose=False)
    finally:
        worker.stop(STOP_TIMEOUT_S)


def told_to_end() -> threading.Event:
    """Give what is set at Ctrl-C and SIGTERM, from now on; a second one interrupts at once.

    An interruption may come anywhere, and some places swallow one: Python's callbacks, and libraries'.
    """
    told = threading.Event()

    def tell(number: int, frame: FrameType | None) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, tell)
    return told


def open_page(
    settings: Settings,
    port: int,
    presets: Sequence[Preset],
    queue: "JobQueue",
    model: "BackgroundModel | None",
    gauge: "Gauge",
) -> "Blocks":
    """Open the page at once, with the API beside it."""
    with importing("gradio"):
        from server.api import ahead_of_page
        from server.assembly import MAX_UPLOAD_BYTES, make_api, make_studio
        from server.events import connect
        from server.form import starting_values
        from server.theme import StudioTheme
        from server.ui import build_page

    api = make_api(settings, queue)
    studio = make_studio(settings, api, model, gauge)
    page = build_page(
        presets,
        studio.browser_secret,
        starts=starting_values(studio.guidance_scale),
        safety_forced=settings.force_safety_checker,
        loras=studio.loras.names(),
    )
    connect(page, studio)
    page.blocks.launch(
        server_name=settings.host,
        server_port=port,
        share=settings.share,
        auth=settings.login,
        app_kwargs={"lifespan": ahead_of_page(api)},
        allowed_paths=[str(ASSETS), str(PRESETS_FOLDER), *_allowed_by_gradio()],
        max_file_size=MAX_UPLOAD_BYTES,
        theme=StudioTheme(),
        css_paths=[ASSETS / "page.css"],
        js=(ASSETS / "page.js").read_text(encoding="utf-8"),
        footer_links=["api", "settings"],
        run_history=False,
        ssr_mode=False,  # with it, a Node server in front would answer our own routes
        prevent_thread_lock=True,  # who called waits for the end
    )
    return page.blocks


def _allowed_by_gradio() -> list[str]:
    """Give the paths of Gradio's own variable, which it reads only where none are passed."""
    return [path.strip() for path in os.environ.get("GRADIO_ALLOWED_PATHS", "").split(",") if path.strip()]


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
