"""The metrics: names and labels, which rules and gates query, and values that follow the requests."""

import asyncio
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.batcher import Batcher
from service.journal import Journal
from service.metrics import Metrics, memory_limit
from service.model import Model
from service.prediction_log import PredictionLog
from service.predictions import FeaturesCodec, Predictions
from service.schema import Schema
from service.shipper import Shipper
from tests.support.running import SETOSA, RunningService, wait_until

VERSICOLOR, VIRGINICA = [6.0, 2.9, 4.5, 1.5], [6.5, 3.0, 5.8, 2.2]

# Name (counters without _total), type and labels.
CONTRACT = {
    ("iris_requests", "counter", ("endpoint", "method", "status")),
    ("iris_request_latency_seconds", "histogram", ("endpoint",)),
    ("iris_predictions", "counter", ("prediction",)),
    ("iris_prediction_latency_seconds", "histogram", ()),
    ("iris_errors", "counter", ("kind",)),
    ("iris_rps", "gauge", ()),
    ("iris_cpu_usage_percent", "gauge", ()),
    ("iris_memory_usage_mb", "gauge", ()),
    ("iris_model_loaded", "gauge", ()),
    ("iris_model_info", "gauge", ("algorithm", "name", "sha256", "version")),
    ("iris_journal_depth", "gauge", ()),
    ("iris_journal_oldest_age_seconds", "gauge", ()),
    ("iris_journal_written", "counter", ()),
    ("iris_journal_shipped", "counter", ()),
    ("iris_journal_rejected", "counter", ()),
    ("iris_journal_writable", "gauge", ()),
    ("iris_journal_set_aside", "gauge", ()),
}


