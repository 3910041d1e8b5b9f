"""The baseline of `make bench`: uvicorn with the service's settings, which answers a POST with fixed bytes."""

import sys
from typing import Any

import uvicorn

BODY = (
    b'{"prediction":0,"class":"setosa","probability":0.9766,"latency_ms":0.21,'
    b'"model":"iris-classifier","version":"3","request_id":"01a20c8c-43b0-7417-ad71-1bafaac452b5"}'
)
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]


async def app(_: dict[str, Any], receive: Any, send: Any) -> None:
    """Read the request, and answer with BODY."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
    )
