"""The Open Inference Protocol, version 2, over REST: the same predictions, as tensors.

Specification: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.

A request has one tensor of n rows; the response has the requested output tensors of n values each. Unknown
properties are ignored, as by other servers of the protocol. So are parameters: the protocol defines none.
"""

import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel

from service.asgi import JSON, RequestError
from service.model_metadata import ModelMetadata
from service.predictions import decode_json
from service.schema import MAX_ROWS, Answer, Row, Schema, components, plain

PLATFORM = "onnx_onnxv1"  # the protocol's name for a model that ONNX Runtime runs
INPUT = "features"
OUTPUTS: dict[str, tuple[str, Callable[[Answer], Any]]] = {
    "prediction": ("INT64", attrgetter("prediction")),
    "class": ("BYTES", attrgetter("class_name")),
    "probability": ("FP64", attrgetter("probability")),
    "request_id": ("BYTES", attrgetter("request_id")),
}


class RequestOutput(msgspec.Struct, frozen=True):
    """A requested output tensor."""

    name: Literal["prediction", "class", "probability", "request_id"]


class ResponseOutput(msgspec.Struct, frozen=True):
    """An output tensor with one value for each row."""

    name: str
    datatype: str
    shape: tuple[int]
    data: list[int | float | str]


class InferenceResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The predictions and the model that made them."""

    model_name: str
    model_version: str
    outputs: list[ResponseOutput]
    id: Annotated[str | None, msgspec.Meta(description="the id of the request, if it had one")] = None


class ProtocolError(BaseModel):
    """The body of every error response of /v2."""

    error: str


class ServerMetadata(BaseModel):
    """Name and version of the server, which are those of the one model in its image."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor. In its shape, -1 is the number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadataResponse(BaseModel):
    """The model's inputs and outputs."""

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


class ModelReady(ServerReady):
    """Readiness of the model."""

    name: str


class InferenceCodec:
    """The format of .../infer, a codec for service.predictions."""

    error_field = "error"
    default_content_type = JSON[1]  # the protocol knows no other, so its clients may omit it

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._width = len(schema.names)
        self._expected = {  # where the decoder's message would say too little, or quote the client
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
                ("datatype", Literal["FP64", "FP32"]),  # computed in FP32, logged as sent
                ("shape", tuple[Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS)], width]),
                ("data", list[float | list[float]]),
            ],
            frozen=True,
        )
        self._request = msgspec.defstruct(
            "InferenceRequest",
            [
                ("inputs", tuple[tensor]),  # type: ignore[valid-type]  # built at run time
                ("outputs", list[RequestOutput] | None, None),
                ("id", str | None, None),
            ],
            frozen=True,
        )
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self._request)

    def decode(self, body: bytes) -> tuple[Sequence[Row], Any]:
        """Return the rows of the input tensor, and the request. Raises RequestError (400)."""
        request = decode_json(self._decoder, body, 400, self._explain)
        return self._rows(request.inputs[0]), request

    def encode(self, answers: list[Answer], request: Any) -> bytes:
        """Return the requested output tensors, each of them once, in the order of the rows."""
        outputs = []
        for name in dict.fromkeys(output.name for output in request.outputs or ()) or OUTPUTS:
            datatype, value = OUTPUTS[name]
            outputs.append(ResponseOutput(name, datatype, (len(answers),), [value(answer) for answer in answers]))
        first = answers[0]
        return msgspec.json.encode(InferenceResponse(first.model, first.version, outputs, request.id))

    def openapi(self) -> dict[str, Any]:
        """Return the JSON schemas of request and response, for #/components/schemas."""
        return components(self._request, InferenceResponse)

    def _explain(self, error: msgspec.ValidationError) -> str:
        """Return which part of the request is wrong and why, without quoting the client."""
        message, at, path = str(error).rpartition(" - at `$.")  # the last one: the message may quote the client
        if not at:
            return plain(path)
        path = re.sub(r"(shape)\[.\]|`", r"\1", path)
        if expected := self._expected.get(re.sub(r"\d+", "", path)):
            return f"{path}: expected {expected}"
        if "`data`" in message:
            return (
                f"{path}: data is missing; tensors must be JSON, the binary tensor data extension is not supported"
            )
        return f"{path}: {plain(message)}"

    def _rows(self, tensor: Any) -> Sequence[Row]:
        count, _ = tensor.shape
        data = tensor.data
        if data and isinstance(data[0], float):  # flat, in row-major order
            if len(data) != count * self._width:
                raise RequestError(
                    400, f"inputs[0].data: shape requires {count * self._width} values, got {len(data)}"
                )
            data = [data[start : start + self._width] for start in range(0, len(data), self._width)]
        try:
            rows: Sequence[Row] = msgspec.convert(data, self._schema.rows)
        except msgspec.ValidationError as error:
            raise RequestError(400, f"inputs[0].data{self._explain_row(error)}") from None
        if len(rows) != count:
            raise RequestError(400, f"inputs[0].data: shape requires {count} rows, got {len(rows)}")
        return rows

    def _explain_row(self, error: msgspec.ValidationError) -> str:
        message, _, path = str(error).partition(" - at ")
        place = ""
        indices = re.findall(r"\d+", path)  # none, the row's, or the row's and the column's
        if indices:
            place = f", row {indices[0]}"
        if len(indices) > 1:
            place += f" ({self._schema.names[int(indices[1])]})"
        return f"{place}: {plain(message)}"


