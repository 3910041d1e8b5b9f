"""The endpoints over HTTP."""

import asyncio
import gzip
import json
import math
import random
import re
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest
from starlette.types import ASGIApp

from service.app import Service, create_app
from service.settings import Settings
from tests.support.running import SETOSA, RunningService


@pytest.fixture(scope="session")
def metadata(model: Path) -> dict[str, Any]:
    """model.json."""
    content: dict[str, Any] = json.loads((model / "model.json").read_text())
    return content


def test_a_prediction_is_logged_with_the_values_of_its_answer(service: RunningService) -> None:
    answer = service.predict().json()
    service.wait_shipped()
    logs = service.client.get("/logs").json()
    assert logs["count"] == 1
    (row,) = logs["logs"]
    assert row["request_id"] == answer["request_id"]
    assert row["features"] == " ".join(map(str, SETOSA))
    assert (row["prediction"], row["probability"], row["latency_ms"]) == (
        answer["prediction"],
        answer["probability"],
        answer["latency_ms"],
    )


def test_an_answer_has_class_model_and_request_id(
    shared_service: RunningService, metadata: dict[str, Any]
) -> None:
    response = shared_service.predict()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    uuid.UUID(answer.pop("request_id"))
    assert 0.5 < answer.pop("probability") <= 1
    assert 0 < answer.pop("latency_ms") < 30_000
    assert answer == {
        "prediction": 0,
        "class": "setosa",
        "model": metadata["name"],
        "version": metadata["version"],
    }


def test_a_batch_reproduces_the_golden_vectors(shared_service: RunningService, metadata: dict[str, Any]) -> None:
    golden = metadata["golden"]
    answers = _batch(shared_service, [row["features"] for row in golden])
    assert [a["prediction"] for a in answers] == [row["prediction"] for row in golden]
    assert [a["class"] for a in answers] == [metadata["classes"][row["prediction"]] for row in golden]
    assert [a["probability"] for a in answers] == pytest.approx([row["probability"] for row in golden], abs=1e-5)


def test_a_row_gets_the_same_answer_alone_and_in_a_batch(shared_service: RunningService) -> None:
    rows = _rows(20)
    alone = [shared_service.predict(row).json() for row in rows]
    together = _batch(shared_service, rows)
    assert [a["prediction"] for a in alone] == [a["prediction"] for a in together]
    assert [a["probability"] for a in alone] == pytest.approx([a["probability"] for a in together], abs=1e-6)


def test_a_batch_of_1000_rows_is_answered_and_logged_in_order(service: RunningService) -> None:
    rows = _rows(1000)
    answers = _batch(service, rows)
    assert len(answers) == 1000
    service.wait_shipped()
    logged = service.client.get("/logs", params={"limit": 1000}).json()
    assert logged["count"] == 1000
    oldest_first = logged["logs"][::-1]
    assert [row["request_id"] for row in oldest_first] == [a["request_id"] for a in answers]
    assert [[float(v) for v in row["features"].split()] for row in oldest_first] == rows
    assert [row["probability"] for row in oldest_first] == [a["probability"] for a in answers]


def test_1000_rows_of_the_longest_numbers_are_accepted_in_every_format(
    shared_service: RunningService, metadata: dict[str, Any]
) -> None:
    row = [math.nextafter(feature["min"] + 1 / 3, math.inf) for feature in metadata["features"]]
    body = json.dumps({"features": [row] * 1000})
    assert len(body) > 64 * 1024
    tensor = {"name": "features", "datatype": "FP64", "shape": [1000, len(row)], "data": [row] * 1000}
    for path, content in (
        ("/predict/batch", body),
        ("/v2/models/iris-classifier/infer", json.dumps({"id": "x" * 1000, "inputs": [tensor]})),
    ):
        headers = {"Content-Type": "application/json"}
        assert shared_service.client.post(path, content=content, headers=headers).status_code == 200


def test_request_ids_are_unique_and_ascending(shared_service: RunningService) -> None:
    ids = [shared_service.predict().json()["request_id"][:13] for _ in range(20)]  # the timestamp
    assert ids == sorted(ids)
    batch = [answer["request_id"] for answer in _batch(shared_service, [SETOSA] * 1000)]
    assert len(set(batch)) == 1000
    assert {uuid.UUID(request_id).version for request_id in batch} == {7}


