"""Options and environment -> frozen Settings, read once, by app.py.

An option on the command line wins over its STUDIO_ variable, which wins over Gradio's own variable; a Hugging Face
Space has defaults of its own.
"""

import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from pipeline.errors import InvalidInputError
from pipeline.hardware import PROFILES
from pipeline.spec import NATIVE_ATTENTION
from server.space import space_defaults

GRADIO_VARIABLES: Mapping[str, str] = {
    "host": "GRADIO_SERVER_NAME",
    "port": "GRADIO_SERVER_PORT",
    "share": "GRADIO_SHARE",
}

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")

PROFILE_NAMES = tuple(profile.name for profile in PROFILES)
WANTED: Mapping[str, str] = {
    "port": "a whole number from 0 to 65535",
    "fal_proxy_port": "a whole number from 0 to 65535",
    "share": "true or false",
    "profile": f"auto, {', '.join(PROFILE_NAMES)}",
}


class Settings(BaseSettings):
    """Serve Video-As-Prompt Studio: a page where a reference video tells a picture how to move."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_prefix="STUDIO_",
        env_ignore_empty=True,
        cli_prog_name="python app.py",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 lets other machines in.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(7860, description="Port to listen on; 0 takes a free one.")
    fal_proxy_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None, description="Port that fal's Python client may have as its HTTPS_PROXY; none: no such port."
    )
    share: bool = Field(False, description="Also open a public gradio.live link.")
    model: str = Field("nano", description="nano, 14b, a folder in the released layout, or a hub repository.")
    profile: str = Field("auto", description="How the weights lie in memory; auto picks what fits this machine.")
    attention: str = Field(
        NATIVE_ATTENTION, description="What computes attention, by diffusers' names: flash, sage, xformers, flex ..."
    )
    ring_degree: int = Field(
        1, ge=1, description="Of torchrun's processes, how many pass keys around in a ring; the rest deals out heads."
    )
    lora_dir: Path | None = Field(None, description="Folder of LoRAs (*.safetensors) to choose from; none: no choice.")
    auth: SecretStr | None = Field(None, description="name:password that visitors must give.")
    data_dir: Path = Field(Path("data"), description="Folder for everything the app writes.")
    worker: bool = Field(True, description="Make the videos in this process; if not, workers elsewhere do.")
    database_url: str | None = Field(
        None, description="postgresql://... for several machines; none: a file in data-dir."
    )
    files_url: str | None = Field(
        None, description="Folder or fsspec URL (s3://...) all machines reach; none: data-dir."
    )
    public_url: str | None = Field(None, description="The server's address as clients see it; none: told by each call.")
    allow_private_urls: bool = Field(False, description="Fetch inputs from, and send webhooks to, private addresses.")
    cors_origins: str = Field("", description="Origins whose pages may call the API, with commas between; * for all.")
    force_safety_checker: bool = Field(False, description="Check every video, whatever a request says.")
    max_active_jobs: int = Field(20, ge=1, description="Generations one owner may have waiting and running.")
    max_waiting_jobs: int = Field(200, ge=1, description="Generations that may wait in all.")
    keep_days: float | None = Field(None, gt=0, description="Days until a finished generation is removed; none: never.")
    keep_gb: float | None = Field(None, gt=0, description="GiB of results to keep, oldest removed first; none: all.")

    @field_validator("auth")
    @classmethod
    def _check_auth(cls, auth: SecretStr | None) -> SecretStr | None:
        name, _, password = auth.get_secret_value().partition(":") if auth else ("-", ":", "-")
        if not (name and password):
            raise ValueError("must be a name and a password with a colon between: name:password")
        return auth

    @field_validator("profile")
    @classmethod
    def _check_profile(cls, profile: str) -> str:
        if profile not in ("auto", *PROFILE_NAMES):
            raise ValueError("no such profile")
        return profile

    @field_validator("data_dir", "lora_dir")
    @classmethod
    def _make_absolute(cls, folder: Path | None) -> Path | None:
        return folder and folder.expanduser().resolve()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Rank the sources: what code gives, our variables, Gradio's, what a Space has."""
        elsewhere = {**space_defaults(), **_read_gradio_variables()}
        return init_settings, env_settings, InitSettingsSource(settings_cls, elsewhere)

    @property
    def login(self) -> tuple[str, str] | None:
        """Give the name and password visitors need, if any."""
        if self.auth is None:
            return None
        name, _, password = self.auth.get_secret_value().partition(":")
        return name, password

    @property
    def serves_itself_only(self) -> bool:
        """Whether nobody beyond this machine is let in, and nobody on it is asked who they are."""
        return self.host in LOOPBACK and not self.share and self.auth is None

    @property
    def origins(self) -> tuple[str, ...]:
        """Give the origins whose pages may call the API."""
        return tuple(origin.strip().rstrip("/") for origin in self.cors_origins.split(",") if origin.strip())


