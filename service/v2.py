"""The Open Inference Protocol, version 2, over REST: the same predictions, as tensors.

https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md. A request has one
tensor of n rows, and gets any of the output tensors, of n values each. Properties that are not of the protocol are
ignored, as its other servers do; so are parameters, of which it defines none.
"""

import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from service.asgi import JSON, Refusal
from service.facts import Facts
from service.predictions import NOT_JSON, not_json
from service.schema import MAX_ROWS, Answer, Row, Schema

PLATFORM = "onnx_onnxv1"  # the protocol's name for a model that ONNX Runtime runs
INPUT = "features"
OUTPUTS: dict[str, tuple[str, Callable[[Answer], Any]]] = {
    "prediction": ("INT64", attrgetter("prediction")),
    "class": ("BYTES", attrgetter("class_name")),
    "probability": ("FP64", attrgetter("probability")),
    "request_id": ("BYTES", attrgetter("request_id")),
}


class RequestOutput(msgspec.Struct, frozen=True):
    """An output tensor that is asked for."""

    name: Literal["prediction", "class", "probability", "request_id"]


class ResponseOutput(msgspec.Struct, frozen=True):
    """An output tensor: one value a row."""

    name: str
    datatype: str
    shape: tuple[int]
    data: list[int | float | str]


class InferenceResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The predictions, and the model that made them."""

    model_name: str
    model_version: str
    outputs: list[ResponseOutput]
    id: Annotated[str | None, msgspec.Meta(description="that of the request, if it had one")] = None


class ProtocolError(BaseModel):
    """What every answer of /v2 other than 2xx says."""

    error: str


class ServerMetadata(BaseModel):
    """Server and model are one: an image holds one model, and has its name and version."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor; -1 is the number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What the model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerLive(BaseModel):
    """Liveness."""

    live: bool


class ServerReady(BaseModel):
    """Readiness."""

    ready: bool


class ModelReady(BaseModel):
    """Readiness of the model."""

    name: str
    ready: bool


class Asked(NamedTuple):
    """What a request wants to have back."""

    id: str | None
    outputs: Sequence[str]


class Inference:
    """The form of .../infer, for service.predictions."""

    error = "error"
    untyped = JSON[1]  # the protocol has no other, and its clients need not name it

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._width = len(schema.names)
        self._expected = {  # of what a message by the decoder would not tell enough, or quote the client
            "inputs": f"one tensor, {INPUT}",
            "inputs[].name": INPUT,
            "inputs[].datatype": "FP64 or FP32",
            "inputs[].shape": f"[n, {self._width}], for n from 1 to {MAX_ROWS}",
            "outputs[].name": ", ".join(OUTPUTS),
        }
        width = Annotated[int, msgspec.Meta(ge=self._width, le=self._width)]
        tensor = msgspec.defstruct(
            "RequestInput",
            [
                ("name", Literal["features"]),
                ("datatype", Literal["FP64", "FP32"]),  # the model computes in FP32; the log has what was sent
                ("shape", tuple[Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS)], width]),
                ("data", list[float | list[float]]),
            ],
            frozen=True,
        )
        self._request = msgspec.defstruct(
            "InferenceRequest",
            [
                ("inputs", tuple[tensor]),  # type: ignore[valid-type]  # built from data
                ("outputs", list[RequestOutput] | None, None),
                ("id", str | None, None),
            ],
            frozen=True,
        )
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self._request)

    def decode(self, body: bytes) -> tuple[Sequence[Row], Asked]:
        """Return the rows of the input tensor, and what is asked for. Raises Refusal (400)."""
        try:
            request = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise Refusal(400, self._explain(error)) from None
        except NOT_JSON as error:
            raise not_json(error) from None
        outputs = [output.name for output in request.outputs or ()]
        return self._rows(request.inputs[0]), Asked(request.id, list(dict.fromkeys(outputs)) or list(OUTPUTS))

    def encode(self, answers: list[Answer], asked: Asked) -> bytes:
        """Return the output tensors that are asked for, in the order of the rows."""
        outputs = []
        for name in asked.outputs:
            datatype, value = OUTPUTS[name]
            outputs.append(ResponseOutput(name, datatype, (len(answers),), [value(answer) for answer in answers]))
        first = answers[0]
        return msgspec.json.encode(InferenceResponse(first.model, first.version, outputs, asked.id))

    def openapi(self) -> dict[str, Any]:
        """Return the JSON schemas of what is decoded and encoded here, to stand under #/components/schemas."""
        _, components = msgspec.json.schema_components(
            [self._request, InferenceResponse], ref_template="#/components/schemas/{name}"
        )
        return components

    def _explain(self, error: msgspec.ValidationError) -> str:
        """Say which part of the request is wrong and why, without anything the client sent."""
        message, at, path = str(error).rpartition(" - at `$.")  # the last: a message may quote the client
        if not at:
            return _plain(path)
        path = re.sub(r"(shape)\[.\]|`", r"\1", path)
        if expected := self._expected.get(re.sub(r"\d+", "", path)):
            return f"{path}: expected {expected}"
        if "`data`" in message:
            return (
                f"{path}: data is missing; a tensor is taken as JSON alone, the binary extension is not known here"
            )
        return f"{path}: {_plain(message)}"

    def _rows(self, tensor: Any) -> Sequence[Row]:
        count, _ = tensor.shape
        data = tensor.data
        if data and isinstance(data[0], float):  # flat, in row-major order
            if len(data) != count * self._width:
                raise Refusal(400, f"inputs[0].data: that shape has {count * self._width} values, not {len(data)}")
            data = [data[start : start + self._width] for start in range(0, len(data), self._width)]
        try:
            rows: Sequence[Row] = msgspec.convert(data, self._schema.rows)
        except msgspec.ValidationError as error:
            raise Refusal(400, f"inputs[0].data{self._place(error)}") from None
        if len(rows) != count:
            raise Refusal(400, f"inputs[0].data: that shape has {count} rows, not {len(rows)}")
        return rows

    def _place(self, error: msgspec.ValidationError) -> str:
        message, _, path = str(error).partition(" - at ")
        row, *column = re.findall(r"\d+", path) or [None]
        place = "" if row is None else f", row {row}"
        name = f" ({self._schema.names[int(column[0])]})" if column else ""
        return f"{place}{name}: {_plain(message)}"


