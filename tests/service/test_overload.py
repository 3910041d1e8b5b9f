"""Overload: what is too much is refused at once, what was answered is in the log, and probes do not notice."""

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


def test_too_many_batches_at_once_are_refused_quickly_and_none_that_was_answered_is_lost(
    narrow: RunningService,
) -> None:
    ended = threading.Event()
    answered: list[httpx.Response] = []
    refused: list[httpx.Response] = []
    probes: list[httpx.Response] = []

    def overload() -> None:
        with httpx.Client(base_url=narrow.url, timeout=30) as client:
            while not ended.is_set():
                response = client.post("/predict/batch", content=BATCH, headers=JSON)
                (answered if response.status_code == 200 else refused).append(response)

    def probe() -> None:
        with httpx.Client(base_url=narrow.url, timeout=30) as client:
            while not ended.is_set():
                probes.extend(client.get(path) for path in ("/healthz", "/readyz"))
                time.sleep(0.01)

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        futures = [pool.submit(probe), *(pool.submit(overload) for _ in range(CLIENTS))]
        try:
            wait_until(lambda: len(answered) >= 20 and len(refused) >= 20 and len(probes) >= 20, "an overload")
        finally:
            ended.set()
        for future in futures:
            future.result()

    assert {response.status_code for response in refused} == {503}
    assert {int(response.headers["retry-after"]) for response in refused} == {1}
    assert {response.json()["detail"] for response in refused} == {
        "too many predictions wait; try again in a second"
    }
    assert median(response.elapsed.total_seconds() for response in refused) < 0.05
    assert {response.status_code for response in probes} == {200}
    assert median(response.elapsed.total_seconds() for response in probes) < 0.5

    assert narrow.predict().status_code == 200
    narrow.wait_shipped()
    rows = 1000 * len(answered) + 1
    for metric in ("iris_journal_written_total", "iris_journal_shipped_total", "iris_predictions_total"):
        assert narrow.metric(metric) == rows
    assert narrow.metric("iris_errors_total", kind="server") == len(refused)
    assert narrow.metric("iris_requests_total", endpoint="/predict/batch", status="503") == len(refused)


def test_the_limit_is_on_rows_so_that_single_predictions_fit_in(narrow: RunningService) -> None:
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: narrow.predict().status_code, range(500)))
    assert set(statuses) == {200}
    narrow.wait_shipped()
    assert narrow.client.get("/logs", params={"limit": 1000}).json()["count"] == 500
