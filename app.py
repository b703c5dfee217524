"""Video-As-Prompt Studio: settings -> queue -> worker -> API and page -> serve. `python app.py --help` has options."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StudioError
from pipeline.presets import PRESETS_FOLDER, Preset, load_presets
from pipeline.ranks import is_follower
from server.background import leave
from server.settings import Settings, prepare_environment, read_settings, settle_port
from server.space import choose_model

if TYPE_CHECKING:
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
            follow(settings)
            return 0
        port = settle_port(settings)
        prepare_environment(settings)
        settings = choose_model(settings)
        presets = load_presets()
        # Imported late, as all below: --help should not wait for the queue and the page.
        from server.assembly import check_machine, make_tls_front, open_files, open_queue

        check_machine(settings)
        queue = open_queue(settings, open_files(settings))
        tls_front = make_tls_front(settings, queue)
    except StudioError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    # Gradio ends quietly at Ctrl-C; before it serves, the interruption comes as far as here.
    with closing(queue), tls_front, suppress(KeyboardInterrupt):
        run(settings, port, presets, queue)
    return 0


def follow(settings: Settings) -> None:
    """Take part in the videos of the process that serves, until it ends."""
    from pipeline.weights import follow_leader

    with suppress(KeyboardInterrupt):
        follow_leader(settings.model, settings.profile, settings.attention)


def run(settings: Settings, port: int, presets: Sequence[Preset], queue: "JobQueue") -> None:
    """Serve, and make the videos unless workers elsewhere do."""
    from server.assembly import make_load, make_tender, make_worker
    from server.loading import BackgroundModel, Gauge

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends us as Ctrl-C does
    gauge = Gauge()
    model = BackgroundModel(settings.model, gauge, make_load(settings, gauge)) if settings.worker else None
    worker = make_worker(settings, queue, model.get, gauge) if model else make_tender(settings, queue)
    worker.start()
    try:
        serve(settings, port, presets, queue, model, gauge)
    finally:
        worker.stop(STOP_TIMEOUT_S)


def serve(
    settings: Settings,
    port: int,
    presets: Sequence[Preset],
    queue: "JobQueue",
    model: "BackgroundModel | None",
    gauge: "Gauge",
) -> None:
    """Open the page at once, with the API beside it, and stay until told to end."""
    from server.api import api_routes
    from server.assembly import MAX_UPLOAD_BYTES, make_api, make_studio
    from server.events import connect
    from server.theme import StudioTheme
    from server.ui import build_page

    api = make_api(settings, queue)
    studio = make_studio(settings, api, model, gauge)
    page = build_page(
        presets, studio.browser_secret, safety_forced=settings.force_safety_checker, loras=studio.loras.names()
    )
    connect(page, studio)
    page.blocks.launch(
        server_name=settings.host,
        server_port=port,
        share=settings.share,
        auth=settings.login,
        app_kwargs={"routes": api_routes(api)},
        allowed_paths=[str(ASSETS), str(PRESETS_FOLDER), *_allowed_by_gradio()],
        max_file_size=MAX_UPLOAD_BYTES,
        theme=StudioTheme(),
        css_paths=[ASSETS / "page.css"],
        js=(ASSETS / "page.js").read_text(encoding="utf-8"),
        footer_links=["api", "settings"],
        run_history=False,
        ssr_mode=False,  # with it, a Node server in front would answer our own routes
    )


def _allowed_by_gradio() -> list[str]:
    """Give the paths of Gradio's own variable, which it reads only where none are passed."""
    return [path.strip() for path in os.environ.get("GRADIO_ALLOWED_PATHS", "").split(",") if path.strip()]


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
