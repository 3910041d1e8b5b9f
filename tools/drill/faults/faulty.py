"""The service with one fault, which the variable FAULT names. The service itself contains no faults.

Some faults are inside the application, which counts them as errors; others are outside, where it cannot.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections import deque
from pathlib import Path

import service.__main__ as serving
from service.batcher import Batcher

PREDICT = ("/predict",)
PREDICTIONS = (*PREDICT, "/predict/batch")  # the golden gate sends a batch
HIGH_LOAD = 20  # requests per second: more than with 10 % of the drill's traffic, fewer than with 100 %


def inside(before):
    """Call `before` inside the application before each prediction of one row."""
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


def under_load():
    """Return a fault that fails every prediction after the load was high once."""
    recent = deque(maxlen=HIGH_LOAD)
    broken = False

    async def before():
        nonlocal broken
        recent.append(time.monotonic())
        broken = broken or (len(recent) == HIGH_LOAD and recent[-1] - recent[0] < 1)
        if broken:
            raise RuntimeError("no connection left in the pool")

    return before


def outside(paths, app, faulty):
    """Return an ASGI application that sends requests for these paths to `faulty`, and all others to `app`."""

    async def wrapped(scope, receive, send):
        is_faulty = scope["type"] == "http" and scope["path"] in paths
        await (faulty if is_faulty else app)(scope, receive, send)

    return wrapped


def every_twentieth(app, act):
    """Return an ASGI application that calls `act` on every 20th request, and `app` on all others."""
    count = 0

    async def wrapped(scope, receive, send):
        nonlocal count
        count += 1
        if count % 20:
            await app(scope, receive, send)
        else:
            act(send)

    return wrapped


def reset(send):
    """Close the connection without an answer; uvicorn's `send` is a method of the object that has it."""
    send.__self__.transport.abort()


def leave(_):
    """End the process at once."""
    os._exit(1)


def swapped(app):
    """Swap the last two classes in every answer, with HTTP 200."""
    classes = json.loads((Path(os.environ["IRIS_MODEL_DIR"]) / "model.json").read_text())["classes"]
    last = len(classes) - 1
    swaps = {last: last - 1, last - 1: last}

    async def wrapped(scope, receive, send):
        start = None

        async def changed(message):
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            answer = json.loads(message["body"])
            for prediction in answer.get("predictions", [answer]):
                if prediction.get("prediction") in swaps:
                    prediction["prediction"] = swaps[prediction["prediction"]]
                    prediction["class"] = classes[prediction["prediction"]]
            body = json.dumps(answer).encode()
            kept = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
            await send({**start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
            await send({**message, "body": body})

        await app(scope, receive, changed)

    return wrapped


async def not_ready(_scope, _receive, send):
    """Answer 503."""
    await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


INSIDE = {"errors-30": errors(0.30), "errors-3": errors(0.03), "slow": slow, "under-load": under_load()}
OUTSIDE = {
    "resets": lambda app: outside(PREDICT, app, every_twentieth(app, reset)),
    "exits": lambda app: outside(PREDICT, app, every_twentieth(app, leave)),
    "swapped": lambda app: outside(PREDICTIONS, app, swapped(app)),
    "never-ready": lambda app: outside(("/readyz",), app, not_ready),
    "none": lambda app: app,
}


def main(fault):
    """Run the service with a fault; return the exit code."""
    if fault == "crash":
        sys.stderr.write("ImportError: libmodel.so.2: cannot open shared object file\n")
        return 1
    if fault in INSIDE:
        inside(INSIDE[fault])
    else:
        create_app = serving.create_app
        serving.create_app = lambda service: OUTSIDE[fault](create_app(service))
    return serving.main()


if __name__ == "__main__":
    sys.exit(main(os.environ["FAULT"]))
