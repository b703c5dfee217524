"""A front to be killed: `python -m tests.server.crash_front DATABASE_URL FILES ENOUGH` submits until ENOUGH exists.

A few of its jobs always wait, so no worker is ever without work. Started again after a crash it submits them all again,
each under its own idempotency key. In the end it writes into ENOUGH how many it submitted.
"""

import itertools
import sys
import time
from contextlib import closing
from pathlib import Path

from server.files import FileStore
from server.job import JobRequest
from server.jobs import JobQueue

OWNER = "crash"
LEAST = 20
AHEAD = 6  # jobs that wait or run
PAUSE_S = 0.1


def main(database_url: str, files: Path, enough: Path) -> None:
    with closing(JobQueue(database_url, FileStore(files, files / "cache"))) as queue:
        for number in itertools.count():
            while sum(not job.status.is_final for job in queue.jobs_of(OWNER, AHEAD)) == AHEAD:
                time.sleep(PAUSE_S)
            if number >= LEAST and enough.exists():
                enough.write_text(str(number))
                return
            fields = {"prompt": f"job-{number}", "video_description": "A clip."}
            queue.submit(JobRequest(fields, "clip.mp4", "start.png"), owner=OWNER, idempotency_key=str(number))
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
