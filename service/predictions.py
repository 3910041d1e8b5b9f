"""The hot path, in plain ASGI: decode a request for predictions, predict, and encode the response."""

import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import msgspec
from starlette.types import Receive, Scope, Send

from service.asgi import Disconnected, RequestError, read_json_body, send_json
from service.batcher import Batcher
from service.metrics import Metrics, method_label
from service.model import Model
from service.prediction_log import DatabaseUnavailable, PredictionLog, StatementFailed
from service.schema import Answer, Answers, Row, Schema, max_body_bytes

log = logging.getLogger(__name__)


class Codec(Protocol):
    """The format of an endpoint's requests and responses."""

    error_field: str
    """The only field of an error response."""
    default_content_type: bytes
    """The content type of a request without one."""

    def decode(self, body: bytes) -> tuple[Sequence[Row], Any]:
        """Return the rows, and what `encode` needs to know about the request. Raises RequestError."""

    def encode(self, answers: list[Answer], context: Any) -> bytes:
        """Return the body of the response."""


@dataclass(frozen=True)
class Predictions:
    """An endpoint for predictions, in the format of a codec."""

    path: str
    codec: Codec
    model: Model
    batcher: Batcher
    prediction_log: PredictionLog
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        started = time.perf_counter()
        try:
            if scope["method"] != "POST":
                raise RequestError(405, "only POST is allowed here", {"allow": "POST"})
            headers = dict(scope["headers"])
            body = await read_json_body(headers, receive, self._max_body_bytes, self.codec.default_content_type)
            rows, context = self.codec.decode(body)
            if b"idempotency-key" in headers:
                keys = [value for name, value in scope["headers"] if name == b"idempotency-key"]
                answers = await self._predict_idempotently(keys, rows, started)
            else:
                answers = await self.batcher.answer(rows, started)
        except Disconnected:
            return
        except RequestError as error:
            await self._send_error(scope, send, error, started)
            return
        except Exception:
            log.exception("failed")
            await self._send_error(scope, send, RequestError(500, "the request failed"), started)
            return
        await send_json(send, 200, self.codec.encode(answers, context))
        self.metrics.count_request("POST", self.path, 200, time.perf_counter() - started)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("answered", extra={"endpoint": self.path, "request_id": answers[0].request_id})

    @cached_property
    def _max_body_bytes(self) -> int:
        return max_body_bytes(self.model.metadata.features)

    async def _predict_idempotently(
        self, keys: Sequence[bytes], rows: Sequence[Row], started: float
    ) -> list[Answer]:
        try:
            (key,) = keys
            # In the draft of the IETF (draft-ietf-httpapi-idempotency-key-header) the key is a quoted string.
            parsed = uuid.UUID(re.sub(r'^"(.*)"$', r"\1", key.decode("ascii")))
        except ValueError:
            raise RequestError(400, "Idempotency-Key must be a UUID") from None
        try:
            answers, new = await self.prediction_log.predict_idempotently(parsed, self.model, rows, started)
        except StatementFailed:
            detail = "a request with Idempotency-Key needs PostgreSQL, which refused a statement; retry"
            raise RequestError(503, detail, {"retry-after": "2"}) from None
        except DatabaseUnavailable:
            # Only the log knows whether another pod has answered under this key. The client may safely retry.
            detail = "a request with Idempotency-Key needs PostgreSQL, which is unavailable; retry"
            raise RequestError(503, detail, {"retry-after": "2"}, database=True) from None
        if new:
            self.metrics.count_predictions(answers)
        return answers

    async def _send_error(self, scope: Scope, send: Send, error: RequestError, started: float) -> None:
        request_id = str(uuid.uuid4())
        headers = {**error.headers, "x-request-id": request_id}
        body = msgspec.json.encode({self.codec.error_field: error.detail})
        await send_json(send, error.status, body, *((k.encode(), v.encode()) for k, v in headers.items()))
        method = method_label(scope["method"])
        seconds = time.perf_counter() - started
        self.metrics.count_request(method, self.path, error.status, seconds, database=error.database)
        level = logging.ERROR if error.status == 500 else logging.INFO
        extra = {"endpoint": self.path, "status": error.status, "detail": error.detail, "request_id": request_id}
        log.log(level, "rejected", extra=extra)


class FeaturesCodec:
    """The format of /predict (one row: schema.one) and of /predict/batch (schema.batch)."""

    error_field = "detail"
    default_content_type = b""

    def __init__(self, schema: Schema, request: type[msgspec.Struct]) -> None:
        self._schema = schema
        self._request = request
        self._is_batch = request is schema.batch
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(request)

    def decode(self, body: bytes) -> tuple[Sequence[Row], None]:
        """Return the rows."""
        request = decode_json(self._decoder, body, 422, lambda error: self._schema.explain(error, self._request))
        # The decoder has accepted an object of numbers under the name "features" and no other name. If that occurs
        # more than once, the decoder uses the last value without an error. JSON has one colon for each member.
        if body.count(b":") > 1:
            raise RequestError(422, "features: the field appears more than once")
        return request.features if self._is_batch else (request.features,), None

    def encode(self, answers: list[Answer], _: None) -> bytes:
        """Return the answers, in the order of the rows."""
        return msgspec.json.encode(Answers(len(answers), answers) if self._is_batch else answers[0])


def decode_json(
    decoder: msgspec.json.Decoder[Any], body: bytes, status: int, explain: Callable[[msgspec.ValidationError], str]
) -> Any:
    """Return the decoded body. Raises RequestError: 400 if it is not JSON, `status` if it is not of the type."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:  # a subclass of DecodeError
        raise RequestError(status, explain(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise RequestError(400, f"the body is not JSON: {reason}") from None