def _plain(message: str) -> str:
    return f"{message[:1].lower()}{message[1:]}".replace("`", "")


def addresses(facts: Facts) -> tuple[str, str]:
    """Return the addresses of a model: without its version, and with it."""
    model = f"/v2/models/{facts.name}"
    return model, f"{model}/versions/{facts.version}"


def example(facts: Facts) -> dict[str, Any]:
    """Return a request with the first of the model's golden vectors."""
    row = facts.golden[0].features
    return {"inputs": [{"name": INPUT, "datatype": "FP64", "shape": [1, len(row)], "data": row}]}


def not_found(facts: Facts) -> str:
    """Say what to ask for instead of a model, a version or an address that there is not."""
    return (
        f"there is nothing at this address: the only model here is {facts.name}, version {facts.version}; "
        f"GET {addresses(facts)[0]} describes it"
    )


def endpoints(facts: Facts, unready: Callable[[], str | None]) -> APIRouter:
    """Return all of the protocol but inference; `unready` says why there should be no requests, or None."""
    router = APIRouter()
    unavailable: dict[int | str, dict[str, Any]] = {503: {"model": ProtocolError, "description": "Not now; why."}}

    def check_ready() -> None:
        if reason := unready():
            raise HTTPException(503, reason)

    @router.get("/v2")
    @router.get("/v2/", include_in_schema=False)  # the published OpenAPI document has it so
    async def server_metadata() -> ServerMetadata:
        """Say what serves here."""
        return ServerMetadata(name=facts.name, version=facts.version, extensions=[])

    @router.get("/v2/health/live")
    async def server_live() -> ServerLive:
        """Say that the process answers; touches nothing else."""
        return ServerLive(live=True)

    @router.get("/v2/health/ready", responses=unavailable)
    async def server_ready() -> ServerReady:
        """Say whether this process should get requests, as /readyz does."""
        check_ready()
        return ServerReady(ready=True)

    async def model_metadata() -> ModelMetadata:
        """Say what the model takes and gives."""
        return ModelMetadata(
            name=facts.name,
            versions=[facts.version],
            platform=PLATFORM,
            inputs=[TensorMetadata(name=INPUT, datatype="FP64", shape=[-1, len(facts.features)])],
            outputs=[
                TensorMetadata(name=name, datatype=datatype, shape=[-1]) for name, (datatype, _) in OUTPUTS.items()
            ],
        )

    async def model_ready() -> ModelReady:
        """Say whether the model should get requests: it is ready when its process is."""
        check_ready()
        return ModelReady(name=facts.name, ready=True)

    for address in addresses(facts):
        router.add_api_route(address, model_metadata)
        router.add_api_route(f"{address}/ready", model_ready, responses=unavailable)
    return router
