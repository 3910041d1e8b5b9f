"""Settings from environment variables, and the errors for invalid ones."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings, SettingsError, from_environ

URL = "postgresql://user:s3cret@host:5432/database"


def test_only_the_database_url_is_required() -> None:
    settings = from_environ({"DATABASE_URL": URL, "PATH": "/bin", "HOME": "/root"})
    assert settings == Settings(database_url=URL)
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.log_days is None  # nothing is deleted


def test_every_setting_has_a_variable() -> None:
    given = {
        "model_dir": "/srv/model",
        "journal_dir": "/var/journal",
        "journal_max_mib": "1",
        "max_waiting": "1000",
        "drain_seconds": "2.5",
        "environment": "prod",
        "pod_labels": "/labels",
        "host": "::",
        "port": "80",
        "drift_window": "100",
        "drift_seconds": "1.5",
        "log_days": "7",
        "log_level": "ERROR",
    }
    assert given.keys() | {"database_url"} == Settings.model_fields.keys()
    variables = {f"IRIS_{name.upper()}": value for name, value in given.items()}
    settings = from_environ({"DATABASE_URL": URL, **variables})
    assert settings == Settings(
        database_url=URL,
        model_dir=Path("/srv/model"),
        journal_dir=Path("/var/journal"),
        journal_max_mib=1,
        max_waiting=1000,
        drain_seconds=2.5,
        environment="prod",
        pod_labels=Path("/labels"),
        host="::",
        port=80,
        drift_window=100,
        drift_seconds=1.5,
        log_days=7,
        log_level="ERROR",
    )


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError):
        from_environ({"DATABASE_URL": URL}).port = 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("IRIS_PORT", ""),
        ("IRIS_PORT", "0"),
        ("IRIS_PORT", "65536"),
        ("IRIS_PORT", "tcp://10.0.0.1:80"),
        ("IRIS_JOURNAL_MAX_MIB", "0"),
        ("IRIS_JOURNAL_MAX_MIB", "1.5"),
        ("IRIS_MAX_WAITING", "999"),
        ("IRIS_MAX_WAITING", "1e9"),
        ("IRIS_DRAIN_SECONDS", "-1"),
        ("IRIS_DRAIN_SECONDS", "nan"),
        ("IRIS_DRAIN_SECONDS", "inf"),
        ("IRIS_DRIFT_WINDOW", "99"),
        ("IRIS_DRIFT_WINDOW", "10001"),
        ("IRIS_DRIFT_SECONDS", "0.9"),
        ("IRIS_DRIFT_SECONDS", "nan"),
        ("IRIS_LOG_DAYS", ""),
        ("IRIS_LOG_DAYS", "0"),
        ("IRIS_LOG_DAYS", "1.5"),
        ("IRIS_ENVIRONMENT", "Prod"),
        ("IRIS_ENVIRONMENT", ""),
        ("IRIS_ENVIRONMENT", "prod\n"),
        ("IRIS_LOG_LEVEL", "debug"),
        ("IRIS_LOG_LEVEL", "TRACE"),
    ],
)
def test_an_invalid_value_is_rejected_with_the_name_of_its_variable(variable: str, value: str) -> None:
    message = _error({"DATABASE_URL": URL, variable: value})
    assert message.startswith(f"{variable} ")
    assert "should" in message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3cret",
        "mysql://user:s3cret@host/database",
        "http://user:s3cret@host",
        "host=x password=s3cret nonsense=1",
        "postgresql://user:s3cret%zz@host/database",
        "postgresql://user:pass@s3cret@host/database",
        "postgresql://user:pass/s3cret@host:5432/database",
        "postgresql://user:12/s3cret@host:5432/database",
        "postgresql://user:s3cret@host:port/database",
    ],
)
def test_the_error_for_a_malformed_database_url_hides_the_password(url: str) -> None:
    message = _error({"DATABASE_URL": url})
    assert message.startswith("DATABASE_URL is malformed; expected postgresql://")
    assert "s3cret" not in message


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "postgres://host",
        "postgresql:///database?host=%2Frun%2Fpostgresql",
        "postgresql://user%40cloud:p%40%2Fss@[::1]:5432,other:5433/database?sslmode=require",
        "host=/run/postgresql dbname=database password='s3 cret'",
    ],
)
def test_every_form_of_connection_string_of_libpq_is_accepted(url: str) -> None:
    assert from_environ({"DATABASE_URL": url}).database_url == url


def test_a_missing_database_url_is_rejected_with_the_expected_form() -> None:
    assert _error({}) == "DATABASE_URL is not set; expected postgresql://user:password@host:5432/database"


@pytest.mark.parametrize("variable", ["IRIS_PROT", "IRIS_", "IRIS_DATABASE_URL"])
def test_an_unknown_variable_is_rejected_with_the_list_of_settings(variable: str) -> None:
    message = _error({"DATABASE_URL": URL, variable: "x"})
    assert message.startswith(f"{variable} is not a setting; ")
    assert "DATABASE_URL" in message.removeprefix(variable)
    assert "Kubernetes" not in message


@pytest.mark.parametrize("variable", ["IRIS_SERVICE_HOST", "IRIS_SERVICE_PORT_HTTP", "IRIS_PORT_80_TCP_ADDR"])
def test_a_variable_that_kubernetes_sets_for_a_service_is_rejected_with_the_remedy(variable: str) -> None:
    assert f"{variable} is not a setting" in (message := _error({"DATABASE_URL": URL, variable: "x"}))
    assert "enableServiceLinks: false" in message


def test_all_problems_are_reported_on_one_line() -> None:
    message = _error({"IRIS_PORT": "x", "IRIS_LOG_LEVEL": "x", "IRIS_X": "x"})
    for variable in ("DATABASE_URL", "IRIS_PORT", "IRIS_LOG_LEVEL", "IRIS_X"):
        assert f"{variable} " in message
    assert "\n" not in message


def _error(environ: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as error:
        from_environ(environ)
    return str(error.value)
