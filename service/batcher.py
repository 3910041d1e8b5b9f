"""The heart: whatever waits is taken together, answered by one model call and one commit, then sent."""

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

from service.asgi import Refusal
from service.journal import Journal
from service.metrics import Metrics
from service.model import Model
from service.schema import Answer, Record, Row
from service.shipper import Shipper

log = logging.getLogger(__name__)

# Turns of the event loop for which a group gathers: in these the answers just given are sent, and what their
# clients ask next is read. Measured at 32 connections: nearly all share one fsync, with 0 turns half of them do.
TURNS = 3


class Waiting(NamedTuple):
    """A request's rows, and where its answers go."""

    rows: Sequence[Row]
    started: float
    """Arrival of the request, of time.perf_counter()."""
    answers: asyncio.Future[list[Answer]]


class Batcher:
    """Answers requests in groups, in a worker thread, and only after their records are on disk.

    While a group is being answered the next one gathers, so under load a group is large and its one fsync
    is shared, and without load a request waits for nobody.
    """

    def __init__(
        self, model: Model, journal: Journal, shipper: Shipper, metrics: Metrics, max_waiting: int
    ) -> None:
        self._model = model
        self._journal = journal
        self._shipper = shipper
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._waiting: list[Waiting] = []
        self._rows = 0  # waiting or being answered
        self._busy_since: float | None = None
        self._groups: SimpleQueue[list[Waiting] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        """Start the worker; to be called on the event loop that will call `answer`."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Answer what was handed over and end the worker."""
        self._groups.put(None)
        self._thread.join()

    def busy_seconds(self) -> float:
        """Return for how long the group in hand has been worked on, 0 when idle."""
        return 0.0 if self._busy_since is None else time.perf_counter() - self._busy_since

    def answer(self, rows: Sequence[Row], started: float) -> asyncio.Future[list[Answer]]:
        """Return the answers to come for rows that `schema` has checked. Raises Refusal (503) when too many wait.

        The future raises Refusal (503) when the journal cannot take the record.
        """
        if self._rows + len(rows) > self._max_waiting:
            raise Refusal(503, "too many predictions wait; try again in a second", {"retry-after": "1"})
        future = self._loop.create_future()
        self._waiting.append(Waiting(rows, started, future))
        self._rows += len(rows)
        if self._busy_since is None and len(self._waiting) == 1:
            self._gather(TURNS)
        return future

    def _gather(self, turns: int) -> None:
        if turns:
            self._loop.call_soon(self._gather, turns - 1)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        self._busy_since = time.perf_counter()
        self._groups.put(self._waiting)
        self._waiting = []

    def _run(self) -> None:
        while (group := self._groups.get()) is not None:
            try:
                answers = self._commit(group)
            except sqlite3.Error as error:
                log.error("the journal does not take predictions", extra={"reason": str(error)})
                refusal = Refusal(503, "the prediction log cannot be written; try again", {"retry-after": "5"})
                self._loop.call_soon_threadsafe(self._refuse, group, refusal)
            except Exception:
                log.exception("a group of predictions failed")
                self._loop.call_soon_threadsafe(self._refuse, group, Refusal(500, "the prediction failed"))
            else:
                self._loop.call_soon_threadsafe(self._send, group, answers)

    def _commit(self, group: list[Waiting]) -> list[Answer]:
        rows = [row for waiting in group for row in waiting.rows]
        started = [waiting.started for waiting in group for _ in waiting.rows]
        answers, records = predict(self._model, rows, started)
        self._journal.append(msgspec.json.encode(records), len(records))
        self._shipper.wake()
        self._metrics.predicted(answers)
        return answers

    def _send(self, group: list[Waiting], answers: list[Answer]) -> None:
        start = 0
        for waiting in group:
            stop = start + len(waiting.rows)
            if not waiting.answers.done():
                waiting.answers.set_result(answers[start:stop])
            start = stop
        self._finish(group)

    def _refuse(self, group: list[Waiting], refusal: Refusal) -> None:
        for waiting in group:
            if not waiting.answers.done():
                waiting.answers.set_exception(refusal)
        self._finish(group)

    def _finish(self, group: list[Waiting]) -> None:
        self._rows -= sum(len(waiting.rows) for waiting in group)
        self._busy_since = None
        if self._waiting:
            self._gather(TURNS)


def predict(
    model: Model, rows: Sequence[Row], started: Sequence[float], request_ids: Sequence[str] | None = None
) -> tuple[list[Answer], list[Record]]:
    """Return the answers to n rows, and their records for the log; new request ids unless they are given."""
    labels, probabilities = model.predict(np.array(rows, np.float32))
    now, clock = time.time(), time.perf_counter()
    name, version, classes = model.facts.name, model.facts.version, model.facts.classes
    answers: list[Answer] = []
    records: list[Record] = []
    for row, begun, label, probability, request_id in zip(
        rows, started, labels, probabilities, request_ids or new_request_ids(len(rows), now), strict=True
    ):
        seconds = clock - begun
        latency = round(seconds * 1000, 3)
        answers.append(Answer(label, classes[label], probability, latency, name, version, request_id))
        records.append(Record(request_id, name, version, row, label, probability, latency, now - seconds))
    return answers, records


def new_request_ids(count: int, now: float) -> list[str]:
    """Return UUIDs of version 7 (RFC 9562): they rise with time, which keeps the log's unique index compact."""
    when = f"{int(now * 1000):012x}"
    prefix = f"{when[:8]}-{when[8:]}-7"
    noise = os.urandom(10 * count).hex()  # 74 random bits would fit; "a" fixes two of them with the variant
    return [
        f"{prefix}{noise[i : i + 3]}-a{noise[i + 3 : i + 6]}-{noise[i + 6 : i + 18]}"
        for i in range(0, 20 * count, 20)
    ]
