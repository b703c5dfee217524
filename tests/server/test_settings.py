"""Settings: options over our variables over Gradio's, and a sentence for whatever cannot work."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from pipeline.errors import InvalidInputError
from server.settings import WorkerSettings, prepare_environment, read_settings, settle_port

NAME_AND_PASSWORD = "must be a name and a password with a colon between: name:password."
SILENCING = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1"}
FOLDER_VARIABLES = ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE", "TMPDIR")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine the tests run on counts."""
    for name in list(os.environ):
        if name.startswith(("STUDIO_", "GRADIO_")):
            monkeypatch.delenv(name)


def test_a_fresh_machine_serves_itself_only() -> None:
    """Without any option: loopback, Gradio's usual port, the model in the repository, no public link, no login."""
    settings = read_settings([])

    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 7860, "nano")
    assert (settings.share, settings.login) == (False, None)
    assert settings.data_dir == Path("data").resolve()
    assert (settings.worker, settings.allow_private_urls, settings.force_safety_checker) == (True, False, False)


def test_every_option_has_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What --name sets, STUDIO_NAME sets as well."""
    variables = {"HOST": "0.0.0.0", "PORT": "8000", "SHARE": "true", "MODEL": "14b", "AUTH": "ann:se:cret"}
    for name, value in {**variables, "DATA_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"STUDIO_{name}", value)

    by_variable = read_settings([])

    for name in list(os.environ):
        if name.startswith("STUDIO_"):
            monkeypatch.delenv(name)
    options = ["--host", "0.0.0.0", "--port", "8000", "--share", "--model", "14b", "--auth", "ann:se:cret"]
    assert by_variable == read_settings([*options, "--data-dir", str(tmp_path)])
    assert by_variable.login == ("ann", "se:cret")


def test_an_option_beats_our_variable_and_that_beats_gradios(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearer to the person who starts the program, the stronger."""
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7001")
    by_gradio = read_settings([]).port
    monkeypatch.setenv("STUDIO_PORT", "7002")
    by_us = read_settings([]).port
    by_option = read_settings(["--port", "7003"]).port

    assert (by_gradio, by_us, by_option) == (7001, 7002, 7003)


def test_a_space_is_open_to_its_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face Spaces set Gradio's own variables; nothing else is needed there."""
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_SHARE", "True")

    settings = read_settings([])

    assert (settings.host, settings.share) == ("0.0.0.0", True)


def test_a_front_without_a_worker() -> None:
    """Workers elsewhere make its videos, found through the database they share."""
    settings = read_settings(["--no-worker", "--database-url", "postgresql:///studio", "--files-url", "s3://studio"])

    assert (settings.worker, settings.database_url, settings.files_url) == (
        False,
        "postgresql:///studio",
        "s3://studio",
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], True),
        (["--host", "localhost"], True),
        (["--host", "0.0.0.0"], False),
        (["--share"], False),
        (["--auth", "ann:secret"], False),
    ],
)
def test_who_lets_others_in_or_asks_for_a_login_serves_not_itself_only(arguments: list[str], expected: bool) -> None:
    """The API is open without a key only where this is so."""
    assert read_settings(arguments).serves_itself_only == expected


def test_a_worker_alone_has_the_same_settings() -> None:
    """And its own name in the help."""
    settings = read_settings(["--model", "14b", "--keep-days", "30"], WorkerSettings)

    assert (settings.model, settings.keep_days) == ("14b", 30)
    assert settings.model_config["cli_prog_name"] == "python -m server.worker"


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Container files often pass variables on that nobody filled."""
    monkeypatch.setenv("STUDIO_PORT", "")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "")

    settings = read_settings([])

    assert (settings.host, settings.port) == ("127.0.0.1", 7860)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "80a"], "--port (or STUDIO_PORT) is “80a”; it should be a whole number from 0 to 65535."),
        (["--port", "65536"], "--port (or STUDIO_PORT) is “65536”; it should be a whole number from 0 to 65535."),
        (
            ["--max-active-jobs", "0"],
            "--max-active-jobs (or STUDIO_MAX_ACTIVE_JOBS) is “0”; it should be greater than or equal to 1.",
        ),
        (
            ["--fal-proxy-port", "-1"],
            "--fal-proxy-port (or STUDIO_FAL_PROXY_PORT) is “-1”; it should be a whole number from 0 to 65535.",
        ),
        (
            ["--profile", "fast"],
            "--profile (or STUDIO_PROFILE) is “fast”; it should be auto, float32, resident, model, stream, bf16, fp8, "
            "fp8-stream, int8, nf4, sequential, fp8-cpu, int8-cpu.",
        ),
        (["--port"], "Argument --port: expected one argument; see --help."),
        (["--nope"], "Unrecognized arguments: --nope; see --help."),
        (["--auth", "ann"], f"--auth (or STUDIO_AUTH) {NAME_AND_PASSWORD}"),
        (["--auth", ":secret"], f"--auth (or STUDIO_AUTH) {NAME_AND_PASSWORD}"),
    ],
)
def test_a_wrong_option_is_told_in_a_sentence(arguments: list[str], sentence: str) -> None:
    """The option, what it was and what it can be; never a password."""
    with pytest.raises(InvalidInputError) as caught:
        read_settings(arguments)

    assert caught.value.message == sentence


def test_a_password_is_not_printed_with_the_settings() -> None:
    """Settings may end up in a log."""
    assert "se:cret" not in repr(read_settings(["--auth", "ann:se:cret"]))


def test_a_port_in_use_is_told_before_anything_starts() -> None:
    """The sentence names the address and the way out."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]

        with pytest.raises(InvalidInputError, match=f"Cannot listen on 127.0.0.1:{port} .*; try another --port"):
            settle_port(read_settings(["--port", str(port)]))


def test_port_zero_takes_a_free_one() -> None:
    """What the operating system hands out."""
    assert settle_port(read_settings(["--port", "0"])) > 1023


def test_everything_written_lies_under_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio's uploads and caches, and Python's temporary files; and nobody is told that we run."""
    for name in (*FOLDER_VARIABLES, *SILENCING):
        monkeypatch.setenv(name, "to be restored")
    monkeypatch.setattr(tempfile, "tempdir", None)
    settings = read_settings(["--data-dir", str(tmp_path / "studio")])

    prepare_environment(settings)

    for name in FOLDER_VARIABLES:
        assert Path(os.environ[name]).is_relative_to(settings.data_dir)
        assert Path(os.environ[name]).is_dir()
    assert Path(tempfile.gettempdir()).is_relative_to(settings.data_dir)
    assert {name: os.environ[name] for name in SILENCING} == SILENCING


def test_a_data_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "data").touch()

    with pytest.raises(InvalidInputError, match=r"The data folder .* cannot be written .*; try another --data-dir\."):
        prepare_environment(read_settings(["--data-dir", str(tmp_path / "data")]))