class WorkerSettings(Settings):
    """Make the videos that others ask for: a worker without a page, on the database they share."""

    model_config = SettingsConfigDict(cli_prog_name="python -m server.worker")


def read_settings(arguments: Sequence[str], kind: type[Settings] = Settings) -> Settings:
    """Read the settings from the command line and the environment.

    Raises InvalidInputError with one sentence when an option is unknown or has a value it cannot have.
    """
    try:
        return CliApp.run(kind, cli_args=list(arguments), cli_exit_on_error=False)
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
        field = str(finding["loc"][0]) if finding["loc"] else "port"
        raise InvalidInputError(field, _explain_finding(field, finding)) from error
    except SettingsError as error:
        reason = str(error).removeprefix("error parsing CLI: ")
        raise InvalidInputError("options", f"{reason[:1].upper()}{reason[1:]}; see --help.") from error


def settle_port(settings: Settings) -> int:
    """Give the port to serve on: the one asked for if nobody holds it, or a free one for port 0.

    Raises InvalidInputError when the port is taken or the address is not this machine's.
    """
    with bind(settings.host, settings.port, "port") as probe:
        return int(probe.getsockname()[1])


def bind(host: str, port: int, field: str) -> socket.socket:
    """Take a port. field: the setting that names it.

    Raises InvalidInputError when the port is taken or the address is not this machine's.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # As the server itself does; without it a port that was just closed counts as taken for a minute.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        message = f"Cannot listen on {host}:{port} ({_reason(error)}); try another {_option(field)} or --host."
        raise InvalidInputError(field, message) from error
    return listener


def prepare_environment(settings: Settings) -> None:
    """Keep everything that is written inside the data folder, and the libraries from calling home.

    Must run before Gradio and onnxruntime are imported: they read these variables on import.
    Raises InvalidInputError when the folder cannot be written.
    """
    folders = {
        "GRADIO_TEMP_DIR": settings.data_dir / "uploads",
        "GRADIO_EXAMPLES_CACHE": settings.data_dir / "examples",
        "TMPDIR": settings.data_dir / "tmp",
    }
    try:
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"The data folder {settings.data_dir} cannot be written ({_reason(error)}); try another --data-dir."
        raise InvalidInputError("data_dir", message) from error
    os.environ.update({name: str(folder) for name, folder in folders.items()})
    tempfile.tempdir = str(folders["TMPDIR"])
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # Of onnxruntime 1.32, which looks for nudity: it writes a device id below ~/.cache and reports to Microsoft.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def _read_gradio_variables() -> dict[str, Any]:
    return {field: os.environ[name] for field, name in GRADIO_VARIABLES.items() if os.environ.get(name)}


def _explain_finding(field: str, finding: Mapping[str, Any]) -> str:
    option = _option(field)
    if field == "auth":  # never repeat a password
        return f"{option} (or STUDIO_AUTH) {finding['ctx']['error']}."
    wanted = WANTED.get(field, str(finding["msg"]).removeprefix("Input should be "))
    return f"{option} (or STUDIO_{field.upper()}) is “{finding['input']}”; it should be {wanted}."


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
