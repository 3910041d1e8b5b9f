"""The statements for PostgreSQL, and timeouts while waiting for it."""

import json
import os
import resource
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest

from service import database as db
from tests.support.running import SETOSA, RunningService, query, wait_until

RECORD = {
    "request_id": "one",
    "model_name": "iris-classifier",
    "model_version": "3",
    "features": SETOSA,
    "prediction": 2,
    "probability": 0.9766,
    "latency_ms": 0.213,
    "time": 1_700_000_000.25,
}


@pytest.fixture
def cancel_waits() -> Iterator[Callable[[], None]]:
    """Limit waits for PostgreSQL during the test; return the function that ends them."""
    yield db.bound_waits()
    psycopg2.extensions.set_wait_callback(None)


def execute(url: str, statement: str, values: Sequence[Any] | Mapping[str, Any]) -> int:
    """Run a statement on a new connection; return the number of rows."""
    with closing(db.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.rowcount


def insert(url: str, *records: dict[str, Any]) -> int:
    return execute(url, db.INSERT, [json.dumps(records)])


# Tables.


def test_tables_are_created_once_by_simultaneous_starts(database: str) -> None:
    barrier = threading.Barrier(8)

    def start(number: int) -> int:
        barrier.wait()
        return insert(database, {**RECORD, "request_id": str(number)})

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(start, range(8))) == [1] * 8
    assert query(database, "SELECT count(*) FROM predictions") == [(8,)]


def test_request_ids_are_compared_as_bytes_whatever_the_locale_of_the_database(database: str) -> None:
    db.connect(database).close()
    collation = "SELECT collation_name FROM information_schema.columns WHERE (table_name, column_name) = (%s, %s)"
    assert query(database, collation, "predictions", "request_id") == [("C",)]


@contextmanager
def _user_who_may_only_insert(database: str) -> Iterator[str]:
    """Yield the address of the database for a user who may read and fill the two tables, and create none."""
    query(database, "CREATE ROLE writer LOGIN")
    try:
        query(database, "GRANT SELECT, INSERT ON predictions, predictions_rejected TO writer")
        query(database, "GRANT USAGE ON SEQUENCE predictions_id_seq, predictions_rejected_id_seq TO writer")
        yield database.replace("//postgres@", "//writer@")
    finally:
        query(database, "DROP OWNED BY writer; DROP ROLE writer")


def test_a_user_without_the_right_to_create_tables_uses_existing_ones(database: str) -> None:
    insert(database, RECORD)
    with _user_who_may_only_insert(database) as url:
        assert insert(url, {**RECORD, "request_id": "two"}) == 1


def test_a_user_without_the_right_to_create_tables_uses_those_of_an_earlier_version(database: str) -> None:
    insert(database, RECORD)
    query(database, "DROP TABLE model_classes")
    with _user_who_may_only_insert(database) as url:
        assert insert(url, {**RECORD, "request_id": "two"}) == 1
    db.connect(database).close()
    assert query(database, db.MISSING_TABLES) == []


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland"])
def test_a_record_is_stored_unchanged_with_times_in_utc(database: str, zone: str) -> None:
    name = psycopg2.extensions.parse_dsn(database)["dbname"]
    query(database, f"ALTER DATABASE {name} SET TimeZone = '{zone}'")
    insert(database, RECORD)
    ((row_id, *values, timestamp, created_at),) = query(database, "SELECT * FROM predictions")
    assert row_id == 1
    assert values == ["one", "iris-classifier", "3", SETOSA, 2, 0.9766, 0.213]
    assert timestamp == datetime(2023, 11, 14, 22, 13, 20, 250_000)
    assert abs(datetime.now(UTC).replace(tzinfo=None) - created_at) < timedelta(minutes=10)


def test_inserting_a_record_is_idempotent(database: str) -> None:
    assert insert(database, RECORD, {**RECORD, "request_id": "two"}) == 2
    assert insert(database, {**RECORD, "prediction": 1}, {**RECORD, "request_id": "three"}) == 1
    assert query(database, "SELECT request_id, prediction FROM predictions ORDER BY id") == [
        ("one", 2),
        ("two", 2),
        ("three", 2),
    ]


def test_rejecting_a_record_is_idempotent(database: str) -> None:
    for reason, rows in (("first", 1), ("second", 0)):
        assert execute(database, db.REJECT, {"record": json.dumps(RECORD), "reason": reason}) == rows
    rejected = query(database, "SELECT request_id, record, reason FROM predictions_rejected")
    assert rejected == [("one", RECORD, "first")]


