"""The good service with one thing wrong with it, which FAULT names. The shipped code knows nothing of this."""

import asyncio
import json
import os
import random
import sys
import time
from collections import deque

import service.__main__ as serving

USERS = ("/predict",)
EVERYBODY = (*USERS, "/predict/batch")  # the golden gate asks for a batch
SWAPPED = {1: (2, "virginica"), 2: (1, "versicolor")}
ENOUGH = 20  # requests within a second: more than a tenth of the users make, fewer than all of them


async def fail(_scope, _receive, send):
    """Answer 500, and say why in the log."""
    sys.stderr.write("RuntimeError: the scaler is not fitted\n")
    sys.stderr.flush()
    await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def errors(app, share):
    """Fail that share of the predictions."""

    async def wrapped(scope, receive, send):
        await (fail if random.random() < share else app)(scope, receive, send)  # noqa: S311 - no secret

    return wrapped


def slow(app):
    """Take 0.8 s for each prediction."""

    async def wrapped(scope, receive, send):
        await asyncio.sleep(0.8)
        await app(scope, receive, send)

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
    """Take versicolor for virginica, and the other way round, with HTTP 200."""

    async def wrapped(scope, receive, send):
        start = None

        async def changed(message):
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            answer = json.loads(message["body"])
            for one in answer.get("predictions", [answer]):
                if one.get("prediction") in SWAPPED:
                    one["prediction"], one["class"] = SWAPPED[one["prediction"]]
            body = json.dumps(answer).encode()
            kept = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
            await send({**start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
            await send({**message, "body": body})

        await app(scope, receive, changed)

    return wrapped


def under_load(app):
    """Fail everything from the moment on at which all users come."""
    recent = deque(maxlen=ENOUGH)
    broken = False

    async def wrapped(scope, receive, send):
        nonlocal broken
        recent.append(time.monotonic())
        broken = broken or (len(recent) == ENOUGH and recent[-1] - recent[0] < 1)
        await (fail if broken else app)(scope, receive, send)

    return wrapped


def never_ready(app):
    """Say for ever that it is not ready yet."""

    async def wrapped(scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/readyz":
            await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await app(scope, receive, send)

    return wrapped


FAULTS = {
    "errors-30": lambda app: errors(app, 0.30),
    "errors-3": lambda app: errors(app, 0.03),
    "slow": slow,
    "resets": lambda app: every_twentieth(app, reset),
    "exits": lambda app: every_twentieth(app, leave),
    "swapped": swapped,
    "under-load": under_load,
}


def on(paths, app, faulty):
    """Let only these paths be faulty."""

    async def wrapped(scope, receive, send):
        concerned = scope["type"] == "http" and scope["path"] in paths
        await (faulty if concerned else app)(scope, receive, send)

    return wrapped


def main(fault):
    """Serve with that fault; return the exit code."""
    if fault == "crash":
        sys.stderr.write("ImportError: libmodel.so.2: cannot open shared object file\n")
        return 1
    create_app = serving.create_app

    def faulty(service):
        app = create_app(service)
        if fault == "none":
            return app
        if fault == "never-ready":
            return never_ready(app)
        return on(EVERYBODY if fault == "swapped" else USERS, app, FAULTS[fault](app))

    serving.create_app = faulty
    return serving.main()


if __name__ == "__main__":
    sys.exit(main(os.environ["FAULT"]))
