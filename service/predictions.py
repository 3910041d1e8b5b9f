"""The hot path, in plain ASGI: from a request for predictions, of whatever form, to its answer."""

import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from starlette.types import Receive, Scope, Send

from service.asgi import Disconnected, Refusal, read_json_body, send_json, send_refusal
from service.batcher import Batcher
from service.metrics import Metrics
from service.model import Model
from service.reader import Away, Reader
from service.schema import MAX_BODY_BYTES, Answer, Answers, Row, Schema

log = logging.getLogger(__name__)


class Form(Protocol):
    """What the bodies of an endpoint look like; the predictions in them are the same."""

    error: str
    """The one field of every answer other than 2xx."""
    untyped: bytes
    """The content type of a request that names none."""

    def decode(self, body: bytes) -> tuple[Sequence[Row], Any]:
        """Return the rows, and what `encode` has to know of the request. Raises Refusal."""

    def encode(self, answers: list[Answer], asked: Any) -> bytes:
        """Return the body of the answer."""


class Predictions:
    """An endpoint that answers predictions, in one form."""

    def __init__(
        self,
        path: str,
        form: Form,
        model: Model,
        batcher: Batcher,
        reader: Reader,
        metrics: Metrics,
    ) -> None:
        self._path = path
        self._error = form.error
        self._untyped = form.untyped
        self._decode = form.decode
        self._encode = form.encode
        self._model = model
        self._batcher = batcher
        self._reader = reader
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        try:
            if scope["method"] != "POST":
                raise Refusal(405, "only POST is allowed here", {"allow": "POST"})
            headers = dict(scope["headers"])
            body = await read_json_body(headers, receive, MAX_BODY_BYTES, self._untyped)
            rows, asked = self._decode(body)
            key = headers.get(b"idempotency-key")
            if key is None:
                answers = await self._batcher.answer(rows, started)
            else:
                answers = await self._once(key, rows, started)
        except Disconnected:
            return
        except Refusal as refusal:
            await self._refuse(scope, send, refusal, started)
            return
        except Exception:
            log.exception("failed")
            await self._refuse(scope, send, Refusal(500, "the request failed"), started)
            return
        await send_json(send, 200, self._encode(answers, asked))
        self._metrics.requested("POST", self._path, 200, time.perf_counter() - started)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("answered", extra={"endpoint": self._path, "request_id": answers[0].request_id})

    async def _once(self, key: bytes, rows: Sequence[Row], started: float) -> list[Answer]:
        try:
            parsed = uuid.UUID(key.decode("ascii"))
        except ValueError:
            raise Refusal(400, "Idempotency-Key must be a UUID") from None
        try:
            answers, new = await self._reader.once(parsed, self._model, rows, started)
        except Away:
            # Only the log knows what other pods answered under this key. The client may repeat at no risk.
            raise Refusal(
                503, "a request with Idempotency-Key needs PostgreSQL, which is away", {"retry-after": "2"}
            ) from None
        if new:
            self._metrics.predicted(answers)
        return answers

    async def _refuse(self, scope: Scope, send: Send, refusal: Refusal, started: float) -> None:
        request_id = str(uuid.uuid4())
        await send_refusal(send, refusal, self._error, (b"x-request-id", request_id.encode()))
        method = scope["method"] if scope["method"] in KNOWN_METHODS else "OTHER"
        self._metrics.requested(method, self._path, refusal.status, time.perf_counter() - started)
        log.log(
            logging.ERROR if refusal.status == 500 else logging.INFO,
            "refused",
            extra={
                "endpoint": self._path,
                "status": refusal.status,
                "detail": refusal.detail,
                "request_id": request_id,
            },
        )


KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Features:
    error = "detail"
    untyped = b""

    def __init__(self, schema: Schema, request: type[msgspec.Struct]) -> None:
        self._schema = schema
        self._request = request
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(request)

    def _features(self, body: bytes) -> Any:
        try:
            request = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise Refusal(422, self._schema.explain(error, self._request)) from None
        except NOT_JSON as error:
            raise not_json(error) from None
        if body.count(b'"') != 2:
            # The decoder takes the last; everything else with more than the one name it has refused already.
            raise Refusal(422, "features: the field is there twice")
        return request.features


class Single(_Features):
    """The form of /predict: one row."""

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema, schema.one)

    def decode(self, body: bytes) -> tuple[Sequence[Row], None]:
        """Return the row."""
        return (self._features(body),), None

    def encode(self, answers: list[Answer], _: None) -> bytes:
        """Return the one answer."""
        return msgspec.json.encode(answers[0])


class Several(_Features):
    """The form of /predict/batch."""

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema, schema.batch)

    def decode(self, body: bytes) -> tuple[Sequence[Row], None]:
        """Return the rows."""
        return self._features(body), None

    def encode(self, answers: list[Answer], _: None) -> bytes:
        """Return the answers, in the order of the rows."""
        return msgspec.json.encode(Answers(len(answers), answers))


NOT_JSON = (
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
)  # what a decoder raises, but for ValidationError


def not_json(error: Exception) -> Refusal:
    """Return what to answer to a body that a decoder could not read."""
    return Refusal(400, f"the body is not JSON: {str(error).removeprefix('JSON is malformed: ')}")
