"""The drift process: the prediction log becomes gauges, and without enough data there are no gauges."""

import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from scipy import stats

from pipeline import data
from service import database as log_table
from service.drift_statistics import ALPHA, Sample, compare
from service.model import Model
from service.model_metadata import ModelMetadata, read_model_metadata
from tests.support.running import ROOT, RunningService, environment, free_port, query, wait_until
from tools.postgres import temporary

SAMPLES, WINDOW = 200, 1000
NAMES = ("sepal_length_cm", "sepal_width_cm", "petal_length_cm", "petal_width_cm")
ABOUT = {*NAMES, "prediction", "confidence"}
# Name, type and labels of each metric.
CONTRACT = {
    ("iris_drift_statistic", "gauge", ("about", "version")),
    ("iris_drift_limit", "gauge", ("about", "version")),
    ("iris_confidence", "gauge", ("quantile", "version")),
    ("iris_drift_sample_size", "gauge", ("version",)),
    ("iris_drift_last_success_timestamp_seconds", "gauge", ()),
}


class Drift(RunningService):
    """`python -m service.drift`, which measures every second. It is ready when its gauges can be scraped."""

    def __init__(self, model: Path, database_url: str, folder: Path, **settings: str) -> None:
        super().__init__(
            model, database_url, folder / "drift", module="service.drift", **{"drift_seconds": "1", **settings}
        )

    def series(self, *names: str) -> list[dict[str, float]]:
        """Return the values of each of these gauges by their label `about`, from one scrape."""
        families = list(text_string_to_metric_families(self.client.get("/metrics").text))
        return [
            {s.labels.get("about", ""): s.value for family in families for s in family.samples if s.name == name}
            for name in names
        ]

    def suspected(self) -> set[str]:
        """Return what has a statistic beyond its critical value."""
        values, critical_values = self.series("iris_drift_statistic", "iris_drift_limit")
        return {about for about, value in values.items() if value > critical_values[about]}

    def wait_measured(self, rows: int) -> None:
        """Wait until that number of rows has been compared."""
        wait_until(lambda: self.metric("iris_drift_sample_size") == rows, f"{rows} rows to be compared")

    def messages(self) -> list[dict[str, Any]]:
        """Return the lines of its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def drift(model: Path, database: str, tmp_path: Path) -> Iterator[Drift]:
    """The drift process, with an empty prediction log."""
    log_table.connect(database).close()
    with Drift(model, database, tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def verified(model: Path) -> Model:
    return Model(model)


def flowers(size: int, seed: int) -> NDArray[np.float64]:
    """Draw rows [size, 4] from the iris data set."""
    return np.random.default_rng(seed).choice(data.load().features, size)


def answered(model: Model, rows: NDArray[np.float64]) -> Sample:
    """Return the log entries of predictions for these rows."""
    predictions, probabilities = model.predict(rows.astype(np.float32))
    return Sample(rows, np.array(predictions), np.array(probabilities))


def write(url: str, metadata: ModelMetadata, sample: Sample, version: str | None = None) -> None:
    """Insert a sample into the log, as the shipper would."""
    records = [
        {
            "request_id": str(uuid.uuid4()),
            "model_name": metadata.name,
            "model_version": version or metadata.version,
            "features": row.tolist(),
            "prediction": int(prediction),
            "probability": float(probability),
            "latency_ms": 1.0,
            "time": time.time(),
        }
        for row, prediction, probability in zip(*sample, strict=True)
    ]
    query(url, log_table.INSERT, json.dumps(records))


def suspected(model: Model, sample: Sample) -> set[str]:
    assert model.metadata.reference
    found = compare(model.metadata, model.metadata.reference, sample)
    assert found.keys() == ABOUT
    return {about for about, statistic in found.items() if statistic.suspected}


def test_false_alarms_on_traffic_without_drift_are_no_more_frequent_than_alpha(verified: Model) -> None:
    alarms = [bool(suspected(verified, answered(verified, flowers(WINDOW, seed)))) for seed in range(SAMPLES)]
    assert sum(alarms) <= stats.binom.isf(0.001, SAMPLES, ALPHA)


@pytest.mark.parametrize("feature", range(4))
def test_drift_of_one_feature_is_suspected_in_that_feature(verified: Model, feature: int) -> None:
    """Compare 1,000 rows of traffic with a reference of 120. Predictions and confidence may drift with the feature
    here; test_drift_statistics.py tests that drift is suspected nowhere else."""
    rows = flowers(WINDOW, seed=1)
    rows[:, feature] += 0.5
    assert suspected(verified, answered(verified, rows)) & set(NAMES) == {NAMES[feature]}


def test_requests_become_gauges(model: Path, database: str, tmp_path: Path) -> None:
    with RunningService(model, database, tmp_path / "journal") as service:

        def send(rows: NDArray[np.float64]) -> None:
            assert service.client.post("/predict/batch", json={"features": rows.tolist()}).status_code == 200
            service.wait_shipped()

        send(flowers(300, seed=2))
        with Drift(model, database, tmp_path, drift_window="300") as drift:
            drift.wait_measured(300)
            assert drift.suspected() == set()
            assert drift.series("iris_drift_statistic")[0].keys() == ABOUT
            setosa = data.load().features[:50]
            send(np.tile(setosa, (6, 1)))
            wait_until(drift.suspected, "drift to be suspected")
            assert drift.suspected() == ABOUT  # setosa differs from the others in every feature
            send(flowers(300, seed=3))
            wait_until(lambda: not drift.suspected(), "drift to end")
            assert drift.stop() == 0
    logged = [line["message"] for line in drift.messages()]
    assert logged == ["ready", "drift is suspected", "drift is no longer suspected"]
    assert drift.messages()[1]["about"].keys() == ABOUT


def test_metrics_match_the_contract(drift: Drift, database: str, verified: Model) -> None:
    write(database, verified.metadata, answered(verified, flowers(100, seed=4)))
    drift.wait_measured(100)
    found = {
        (family.name, family.type, tuple(sorted(sample.labels)))
        for family in text_string_to_metric_families(drift.client.get("/metrics").text)
        for sample in family.samples
    }
    assert found == CONTRACT
    assert drift.metric("iris_drift_statistic", version=verified.metadata.version) > 0
    low, median, high = (drift.metric("iris_confidence", quantile=quantile) for quantile in ("0.1", "0.5", "0.9"))
    assert 1 / 3 < low < median < high <= 1
    assert abs(time.time() - drift.metric("iris_drift_last_success_timestamp_seconds")) < 60


def test_there_is_no_verdict_on_too_few_rows(drift: Drift, database: str, verified: Model) -> None:
    setosa = np.tile(data.load().features[:1], (99, 1))
    write(database, verified.metadata, answered(verified, setosa))
    drift.wait_measured(99)
    assert drift.series("iris_drift_statistic", "iris_drift_limit", "iris_confidence") == [{}, {}, {}]
    write(database, verified.metadata, answered(verified, setosa[:1]))
    drift.wait_measured(100)
    assert drift.suspected() == ABOUT


def test_rows_of_another_version_are_ignored(drift: Drift, database: str, verified: Model) -> None:
    write(database, verified.metadata, answered(verified, flowers(200, seed=5)))
    setosa = np.tile(data.load().features[:50], (20, 1))
    write(database, verified.metadata, answered(verified, setosa), version="another")
    drift.wait_measured(200)
    assert drift.suspected() == set()


def test_a_canary_with_a_tenth_of_the_rows_is_measured_on_its_newest_rows(
    model: Path, database: str, tmp_path: Path, verified: Model
) -> None:
    """One row in ten is of this version. The search ends after ten windows."""
    log_table.connect(database).close()
    metadata = verified.metadata
    write(database, metadata, answered(verified, np.tile(data.load().features[:1], (100, 1))))
    for seed in range(10):
        write(database, metadata, answered(verified, flowers(10, seed)))
        write(database, metadata, answered(verified, flowers(90, seed)), version="another")
    with Drift(model, database, tmp_path, drift_window="100") as drift:
        drift.wait_measured(100)
        assert drift.suspected() == set()
        write(database, metadata, answered(verified, flowers(1, seed=0)), version="another")
        drift.wait_measured(99)
        assert drift.series("iris_drift_statistic") == [{}]


def test_there_is_no_verdict_while_postgresql_is_unavailable(model: Path, tmp_path: Path, verified: Model) -> None:
    with temporary() as server:
        log_table.connect(server.url).close()
        write(server.url, verified.metadata, answered(verified, flowers(200, seed=6)))
        with Drift(model, server.url, tmp_path) as drift:
            drift.wait_measured(200)
            server.stop()
            gauges = ("iris_drift_statistic", "iris_drift_limit", "iris_drift_sample_size")
            wait_until(lambda: drift.series(*gauges) == [{}, {}, {}], "the gauges to disappear")
            last = drift.metric("iris_drift_last_success_timestamp_seconds")
            assert last > 0
            server.start()
            drift.wait_measured(200)
            assert drift.metric("iris_drift_last_success_timestamp_seconds") > last
            assert drift.stop() == 0
    logged = [line["message"] for line in drift.messages()]
    assert logged[0] == "ready"
    assert logged[-1] == "the prediction log is compared again"
    assert set(logged[1:-1]) == {"the prediction log cannot be compared"}


def test_a_missing_table_is_awaited_but_not_created(model: Path, database: str, tmp_path: Path) -> None:
    with Drift(model, database, tmp_path) as drift:
        wait_until(lambda: len(drift.messages()) > 1, "the reason to be logged")
        assert "predictions" in drift.messages()[1]["reason"]
        assert query(database, "SELECT to_regclass('predictions')") == [(None,)]
        log_table.connect(database).close()
        drift.wait_measured(0)


def test_the_drift_process_cannot_write_to_the_log(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log_table.connect(database).close()
    monkeypatch.setattr(log_table, "NEWEST_OF_VERSION", "DELETE FROM predictions RETURNING 1, 1, 1")
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        log_table.newest_of(database, "iris", "1", 100)


def test_a_model_without_a_reference_runs_without_gauges(model: Path, database: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    document = json.loads((folder / "model.json").read_text())
    del document["reference"]
    (folder / "model.json").write_text(json.dumps(document))
    assert read_model_metadata(folder / "model.json").reference is None
    with Drift(folder, database, tmp_path) as drift:
        wait_until(drift.messages, "the reason to be logged")
        assert drift.messages()[0]["message"] == "model.json has no reference; drift cannot be measured"
        assert not any(drift.series(*(name for name, *_ in CONTRACT)))
        assert drift.stop() == 0


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"IRIS_DRIFT_WINDOW": "99"}, "IRIS_DRIFT_WINDOW "),
        ({"IRIS_PROT": "8000"}, "IRIS_PROT is not a setting"),
        ({"IRIS_MODEL_DIR": "/nowhere"}, "cannot read /nowhere/model.json"),
        ({"IRIS_HOST": "203.0.113.1"}, "cannot listen on 203.0.113.1:"),
    ],
)
def test_the_reason_for_a_failed_start_is_one_line(model: Path, variables: dict[str, str], reason: str) -> None:
    given = {"DATABASE_URL": "postgresql://x", "IRIS_MODEL_DIR": str(model), "IRIS_PORT": str(free_port())}
    done = _python(["-m", "service.drift"], {**given, **variables})
    assert done.returncode == 1
    assert done.stderr.startswith("drift: cannot start: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("imported", "never"),
    [("service.__main__", "scipy"), ("service.drift", "onnxruntime"), ("service.drift", "fastapi")],
)
def test_a_process_does_not_import_what_only_the_other_needs(imported: str, never: str) -> None:
    done = _python(["-c", f"import {imported}, sys; print(*sys.modules)"], {})
    loaded = set(done.stdout.split())
    assert imported in loaded
    assert never not in loaded


def _python(arguments: Sequence[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
