"""The one definition of what /predict and /predict/batch take and give; /docs describes these very types."""

from typing import Annotated, Any

import msgspec

from service.facts import Feature

MAX_BODY_BYTES = 64 * 1024
MAX_ROWS = 1000

Row = tuple[float, ...]


class Answer(msgspec.Struct, frozen=True):
    """One prediction, and the model that made it."""

    prediction: Annotated[int, msgspec.Meta(ge=0, description="index of the class")]
    class_name: Annotated[str, msgspec.Meta(description="name of the class")] = msgspec.field(name="class")
    probability: Annotated[float, msgspec.Meta(ge=0, le=1, description="probability of that class")]
    latency_ms: Annotated[float, msgspec.Meta(ge=0, description="from the request's arrival to the prediction")]
    model: str
    version: str
    request_id: Annotated[str, msgspec.Meta(description="UUID; the prediction's key in the log")]


class Answers(msgspec.Struct, frozen=True):
    """The predictions for a batch, in the order of its rows."""

    count: int
    predictions: list[Answer]


class Problem(msgspec.Struct, frozen=True):
    """What every answer other than 2xx says."""

    detail: Annotated[str, msgspec.Meta(description="which part of the request is wrong, and why")]


class Record(msgspec.Struct, frozen=True):
    """A prediction on its way to the log; the names are those that database.INSERT reads."""

    request_id: str
    model_name: str
    model_version: str
    features: Row
    prediction: int
    probability: float
    latency_ms: float
    time: float
    """Arrival of the request, seconds since the epoch."""


class Schema:
    """The request types of a model: they follow from its features and their bounds."""

    def __init__(self, features: list[Feature]) -> None:
        self.names = [feature.name for feature in features]
        row = tuple[  # type: ignore[misc, valid-type]  # built from data
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
        """Return the JSON schemas of all types here, to stand under #/components/schemas."""
        _, components = msgspec.json.schema_components(
            [self.one, self.batch, Answer, Answers, Problem], ref_template="#/components/schemas/{name}"
        )
        return components

    def explain(self, error: msgspec.ValidationError, request: type[msgspec.Struct]) -> str:
        """Say which field of that request is wrong and why, by name and without anything the client sent."""
        message, _, path = str(error).partition(" - at `$.")
        if "unknown field" in message:
            return "unknown field in the body; the only field is features"  # its name is the client's text
        if not path:
            return message.replace("`", "")
        path = path.removesuffix("`")
        _, *indices = path.replace("]", "").split("[")
        of_a_value = len(indices) == (1 if request is self.one else 2)
        name = f" ({self.names[int(indices[-1])]})" if of_a_value else ""
        return f"{path}{name}: {message[:1].lower()}{message[1:]}".replace("`", "")