def test_logs_are_newest_first_and_at_most_limit(shared_service: RunningService) -> None:
    _batch(shared_service, _rows(150))
    shared_service.wait_shipped()
    for limit, count in ((None, 100), (1, 1), (150, 150)):
        logs = shared_service.client.get("/logs", params={"limit": limit} if limit else {}).json()
        ids = [row["id"] for row in logs["logs"]]
        assert logs["count"] == len(ids) == count
        assert ids == sorted(ids, reverse=True)


def test_logs_are_read_page_by_page(shared_service: RunningService) -> None:
    _batch(shared_service, _rows(25))
    shared_service.wait_shipped()
    newest = [row["id"] for row in shared_service.client.get("/logs", params={"limit": 25}).json()["logs"]]
    pages: list[int] = []
    while len(pages) < 25:
        parameters = {"limit": 10, **({"before": pages[-1]} if pages else {})}
        pages += [row["id"] for row in shared_service.client.get("/logs", params=parameters).json()["logs"]]
    assert pages[:25] == newest


@pytest.mark.parametrize(
    "parameters", [{"offset": 10}, {"MARK": 1}, {"limit": 0}, {"before": 0}, {"before": 2**63}]
)
def test_parameters_of_logs_that_would_be_ignored_are_refused(
    shared_service: RunningService, parameters: dict[str, int]
) -> None:
    response = shared_service.client.get("/logs", params=parameters)
    assert response.status_code == 422
    assert "MARK" not in response.text


def test_a_logged_row_has_the_model_and_the_time_in_utc(
    shared_service: RunningService, metadata: dict[str, Any]
) -> None:
    before = datetime.now(UTC)
    answer = shared_service.predict().json()
    after = datetime.now(UTC)
    shared_service.wait_shipped()
    (row,) = shared_service.client.get("/logs", params={"limit": 1}).json()["logs"]
    assert row["request_id"] == answer["request_id"]
    assert (row["model_name"], row["model_version"]) == (metadata["name"], metadata["version"])
    assert before <= datetime.fromisoformat(row["timestamp"]) <= after
    assert datetime.fromisoformat(row["created_at"]) >= before


def test_times_in_the_log_are_utc_in_any_time_zone_of_the_database(
    model: Path, database: str, tmp_path: Path
) -> None:
    with closing(psycopg2.connect(database)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_database()")
        cursor.execute(f"ALTER DATABASE {cursor.fetchall()[0][0]} SET timezone = 'Asia/Tokyo'")
    with RunningService(model, database, tmp_path / "journal") as service:
        service.predict()
        service.predict(**{"Idempotency-Key": str(uuid.uuid4())})
        service.wait_shipped()
        now = datetime.now(UTC)
        for row in service.client.get("/logs").json()["logs"]:
            for column in ("timestamp", "created_at"):
                assert abs(datetime.fromisoformat(row[column]) - now) < timedelta(minutes=5)


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "", "1.5", "MARK", "9" * 5000])
def test_an_invalid_limit_is_rejected_by_name_without_an_echo(shared_service: RunningService, limit: str) -> None:
    response = shared_service.client.get("/logs", params={"limit": limit})
    assert response.status_code == 422
    assert response.json()["detail"].startswith("limit: ")
    assert "MARK" not in response.text
    assert len(response.content) < 4096


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_return_ok(shared_service: RunningService, path: str) -> None:
    response = shared_service.client.get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_info_reports_the_model_and_outside_a_cluster_all_traffic(
    shared_service: RunningService, metadata: dict[str, Any]
) -> None:
    assert shared_service.client.get("/info").json() == {
        "model_name": metadata["name"],
        **{key: metadata[key] for key in ("version", "algorithm", "run_id", "sha256")},
        "environment": "local",
        "role": "stable",
        "canary_percentage": 100,
        "pod_template_hash": "",
    }


def test_docs_is_an_html_page(shared_service: RunningService) -> None:
    response = shared_service.client.get("/docs")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "url: './openapi.json'" in response.text  # also behind a prefix that the router strips


