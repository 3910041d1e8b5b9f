"""Query PostgreSQL for requests: the newest predictions, and the answers under an Idempotency-Key."""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
import psycopg2
import psycopg2.extensions
import psycopg2.extras

from service import database
from service.asgi import RequestError
from service.batcher import predict
from service.model import Model
from service.schema import Answer, Row

THREADS = 2
WAIT_SECONDS = 2.0  # the longest a request waits for PostgreSQL; its statement may run on and ends by itself
T = TypeVar("T")


class DatabaseUnavailable(Exception):
    """PostgreSQL did not answer, or not in time."""


class Reader:
    """Queries the PostgreSQL at `url` in its own threads, so that a hung server blocks no other request."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="reader")
        self._local = threading.local()
        self._free_threads = asyncio.Semaphore(THREADS)

    def stop(self) -> None:
        """Accept no more queries."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def newest(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest `limit` predictions, newest first. Raises DatabaseUnavailable."""

        def query(connection: psycopg2.extensions.connection) -> list[dict[str, Any]]:
            with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
                cursor.execute(database.NEWEST, [limit])
                return [dict(row) for row in cursor.fetchall()]

        return await self._run(query)

    async def predict_idempotently(
        self, key: uuid.UUID, model: Model, rows: Sequence[Row], started: float
    ) -> tuple[list[Answer], bool]:
        """Return the answers under a client's key, and whether they are new: a repeat gets the first answers.

        The unique request_id in the log decides, so this holds across pods and restarts. New predictions are in
        PostgreSQL before this returns. Raises RequestError (409) if the key was used for other rows, and
        DatabaseUnavailable.
        """

        def query(connection: psycopg2.extensions.connection) -> tuple[list[Answer], bool]:
            return _insert_or_read(connection, key, model, rows, started)

        return await self._run(query)

    async def _run(self, query: Callable[[psycopg2.extensions.connection], T]) -> T:
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._free_threads.acquire()
                work = asyncio.get_running_loop().run_in_executor(self._pool, self._work, query, deadline)
                # The thread is busy until the statement ends, even if the request has stopped waiting for it.
                work.add_done_callback(self._release_thread)
                return await asyncio.shield(work)
        except (TimeoutError, psycopg2.Error) as error:
            raise DatabaseUnavailable from error

    def _release_thread(self, work: "asyncio.Future[Any]") -> None:
        self._free_threads.release()
        if not work.cancelled():
            work.exception()  # asyncio would log an exception that nobody has retrieved

    def _work(self, query: Callable[[psycopg2.extensions.connection], T], deadline: float) -> T:
        kept: psycopg2.extensions.connection | None = getattr(self._local, "connection", None)
        if kept is not None and not kept.closed:
            try:
                return query(kept)
            except psycopg2.Error:
                kept.close()
                if time.monotonic() > deadline:
                    raise
        # There is no connection yet, or PostgreSQL has restarted since its last use.
        self._local.connection = database.connect(self._url)
        try:
            return query(self._local.connection)
        except psycopg2.Error:
            self._local.connection.close()
            raise


def _insert_or_read(
    connection: psycopg2.extensions.connection,
    key: uuid.UUID,
    model: Model,
    rows: Sequence[Row],
    started: float,
) -> tuple[list[Answer], bool]:
    # The request_id of the first row is the key, and those of the others derive from it. The id after the last row
    # is in the log if the key was used for a longer batch.
    *request_ids, id_after_last = [str(key), *(str(uuid.uuid5(key, str(n))) for n in range(1, len(rows) + 1))]
    answers, records = predict(model, rows, [started] * len(rows), request_ids)
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
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
    return [_to_answer(logged[request_id], model.metadata.classes) for request_id in request_ids], False


def _to_answer(row: tuple[Any, ...], classes: Sequence[str]) -> Answer:
    request_id, name, version, _, prediction, probability, latency = row
    return Answer(prediction, classes[prediction], probability, latency, name, version, request_id)
