"""Overload: excess requests get 503 at once, answered predictions are logged, and probes still succeed."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import httpx
import pytest

from tests.support.running import SETOSA, RunningService, wait_until

CLIENTS = 8
JSON = {"content-type": "application/json"}
BATCH = json.dumps({"features": [SETOSA] * 1000}).encode()


@pytest.fixture
def narrow(model: Path, database: str, tmp_path: Path) -> Iterator[RunningService]:
    """A service in which one batch of 1,000 rows fills the queue."""
    with RunningService(model, database, tmp_path / "journal", max_waiting="1000") as service:
        yield service


def test_excess_batches_get_503_quickly_and_no_answered_batch_is_lost(
    narrow: RunningService,
) -> None:
    ended = threading.Event()
    answered: list[httpx.Response] = []
    rejected: list[httpx.Response] = []
    probes: list[httpx.Response] = []

    def overload() -> None:
        with httpx.Client(base_url=narrow.url, timeout=30) as client:
            while not ended.is_set():
                response = client.post("/predict/batch", content=BATCH, headers=JSON)
                (answered if response.status_code == 200 else rejected).append(response)

    def probe() -> None:
        with httpx.Client(base_url=narrow.url, timeout=30) as client:
            while not ended.is_set():
                probes.extend(client.get(path) for path in ("/healthz", "/readyz"))
                time.sleep(0.01)

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        futures = [pool.submit(probe), *(pool.submit(overload) for _ in range(CLIENTS))]
        try:
            wait_until(lambda: len(answered) >= 20 and len(rejected) >= 20 and len(probes) >= 20, "the overload")
        finally:
            ended.set()
        for future in futures:
            future.result()

    assert {response.status_code for response in rejected} == {503}
    assert {int(response.headers["retry-after"]) for response in rejected} == {1}
    assert {response.json()["detail"] for response in rejected} == {
        "too many predictions are waiting; retry in a second"
    }
    assert _median_seconds(rejected) < _median_seconds(answered)
    assert {response.status_code for response in probes} == {200}
    assert median(response.elapsed.total_seconds() for response in probes) < 0.5

    assert narrow.predict().status_code == 200
    narrow.wait_shipped()
    rows = 1000 * len(answered) + 1
    for metric in ("iris_journal_written_total", "iris_journal_shipped_total", "iris_predictions_total"):
        assert narrow.metric(metric) == rows
    assert narrow.metric("iris_errors_total", kind="server") == len(rejected)
    assert narrow.metric("iris_requests_total", endpoint="/predict/batch", status="503") == len(rejected)


def _median_seconds(responses: list[httpx.Response]) -> float:
    return median(response.elapsed.total_seconds() for response in responses)


def test_the_limit_counts_rows_so_single_predictions_fit(narrow: RunningService) -> None:
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: narrow.predict().status_code, range(500)))
    assert set(statuses) == {200}
    narrow.wait_shipped()
    assert narrow.client.get("/logs", params={"limit": 1000}).json()["count"] == 500
