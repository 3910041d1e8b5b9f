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

    name: str
    version: str
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
        raise ModelError(
            f"cannot read {path}: {error.strerror}; `python -m pipeline export` writes the model folder, and "
            "IRIS_MODEL_DIR is its path"
        ) from error


def read_model_metadata(path: Path) -> ModelMetadata:
    """Return the content of that model.json. Raises ModelError if it is unreadable or inconsistent."""
    try:
        metadata = msgspec.json.decode(read_bytes(path), type=ModelMetadata)
    except msgspec.DecodeError as error:
        raise ModelError(f"{path} is not valid model metadata: {error}") from error
    for field, value, longest in (("name", metadata.name, 255), ("version", metadata.version, 50)):
        if not (0 < len(value) <= longest and value.isprintable()):
            raise ModelError(
                f"{path}: {field} must be 1 to {longest} printable characters, to fit the log's column"
            )
    if not metadata.features or not metadata.classes or not metadata.golden:
        raise ModelError(f"{path} must have at least one feature, one class and one golden vector")
    if not all(0 <= row.prediction < len(metadata.classes) for row in metadata.golden):
        raise ModelError(f"{path} has a golden vector whose class is not in classes")
    if not all(feature.min < feature.max for feature in metadata.features):
        raise ModelError(f"{path} has a feature whose min is not below its max")
    if not all(_is_within_bounds(row.features, metadata.features) for row in metadata.golden):
        raise ModelError(f"{path} has a golden vector without exactly one value within bounds for each feature")
    if metadata.reference and not _matches(metadata.reference, metadata):
        raise ModelError(
            f"{path} has a reference without values for each feature, a count for each class, or a probability "
            "for each answer"
        )
    return metadata


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
