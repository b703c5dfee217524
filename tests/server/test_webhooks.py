"""The end of a job is told to its sender: signed, whole, and repeated by the queue until somebody takes it."""

import base64
import hashlib
import json
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pipeline.errors import StudioError
from server.fetch import FetchError
from server.files import FileStore
from server.job import Job, JobError, JobResult, JobStatus
from server.signing import Signer, TokenError, load_signer
from server.webhooks import WebhookAddress, WebhookError, Webhooks

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
BASE = "https://studio.example"


class FakeCaller:
    """A network that answers with these codes, or fails, in turn."""

    def __init__(self, *answers: int | FetchError) -> None:
        self._answers = list(answers)
        self.calls: list[tuple[str, bytes, dict[str, str]]] = []

    def post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """Keep the call and answer it."""
        self.calls.append((url, body, headers))
        answer = self._answers.pop(0)
        if isinstance(answer, FetchError):
            raise answer
        return answer


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    """A store with nothing in it."""
    return FileStore(tmp_path / "files", tmp_path / "cache")


@pytest.fixture
def job(files: FileStore, tmp_path: Path) -> Job:
    """A job that ended with a video of five bytes."""
    (video := tmp_path / "output.mp4").write_bytes(b"video")
    key = files.add(video, folder="results")
    return Job(
        job_id="some-id",
        owner="me",
        status=JobStatus.SUCCEEDED,
        position=None,
        request=None,
        progress=None,
        logs=(),
        result=JobResult(key, key, key, 5, {}, 1.0),
        error=None,
        created_at=NOW,
        started_at=NOW,
        finished_at=NOW,
        webhook_url=WebhookAddress("https://receiver.example/hook?a=1", BASE).to_text(),
    )


def deliver(job: Job, files: FileStore, *answers: Any, clock: Any = lambda: 1000.0) -> FakeCaller:
    caller = FakeCaller(*answers)
    Webhooks(Signer(bytes(32)), caller, files, clock=clock).deliver(job)  # type: ignore[arg-type]
    return caller


def test_a_delivery_holds_the_result_with_full_addresses(job: Job, files: FileStore) -> None:
    """The payload is what the result endpoint gave to whoever submitted, with our address as he knew it."""
    [(url, body, headers)] = deliver(job, files, 200).calls

    told = json.loads(body)
    assert url == "https://receiver.example/hook?a=1"
    assert headers["Content-Type"] == "application/json"
    assert (told["request_id"], told["gateway_request_id"]) == ("some-id", "some-id")
    assert (told["status"], told["error"]) == ("OK", None)
    assert told["payload"]["video"]["url"].startswith(f"{BASE}/fal/cdn/files/results/")
    assert told["payload"]["video"]["file_size"] == 5


@pytest.mark.parametrize(
    ("kind", "status_code"), [("cancelled", 499), ("internal", 500), ("worker_lost", 503), ("start_timeout", 504)]
)
def test_a_failed_job_is_told_with_its_body(job: Job, files: FileStore, kind: Any, status_code: int) -> None:
    """The status is ERROR, and the payload the body of the result endpoint."""
    failed = replace(job, status=JobStatus.FAILED, result=None, error=JobError(kind, "It did not work."))

    [(_, body, _)] = deliver(failed, files, 200).calls

    told = json.loads(body)
    assert (told["status"], told["error"]) == ("ERROR", f"Invalid status code: {status_code}")
    assert told["payload"]["detail"] == "It did not work."


def test_each_attempt_is_signed_anew(job: Job, files: FileStore) -> None:
    """A receiver checks the signature over id, user, time and body, and finds the time fresh."""
    [(_, body, headers)] = deliver(job, files, 200, clock=lambda: 1234.9).calls

    [key] = Signer(bytes(32)).public_keys()["keys"]
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "=="))
    signature = bytes.fromhex(headers["X-Fal-Webhook-Signature"])
    names = ("Request-Id", "User-Id", "Timestamp")
    lines = [*(headers[f"X-Fal-Webhook-{name}"] for name in names), hashlib.sha256(body).hexdigest()]
    public.verify(signature, "\n".join(lines).encode())
    assert (lines[0], lines[2]) == ("some-id", "1234")
    with pytest.raises(InvalidSignature):
        public.verify(signature, "\n".join([*lines[:3], hashlib.sha256(b"other").hexdigest()]).encode())


@pytest.mark.parametrize("code", [200, 201, 204, 299])
def test_any_good_answer_ends_it(job: Job, files: FileStore, code: int) -> None:
    """A 2xx is enough."""
    assert len(deliver(job, files, code).calls) == 1


@pytest.mark.parametrize("bad", [199, 300, 307, 404, 500, FetchError("receiver.example cannot be reached.")])
def test_anything_else_makes_the_queue_try_again(job: Job, files: FileStore, bad: int | FetchError) -> None:
    """A failure is raised: the queue repeats what raises."""
    with pytest.raises(WebhookError):
        deliver(job, files, bad)


def test_a_job_without_a_webhook_is_told_to_nobody(job: Job, files: FileStore) -> None:
    """Nothing is sent."""
    assert deliver(replace(job, webhook_url=None), files).calls == []


def test_a_late_repeat_survives_the_file(job: Job, files: FileStore) -> None:
    """The end of a job is told even when its video was deleted in the meantime."""
    assert job.result
    files.delete(job.result.video_key)

    assert len(deliver(job, files, 200).calls) == 1


@pytest.mark.parametrize("url", ["http://a.example/", "http://a.example/x?y=%23z&a=1", "http://a.example/#part"])
def test_an_address_and_ours_travel_as_one(url: str) -> None:
    """Both come back as they were; only a fragment, which is never sent, is lost."""
    text = WebhookAddress(url, "http://127.0.0.1:7860").to_text()

    assert WebhookAddress.from_text(text) == WebhookAddress(url.removesuffix("#part"), "http://127.0.0.1:7860")


def test_the_key_survives_a_restart(tmp_path: Path) -> None:
    """Receivers keep the public key for a day: the same file gives the same key, and nobody else may read it."""
    path = tmp_path / "secrets" / "signing.key"

    first, second = load_signer(path), load_signer(path)

    assert first.public_keys() == second.public_keys() != load_signer(tmp_path / "other.key").public_keys()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_damaged_key_file_is_told(tmp_path: Path) -> None:
    """A key file that is not whole is not quietly replaced: receivers would refuse our webhooks."""
    (path := tmp_path / "signing.key").write_bytes(b"short")

    with pytest.raises(StudioError, match="has 5 bytes instead of 32"):
        load_signer(path)


def test_a_token_is_good_for_one_purpose_until_its_time(tmp_path: Path) -> None:
    """Upload tokens cannot be made, changed, kept too long or used for something else."""
    signer = Signer(bytes(32))
    token = signer.issue("upload", "some-key", expires_at=100.0)
    claims, _, mark = token.partition(".")

    assert signer.check(token, "upload", now=99.9) == "some-key"
    for bad, purpose, now in [
        (token, "upload", 100.0),
        (token, "other", 0.0),
        (f"{claims}x.{mark}", "upload", 0.0),
        (f"{claims}.{mark[:-2]}", "upload", 0.0),
        (Signer(b"1" * 32).issue("upload", "some-key", 100.0), "upload", 0.0),
        ("", "upload", 0.0),
        ("ü.ü", "upload", 0.0),
    ]:
        with pytest.raises(TokenError):
            signer.check(bad, purpose, now)
