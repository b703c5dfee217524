"""A front to be killed: `python -m tests.server.crash_front DATABASE_URL FILES COUNT` submits COUNT jobs and ends.

Started again after a crash it submits them all again, each under its own idempotency key.
"""

import sys
import time
from contextlib import closing
from pathlib import Path

from server.files import FileStore
from server.job import JobRequest
from server.jobs import JobQueue

OWNER = "crash"
PAUSE_S = 0.1


def main(database_url: str, files: Path, count: int) -> None:
    with closing(JobQueue(database_url, FileStore(files, files / "cache"))) as queue:
        for number in range(count):
            fields = {"prompt": f"job-{number}", "video_description": "A clip."}
            queue.submit(JobRequest(fields, "clip.mp4", "start.png"), owner=OWNER, idempotency_key=str(number))
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