OLD_TABLE = """
CREATE TABLE predictions (
    id SERIAL PRIMARY KEY,
    request_id VARCHAR(255) UNIQUE NOT NULL,
    model_name VARCHAR(255) NOT NULL,
    model_version VARCHAR(50) NOT NULL,
    features FLOAT8[] NOT NULL,
    prediction INTEGER NOT NULL,
    probability FLOAT NOT NULL,
    latency_ms FLOAT NOT NULL,
    timestamp TIMESTAMP NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
SELECT setval('predictions_id_seq', 2147483646);
"""


def test_ids_do_not_end_at_31_bits(database: str) -> None:
    insert(database, RECORD)
    query(database, "ALTER TABLE predictions ALTER id RESTART WITH 2147483647")
    query(database, "ALTER TABLE predictions_rejected ALTER id RESTART WITH 2147483647")
    for request_id in ("a", "b"):
        assert insert(database, {**RECORD, "request_id": request_id}) == 1
        record = json.dumps({"request_id": request_id})
        assert execute(database, db.REJECT, {"record": record, "reason": "why"}) == 1


def test_a_table_of_an_earlier_version_is_migrated_by_the_command_that_the_service_logs(
    model: Path, database: str, tmp_path: Path
) -> None:
    query(database, OLD_TABLE)
    with RunningService(model, database, tmp_path / "journal") as service:
        ids = [service.predict().json()["request_id"] for _ in range(2)]
        wait_until(lambda: "nextval: reached maximum value" in service.log.read_text(), "the ids to end")
        assert service.metric("iris_journal_rejected_total") == 0
        assert service.metric("iris_journal_depth") > 0
        warnings = [line for line in map(json.loads, service.log.read_text().splitlines()) if "command" in line]
        query(database, warnings[0]["command"])
        service.wait_shipped()
    assert query(database, "SELECT id > 2147483646, request_id FROM predictions ORDER BY request_id") == [
        (True, request_id) for request_id in ids
    ]
    assert query(database, db.HAS_SHORT_IDS) == []
    assert query(database, "SELECT * FROM predictions_rejected") == []


# Errors of the row, and errors of the table or the server.

RAISE = """
CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'no' USING ERRCODE = '{}';
END $$;
CREATE TRIGGER reject BEFORE INSERT ON predictions FOR EACH ROW EXECUTE FUNCTION reject();
"""


NEW_COLUMN = """
ALTER TABLE predictions ADD other TEXT NOT NULL DEFAULT '';
ALTER TABLE predictions ALTER other DROP DEFAULT;
"""
PARTITIONED = """
DROP TABLE predictions;
CREATE TABLE predictions (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY, request_id TEXT, model_name TEXT, model_version TEXT,
    features FLOAT8[], prediction INTEGER, probability FLOAT, latency_ms FLOAT, timestamp TIMESTAMP,
    PRIMARY KEY (request_id)
) PARTITION BY RANGE (request_id)
"""


@pytest.mark.parametrize(
    ("prepare", "change", "rejected"),
    [
        pytest.param("SELECT", {"model_version": "9" * 51}, True, id="too long"),
        pytest.param("SELECT", {"prediction": 2**31}, True, id="too large"),
        pytest.param("SELECT", {"model_name": None}, True, id="missing"),
        pytest.param("SELECT", {"model_name": "\0"}, True, id="NUL in text"),
        pytest.param("SELECT", {"time": "now"}, True, id="wrong type"),
        pytest.param("ALTER TABLE predictions ADD CHECK (prediction < 2)", {}, True, id="constraint"),
        pytest.param("CREATE UNIQUE INDEX ON predictions ((1))", {}, True, id="not unique"),
        pytest.param(RAISE.format("P0001"), {}, True, id="trigger"),
        pytest.param(RAISE.format("53100"), {}, False, id="disk full"),
        pytest.param("ALTER TABLE predictions RENAME latency_ms TO other", {}, False, id="missing column"),
        pytest.param("SET default_transaction_read_only = on", {}, False, id="read-only server"),
        pytest.param("SET statement_timeout = 1; SELECT pg_sleep(1)", {}, False, id="statement timeout"),
        pytest.param("SELECT pg_terminate_backend(pg_backend_pid())", {}, False, id="connection lost"),
        pytest.param("SET ROLE pg_monitor", {}, False, id="no permission"),
        pytest.param("SELECT setval('predictions_id_seq', 9223372036854775807)", {}, False, id="no more ids"),
        pytest.param("ALTER TABLE predictions ALTER id RESTART", {}, False, id="ids behind after a restore"),
        pytest.param("ALTER TABLE predictions ALTER id DROP IDENTITY", {}, False, id="ids without a default"),
        pytest.param(NEW_COLUMN, {}, False, id="new column without a default"),
        pytest.param(PARTITIONED, {}, False, id="no partition"),
        pytest.param(RAISE.format("XX001"), {}, False, id="corrupt table"),
        pytest.param(RAISE.format("57P03"), {}, False, id="starting"),
        pytest.param(RAISE.format("54000"), {}, True, id="row too large"),
    ],
)
def test_a_row_is_rejected_only_for_errors_of_the_row_itself(
    database: str, prepare: str, change: dict[str, Any], rejected: bool
) -> None:
    insert(database, {**RECORD, "request_id": "before"})
    with closing(db.connect(database)) as connection, connection.cursor() as cursor:
        with pytest.raises(psycopg2.Error) as caught:  # noqa: PT012 - either may raise
            cursor.execute(prepare)
            cursor.execute(db.INSERT, [json.dumps([{**RECORD, **change}])])
        assert db.rejects_row(caught.value) is rejected


