"""The real pipeline generates in the same process, on the tiny model, while fal's client asks for what cannot wait."""

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import fal_client
import fal_client.client
import pytest
from fastapi import FastAPI
from PIL import Image

from pipeline import media
from server.api import api_routes
from server.assembly import make_api, make_worker, open_files, open_queue
from server.fal_hook import sitecustomize as hook
from server.settings import Settings
from tests.server.api_server import APP, MP4, forbid_foreign_packets, serve, wait_until
from tests.server.test_crash_http import make_model

# fal-client never closes the connections of its uploads.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TOKEN_TIMEOUT_S = 5.0  # of the client, which it does not let anybody change
ROUNDS = 15


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fal_client.SyncClient]:
    """The client of a server with everything in one process, as `python app.py` has it."""
    forbid_foreign_packets(monkeypatch)
    settings = Settings(data_dir=tmp_path, model=str(make_model(tmp_path)))
    with closing(open_queue(settings, open_files(settings))) as queue:
        worker = make_worker(settings, queue)
        worker.start()
        with serve(FastAPI(routes=api_routes(make_api(settings, queue)))) as url:
            for name, value in hook.addresses(url).items():
                monkeypatch.setattr(fal_client.client, name, value)
            client = fal_client.SyncClient(key="any")
            yield client
            client._client.close()
            gc.collect()  # of its uploads' connections: so that they warn here
        worker.stop(30)


def make_input(folder: Path) -> dict[str, object]:
    """Make a request of many steps."""
    frames = [Image.new("RGB", (64, 48), (20 * index, 90, 160)) for index in range(8)]
    media.write_video(frames, folder / "clip.mp4", fps=8, height=48, width=64)
    return {
        "prompt": "The square glows.",
        "video_description": "A wall changes its colour.",
        "video_url": fal_client.encode_file(folder / "clip.mp4"),
        "image_url": fal_client.encode_image(Image.new("RGB", (64, 48), "orange"), "png"),
        "num_frames": 81,
        "aspect_ratio": "16:9",
        "num_inference_steps": 100,
    }


def test_uploads_get_their_token_in_time_while_a_generation_runs(client: fal_client.SyncClient, tmp_path: Path) -> None:
    """The client gives up after 5 s; also while programs poll, as theirs do, and a large submit is read."""
    given = make_input(tmp_path)
    handle = client.submit(APP, given)
    wait_until(lambda: isinstance(client.status(APP, handle.request_id), fal_client.InProgress), timeout_s=60)
    stop = threading.Event()
    rivals = [threading.Thread(target=poll, args=(handle, stop)) for _ in range(4)]
    rivals.append(threading.Thread(target=client.submit, args=(APP, given | {"unknown": "x" * 60_000_000})))
    for rival in rivals:
        rival.start()

    times = [time_upload(client) for _ in range(ROUNDS)]
    still_runs = isinstance(client.status(APP, handle.request_id), fal_client.InProgress)
    stop.set()
    for rival in rivals:
        rival.join()
    handle.cancel()

    assert still_runs
    assert max(times) < TOKEN_TIMEOUT_S


def poll(handle: fal_client.SyncRequestHandle, stop: threading.Event) -> None:
    while not stop.wait(0.1):
        handle.status(with_logs=True)


def time_upload(client: fal_client.SyncClient) -> float:
    """Give the seconds of a token and an upload."""
    start = time.perf_counter()
    client.upload(MP4, "video/mp4")
    time.sleep(0.1)
    return time.perf_counter() - start
