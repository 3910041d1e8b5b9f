"""HTTP/1.1 as uvicorn speaks it with httptools, plus what that leaves open: limits, deadlines, and Upgrade."""

import asyncio
import logging
import uuid
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.metrics import Metrics

log = logging.getLogger(__name__)

HEAD_BYTES = 16 * 1024
"""Request line and headers of up to this size are accepted, and those of more than twice this size never are."""
REQUEST_SECONDS = 60.0
"""The time from a request's first byte to its last. nginx allows as much for the headers."""


class HttpProtocol(HttpToolsProtocol):
    """A connection whose client can neither fill the memory, nor stay silent for ever, nor smuggle requests."""

    def __init__(self, metrics: Metrics, max_body_bytes: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._metrics = metrics
        # The largest body in chunks of one byte, which are six bytes each, and its headers: this bounds trailers.
        self._max_bytes = 6 * max_body_bytes + 2 * HEAD_BYTES
        self._in_message = self._in_head = self._is_upgrade = self._refused = False
        self._received = 0  # bytes of the message, except for those that came together with its first
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Close the connection if no request follows within the time for which idle connections are kept."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._refused = True
        self._update_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived."""
        if len(data) <= HEAD_BYTES:
            self._parse(data)
        else:  # in pieces, because the parser keeps an unfinished header to itself: its size is checked after each
            for start in range(0, len(data), HEAD_BYTES):
                self._parse(data[start : start + HEAD_BYTES])
        if self._in_message or self._deadline is not None:
            self._update_deadline()

    def on_message_begin(self) -> None:
        """Prepare for a request."""
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        self._in_message = self._in_head = True
        self._received = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start to handle the request."""
        self._is_upgrade = self.parser.should_upgrade()
        if not self._is_upgrade:
            super().on_headers_complete()
            self.headers = []  # for trailers, which must not be taken for headers
        self._in_head = False

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        self._in_message = False
        if not self._is_upgrade:
            super().on_message_complete()

    def _parse(self, data: bytes) -> None:
        if self._refused:
            return
        self._received += len(data)
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    # To the parser another protocol begins here, and it would take a body for the next request.
                    # A server may ignore the header (RFC 9110, 7.8): the request is parsed again without it.
                    self.parser.feed_data(self._head_without_upgrade())
                    data = data[upgrade.args[0] :]
        except httptools.HttpParserError:
            self._refuse(400, "Invalid HTTP request received.")
        if not self._in_message:
            return
        if self._in_head and self._received > HEAD_BYTES:
            self._refuse(431, f"the request line and the headers are larger than {HEAD_BYTES} bytes")
        elif self._received > self._max_bytes:
            self._refuse(413, f"the request is larger than {self._max_bytes} bytes")

    def _head_without_upgrade(self) -> bytes:
        method = self.parser.get_method()
        if method == b"CONNECT":  # the other way to change the protocol, which has no meaning here
            raise httptools.HttpParserError
        start = b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())
        headers = (name + b": " + value for name, value in self.headers if name != b"upgrade")
        return b"\r\n".join([start, *headers, b"", b""])

    def _update_deadline(self) -> None:
        is_needed = self._in_message and not self._refused
        if self._deadline is None and is_needed:
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self._time_out)
        elif self._deadline is not None and not is_needed:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        self._refuse(408, f"the request did not arrive within {REQUEST_SECONDS:.0f} s")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer a request that cannot be handled, and close the connection."""
        if self._refused:
            return
        self._refused = True
        request_id = str(uuid.uuid4())
        self._metrics.count_request("OTHER", "other", status, 0.0)
        extra = {"endpoint": "other", "status": status, "detail": detail, "request_id": request_id}
        log.info("rejected", extra=extra)
        is_handled = self._in_message and not self._in_head  # then the last cycle is that of this request
        is_answered = self.cycle is None or self.cycle.response_complete
        if not is_answered and not is_handled:
            self.cycle.keep_alive = False  # close when the requests before this one are answered
            return
        if not self.pipeline and not (is_handled and self.cycle.response_started):
            body = msgspec.json.encode({"detail": detail})
            headers = (
                f"content-length: {len(body)}\r\nconnection: close\r\nx-request-id: {request_id}\r\n\r\n".encode()
            )
            self.transport.write(STATUS_LINE[status] + b"content-type: application/json\r\n" + headers + body)
        self.transport.close()
