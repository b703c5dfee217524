"""Files in S3: what one front takes in, a worker uses, and another front hands out; and what is said without s3fs."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.server.api_server import APP, MP4, PNG, forbid_foreign_packets, run_server, wait_until
from tests.server.app_program import ROOT, run_app
from tests.server.s3 import BUCKET, run_s3

TEXTS = {"prompt": "A statue floats away.", "video_description": "A man floats away.", "seed": 3}


def upload(web: httpx.Client, content: bytes, kind: str) -> str:
    """Upload a file as fal's Python client does; give its address."""
    answer = web.post("/fal/cdn/files/upload", content=content, headers={"Content-Type": kind})
    return str(answer.raise_for_status().json()["access_url"])


def test_fronts_and_worker_share_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploaded at one front, made into a video by a worker, downloaded at the other; no front keeps files itself."""
    forbid_foreign_packets(monkeypatch)
    with run_s3() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        url, database = f"s3://{BUCKET}/files", f"sqlite:///{tmp_path / 'queue.sqlite'}"
        with (
            run_server(tmp_path / "here", database_url=database, files_url=url) as worker,
            run_app(tmp_path, "--files-url", url, "--database-url", database) as other,
            httpx.Client(base_url=worker.url, trust_env=False) as first,
            httpx.Client(base_url=other.url, trust_env=False) as second,
        ):
            files = {"video_url": upload(second, MP4, "video/mp4"), "image_url": upload(first, PNG, "image/png")}
            job = second.post(f"/fal/queue/{APP}", json=TEXTS | files).raise_for_status().json()
            wait_until(lambda: second.get(job["status_url"]).status_code == 200)
            video = second.get(job["response_url"]).raise_for_status().json()["video"]
            downloaded = second.get(video["url"])
            part = second.get(video["url"], headers={"Range": "bytes=4-7"})

    assert downloaded.content == MP4 + b"3"
    assert (part.status_code, part.content, video["file_size"]) == (206, b"ftyp", len(MP4) + 1)
    spec = worker.generation.specs[-1]
    assert spec.reference_video.read_bytes() == MP4
    assert not [*tmp_path.glob("**/files"), *tmp_path.glob("**/results")]


def test_without_s3fs_the_start_ends_with_a_sentence(tmp_path: Path) -> None:
    """It says what to install."""
    hidden = "import sys; sys.modules['s3fs'] = None; import app; sys.exit(app.main(sys.argv[1:]))"
    options = ["--port", "0", "--data-dir", str(tmp_path), "--files-url", f"s3://{BUCKET}/files"]

    ended = subprocess.run([sys.executable, "-c", hidden, *options], cwd=ROOT, capture_output=True, text=True)

    assert ended.returncode == 2
    assert ended.stderr == (
        f"Files cannot be kept at s3://{BUCKET}/files without another package: Install s3fs to access S3. "
        "Name it after “pip install -r requirements.txt”, so that the versions fit.\n"
    )
