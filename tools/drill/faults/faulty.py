"""The service with one fault, which the variable FAULT names. The service itself contains no faults.

Some faults are inside the application, which counts them as errors; others are outside, where it cannot.
"""

import asyncio
import os
import random
import sys
import time
from collections import deque
from itertools import count

from fastapi import HTTPException

import service.__main__ as serving
from service.app import Service
from service.batcher import Batcher
from service.model import Model

HIGH_LOAD = 20  # requests per second: more than with 10 % of the drill's traffic, fewer than with 100 %


def each_prediction(before):
    """Call `before` inside the application before each prediction of one row; the golden gate sends a batch."""
    answer = Batcher.answer

    async def faulty(self, rows, started):
        if len(rows) == 1:
            await before()
        return await answer(self, rows, started)

    Batcher.answer = faulty


def errors(ratio):
    """Return a fault that fails that ratio of the predictions."""

    async def before():
        if random.random() < ratio:  # noqa: S311 - not for security
            raise RuntimeError("the scaler is not fitted")

    return before


async def slow():
    """Take 0.8 s for each prediction."""
    await asyncio.sleep(0.8)


def under_load(fail):
    """Return a fault that calls `fail` before every prediction after the load was high once."""
    recent = deque(maxlen=HIGH_LOAD)
    broken = False

    async def before():
        nonlocal broken
        recent.append(time.monotonic())
        broken = broken or (len(recent) == HIGH_LOAD and recent[-1] - recent[0] < 1)
        if broken:
            fail()

    return before


def no_connection():
    """Raise an error."""
    raise RuntimeError("no connection left in the pool")


def every_twentieth(act):
    """Call `act` outside the application instead of answering every 20th request for one prediction."""
    create_app, number = serving.create_app, count(1)

    def create_faulty(service):
        app = create_app(service)

        async def faulty(scope, receive, send):
            if scope.get("path") == "/predict" and next(number) % 20 == 0:
                act(send)
            else:
                await app(scope, receive, send)

        return faulty

    serving.create_app = create_faulty


def reset(send):
    """Close the connection without an answer; uvicorn's `send` is a method of the object that has it."""
    send.__self__.transport.abort()


def swapped():
    """Swap the last two classes in every answer, with HTTP 200."""
    load = Model.__init__

    def load_faulty(self, folder):
        load(self, folder)  # this verifies the model's answers, which have to be right until then
        predict, last = self.predict, len(self.metadata.classes) - 1
        swaps = {last: last - 1, last - 1: last}

        def wrong(rows):
            labels, probabilities = predict(rows)
            return [swaps.get(label, label) for label in labels], probabilities

        self.predict = wrong

    Model.__init__ = load_faulty


def never_ready():
    """Answer 503 to every readiness probe."""

    def refuse(_):
        raise HTTPException(503, "the cache is empty")

    Service.check_ready = refuse


FAULTS = {
    "none": lambda: None,
    "crash": lambda: sys.exit("ImportError: libmodel.so.2: cannot open shared object file"),
    "errors-30": lambda: each_prediction(errors(0.30)),
    "errors-3": lambda: each_prediction(errors(0.03)),
    "slow": lambda: each_prediction(slow),
    "under-load": lambda: each_prediction(under_load(no_connection)),
    "dies-under-load": lambda: each_prediction(under_load(lambda: os._exit(1))),
    "resets": lambda: every_twentieth(reset),
    "exits": lambda: every_twentieth(lambda _: os._exit(1)),
    "swapped": swapped,
    "never-ready": never_ready,
}

if __name__ == "__main__":
    FAULTS[os.environ["FAULT"]]()
    sys.exit(serving.main())
