"""What requests ask PostgreSQL themselves: the log's newest rows, and the answers under an Idempotency-Key."""

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
from service.asgi import Refusal
from service.batcher import predict
from service.model import Model
from service.schema import Answer, Row

THREADS = 2
WAIT_SECONDS = 2.0  # a request waits no longer for PostgreSQL; its statement goes on and ends by itself
T = TypeVar("T")


class Away(Exception):
    """PostgreSQL did not answer in time, or not at all."""


class Reader:
    """Asks the PostgreSQL at `url` in threads of its own: a server that hangs holds up nothing else."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="reader")
        self._local = threading.local()
        self._free = asyncio.Semaphore(THREADS)

    def stop(self) -> None:
        """Take no more questions."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def newest(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest `limit` predictions of the log, newest first. Raises Away."""

        def ask(connection: psycopg2.extensions.connection) -> list[dict[str, Any]]:
            with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
                cursor.execute(database.NEWEST, [limit])
                return [dict(row) for row in cursor.fetchall()]

        return await self._ask(ask)

    async def once(
        self, key: uuid.UUID, model: Model, rows: Sequence[Row], started: float
    ) -> tuple[list[Answer], bool]:
        """Answer rows under a client's key: at first from the model (True), afterwards what was said at first.

        The log's unique request_id decides, so it holds across pods and restarts; the row is in PostgreSQL
        before the answer is sent. Raises Refusal (409) when the key was used for other rows; Away.
        """

        def ask(connection: psycopg2.extensions.connection) -> tuple[list[Answer], bool]:
            return _once(connection, key, model, rows, started)

        return await self._ask(ask)

    async def _ask(self, ask: Callable[[psycopg2.extensions.connection], T]) -> T:
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._free.acquire()
                work = asyncio.get_running_loop().run_in_executor(self._pool, self._work, ask, deadline)
                # The thread stays taken until the statement ends, whether or not somebody still waits.
                work.add_done_callback(self._done)
                return await asyncio.shield(work)
        except (TimeoutError, psycopg2.Error) as error:
            raise Away from error

    def _done(self, work: "asyncio.Future[Any]") -> None:
        self._free.release()
        work.cancelled() or work.exception()  # taken note of, also when nobody waits any more

    def _work(self, ask: Callable[[psycopg2.extensions.connection], T], deadline: float) -> T:
        kept: psycopg2.extensions.connection | None = getattr(self._local, "connection", None)
        if kept is not None and not kept.closed:
            try:
                return ask(kept)
            except psycopg2.Error:
                kept.close()
                if time.monotonic() > deadline:
                    raise
        # No connection yet, or one that a restart of the server has ended since its last use: a new one.
        self._local.connection = database.connect(self._url)
        try:
            return ask(self._local.connection)
        except psycopg2.Error:
            self._local.connection.close()
            raise


def _once(
    connection: psycopg2.extensions.connection,
    key: uuid.UUID,
    model: Model,
    rows: Sequence[Row],
    started: float,
) -> tuple[list[Answer], bool]:
    # The first row has the key itself as its request_id, the others ids that follow from it; one more tells
    # whether the key was used for a longer batch.
    ids = [str(key), *(str(uuid.uuid5(key, str(number))) for number in range(1, len(rows) + 1))]
    answers, records = predict(model, rows, [started] * len(rows), ids[:-1])
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(database.INSERT, [msgspec.json.encode(records).decode()])
        if cursor.rowcount == len(rows):
            cursor.execute("COMMIT")
            return answers, True
        cursor.execute("ROLLBACK")
        cursor.execute(database.BY_REQUEST_ID, [ids])
        logged = {row[0]: row for row in cursor.fetchall()}
    if ids[-1] in logged or any(
        request_id not in logged or logged[request_id][3] != list(row)
        for request_id, row in zip(ids[:-1], rows, strict=True)
    ):
        raise Refusal(409, "this Idempotency-Key was used for another body")
    return [_answer_of(logged[request_id], model.facts.classes) for request_id in ids[:-1]], False


def _answer_of(row: tuple[Any, ...], classes: Sequence[str]) -> Answer:
    request_id, name, version, _, prediction, probability, latency = row
    return Answer(prediction, classes[prediction], probability, latency, name, version, request_id)
