"""Configuration: one frozen class, built from environment variables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import psycopg2.extensions
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator


class SettingsError(Exception):
    """A variable is missing, unknown, malformed or unusable; the message names it and what it may be."""


def variable(field: str) -> str:
    """Return the environment variable of a setting."""
    return "DATABASE_URL" if field == "database_url" else f"IRIS_{field.upper()}"


class Settings(BaseModel):
    """The settings of both processes: each is `IRIS_<FIELD>` in the environment, except for DATABASE_URL."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, alias_generator=variable, populate_by_name=True
    )

    database_url: str
    """PostgreSQL for the prediction log: a postgresql:// address or a libpq `key=value` string."""
    model_dir: Path = Path("model")
    """Folder with model.onnx and model.json."""
    journal_dir: Path = Path("journal")
    """Folder of the local journal; it must survive a restart of the process."""
    journal_max_mib: int = Field(default=256, ge=1, le=65536)
    """Size limit of the journal (MiB). When it is full, predictions get 503."""
    max_waiting: int = Field(default=2048, ge=1000, le=100_000)
    """Rows that may wait for the model. Further rows get 503."""
    drain_seconds: float = Field(default=10.0, ge=0.0, le=600.0)
    """On SIGTERM: time to finish requests, and then as much time again to ship the journal (seconds)."""
    environment: str = Field(default="local", pattern=r"^[a-z0-9-]{1,63}$")
    """Name that /info reports: local, dev, prod."""
    pod_labels: Path = Path("/etc/podinfo/labels")
    """File with the pod's labels, written by the downward API. It does not exist outside a cluster."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    drift_window: int = Field(default=1000, ge=100, le=10_000)
    """For `python -m service.drift`: number of newest predictions of the model's version to compare."""
    drift_seconds: float = Field(default=30.0, ge=1.0, le=3600.0)
    """For `python -m service.drift`: time between comparisons (seconds)."""
    log_days: int | None = Field(default=None, ge=1, le=36500)
    """For `python -m service.drift`: delete predictions that the log received more than so many days ago."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """DEBUG also logs each answered request."""

    @field_validator("database_url")
    @classmethod
    def _well_formed(cls, value: str) -> str:
        try:
            parts = psycopg2.extensions.parse_dsn(value)
        except psycopg2.ProgrammingError:
            parts = {}  # libpq's own message would quote the URL, and with it the password
        # An unescaped @ or / moves part of the password into host, database or port, which libpq's errors quote.
        stray = "@" in parts.get("host", "") + parts.get("dbname", "")
        if not parts or stray or parts.get("port", "").strip("0123456789,"):
            raise ValueError(
                "is malformed; expected postgresql://user:password@host:5432/database, special characters in the "
                "password percent-encoded"
            )
        return value


def from_environ(environ: Mapping[str, str]) -> Settings:
    """Return the settings from environment variables. Raises SettingsError with all problems in one line."""
    values = {name: value for name, value in environ.items() if name.startswith("IRIS_") or name == "DATABASE_URL"}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("; ".join(map(_describe, error.errors()))) from None


def cannot_listen(settings: Settings, error: OSError) -> SettingsError:
    """Return the error for a host and port that the process cannot listen on."""
    # os.strerror does not know the numbers of getaddrinfo; and the socket module appends the address once more.
    reason = str(error.strerror).partition(" (while")[0]
    return SettingsError(
        f"cannot listen on {settings.host}:{settings.port}: {reason}; "
        "set IRIS_HOST and IRIS_PORT to another address"
    )


def _describe(problem: Mapping[str, Any]) -> str:
    name = problem["loc"][0]
    if problem["type"] == "extra_forbidden":
        hint = ""
        if name.endswith(("_HOST", "_PORT")) or "_PORT_" in name:
            hint = " (if Kubernetes sets it for a Service, the pod needs enableServiceLinks: false)"
        return f"{name} is not a setting{hint}; the settings are {', '.join(map(variable, Settings.model_fields))}"
    if problem["type"] == "missing":
        return f"{name} is not set; expected postgresql://user:password@host:5432/database"
    return f"{name} {problem['msg'].removeprefix('Value error, ')}"
