"""Plain ASGI for the hot routes, without a framework: read a bounded body, send JSON."""

from collections.abc import Mapping

from starlette.types import Receive, Send

JSON = (b"content-type", b"application/json")


class RequestError(Exception):
    """An error response: a status and a detail. The detail never quotes the request.

    `database` says that PostgreSQL was unavailable, for which this process is not at fault.
    """

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, *, database: bool = False
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.database = database


class Disconnected(Exception):
    """The client disconnected before it had sent its whole request."""


async def read_json_body(
    headers: Mapping[bytes, bytes], receive: Receive, limit: int, default_content_type: bytes = b""
) -> bytes:
    """Return the body of a JSON request.

    Raises RequestError with 415 (not JSON, or compressed) or 413 (more than `limit` bytes), and Disconnected.
    """
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RequestError(415, "content-encoding must be identity; send the body uncompressed")
    content_type = headers.get(b"content-type", default_content_type)
    if content_type != b"application/json" and content_type.partition(b";")[0].strip().lower() != JSON[1]:
        raise RequestError(415, "content-type must be application/json")
    if int(headers.get(b"content-length", b"0")) > limit:
        raise _too_large(limit)
    body, more_body = b"", True
    while more_body:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        more_body = message.get("more_body", False)
    return body


async def send_json(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send a complete JSON response."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": (JSON, length, *headers)})
    await send({"type": "http.response.body", "body": body})


def _too_large(limit: int) -> RequestError:
    # Close the connection: otherwise the client would send the rest of the body, and nobody would use it.
    return RequestError(413, f"the body is larger than {limit} bytes", {"connection": "close"})