# Timeouts.


@pytest.fixture
def silent() -> Iterator[str]:
    """URL of a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"postgresql://postgres@127.0.0.1:{server.getsockname()[1]}/postgres"


@pytest.mark.usefixtures("cancel_waits")
def test_connecting_to_a_silent_server_times_out(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "STATEMENT_SECONDS", 0.2)
    with pytest.raises(psycopg2.OperationalError, match=r"PostgreSQL did not answer within 0\.2 s"):
        db.connect(silent)


@pytest.mark.usefixtures("cancel_waits")
def test_a_statement_without_response_times_out_and_closes_its_connection(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(db.connect(database)) as connection, connection.cursor() as cursor:
        monkeypatch.setattr(db, "STATEMENT_SECONDS", 0.2)
        with pytest.raises(psycopg2.OperationalError, match=r"PostgreSQL did not answer within 0\.2 s"):
            cursor.execute("SELECT pg_sleep(60)")
        assert connection.closed


def test_all_waits_can_be_cancelled_at_once(database: str, silent: str, cancel_waits: Callable[[], None]) -> None:
    with closing(db.connect(database)) as connection, ThreadPoolExecutor(2) as pool:
        waits: list[Future[Any]] = [
            pool.submit(db.connect, silent),
            pool.submit(connection.cursor().execute, "SELECT pg_sleep(60)"),
        ]
        asleep = "SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
        wait_until(lambda: query(database, asleep), "the statement to run")
        started = time.monotonic()
        cancel_waits()
        for wait in waits:
            with pytest.raises(psycopg2.OperationalError, match="the service is shutting down"):
                wait.result()
        assert time.monotonic() - started < db.STATEMENT_SECONDS


def test_floats_are_read_as_they_were_written_whatever_the_database_is_set_to(database: str) -> None:
    name = psycopg2.extensions.parse_dsn(database)["dbname"]
    query(database, f"ALTER DATABASE {name} SET extra_float_digits = 0")
    insert(database, {**RECORD, "probability": 0.1 + 0.2})
    with closing(db.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute(db.BY_REQUEST_ID, [["one"]])
        assert [row[5] for row in cursor.fetchall()] == [0.1 + 0.2]


def test_a_locked_table_does_not_take_more_connections_with_time(
    model: Path, database: str, tmp_path: Path
) -> None:
    backends = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'iris' AND datname = current_database()"
    )
    insert(database, RECORD)
    with RunningService(model, database, tmp_path / "journal") as service, ThreadPoolExecutor(2) as pool:
        with closing(psycopg2.connect(database)) as locking, locking.cursor() as cursor:
            cursor.execute("LOCK TABLE predictions IN ACCESS EXCLUSIVE MODE")
            ends = time.monotonic() + 1.6 * db.STATEMENT_SECONDS

            def request_under_keys(_: int) -> set[int]:
                statuses = set()
                while time.monotonic() < ends:
                    statuses.add(service.predict(**{"Idempotency-Key": str(uuid.uuid4())}).status_code)
                return statuses

            statuses = [pool.submit(request_under_keys, number) for number in range(2)]
            most = 0
            while time.monotonic() < ends:
                assert service.predict().status_code == 200
                most = max(most, query(database, backends)[0][0])
                time.sleep(0.2)
            assert [future.result() for future in statuses] == [{503}, {503}]
        service.wait_shipped()
    assert most <= 3  # the shipper's, and one for each thread of PredictionLog
    assert query(database, "SELECT * FROM predictions_rejected") == []


@pytest.mark.usefixtures("cancel_waits")
def test_a_connection_works_with_a_thousand_open_files(database: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("this process may not open 2,000 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        assert insert(database, RECORD) == 1
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
