"""Input files of the API over real HTTP: what is wrong with one is told at its field."""

from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from server import calls
from server.fetch import FetchRules
from server.files import UPLOADS
from tests.server.api_calls import INPUT, QUEUE, faults, result_of
from tests.server.api_server import MP4, PNG, ApiServer, data_uri, idle_server


@pytest.mark.parametrize(
    ("field", "uri", "kind"),
    [
        ("image_url", "data:image/png;base64,!!!!", "file_download_error"),
        ("image_url", "data:image/png;base64,AAA", "file_download_error"),
        ("image_url", "data:image/png,plain", "file_download_error"),
        ("image_url", "data:", "file_download_error"),
        ("image_url", data_uri(MP4, "image/png"), "image_load_error"),
        ("image_url", data_uri(b"hello", "image/png"), "image_load_error"),
        ("video_url", data_uri(PNG, "video/mp4"), "unsupported_video_format"),
        ("video_url", data_uri(b"#EXTM3U\nfile:///etc/passwd", "video/mp4"), "unsupported_video_format"),
        ("video_url", data_uri(b"", "video/mp4"), "unsupported_video_format"),
    ],
)
def test_a_data_uri_is_looked_at(web: httpx.Client, field: str, uri: str, kind: str) -> None:
    """Not the declared type counts but the content; the fault comes with the result."""
    assert faults(result_of(web, **{field: uri})) == [(["body", field], kind)]


def test_a_file_beside_a_faulty_one_is_not_kept(web: httpx.Client, server: ApiServer) -> None:
    """Nobody will ask for it."""
    before = list(server.services.files.stored(UPLOADS))

    answer = result_of(web, video_url=data_uri(MP4, "video/mp4"), image_url="data:image/png;base64,!!!!")

    assert faults(answer) == [(["body", "image_url"], "file_download_error")]
    assert list(server.services.files.stored(UPLOADS)) == before


def test_a_data_uri_is_measured_before_it_is_decoded(tmp_path: Path) -> None:
    """A file that is too large is a fault of its field."""
    with idle_server(tmp_path, max_upload_bytes=1000) as web:
        answer = result_of(web, video_url=data_uri(MP4 * 2, "video/mp4"))

    assert faults(answer) == [(["body", "video_url"], "file_too_large")]


def test_a_file_that_is_gone_is_told_without_a_fetch(web: httpx.Client, server: ApiServer) -> None:
    """An address of ours whose file was deleted is a fault at once."""
    url = f"{server.url}/fal/cdn/files/uploads/{'a' * 32}/gone.mp4"

    assert faults(result_of(web, video_url=url)) == [(["body", "video_url"], "file_download_error")]


def test_a_result_can_be_the_next_input(web: httpx.Client, server: ApiServer) -> None:
    """The address of a video made here works as input whatever host it is written with."""
    url = result_of(web).json()["video"]["url"]
    elsewhere = urlsplit(url)._replace(netloc="studio.invalid", scheme="https").geturl()

    for same in (url, elsewhere):
        assert result_of(web, video_url=same).status_code == 200
        assert server.generation.specs[-1].reference_video.read_bytes().startswith(MP4)


def test_an_input_that_cannot_be_fetched_is_told_at_its_field(web: httpx.Client) -> None:
    """The submit is taken at once; the job finds the fault."""
    answer = result_of(web, image_url="http://127.0.0.1:1/a.png")

    assert faults(answer) == [(["body", "image_url"], "file_download_error")]


def test_a_webhook_on_a_private_address_is_refused_unless_opened(tmp_path: Path) -> None:
    """The sender is told at once, rather than waiting for a call that never comes."""
    with idle_server(tmp_path, rules=FetchRules()) as web:
        answer = web.post(QUEUE, json=INPUT, params={"fal_webhook": "http://127.0.0.1:9/hook"})

    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")
    assert answer.json()["detail"].startswith("The webhook cannot be called:")


def test_limits_of_bodies_fit_together() -> None:
    """A body may hold the data URI of a large clip, yet not all that may be uploaded."""
    assert calls.MAX_JSON_BYTES < calls.MAX_INPUT_BYTES < 200 * 2**20
