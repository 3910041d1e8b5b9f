"""Startup: ready with or without PostgreSQL, or a failure with one line that gives the reason."""

import json
import shutil
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from tests.support.running import ROOT, SETOSA, RunningService, environment, free_port

URL = "postgresql://user:s3cret@127.0.0.1:9/database"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"DATABASE_URL": None}, "DATABASE_URL is not set"),
        ({"DATABASE_URL": "postgresql://user:pass/s3cret@host/database"}, "DATABASE_URL is malformed"),
        ({"IRIS_PROT": "8000", "IRIS_MAX_WAITING": "many"}, "IRIS_PROT is not a setting"),
        ({"IRIS_SERVICE_HOST": "10.0.0.1", "IRIS_PORT": "tcp://10.0.0.1:80"}, "enableServiceLinks: false"),
        ({"IRIS_HOST": "203.0.113.1"}, "IRIS_HOST"),
        ({"IRIS_MODEL_DIR": "/nowhere"}, "cannot read /nowhere/model.json"),
        ({"IRIS_JOURNAL_DIR": "/etc/passwd/journal"}, "cannot write the journal's folder /etc/passwd/journal"),
        ({"IRIS_JOURNAL_DIR": "/proc/journal"}, "cannot write the journal's folder /proc/journal"),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_the_reason_for_a_failed_start_is_one_line(
    model: Path, tmp_path: Path, variables: dict[str, str | None], reason: str
) -> None:
    assert reason in _startup_error(model, tmp_path, variables)


def test_a_model_with_a_wrong_digest_is_not_served(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert f"{folder}/model.onnx has sha256 " in _startup_error(folder, tmp_path)


def test_a_model_that_does_not_reproduce_its_golden_vectors_is_not_served(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    document = json.loads((folder / "model.json").read_text())
    document["golden"][3]["probability"] -= 0.001
    (folder / "model.json").write_text(json.dumps(document))
    assert f"golden vector 3 of {folder}/model.json is not reproduced" in _startup_error(folder, tmp_path)


def test_a_journal_in_use_by_another_process_is_left_alone(
    shared_service: RunningService, model: Path, tmp_path: Path
) -> None:
    error = _startup_error(model, tmp_path, {"IRIS_JOURNAL_DIR": str(shared_service.journal)})
    assert f"{shared_service.journal} is in use by another process" in error
    assert shared_service.predict().status_code == 200


@pytest.mark.parametrize("host", ["::", "::1", "localhost"])
def test_a_host_may_be_of_either_family(model: Path, database: str, tmp_path: Path, host: str) -> None:
    service = RunningService(model, database, tmp_path / "journal", host=host)
    if host == "::1":
        service.client = httpx.Client(base_url=f"http://[::1]:{service.port}")
    with service:
        addresses = {"::": ("127.0.0.1", "[::1]"), "::1": ("[::1]",)}.get(host, ("127.0.0.1",))
        for address in addresses:
            assert httpx.get(f"http://{address}:{service.port}/healthz").status_code == 200


def test_a_host_that_does_not_exist_is_reported_in_words(model: Path, tmp_path: Path) -> None:
    error = _startup_error(model, tmp_path, {"IRIS_HOST": "nowhere.invalid"})
    assert "cannot listen on nowhere.invalid:" in error
    assert ": Unknown error" not in error
    assert "while attempting" not in error


def test_a_port_in_use_is_reported_before_the_journal_is_touched(model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        error = _startup_error(model, tmp_path, {"IRIS_PORT": port})
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in error
    assert "IRIS_PORT" in error
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize("host", ["::1", "0.0.0.0"])  # noqa: S104
def test_the_service_listens_on_the_configured_host(model: Path, tmp_path: Path, host: str) -> None:
    service = RunningService(model, URL, tmp_path / "journal", host=host, drain_seconds="0")
    if host == "::1":
        if not Path("/proc/net/if_inet6").exists():
            pytest.skip("no IPv6 here")
        service.client.base_url = f"http://[::1]:{service.port}"
    with service:
        assert service.predict().status_code == 200


@pytest.mark.parametrize("silent_server", [False, True], ids=["no server", "a silent server"])
def test_without_postgresql_the_service_starts_predicts_and_reports_what_is_waiting(
    model: Path, tmp_path: Path, silent_server: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://user:s3cret@127.0.0.1:{silent.getsockname()[1]}/database" if silent_server else URL
        with RunningService(model, url, tmp_path / "journal", drain_seconds="0") as service:
            answer = service.predict()
            batch = service.client.post("/predict/batch", json={"features": [SETOSA] * 10})
            assert (answer.status_code, batch.status_code) == (200, 200)
            assert service.client.get("/readyz").status_code == 200

            logs = service.client.get("/logs")
            assert logs.status_code == 503
            assert int(logs.headers["retry-after"]) > 0
            assert logs.json() == {"detail": "PostgreSQL is unavailable; 11 predictions wait in the journal"}

            assert service.metric("iris_journal_depth") == 11
            assert service.metric("iris_journal_shipped_total") == 0
            age = service.metric("iris_journal_oldest_age_seconds")
            time.sleep(0.1)
            assert service.metric("iris_journal_oldest_age_seconds") >= age + 0.1
            service.kill()
    assert "s3cret" not in service.log.read_text()


def _startup_error(model: Path, folder: Path, variables: dict[str, str | None] | None = None) -> str:
    """Return the one line that the service prints when it cannot start."""
    every = {
        "DATABASE_URL": URL,
        "IRIS_MODEL_DIR": str(model),
        "IRIS_JOURNAL_DIR": str(folder / "journal"),
        "IRIS_PORT": str(free_port()),
        **(variables or {}),
    }
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=ROOT,
        env=environment(**{name: value for name, value in every.items() if value is not None}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("service: cannot start: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("\n")
    assert "s3cret" not in done.stderr
    return done.stderr


def test_the_service_does_not_close_idle_connections(shared_service: RunningService) -> None:
    connection = HTTPConnection("127.0.0.1", shared_service.port)
    connection.request("GET", "/healthz")
    assert connection.getresponse().read()
    connection.sock.settimeout(7)  # uvicorn's default is 5
    with pytest.raises(TimeoutError):
        connection.sock.recv(1)  # a closed connection would return b"" at once
    connection.close()
