"""The request and response types of /predict and /predict/batch, for decoding, encoding and /docs."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from service.model_metadata import Feature

MAX_ROWS = 1000

Row = tuple[float, ...]


def max_body_bytes(features: Sequence[Feature]) -> int:
    """Return the size limit of a request: MAX_ROWS rows of the longest floats, as json.dumps writes them."""
    longest = len("-2.2250738585072014e-308, ")
    envelope = 4096  # /predict/batch needs 15 bytes; a tensor has an id, which is the client's, and more names
    return MAX_ROWS * (longest * len(features) + len("[], ")) + envelope


class Answer(msgspec.Struct, frozen=True):
    """One prediction, and the model that made it."""

    prediction: Annotated[int, msgspec.Meta(ge=0, description="index of the class")]
    class_name: Annotated[str, msgspec.Meta(description="name of the class")] = msgspec.field(name="class")
    probability: Annotated[float, msgspec.Meta(ge=0, le=1, description="probability of that class")]
    latency_ms: Annotated[float, msgspec.Meta(ge=0, description="from the request's arrival to its prediction")]
    model: str
    version: str
    request_id: Annotated[str, msgspec.Meta(description="UUID; the prediction's key in the log")]


class Answers(msgspec.Struct, frozen=True):
    """The predictions for a batch, in the order of its rows."""

    count: int
    predictions: list[Answer]


class Record(msgspec.Struct, frozen=True):
    """A prediction as the journal stores it. database.INSERT reads its fields by name."""

    request_id: str
    model_name: str
    model_version: str
    features: Row
    prediction: int
    probability: float
    latency_ms: float
    time: float
    """Arrival of the request (seconds since the epoch)."""


class Schema:
    """The request types for a model, made from its features and their bounds."""

    def __init__(self, features: list[Feature]) -> None:
        self.names = [feature.name for feature in features]
        row = tuple[  # type: ignore[misc, valid-type]  # built at run time
            tuple(
                Annotated[float, msgspec.Meta(title=feature.name, ge=feature.min, le=feature.max)]
                for feature in features
            )
        ]
        self.rows = Annotated[list[row], msgspec.Meta(min_length=1, max_length=MAX_ROWS)]  # type: ignore[valid-type]
        self.one = msgspec.defstruct(
            "PredictRequest", [("features", row)], frozen=True, forbid_unknown_fields=True
        )
        self.batch = msgspec.defstruct(
            "BatchRequest", [("features", self.rows)], frozen=True, forbid_unknown_fields=True
        )

    def openapi(self) -> dict[str, Any]:
        """Return the JSON schemas of these types, for #/components/schemas."""
        return components(self.one, self.batch, Answer, Answers)

    def explain(self, error: msgspec.ValidationError, request: type[msgspec.Struct]) -> str:
        """Return which field is wrong and why, without quoting the client."""
        message, _, path = str(error).partition(" - at `$.")
        if "unknown field" in message:
            return "unknown field in the body; the only field is features"  # its name would quote the client
        if not path:
            return message.replace("`", "")
        path = path.removesuffix("`")
        _, *indices = path.replace("]", "").split("[")
        depth = 1 if request is self.one else 2  # of a single value: features[2], features[5][2]
        name = f" ({self.names[int(indices[-1])]})" if len(indices) == depth else ""
        return f"{path}{name}: {plain(message)}"


def components(*types: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the JSON schemas of these types, for #/components/schemas."""
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return schemas


def plain(message: str) -> str:
    """Return msgspec's message in the style of ours: without backquotes, starting in lower case."""
    return f"{message[:1].lower()}{message[1:]}".replace("`", "")