@pytest.fixture(scope="module")
def used(model: Path, module_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service that has handled 3 single predictions, a batch of 4, 2 malformed bodies, and 2 unknown paths."""
    with RunningService(model, module_database, tmp_path_factory.mktemp("metrics") / "journal") as service:
        for row in (SETOSA, SETOSA, VERSICOLOR):
            service.predict(row)
        service.client.post("/predict/batch", json={"features": [VIRGINICA, SETOSA, VIRGINICA, VIRGINICA]})
        service.predict([1])
        service.client.post("/predict/batch", content="{}")
        service.client.get("/nowhere")
        service.client.get("/else")
        service.wait_shipped()
        yield service


def test_every_metric_of_the_contract_has_its_type_and_labels(used: RunningService) -> None:
    found = set()
    for family in _families(used):
        assert family.documentation
        for sample in family.samples:
            found.add((family.name, family.type, tuple(sorted(sample.labels.keys() - {"le"}))))
    assert found >= CONTRACT


def test_no_series_is_exported_twice(used: RunningService) -> None:
    samples = [(s.name, tuple(sorted(s.labels.items()))) for family in _families(used) for s in family.samples]
    assert len(samples) == len(set(samples))
    assert not [name for name, _ in samples if name.endswith("_created")]


def test_both_paths_return_the_text_format(used: RunningService) -> None:
    for path in ("/metrics", "/metrics-prometheus"):
        response = used.client.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert {family.name for family in _families(used, path)} >= {name for name, *_ in CONTRACT}


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        ({"method": "POST", "endpoint": "/predict", "status": "200"}, 3),
        ({"method": "POST", "endpoint": "/predict", "status": "422"}, 1),
        ({"method": "POST", "endpoint": "/predict/batch", "status": "200"}, 1),
        ({"method": "POST", "endpoint": "/predict/batch", "status": "415"}, 1),
        ({"method": "GET", "endpoint": "other", "status": "404"}, 2),
    ],
)
def test_requests_are_counted_by_method_endpoint_and_status(
    used: RunningService, labels: dict[str, str], count: int
) -> None:
    assert used.metric("iris_requests_total", **labels) == count


@pytest.mark.parametrize("path", ["/healthz", "/predict", "/nowhere"])
@pytest.mark.parametrize(("method", "label"), [("HEAD", "HEAD"), ("DELETE", "DELETE"), ("PROPFIND", "OTHER")])
def test_a_method_is_counted_under_its_name_and_an_unknown_one_as_other(
    shared_service: RunningService, method: str, label: str, path: str
) -> None:
    before = shared_service.metric("iris_requests_total", method=label)
    shared_service.client.request(method, path)
    assert shared_service.metric("iris_requests_total", method=label) == before + 1


def test_errors_are_counted_by_client_and_server(used: RunningService) -> None:
    assert used.metric("iris_errors_total", kind="client") == 4
    assert used.metric("iris_errors_total", kind="server") == 0


def test_predictions_are_counted_by_class(used: RunningService) -> None:
    for name, count in (("setosa", 3), ("versicolor", 1), ("virginica", 3)):
        assert used.metric("iris_predictions_total", prediction=name) == count


@pytest.mark.parametrize(
    ("name", "labels", "count"),
    [
        ("iris_request_latency_seconds", {"endpoint": "/predict"}, 4),
        ("iris_request_latency_seconds", {"endpoint": "/predict/batch"}, 2),
        ("iris_request_latency_seconds", {"endpoint": "other"}, 2),
        ("iris_prediction_latency_seconds", {}, 7),
    ],
)
def test_histograms_count_their_observations(
    used: RunningService, name: str, labels: dict[str, str], count: int
) -> None:
    assert used.metric(f"{name}_count", **labels) == count
    assert used.metric(f"{name}_bucket", le="+Inf", **labels) == count
    assert 0 < used.metric(f"{name}_sum", **labels) < 60 * count


@pytest.mark.parametrize("name", ["iris_request_latency_seconds", "iris_prediction_latency_seconds"])
def test_buckets_are_cumulative_and_have_edges_at_the_thresholds_of_rules(used: RunningService, name: str) -> None:
    (family,) = [family for family in _families(used) if family.name == name]
    buckets: dict[str, list[tuple[float, float]]] = {}
    for sample in family.samples:
        if sample.name.endswith("_bucket"):
            edges = buckets.setdefault(sample.labels.get("endpoint", ""), [])
            edges.append((float(sample.labels["le"]), sample.value))
    for edges in buckets.values():
        assert edges == sorted(edges)
        assert [count for _, count in edges] == sorted(count for _, count in edges)
        assert {0.25, 0.5, 1.0} < {edge for edge, _ in edges}
        assert sum(edge > 1.0 for edge, _ in edges) >= 3  # so that quantiles above the last threshold are finite


def test_journal_metrics_count_written_and_shipped_predictions(used: RunningService) -> None:
    for name, value in (("written_total", 7), ("shipped_total", 7), ("rejected_total", 0), ("depth", 0)):
        assert used.metric(f"iris_journal_{name}") == value
    assert used.metric("iris_journal_oldest_age_seconds") == 0
    assert used.metric("iris_journal_writable") == 1
    assert used.metric("iris_journal_set_aside") == 0


def test_the_model_is_exported(used: RunningService, model: Path) -> None:
    metadata = Model(model).metadata
    assert used.metric("iris_model_loaded") == 1
    labels = {
        "name": metadata.name,
        "version": metadata.version,
        "algorithm": metadata.algorithm,
        "sha256": metadata.sha256,
    }
    assert used.metric("iris_model_info", **labels) == 1


def test_memory_usage_matches_the_kernel(used: RunningService) -> None:
    assert used.process
    status = Path(f"/proc/{used.process.pid}/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
    assert used.metric("iris_memory_usage_mb") == pytest.approx(kib / 1024, rel=0.2)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "536870912\n"}, 536870912),
        ({"memory.max": "max\n"}, None),
        ({"memory/memory.limit_in_bytes": "536870912\n"}, 536870912),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"memory.max": "268435456\n", "memory/memory.limit_in_bytes": "536870912\n"}, 268435456),
        ({}, None),
    ],
)
def test_the_memory_limit_is_read_from_the_control_group(
    tmp_path: Path, files: dict[str, str], limit: int | None
) -> None:
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert memory_limit(tmp_path) == limit


def test_the_memory_limit_is_exported_only_if_there_is_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.metrics.CGROUP", tmp_path)
    verified = Model(model)
    assert b"iris_memory_limit_mb" not in Metrics(verified).exposition()
    (tmp_path / "memory.max").write_text(f"{512 * 2**20}\n")
    assert b"\niris_memory_limit_mb 512.0\n" in Metrics(verified).exposition()


def test_rate_and_cpu_rise_with_requests_and_fall_without_them(used: RunningService) -> None:
    started = time.monotonic()
    while time.monotonic() < started + 0.5:
        used.predict()
    rate, cpu = used.metric("iris_rps"), used.metric("iris_cpu_usage_percent")
    assert rate > 5
    assert cpu > 0
    wait_until(lambda: used.metric("iris_rps") < rate / 2, "the rate to fall", 30)
    assert used.metric("iris_cpu_usage_percent") < cpu


def test_a_repeated_prediction_under_a_key_is_counted_once(used: RunningService) -> None:
    names = ("iris_predictions_total", "iris_prediction_latency_seconds_count")
    before = [used.metric(name) for name in names]
    key = str(uuid.uuid4())
    assert {used.predict(**{"Idempotency-Key": key}).status_code for _ in range(3)} == {200}
    assert [used.metric(name) for name in names] == [value + 1 for value in before]


def test_an_unexpected_exception_is_counted_as_a_server_error(model: Path, tmp_path: Path) -> None:
    verified = Model(model)
    metrics = Metrics(verified)
    journal = Journal(tmp_path, 1)
    shipper = Shipper(journal, "")
    never_started = Batcher(verified, journal, shipper, metrics, 1000)
    schema = Schema(verified.metadata.features)
    codec = FeaturesCodec(schema, schema.one)
    endpoint = Predictions("/predict", codec, verified, never_started, PredictionLog(""), metrics)

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(endpoint)) as client:
            return await client.post("http://x/predict", json={"features": SETOSA})

    response = asyncio.run(post())
    journal.close()
    assert (response.status_code, response.json()) == (500, {"detail": "the request failed"})
    assert metrics.registry.get_sample_value("iris_errors_total", {"kind": "server"}) == 1


def test_unknown_paths_and_methods_do_not_create_series(used: RunningService) -> None:
    def series() -> set[tuple[str, str]]:
        return {
            (sample.name, str(sorted(sample.labels.items())))
            for family in _families(used)
            for sample in family.samples
        }

    used.client.request("PROPFIND", "/nowhere")
    used.client.request("PROPFIND", "/predict")
    before = series()
    for number in range(20):
        used.client.get(f"/nowhere/{number}", headers={"user-agent": str(number)}, params={str(number): number})
        used.client.request(("MKCOL", "LOCK", "MOVE", "REPORT")[number % 4], "/predict")
        used.client.request(("MKCOL", "LOCK", "MOVE", "REPORT")[number % 4], f"/nowhere/{number}")
    assert series() == before


def _families(service: RunningService, path: str = "/metrics") -> list[Metric]:
    return list(text_string_to_metric_families(service.client.get(path).text))
