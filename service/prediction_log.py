"""Statements of requests on PostgreSQL: read the newest predictions, and predict once under an Idempotency-Key."""

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
import psycopg2
import psycopg2.errors
import psycopg2.extras
from psycopg2.extensions import connection as Connection  # noqa: N812

from service import database
from service.asgi import RequestError
from service.batcher import predict
from service.model import Model
from service.model_metadata import ModelMetadata
from service.schema import Answer, Row

log = logging.getLogger(__name__)

# Clients choose keys, and see the ids of other requests. A hash separates the two: otherwise a key that equals the
# id of a prediction would take that prediction's place in the log.
KEYS = uuid.UUID("c2a4a1b6-6f0e-5a3e-9d57-4c8f6f0b7a11")
THREADS = 2
WAIT_SECONDS = 2.0  # the longest a request waits for PostgreSQL; its statement may run on and ends by itself
T = TypeVar("T")
UNAVAILABLE = (
    TimeoutError,
    psycopg2.OperationalError,  # of the connection or the server, or a statement took too long
    psycopg2.InterfaceError,
    psycopg2.errors.ReadOnlySqlTransaction,  # a standby, during a failover
)


class DatabaseUnavailable(Exception):
    """PostgreSQL did not answer, or not in time."""


class StatementFailed(DatabaseUnavailable):
    """PostgreSQL refused the statement: because of the tables, their permissions, or a fault of this version."""


class PredictionLog:
    """Queries the PostgreSQL at `url` in its own threads, so that a hung server blocks no other request."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="prediction-log")
        self._local = threading.local()

    def stop(self) -> None:
        """Accept no more queries."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def newest(self, limit: int, before: int) -> list[dict[str, Any]]:
        """Return the newest `limit` predictions below id `before`, newest first. Raises DatabaseUnavailable."""
        return await self._run(lambda connection: _newest(connection, limit, before))

    async def predict_idempotently(
        self, key: uuid.UUID, model: Model, rows: Sequence[Row], started: float
    ) -> tuple[list[Answer], bool]:
        """Return the answers under a client's key, and whether they are new: a repeat gets the first answers.

        The unique request_id in the log decides, so this holds across pods and restarts. New predictions are in
        PostgreSQL before this returns. Raises RequestError (409) if the key was used for other rows, and
        DatabaseUnavailable.
        """
        return await self._run(lambda connection: _insert_or_read(connection, key, model, rows, started))

    async def _run(self, query: Callable[[Connection], T]) -> T:
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            async with asyncio.timeout(WAIT_SECONDS):  # a query that no thread has started by then is cancelled
                return await asyncio.get_running_loop().run_in_executor(self._pool, self._query, query, deadline)
        except UNAVAILABLE as error:
            raise DatabaseUnavailable from error
        except psycopg2.Error as error:
            log.error("PostgreSQL refused a statement", extra={"reason": " ".join(str(error).split())})
            raise StatementFailed from error

    def _query(self, query: Callable[[Connection], T], deadline: float) -> T:
        """Run the query on this thread's connection; once more on a new one if PostgreSQL has closed the old."""
        while True:
            connection: Connection | None = getattr(self._local, "connection", None)
            reused = connection is not None and not connection.closed
            if connection is None or not reused:
                connection = self._local.connection = database.connect(self._url)
            try:
                return query(connection)
            except psycopg2.Error:
                connection.close()
                if not reused or time.monotonic() > deadline:
                    raise


def _newest(connection: Connection, limit: int, before: int) -> list[dict[str, Any]]:
    with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
        cursor.execute(database.NEWEST, {"limit": limit, "before": before})
        return [dict(row) for row in cursor.fetchall()]


def _insert_or_read(
    connection: Connection, key: uuid.UUID, model: Model, rows: Sequence[Row], started: float
) -> tuple[list[Answer], bool]:
    # The id after the last row is in the log if the key was used for a longer batch.
    of_key = uuid.uuid5(KEYS, str(key))
    *request_ids, id_after_last = [str(uuid.uuid5(of_key, str(n))) for n in range(len(rows) + 1)]
    answers, records = predict(model, rows, [started] * len(rows), request_ids)
    metadata = model.metadata
    own = {"name": metadata.name, "version": metadata.version, "classes": metadata.classes}
    with connection.cursor() as cursor:
        cursor.execute(f"BEGIN; {database.INSERT_CLASSES}", own)
        cursor.execute(database.INSERT, [msgspec.json.encode(records).decode()])
        if cursor.rowcount == len(rows):
            cursor.execute("COMMIT")
            return answers, True
        cursor.execute("ROLLBACK")
        cursor.execute(database.BY_REQUEST_ID, [[*request_ids, id_after_last]])
        logged = {row[0]: row for row in cursor.fetchall()}
    same_rows = id_after_last not in logged and all(
        request_id in logged and logged[request_id][3] == list(row)
        for request_id, row in zip(request_ids, rows, strict=True)
    )
    if not same_rows:
        raise RequestError(409, "this Idempotency-Key was used with another body")
    return [_to_answer(logged[request_id], metadata) for request_id in request_ids], False


def _to_answer(row: tuple[Any, ...], own: ModelMetadata) -> Answer:
    request_id, name, version, _, prediction, probability, latency, classes = row
    if classes is None or (name, version) == (own.name, own.version):
        classes = own.classes
    if prediction >= len(classes):
        raise RequestError(
            409, f"the first answer, by {name} {version}, has a class that this version does not know"
        )
    return Answer(prediction, classes[prediction], probability, latency, name, version, request_id)
