"""PostgreSQL: the tables of the prediction log, and the statements that the service runs on them."""

import os
import select
from collections.abc import Callable
from functools import partial

import psycopg2
import psycopg2.extensions

STATEMENT_SECONDS = 10  # longer than any statement here takes: a server that is silent for so long is hung

# Advisory lock around CREATE TABLE: the pods of a release start at the same time.
SCHEMA_LOCK = 0x1815
SCHEMA = """
CREATE TABLE IF NOT EXISTS predictions (
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
CREATE TABLE IF NOT EXISTS predictions_rejected (
    id SERIAL PRIMARY KEY,
    request_id VARCHAR(255) UNIQUE NOT NULL,
    record JSONB NOT NULL,
    reason TEXT NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
"""
TABLES_EXIST = "SELECT to_regclass('predictions') IS NOT NULL AND to_regclass('predictions_rejected') IS NOT NULL"

# The parameter is a JSON array of records, as the journal stores them.
INSERT = """
INSERT INTO predictions
    (request_id, model_name, model_version, features, prediction, probability, latency_ms, timestamp)
SELECT request_id, model_name, model_version, features, prediction, probability, latency_ms,
       to_timestamp(time) AT TIME ZONE 'UTC'
FROM json_to_recordset(%s) AS record
    (request_id text, model_name text, model_version text, features float8[], prediction int,
     probability float8, latency_ms float8, time float8)
ON CONFLICT (request_id) DO NOTHING
"""
# Of records that were not inserted: those that differ from the row that has their request_id.
CONFLICTS = """
SELECT record::text
FROM json_array_elements(%s) AS record
JOIN json_to_record(record) AS new
    (request_id text, model_name text, model_version text, features float8[], prediction int,
     probability float8, latency_ms float8, time float8) ON true
JOIN predictions AS old USING (request_id)
WHERE (old.model_name, old.model_version, old.features, old.prediction, old.probability, old.latency_ms,
       old.timestamp)
    IS DISTINCT FROM (new.model_name, new.model_version, new.features, new.prediction, new.probability,
       new.latency_ms, to_timestamp(new.time) AT TIME ZONE 'UTC')
"""
REJECT = """
INSERT INTO predictions_rejected (request_id, record, reason)
SELECT CASE WHEN other.record <> new.record THEN 'another-' || md5(new.record::text)
            ELSE new.record ->> 'request_id' END, new.record, %(reason)s
FROM (SELECT %(record)s::jsonb AS record) AS new
LEFT JOIN predictions_rejected AS other ON other.request_id = new.record ->> 'request_id'
ON CONFLICT (request_id) DO NOTHING
"""
NEWEST = """
SELECT id, request_id, model_name, model_version, array_to_string(features, ' ') AS features, prediction,
       probability, latency_ms, timestamp, created_at
FROM predictions ORDER BY id DESC LIMIT %s
"""
# A canary serves one request in ten, so its newest `rows` are among the newest 10 * `rows` of the log. The search
# ends there, because a long log may have no row of this version at all.
NEWEST_OF_VERSION = """
SELECT features, prediction, probability
FROM (SELECT * FROM predictions ORDER BY id DESC LIMIT 10 * %(rows)s) AS newest
WHERE model_name = %(name)s AND model_version = %(version)s
ORDER BY id DESC LIMIT %(rows)s
"""
BY_REQUEST_ID = """
SELECT request_id, model_name, model_version, features, prediction, probability, latency_ms
FROM predictions WHERE request_id = ANY(%s)
"""


def connect(url: str) -> psycopg2.extensions.connection:
    """Connect to the log in autocommit mode and UTC, and create missing tables. Raises psycopg2.Error."""
    connection = psycopg2.connect(url, application_name="iris", tcp_user_timeout=10_000)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET TIME ZONE 'UTC'")  # created_at is in the time zone of the session
            # A user without the right to create tables can use existing ones.
            cursor.execute(TABLES_EXIST)
            if cursor.fetchall() != [(True,)]:
                # Both statements are one transaction, so the lock is held until the tables are committed.
                cursor.execute(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK}); {SCHEMA}")
    except psycopg2.Error:
        connection.close()
        raise
    return connection


def newest_of(url: str, name: str, version: str, rows: int) -> list[tuple[list[float], int, float]]:
    """Return (features, prediction, probability) of a version's newest predictions, at most `rows`.

    The session is read-only and creates no table. Raises psycopg2.Error.
    """
    connection = psycopg2.connect(url, application_name="iris-drift", tcp_user_timeout=10_000)
    try:
        connection.set_session(readonly=True)
        with connection.cursor() as cursor:
            cursor.execute(NEWEST_OF_VERSION, {"name": name, "version": version, "rows": rows})
            return cursor.fetchall()
    finally:
        connection.close()


def bound_waits() -> Callable[[], None]:
    """Make every psycopg2 call of this process fail when the server is silent for STATEMENT_SECONDS.

    libpq alone waits for ever on a stopped server whose kernel still acknowledges packets. Returns a function that
    makes all calls fail at once, for the end of the process.
    """
    cancelled = os.eventfd(0)
    psycopg2.extensions.set_wait_callback(partial(_wait, cancelled))
    return partial(os.eventfd_write, cancelled, 1)


def rejects_row(error: Exception) -> bool:
    """Return whether a retry of the row would fail again: not UTF-8, or a data, constraint or trigger error."""
    if isinstance(error, psycopg2.Error):
        return (error.pgcode or "")[:2] in ("22", "23", "P0")
    return isinstance(error, UnicodeDecodeError)


def _wait(cancelled: int, connection: psycopg2.extensions.connection) -> None:
    while True:
        state = connection.poll()
        if state == psycopg2.extensions.POLL_OK:
            return
        waiting = select.poll()  # not select(), which fails for file descriptors from 1024 on
        waiting.register(connection, select.POLLIN if state == psycopg2.extensions.POLL_READ else select.POLLOUT)
        waiting.register(cancelled, select.POLLIN)
        ready = dict(waiting.poll(STATEMENT_SECONDS * 1000))
        if cancelled in ready:
            raise psycopg2.OperationalError("the service is shutting down")
        if not ready:
            raise psycopg2.OperationalError(f"PostgreSQL did not answer within {STATEMENT_SECONDS} s")