def test_the_docs_page_is_built_before_the_first_request(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(Settings(database_url="postgresql://localhost", model_dir=model, journal_dir=tmp_path))
    app = create_app(service)
    monkeypatch.setattr("service.app.get_swagger_ui_html", lambda **_: 1 / 0)
    assert asyncio.run(_get(app, "/docs")).status_code == 200
    service.journal.close()


def test_docs_loads_from_other_hosts_only_what_has_a_digest(shared_service: RunningService) -> None:
    page = shared_service.client.get("/docs").text
    loaded = re.findall(r'<(?:script|link)[^>]*(?:src|href)="https?:[^>]*>', page)
    assert len(loaded) == 2
    assert all(
        re.search(r'@\d+\.\d+\.\d+/.*integrity="sha384-.{64}" crossorigin="anonymous"', tag) for tag in loaded
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/MARK?MARK", 404),
        ("POST", "/predict/MARK", 404),
        ("GET", "/healthz/", 404),
        ("GET", "/%ff%00%0d%0aMARK", 404),
        ("POST", "/healthz", 405),
        ("DELETE", "/logs", 405),
        ("PUT", "/metrics", 405),
    ],
)
def test_an_unknown_path_or_method_gets_a_detail(
    shared_service: RunningService, method: str, path: str, status: int
) -> None:
    response = shared_service.client.request(method, path)
    assert response.status_code == status
    assert list(response.json()) == ["detail"]
    assert "MARK" not in f"{response.headers}{response.text}"
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/info", "/logs", "/metrics", "/docs", "/v2", "/nowhere"])
def test_head_is_answered_like_get_without_a_body(shared_service: RunningService, path: str) -> None:
    head, get = shared_service.client.head(path), shared_service.client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/v2/models/iris-classifier/infer"])
def test_a_compressed_body_gets_415(shared_service: RunningService, path: str) -> None:
    body = gzip.compress(json.dumps({"features": SETOSA}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = shared_service.client.post(path, content=body, headers=headers)
    assert response.status_code == 415
    assert "content-encoding" in response.text


def test_an_unhandled_error_of_any_route_is_json_and_counted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(Settings(database_url="postgresql://localhost", model_dir=model, journal_dir=tmp_path))
    monkeypatch.setattr("service.pod.read", lambda _: 1 / 0)
    monkeypatch.setattr(service.metrics, "exposition", lambda: 1 / 0)
    monkeypatch.setattr(service, "check_ready", lambda: 1 / 0)
    app = create_app(service)
    for path, field in (
        ("/info", "detail"),
        ("/metrics", "detail"),
        ("/readyz", "detail"),
        ("/v2/health/ready", "error"),
    ):
        response = asyncio.run(_get(app, path))
        assert (response.status_code, response.json()) == (500, {field: "the request failed"})
        uuid.UUID(response.headers["x-request-id"])
    service.journal.close()
    assert service.metrics.registry.get_sample_value("iris_errors_total", {"kind": "server"}) == 4


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/info", "/logs", "/metrics", "/docs", "/openapi.json", "/nowhere", "/predict"]
)
def test_responses_without_a_request_id_in_the_body_have_one_in_the_headers(
    shared_service: RunningService, path: str
) -> None:
    uuid.UUID(shared_service.client.get(path).headers["x-request-id"])


async def _get(app: ASGIApp, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        return await client.get(f"http://x{path}")


def _batch(service: RunningService, rows: list[list[float]]) -> list[dict[str, Any]]:
    response = service.client.post("/predict/batch", json={"features": rows})
    assert response.status_code == 200, response.text
    content = response.json()
    assert content["count"] == len(content["predictions"]) == len(rows)
    predictions: list[dict[str, Any]] = content["predictions"]
    return predictions


def _rows(count: int) -> list[list[float]]:
    """Return different rows, of all classes."""
    rng = random.Random(count)  # noqa: S311 - test data
    return [
        [round(rng.uniform(low, high), 3) for low, high in ((4, 8), (2, 4.5), (1, 7), (0.1, 2.5))]
        for _ in range(count)
    ]
