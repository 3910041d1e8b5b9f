"""Group concurrent requests: one model call and one journal commit answer all predictions that are waiting."""

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue
from typing import NamedTuple

import msgspec
import numpy as np

from service.asgi import RequestError
from service.journal import Journal
from service.metrics import Metrics
from service.model import Model
from service.schema import Answer, Record, Row
from service.shipper import Shipper

log = logging.getLogger(__name__)

# Iterations of the event loop for which a group collects requests. In them the loop sends the previous answers and
# reads the requests that follow. Measured at 32 connections: nearly all requests share an fsync; with 0, half do.
GATHER_ITERATIONS = 3


class PendingRequest(NamedTuple):
    """The rows of a request, and the future for its answers."""

    rows: Sequence[Row]
    started: float
    """Arrival of the request, by time.perf_counter()."""
    answers: asyncio.Future[list[Answer]]


class Batcher:
    """Answers requests in groups, in a worker thread, after their records are on disk.

    The next group gathers while the worker answers the current one. Under load groups are therefore large and
    share one fsync; without load a request does not wait for others.
    """

    def __init__(
        self, model: Model, journal: Journal, shipper: Shipper, metrics: Metrics, max_waiting: int
    ) -> None:
        self._model = model
        self._journal = journal
        self._shipper = shipper
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._pending: list[PendingRequest] = []
        self._rows = 0  # of pending requests and of those in the current group
        self._busy_since: float | None = None
        self._groups: SimpleQueue[list[PendingRequest] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        """Start the worker. Call this on the event loop that will call `answer`."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Answer the groups that the worker already has, then end it."""
        self._groups.put(None)
        self._thread.join()

    def busy_seconds(self) -> float:
        """Return how long the worker has been busy with the current group, 0 when idle."""
        return 0.0 if self._busy_since is None else time.perf_counter() - self._busy_since

    def answer(self, rows: Sequence[Row], started: float) -> asyncio.Future[list[Answer]]:
        """Return a future of the answers to validated rows. Raises RequestError (503) when too many rows wait.

        The future raises RequestError (503) when the journal cannot store the predictions.
        """
        if self._rows + len(rows) > self._max_waiting:
            raise RequestError(503, "too many predictions are waiting; retry in a second", {"retry-after": "1"})
        future = self._loop.create_future()
        self._pending.append(PendingRequest(rows, started, future))
        self._rows += len(rows)
        if self._busy_since is None and len(self._pending) == 1:
            self._gather(GATHER_ITERATIONS)
        return future

    def _gather(self, iterations: int) -> None:
        if iterations:
            self._loop.call_soon(self._gather, iterations - 1)
            return
        self._busy_since = time.perf_counter()
        self._groups.put(self._pending)
        self._pending = []

    def _run(self) -> None:
        while (group := self._groups.get()) is not None:
            result: list[Answer] | RequestError
            try:
                result = self._commit(group)
            except sqlite3.Error as error:
                log.error("the journal cannot store predictions", extra={"reason": str(error)})
                result = RequestError(503, "the prediction log cannot be written; retry", {"retry-after": "5"})
            except Exception:
                log.exception("a group of predictions failed")
                result = RequestError(500, "the prediction failed")
            self._loop.call_soon_threadsafe(self._finish, group, result)

    def _commit(self, group: list[PendingRequest]) -> list[Answer]:
        rows = [row for request in group for row in request.rows]
        started = [request.started for request in group for _ in request.rows]
        answers, records = predict(self._model, rows, started)
        self._journal.append(msgspec.json.encode(records), len(records))
        self._shipper.wake()
        self._metrics.count_predictions(answers)
        return answers

    def _finish(self, group: list[PendingRequest], result: list[Answer] | RequestError) -> None:
        start = 0
        for request in group:
            stop = start + len(request.rows)
            if not request.answers.done():  # it is done if the request was cancelled
                if isinstance(result, RequestError):
                    request.answers.set_exception(result)
                else:
                    request.answers.set_result(result[start:stop])
            start = stop
        self._rows -= start
        self._busy_since = None
        if self._pending:
            self._gather(GATHER_ITERATIONS)


def predict(
    model: Model, rows: Sequence[Row], started: Sequence[float], request_ids: Sequence[str] | None = None
) -> tuple[list[Answer], list[Record]]:
    """Return the answers to n rows and their records for the log, under these request ids or under new ones."""
    labels, probabilities = model.predict(np.array(rows, np.float32))
    now, clock = time.time(), time.perf_counter()
    name, version, classes = model.metadata.name, model.metadata.version, model.metadata.classes
    answers: list[Answer] = []
    records: list[Record] = []
    for row, arrived, label, probability, request_id in zip(
        rows, started, labels, probabilities, request_ids or new_request_ids(len(rows), now), strict=True
    ):
        seconds = clock - arrived
        latency = round(seconds * 1000, 3)
        answers.append(Answer(label, classes[label], probability, latency, name, version, request_id))
        records.append(Record(request_id, name, version, row, label, probability, latency, now - seconds))
    return answers, records


def new_request_ids(count: int, now: float) -> list[str]:
    """Return `count` UUIDs of version 7 (RFC 9562), which ascend with time and keep the log's index compact."""
    milliseconds = f"{int(now * 1000):012x}"
    prefix = f"{milliseconds[:8]}-{milliseconds[8:]}-7"
    # Of the 74 random bits that the format allows, 72 are used: the fixed "a" holds the variant and two of them.
    noise = os.urandom(10 * count).hex()
    return [
        f"{prefix}{noise[i : i + 3]}-a{noise[i + 3 : i + 6]}-{noise[i + 6 : i + 18]}"
        for i in range(0, 20 * count, 20)
    ]
