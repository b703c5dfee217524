"""Video-As-Prompt Studio: settings -> model -> page -> serve. `python app.py --help` lists the options."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import StudioError
from pipeline.presets import PRESETS_FOLDER, Preset, load_presets
from server.settings import Settings, prepare_environment, read_settings, settle_port

ASSETS = Path(__file__).resolve().parent / "assets"
MAX_UPLOAD = "200mb"


def main(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C. A setting or preset that cannot work ends with a sentence and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = read_settings(arguments)
        port = settle_port(settings)
        prepare_environment(settings)
        presets = load_presets()
    except StudioError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    serve(settings, port, presets)
    return 0


def serve(settings: Settings, port: int, presets: Sequence[Preset]) -> None:
    """Open the page at once, and load the model meanwhile."""
    # Imported late: Gradio reads the environment on import, and --help should not wait for it.
    from server.events import connect
    from server.runs import Studio, load_in_background
    from server.theme import StudioTheme
    from server.ui import build_page

    model = load_in_background(settings.model)
    page = build_page(presets)
    connect(page, Studio(model, settings.results_dir), settings.model)
    page.blocks.launch(
        server_name=settings.host,
        server_port=port,
        share=settings.share,
        auth=settings.login,
        allowed_paths=[str(settings.results_dir), str(ASSETS), str(PRESETS_FOLDER), *_allowed_by_gradio()],
        max_file_size=MAX_UPLOAD,
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
    raise SystemExit(main(sys.argv[1:]))
