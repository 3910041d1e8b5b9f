"""The service's own log: JSON lines that can be found by a client's request id."""

import contextlib
import json
import logging
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.logs import LONGEST_QUEUE, JsonFormatter
from tests.support.running import ROOT, SETOSA, RunningService, wait_until


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_every_line_from_start_to_drain_is_a_json_object(
    model: Path, database: str, tmp_path: Path, level: str
) -> None:
    with RunningService(model, database, tmp_path / "journal", log_level=level) as service:
        answer = service.predict().json()
        batch = service.client.post("/predict/batch", json={"features": [SETOSA, SETOSA]}).json()
        rejections = [
            service.predict([1]),
            service.client.post("/predict/batch", content="{}"),
            service.client.get("/predict"),
        ]
        service.client.get("/healthz")
        service.client.get("/nowhere")
        rejections.append(service.client.request("NONSENSE", "/"))
        service.wait_shipped()
        assert service.stop() == 0

    lines = _lines(service)
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
        assert line["level"] in {"DEBUG", "INFO", "WARNING", "ERROR"}
        assert abs((datetime.now(UTC) - datetime.fromisoformat(line["time"])).total_seconds()) < 300
    assert {"ready", "shipping to PostgreSQL", "drained"} <= {line["message"] for line in lines}

    rejected = [line for line in lines if line["message"] == "rejected"]
    assert [line["request_id"] for line in rejected] == [
        response.headers["x-request-id"] for response in rejections
    ]
    assert [line["status"] for line in rejected] == [422, 415, 405, 400]
    assert [line["detail"] for line in rejected] == [response.json()["detail"] for response in rejections]

    answered = [line["request_id"] for line in lines if line["message"] == "answered"]
    expected = [answer["request_id"], batch["predictions"][0]["request_id"]]
    assert answered == (expected if level == "DEBUG" else [])


def test_an_error_is_logged_with_the_request_id_of_its_response(model: Path, tmp_path: Path) -> None:
    with RunningService(
        model, "postgresql://user@127.0.0.1:9/database", tmp_path / "journal", drain_seconds="0"
    ) as service:
        failed = service.client.get("/logs")
        rejected = service.predict(**{"Idempotency-Key": "00000000-0000-0000-0000-000000000000"})
    assert (failed.status_code, rejected.status_code) == (503, 503)
    by_id = {line["request_id"]: line for line in _lines(service) if "request_id" in line}
    assert by_id[failed.headers["x-request-id"]]["endpoint"] == "/logs"
    assert by_id[rejected.headers["x-request-id"]]["status"] == 503


def test_a_standard_error_that_nobody_reads_does_not_stop_the_service(
    model: Path, database: str, tmp_path: Path
) -> None:
    running = RunningService(model, database, tmp_path / "journal")
    with (
        running.client,
        subprocess.Popen(running.command, cwd=ROOT, env=running.environ, stderr=subprocess.PIPE) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)  # a service that is blocked would be waited for
        running.process = process
        wait_until(lambda: _is_ready(running), "the service to be ready")
        for _ in range(LONGEST_QUEUE + 500):  # 400 fill the pipe
            assert running.predict([1]).status_code == 422
        assert running.client.get("/healthz").status_code == 200
        assert running.metric("iris_log_lines_dropped_total") > 0
        assert running.stop() == 0
        assert process.stderr
        lines = process.stderr.read().splitlines()
    assert {json.loads(line)["level"] for line in lines[:-1]} == {"INFO"}  # the last line may be cut


def test_the_last_lines_are_written_although_they_are_read_late(
    model: Path, database: str, tmp_path: Path
) -> None:
    running = RunningService(model, database, tmp_path / "journal")
    code = "from service import __main__, logs; logs.FLUSH_SECONDS = 30; __main__.main()"
    command = [sys.executable, "-c", code]
    with (
        running.client,
        subprocess.Popen(command, cwd=ROOT, env=running.environ, stderr=subprocess.PIPE) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)
        wait_until(lambda: _is_ready(running), "the service to be ready")
        for _ in range(LONGEST_QUEUE - 100):  # more than the pipe has room for
            running.predict([1])
        process.terminate()
        time.sleep(2)  # the process would end without its last lines
        assert process.stderr
        lines = process.stderr.read().splitlines()
    assert json.loads(lines[-1])["message"] == "drained"


def _is_ready(service: RunningService) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return service.client.get("/readyz").status_code == 200
    return False


def test_level_error_does_not_log_client_errors(model: Path, database: str, tmp_path: Path) -> None:
    with RunningService(model, database, tmp_path / "journal", log_level="ERROR") as service:
        service.predict([1])
        service.client.request("NONSENSE", "/")
    assert service.log.read_text() == ""


def test_a_line_includes_extra_fields_and_traceback() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("service.x", logging.ERROR, "x.py", 1, "failed %s", ("once",), sys.exc_info())
    record.__dict__.update(path=Path("/x"), waiting=3)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    content = json.loads(line)
    assert (content["message"], content["level"], content["logger"]) == ("failed once", "ERROR", "service.x")
    assert (content["path"], content["waiting"]) == ("/x", 3)
    assert "ValueError: two\nlines" in content["traceback"]


def _lines(service: RunningService) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    return lines
