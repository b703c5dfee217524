"""How quickly the API answers while a generation runs in the same process: `python -m benchmarks.api_latency`."""

import base64
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import torch

from tests.server.api_server import APP, MP4, PNG, ApiServer, run_server

POLLS = 300
INTERVAL_S = 0.1  # as the Python client polls


def burn(stop: threading.Event) -> None:
    """Keep one core busy as a network does: long calls into torch, with little Python between."""
    torch.set_num_threads(1)
    image, kernel = torch.rand(1, 64, 128, 128), torch.rand(64, 64, 3, 3)
    while not stop.is_set():
        image = torch.nn.functional.conv2d(image, kernel, padding=1).clamp(0, 1)


def time_call(web: httpx.Client, method: str, url: str, **call: object) -> float:
    """Give the milliseconds of one call."""
    start = time.perf_counter()
    web.request(method, url, **call).raise_for_status()  # type: ignore[arg-type]
    return (time.perf_counter() - start) * 1000


def measure(server: ApiServer, web: httpx.Client) -> dict[str, list[float]]:
    """Give the milliseconds of each call of each kind."""
    uris = {"video_url": ("video/mp4", MP4), "image_url": ("image/png", PNG)}
    body = {name: f"data:{kind};base64,{base64.b64encode(data).decode()}" for name, (kind, data) in uris.items()}
    body |= {"prompt": "a", "video_description": "b"}
    server.generation.gate.clear()
    job = web.post(f"/fal/queue/{APP}", json=body).json()
    times: dict[str, list[float]] = {"poll": [], "poll with logs": [], "upload token": [], "submit": []}
    for number in range(POLLS):
        times["poll"].append(time_call(web, "GET", job["status_url"]))
        if number % 10 == 0:
            times["poll with logs"].append(time_call(web, "GET", job["status_url"] + "?logs=1"))
            times["upload token"].append(time_call(web, "POST", "/fal/rest/storage/auth/token", json={}))
        if number % 20 == 0:
            times["submit"].append(time_call(web, "POST", f"/fal/queue/{APP}", json=body))
        time.sleep(INTERVAL_S)
    return times


def main() -> None:
    """Measure and print."""
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as folder, run_server(Path(folder)) as server:
        threading.Thread(target=burn, args=(stop,), daemon=True).start()
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as web:
            times = measure(server, web)
        stop.set()
    for name, values in times.items():
        p99 = statistics.quantiles(values, n=100, method="inclusive")[98]
        sys.stdout.write(
            f"{name:15} median {statistics.median(values):6.1f} ms   p99 {p99:6.1f} ms   n {len(values)}\n"
        )


if __name__ == "__main__":
    main()
