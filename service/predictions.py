"""POST /predict and /predict/batch: the hot path, in plain ASGI."""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from service.asgi import Disconnected, Refusal, read_json_body, send_json, send_refusal
from service.batcher import Batcher
from service.metrics import Metrics
from service.model import Model
from service.reader import Away, Reader
from service.schema import MAX_BODY_BYTES, Answer, Answers, Row, Schema

log = logging.getLogger(__name__)


class Predictions:
    """One of the two endpoints: `one` says whether its body is a single row or a batch."""

    def __init__(
        self,
        path: str,
        schema: Schema,
        model: Model,
        batcher: Batcher,
        reader: Reader,
        metrics: Metrics,
    ) -> None:
        self._path = path
        self._schema = schema
        self._model = model
        self._batcher = batcher
        self._reader = reader
        self._metrics = metrics
        one = path == "/predict"
        self._request = schema.one if one else schema.batch
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self._request)
        self._rows: Callable[[Any], Sequence[Row]] = _single if one else _several
        self._encode: Callable[[list[Answer]], bytes] = _encode_single if one else _encode_several

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        try:
            if scope["method"] != "POST":
                raise Refusal(405, "only POST is allowed here", {"allow": "POST"})
            headers = dict(scope["headers"])
            body = await read_json_body(headers, receive, MAX_BODY_BYTES)
            rows = self._rows(self._decode(body))
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
        await send_json(send, 200, self._encode(answers))
        self._metrics.requested("POST", self._path, 200, time.perf_counter() - started)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("answered", extra={"endpoint": self._path, "request_id": answers[0].request_id})

    def _decode(self, body: bytes) -> Any:
        try:
            request = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise Refusal(422, self._schema.explain(error, self._request)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(400, f"the body is not JSON: {str(error).removeprefix('JSON is malformed: ')}") from None
        if body.count(b'"') != 2:
            # The decoder takes the last; everything else with more than the one name it has refused already.
            raise Refusal(422, "features: the field is there twice")
        return request

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
        await send_refusal(send, refusal, (b"x-request-id", request_id.encode()))
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


def _single(request: Any) -> Sequence[Row]:
    return (request.features,)


def _several(request: Any) -> Sequence[Row]:
    rows: Sequence[Row] = request.features
    return rows


def _encode_single(answers: list[Answer]) -> bytes:
    return msgspec.json.encode(answers[0])


def _encode_several(answers: list[Answer]) -> bytes:
    return msgspec.json.encode(Answers(len(answers), answers))
