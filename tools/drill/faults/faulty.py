"""The good service with one thing wrong with it, which FAULT names. The shipped code knows nothing of this.

Some faults are inside of the application, which counts them; of others it cannot know.
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

USERS = ("/predict",)
EVERYBODY = (*USERS, "/predict/batch")  # the golden gate asks for a batch
ENOUGH = 20  # requests within a second: more than a tenth of the users make, fewer than all of them


def inside(before):
    """Have something happen to each single prediction inside of the application, before it is made."""
    answer = Batcher.answer

    async def faulty(self, rows, started):
        if len(rows) == 1:
            await before()
        return await answer(self, rows, started)

    Batcher.answer = faulty


def errors(share):
    """Return what fails that share of the predictions."""

    async def before():
        if random.random() < share:  # noqa: S311 - no secret
            raise RuntimeError("the scaler is not fitted")

    return before


async def slow():
    """Take 0.8 s for each prediction."""
    await asyncio.sleep(0.8)


def under_load():
    """Return what fails everything from the moment on at which all users come."""
    recent = deque(maxlen=ENOUGH)
    broken = False

    async def before():
        nonlocal broken
        recent.append(time.monotonic())
        broken = broken or (len(recent) == ENOUGH and recent[-1] - recent[0] < 1)
        if broken:
            raise RuntimeError("no connection left in the pool")

    return before


def outside(paths, app, faulty):
    """Let only these paths be faulty, outside of the application."""

    async def wrapped(scope, receive, send):
        concerned = scope["type"] == "http" and scope["path"] in paths
        await (faulty if concerned else app)(scope, receive, send)

    return wrapped


def every_twentieth(app, act):
    """Do something to the connection, or to the whole process, on every 20th prediction."""
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
    """Close the connection without a word; uvicorn's `send` belongs to what holds it."""
    send.__self__.transport.abort()


def leave(_):
    """End the process at once."""
    os._exit(1)


def swapped(app):
    """Take the model's last class for the one before it, and the other way round, with HTTP 200."""
    classes = json.loads((Path(os.environ["IRIS_MODEL_DIR"]) / "model.json").read_text())["classes"]
    last = len(classes) - 1
    others = {last: last - 1, last - 1: last}

    async def wrapped(scope, receive, send):
        start = None

        async def changed(message):
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            answer = json.loads(message["body"])
            for one in answer.get("predictions", [answer]):
                if one.get("prediction") in others:
                    one["prediction"] = others[one["prediction"]]
                    one["class"] = classes[one["prediction"]]
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
    "resets": lambda app: outside(USERS, app, every_twentieth(app, reset)),
    "exits": lambda app: outside(USERS, app, every_twentieth(app, leave)),
    "swapped": lambda app: outside(EVERYBODY, app, swapped(app)),
    "never-ready": lambda app: outside(("/readyz",), app, not_ready),
    "none": lambda app: app,
}


def main(fault):
    """Serve with that fault; return the exit code."""
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
