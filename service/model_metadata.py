"""Read and check model.json, the metadata of the model beside it."""

from pathlib import Path
from typing import Annotated

import msgspec


class ModelError(Exception):
    """The model folder cannot be served; the message names the file or check that failed and the remedy."""


class Feature(msgspec.Struct, frozen=True):
    """An input column and the closed interval of values that it accepts."""

    name: str
    min: float
    max: float


class Golden(msgspec.Struct, frozen=True):
    """A row and the trained model's answer to it, recorded before the export to ONNX."""

    features: list[float]
    prediction: int
    probability: float


class Reference(msgspec.Struct, frozen=True):
    """The baseline for drift: the training rows, and out-of-fold answers to them."""

    features: list[list[float]]
    """The values of each feature, in the order of `ModelMetadata.features`."""
    predictions: list[int]
    """The number of answers of each class."""
    probabilities: list[float]
    """The probability of each answer."""


class ModelMetadata(msgspec.Struct, frozen=True):
    """The content of model.json, which the pipeline writes."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]  # the length of the log's column
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=50)]  # likewise
    run_id: str
    algorithm: str
    sha256: str
    features: list[Feature]
    classes: list[str]
    golden: list[Golden]
    golden_tolerance: Annotated[float, msgspec.Meta(gt=0)]
    """The largest accepted difference from a golden probability: onnxruntime computes in float32, scikit-learn in
    float64."""
    reference: Reference | None = None
    """None in model folders from before the reference was introduced."""


def read_bytes(path: Path) -> bytes:
    """Return the content of a file in the model folder. Raises ModelError."""
    try:
        return path.read_bytes()
    except OSError as error:
        remedy = "`python -m pipeline export` writes the model folder, and IRIS_MODEL_DIR is its path"
        raise ModelError(f"cannot read {path}: {error.strerror}; {remedy}") from error


def read_model_metadata(path: Path) -> ModelMetadata:
    """Return the content of that model.json. Raises ModelError if it is unreadable or inconsistent."""
    try:
        metadata = msgspec.json.decode(read_bytes(path), type=ModelMetadata)
    except msgspec.DecodeError as error:
        raise ModelError(f"{path} is not valid model metadata: {error}") from error
    # Each rule is checked only when those before it hold.
    if not metadata.features or not metadata.classes or not metadata.golden:
        problem = "must have at least one feature, one class and one golden vector"
    elif not (metadata.name.isprintable() and metadata.version.isprintable()):
        problem = "must have a printable name and version"
    elif not all(feature.min < feature.max for feature in metadata.features):
        problem = "has a feature whose min is not below its max"
    elif not all(row.prediction in range(len(metadata.classes)) for row in metadata.golden):
        problem = "has a golden vector whose class is not in classes"
    elif not all(_is_within_bounds(row.features, metadata.features) for row in metadata.golden):
        problem = "has a golden vector without exactly one value within bounds for each feature"
    elif metadata.reference and not _matches(metadata.reference, metadata):
        problem = "has a reference without values for each feature, a count for each class, or each probability"
    else:
        return metadata
    raise ModelError(f"{path} {problem}")


def _is_within_bounds(row: list[float], features: list[Feature]) -> bool:
    return len(row) == len(features) and all(
        feature.min <= value <= feature.max for feature, value in zip(features, row, strict=True)
    )


def _matches(reference: Reference, metadata: ModelMetadata) -> bool:
    return (
        len(reference.features) == len(metadata.features)
        and all(reference.features)
        and len(reference.predictions) == len(metadata.classes)
        and min(reference.predictions) >= 0
        and sum(reference.predictions) == len(reference.probabilities) > 0
    )
