"""Retention: exactly the rows that are too old are deleted, in batches, and nothing else waits for that."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from prometheus_client import CollectorRegistry

from service import database as db
from service import retention
from service.retention import Retention
from service.settings import Settings
from tests.support.running import RunningService, query, wait_until
from tools.postgres import temporary

DAYS = 7
OLD, YOUNG = "7 days 1 minute", "6 days 23 hours 59 minutes"
LAST_SUCCESS = "iris_retention_last_success_timestamp_seconds"
# Each DELETE waits for a lock that the test holds. A table notes how many rows each of them deleted.
OBSERVE = """
CREATE TABLE batches (rows INT);
CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL;
END $$;
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO batches SELECT count(*) FROM deleted; RETURN NULL;
END $$;
CREATE TRIGGER wait AFTER DELETE ON predictions EXECUTE FUNCTION wait_for_test();
CREATE TRIGGER note AFTER DELETE ON predictions REFERENCING OLD TABLE AS deleted EXECUTE FUNCTION note();
"""
INSERT = """
INSERT INTO predictions
    (request_id, model_name, model_version, features, prediction, probability, latency_ms, timestamp, created_at)
SELECT gen_random_uuid(), %s, '1', '{1,2,3,4}', 0, 1, 1, now(), now() AT TIME ZONE 'UTC' - %s::interval
FROM generate_series(1, %s)
"""
REJECTED = """
INSERT INTO predictions_rejected (request_id, record, reason, created_at)
VALUES (%s, '{}', '', now() AT TIME ZONE 'UTC' - %s::interval)
"""
Delete = Callable[[], dict[str, int]]


@pytest.fixture
def log(database: str) -> str:
    """The address of a database with an empty prediction log."""
    db.connect(database).close()
    return database


@pytest.fixture
def delete(log: str) -> Delete:
    """A function that deletes the rows of the log that are older than DAYS."""
    return _retention(log).delete_old


@pytest.fixture
def held(log: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Every DELETE waits before it commits, until the function is called. Batches have ten rows."""
    monkeypatch.setattr(retention, "ROWS_A_BATCH", 10)
    query(log, OBSERVE)
    with closing(psycopg2.connect(log)) as connection:
        connection.autocommit = True
        connection.cursor().execute("SELECT pg_advisory_lock(1)")
        yield lambda: connection.cursor().execute("SELECT pg_advisory_unlock(1)")


def test_exactly_the_rows_that_are_too_old_are_deleted(log: str, delete: Delete) -> None:
    _insert(log, "old", 2500, OLD)
    _insert(log, "young", 10, YOUNG)
    _insert(log, "shipped by another pod at the same time", 10, OLD)
    _insert(log, "new", 1500, "0")
    for request_id, age in (("old", OLD), ("young", YOUNG)):
        _execute(log, REJECTED, (request_id, age))
    assert delete() == {"predictions": 2510, "predictions_rejected": 1}
    assert query(log, "SELECT model_name, count(*) FROM predictions GROUP BY 1 ORDER BY 1") == [
        ("new", 1500),
        ("young", 10),
    ]
    assert query(log, "SELECT request_id FROM predictions_rejected") == [("young",)]
    assert delete() == {"predictions": 0, "predictions_rejected": 0}


@pytest.mark.parametrize("zone", ["Pacific/Auckland", "America/Los_Angeles"])
def test_ages_do_not_depend_on_the_time_zone_of_the_database(log: str, delete: Delete, zone: str) -> None:
    name = psycopg2.extensions.parse_dsn(log)["dbname"]
    query(log, f"ALTER DATABASE {name} SET TimeZone = '{zone}'")
    _insert(log, "old", 1, OLD)
    _insert(log, "young", 1, YOUNG)
    assert delete()["predictions"] == 1
    assert query(log, "SELECT model_name FROM predictions") == [("young",)]


def test_a_batch_is_read_by_its_ids_from_a_table_of_any_size(log: str) -> None:
    _insert(log, "any", 20_000, OLD)
    query(log, "ANALYZE predictions")
    statement = db.DELETE_OLD.format(table="predictions") % {"after": 0, "rows": 1000, "days": DAYS}
    plan = "\n".join(line for (line,) in query(log, f"EXPLAIN {statement}"))
    assert "Seq Scan" not in plan, plan
    assert plan.count("predictions_pkey") >= 2, plan


