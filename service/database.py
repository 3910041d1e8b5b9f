"""PostgreSQL: the prediction log's table, and the few statements that the service has for it."""

import os
import select
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg2
import psycopg2.extensions

STATEMENT_SECONDS = 10  # longer than any statement here takes; a server that is silent for so long is hung

# One advisory lock for whoever creates the tables: pods of one release start at the same time.
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

# The records come as one JSON array, as they stand in the journal, and PostgreSQL takes them apart.
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
REJECT = """
INSERT INTO predictions_rejected (request_id, record, reason)
VALUES (%(record)s::jsonb ->> 'request_id', %(record)s, %(reason)s)
ON CONFLICT (request_id) DO NOTHING
"""
NEWEST = """
SELECT id, request_id, model_name, model_version, array_to_string(features, ' ') AS features, prediction,
       probability, latency_ms, timestamp, created_at
FROM predictions ORDER BY id DESC LIMIT %s
"""
# A version has one request in ten while it is the canary: so much further back its rows are looked for, and no
# further, because they may be nowhere in a long log.
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
    """Return a connection to the log, in autocommit and UTC; its tables are there. Raises psycopg2.Error."""
    connection = psycopg2.connect(url, application_name="iris", tcp_user_timeout=10_000)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET TIME ZONE 'UTC'")  # created_at has the time zone of whoever inserts
        _ensure_tables(connection)
    except psycopg2.Error:
        connection.close()
        raise
    return connection


def newest_of(url: str, name: str, version: str, rows: int) -> list[tuple[list[float], int, float]]:
    """Return (features, prediction, probability) of a version's newest `rows`, fewer where they lie far back.

    Nothing can be written, and no table is created. Raises psycopg2.Error.
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
    """Make every psycopg2 call of this process fail after STATEMENT_SECONDS without a word from the server.

    libpq alone waits for ever on a server that is stopped but whose kernel still acknowledges. Returns what makes
    all of them fail at once, for the end of the process.
    """
    ending = os.eventfd(0)
    psycopg2.extensions.set_wait_callback(partial(_wait, ending))
    return partial(os.eventfd_write, ending, 1)


def refuses_the_row(error: Exception) -> bool:
    """Whether this very row is refused, for good: not UTF-8, or the server's data, constraint or trigger error."""
    if isinstance(error, psycopg2.Error):
        return (error.pgcode or "")[:2] in ("22", "23", "P0")
    return isinstance(error, UnicodeDecodeError)


def _ensure_tables(connection: psycopg2.extensions.connection) -> None:
    # Only where they are missing: whoever may not create tables can have them created by somebody else.
    with connection.cursor() as cursor:
        cursor.execute(TABLES_EXIST)
        if not _row(cursor)[0]:
            # One string is one transaction, so the lock is held until the tables are committed.
            cursor.execute(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK}); {SCHEMA}")


def _wait(ending: int, connection: psycopg2.extensions.connection) -> None:
    while True:
        state = connection.poll()
        if state == psycopg2.extensions.POLL_OK:
            return
        waiting = select.poll()  # not select(), which fails from the 1024th open file on
        waiting.register(connection, select.POLLIN if state == psycopg2.extensions.POLL_READ else select.POLLOUT)
        waiting.register(ending, select.POLLIN)
        ready = dict(waiting.poll(STATEMENT_SECONDS * 1000))
        if ending in ready:
            raise psycopg2.OperationalError("the service ends")
        if not ready:
            raise psycopg2.OperationalError(f"PostgreSQL did not answer within {STATEMENT_SECONDS} s")


def _row(cursor: psycopg2.extensions.cursor) -> tuple[Any, ...]:
    row = cursor.fetchone()
    assert row is not None  # noqa: S101 - for the type checker: the statements here always give a row
    return row
