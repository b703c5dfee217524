"""The program as it is started: what a wrong option does, and what Ctrl-C."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app import told_to_end

APP = Path(__file__).resolve().parent.parent / "app.py"


def start(*options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(APP), *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("options", [["--port", "many"], ["--colour", "red"], ["--auth", "nobody"]])
def test_a_wrong_option_ends_with_a_sentence_and_code_2(options: list[str], tmp_path: Path) -> None:
    """One line, no traceback, and nothing is written."""
    ended = start(*options, folder=tmp_path)

    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.endswith(".\n")
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_ends_with_a_sentence_and_code_2(tmp_path: Path) -> None:
    """The address is in the sentence."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]

        ended = start("--port", str(port), folder=tmp_path)

    assert ended.returncode == 2
    assert f"Cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_help_lists_the_options(tmp_path: Path) -> None:
    """Every option with its default."""
    ended = start("--help", folder=tmp_path)

    assert ended.returncode == 0
    for option in ("--host", "--port", "--share", "--model", "--auth", "--data-dir", "--no-worker", "--database-url"):
        assert option in ended.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_request_to_end_interrupts_nothing(number: signal.Signals) -> None:
    """It is only noted, wherever the program is; whoever asks again means it."""
    before = [signal.getsignal(known) for known in (signal.SIGINT, signal.SIGTERM)]
    try:
        told = told_to_end()
        assert not told.is_set()

        signal.raise_signal(number)
        assert told.is_set()

        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