def test_inserts_do_not_wait_for_a_batch(log: str, delete: Delete, held: Callable[[], None]) -> None:
    _insert(log, "old", 25, OLD)
    with ThreadPoolExecutor(1) as pool:
        deleting = pool.submit(delete)
        wait_until(lambda: _waiting(log), "the first batch")
        _insert(log, "new", 5, "0")  # would fail: a wait for a lock ends after 5 seconds
        held()
        assert deleting.result()["predictions"] == 25
    assert query(log, "SELECT rows FROM batches") == [(10,), (10,), (5,), (0,)]
    assert query(log, "SELECT count(*) FROM predictions") == [(5,)]


def test_one_process_at_a_time_deletes(log: str, delete: Delete, held: Callable[[], None]) -> None:
    _insert(log, "old", 25, OLD)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(delete)
        wait_until(lambda: _waiting(log), "the first batch")
        db.connect(log).close()  # does not wait for the lock either
        assert delete() == {}
        held()
        assert first.result()["predictions"] == 25
    assert delete() == {"predictions": 0, "predictions_rejected": 0}


def test_deleting_stops_between_two_batches(log: str, held: Callable[[], None]) -> None:
    _insert(log, "old", 25, OLD)
    stopping = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        deleting = pool.submit(_retention(log, stopping).delete_old)
        wait_until(lambda: _waiting(log), "the first batch")
        stopping.set()
        held()
        assert deleting.result() == {"predictions": 10, "predictions_rejected": 0}
    assert query(log, "SELECT count(*) FROM predictions") == [(15,)]


def test_old_rows_are_deleted_once_postgresql_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PASS_SECONDS", 0.1)
    stopping, registry = threading.Event(), CollectorRegistry()
    with temporary() as server:
        db.connect(server.url).close()
        _insert(server.url, "old", 5, OLD)
        server.stop()
        _retention(server.url, stopping, registry).start()
        try:
            assert registry.get_sample_value(LAST_SUCCESS) == 0
            server.start()
            wait_until(lambda: query(server.url, "SELECT count(*) FROM predictions") == [(0,)], "the rows to go")
            wait_until(lambda: registry.get_sample_value(LAST_SUCCESS), "the success to be exported")
        finally:
            stopping.set()


def test_the_drift_process_deletes_old_rows_only_with_the_setting(model: Path, log: str, tmp_path: Path) -> None:
    _insert(log, "old", 5, OLD)
    with RunningService(model, log, tmp_path / "off", module="service.drift") as off:
        wait_until(lambda: off.metric("iris_drift_last_success_timestamp_seconds"), "a measurement")
        assert LAST_SUCCESS not in off.client.get("/metrics").text
        assert off.stop() == 0
    assert query(log, "SELECT count(*) FROM predictions") == [(5,)]
    with RunningService(model, log, tmp_path / "on", module="service.drift", log_days=str(DAYS)) as on:
        wait_until(lambda: on.metric(LAST_SUCCESS), "the rows to be deleted")
        assert on.stop() == 0
    assert query(log, "SELECT count(*) FROM predictions") == [(0,)]
    (line,) = [line for line in map(json.loads, on.log.read_text().splitlines()) if "days" in line]
    assert line["message"] == "old predictions were deleted"
    assert (line["days"], line["predictions"], line["predictions_rejected"]) == (DAYS, 5, 0)


def test_a_missing_right_to_delete_is_logged_and_leaves_drift_measured(
    model: Path, log: str, tmp_path: Path
) -> None:
    query(log, "CREATE ROLE reader LOGIN")
    try:
        query(log, "GRANT SELECT ON predictions, predictions_rejected TO reader")
        url = log.replace("//postgres@", "//reader@")
        with RunningService(model, url, tmp_path / "on", module="service.drift", log_days=str(DAYS)) as on:
            wait_until(lambda: "cannot be deleted" in on.log.read_text(), "the reason to be logged")
            wait_until(lambda: on.metric("iris_drift_last_success_timestamp_seconds"), "a measurement")
            assert on.metric(LAST_SUCCESS) == 0
        assert "permission denied for table predictions" in on.log.read_text()
    finally:
        query(log, "DROP OWNED BY reader; DROP ROLE reader")


def _retention(
    url: str, stopping: threading.Event | None = None, registry: CollectorRegistry | None = None
) -> Retention:
    settings = Settings(database_url=url, log_days=DAYS)
    return Retention(settings, registry or CollectorRegistry(), stopping or threading.Event())


def _insert(url: str, name: str, rows: int, age: str) -> None:
    """Insert rows of a model that the log received so long ago."""
    _execute(url, INSERT, (name, age, rows))


def _execute(url: str, statement: str, values: tuple[object, ...]) -> None:
    with closing(db.connect(url)) as connection:
        connection.cursor().execute(statement, values)


def _waiting(url: str) -> bool:
    return query(url, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") != []