def addresses(metadata: ModelMetadata) -> tuple[str, str]:
    """Return the model's paths: without its version, and with it."""
    model = f"/v2/models/{metadata.name}"
    return model, f"{model}/versions/{metadata.version}"


def example(metadata: ModelMetadata) -> dict[str, Any]:
    """Return a request with the model's first golden vector."""
    row = metadata.golden[0].features
    return {"inputs": [{"name": INPUT, "datatype": "FP64", "shape": [1, len(row)], "data": row}]}


def not_found(metadata: ModelMetadata) -> str:
    """Return the error for a path, model or version that does not exist; it names the model that does."""
    return (
        f"not found: the only model here is {metadata.name}, version {metadata.version}; "
        f"GET {addresses(metadata)[0]} describes it"
    )


def endpoints(metadata: ModelMetadata, check_ready: Callable[[], None]) -> APIRouter:
    """Return all endpoints of the protocol except for inference. `check_ready` is that of Service."""
    router = APIRouter()
    unavailable: dict[int | str, dict[str, Any]] = {503: {"model": ProtocolError, "description": "Not ready now."}}

    @router.get("/v2")
    @router.get("/v2/", include_in_schema=False)  # the path in the published OpenAPI document
    async def server_metadata() -> ServerMetadata:
        """Return the server's name and version."""
        return ServerMetadata(name=metadata.name, version=metadata.version, extensions=[])

    @router.get("/v2/health/live")
    async def server_live() -> ServerLive:
        """Report that the process responds. Checks nothing else."""
        return ServerLive(live=True)

    @router.get("/v2/health/ready", responses=unavailable)
    async def server_ready() -> ServerReady:
        """Report whether this process should get requests, as /readyz does."""
        check_ready()
        return ServerReady(ready=True)

    async def model_metadata() -> ModelMetadataResponse:
        """Return the model's inputs and outputs."""
        return ModelMetadataResponse(
            name=metadata.name,
            versions=[metadata.version],
            platform=PLATFORM,
            inputs=[TensorMetadata(name=INPUT, datatype="FP64", shape=[-1, len(metadata.features)])],
            outputs=[
                TensorMetadata(name=name, datatype=datatype, shape=[-1]) for name, (datatype, _) in OUTPUTS.items()
            ],
        )

    async def model_ready() -> ModelReady:
        """Report whether the model should get requests: it is ready when its process is."""
        check_ready()
        return ModelReady(name=metadata.name, ready=True)

    for address in addresses(metadata):
        router.add_api_route(address, model_metadata)
        router.add_api_route(f"{address}/ready", model_ready, responses=unavailable)
    return router
