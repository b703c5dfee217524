"""An S3 of our own: a server on a loopback port that keeps its buckets in memory, for as long as a context lasts."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from s3fs import S3FileSystem  # type: ignore[import-untyped]

from server.settings import bind
from tests.server.guard import sitecustomize as guard

BUCKET = "studio"


@contextmanager
def run_s3() -> Iterator[Mapping[str, str]]:
    """Give the variables that lead to a server with one bucket, as an operator would set them."""
    with bind("127.0.0.1", 0, "port") as probe:
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    variables = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "anybody",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = os.environ | variables | {"PYTHONPATH": str(Path(guard.__file__).parent)}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _make_bucket(server, address)
        yield variables
    finally:
        S3FileSystem.clear_instance_cache()  # it is kept for the whole process, with this server's address
        server.terminate()
        server.wait(20)


def _make_bucket(server: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.put(f"{address}/{BUCKET}", trust_env=False).raise_for_status()
        except httpx.TransportError:
            assert server.poll() is None, "The S3 server ended."
            assert time.monotonic() < deadline, "The S3 server never answered."
            time.sleep(0.1)
        else:
            return
