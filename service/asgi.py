"""Plain ASGI: reading a bounded body and sending JSON, for the routes that are too hot for a framework."""

from collections.abc import Mapping

import msgspec
from starlette.types import Receive, Send

JSON = (b"content-type", b"application/json")


class Refusal(Exception):
    """A request that gets another answer than 200: its status, and a detail that holds nothing of the request."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


class Disconnected(Exception):
    """The client went away before its request was complete."""


async def read_json_body(
    headers: Mapping[bytes, bytes], receive: Receive, limit: int, untyped: bytes = b""
) -> bytes:
    """Return the body of a JSON request; `untyped` is the content type of one that names none.

    Raises Refusal 415 (not JSON), 413 (over `limit` bytes); Disconnected.
    """
    content_type = headers.get(b"content-type", untyped)
    if content_type != b"application/json" and content_type.partition(b";")[0].strip().lower() != JSON[1]:
        raise Refusal(415, "content-type must be application/json")
    if int(headers.get(b"content-length", b"0")) > limit:
        raise _too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
    if message["type"] == "http.disconnect":
        raise Disconnected
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def send_json(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send a whole answer."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": (JSON, length, *headers)})
    await send({"type": "http.response.body", "body": body})


async def send_refusal(send: Send, refusal: Refusal, field: str, *headers: tuple[bytes, bytes]) -> None:
    """Send the refusal's detail as the one field of an object."""
    body = msgspec.json.encode({field: refusal.detail})
    extra = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    await send_json(send, refusal.status, body, *extra, *headers)


def _too_large(limit: int) -> Refusal:
    # What is left of the body would be read as the next request: the connection ends here.
    return Refusal(413, f"the body is larger than {limit} bytes", {"connection": "close"})
