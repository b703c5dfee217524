"""Tells the end of a job to the address its sender gave, signed. The queue repeats what fails, over two hours."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import StudioError
from server.fetch import Caller, FetchError
from server.files import FileStore, UnknownFileError
from server.job import Job
from server.schema import Urls, webhook_body
from server.signing import Signer

USER_ID = "video-as-prompt-studio"


@dataclass(frozen=True)
class WebhookAddress:
    """Where to send, and our own address as the sender knew it: the payload holds absolute URLs, and nobody calls then.

    Both travel through the queue as one URL: ours is its fragment, which is never sent.
    """

    url: str
    base: str

    def to_text(self) -> str:
        """Give the text to keep with the job."""
        return f"{self.url.partition('#')[0]}#{self.base}"

    @classmethod
    def from_text(cls, text: str) -> "WebhookAddress":
        """Read what `to_text` gave."""
        url, _, base = text.partition("#")
        return cls(url, base)


class WebhookError(StudioError):
    """The receiver did not take it; the queue sends it again later."""


class Webhooks:
    """Sends the ends of jobs."""

    def __init__(
        self, signer: Signer, caller: Caller, files: FileStore, *, clock: Callable[[], float] = time.time
    ) -> None:
        """clock: Unix seconds."""
        self._signer = signer
        self._caller = caller
        self._files = files
        self._clock = clock

    def deliver(self, job: Job) -> None:
        """Send a finished job to its webhook, once. Raises WebhookError unless the answer is a 2xx.

        The queue calls this again after a failure or a crash; receivers know a repeat by its request id.
        """
        if job.webhook_url is None:
            return
        address = WebhookAddress.from_text(job.webhook_url)
        body = json.dumps(webhook_body(job, Urls(address.base), self._size_of)).encode()
        try:
            status_code = self._caller.post(address.url, body, self._headers(body, job.job_id))
        except FetchError as error:
            raise WebhookError(error.message) from error
        if not 200 <= status_code < 300:
            raise WebhookError(f"The receiver answered with {status_code}.")

    def _size_of(self, key: str) -> int:
        try:
            return self._files.size(key)
        except UnknownFileError:
            return 0  # deleted before a late repeat; the end of the job is still worth telling

    def _headers(self, body: bytes, job_id: str) -> dict[str, str]:
        """Sign one attempt: receivers refuse a timestamp that is more than five minutes off."""
        timestamp = str(int(self._clock()))
        message = "\n".join([job_id, USER_ID, timestamp, hashlib.sha256(body).hexdigest()])
        return {
            "Content-Type": "application/json",
            "X-Fal-Webhook-Request-Id": job_id,
            "X-Fal-Webhook-User-Id": USER_ID,
            "X-Fal-Webhook-Timestamp": timestamp,
            "X-Fal-Webhook-Signature": self._signer.sign(message.encode()),
        }
