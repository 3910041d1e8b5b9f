"""model.json: what the registry knows of the model beside it."""

from pathlib import Path
from typing import Annotated

import msgspec


class ModelError(Exception):
    """The folder cannot be served; the message says which file or check failed and what to do."""


class Feature(msgspec.Struct, frozen=True):
    """One input column and the closed interval of values that the model was made for."""

    name: str
    min: float
    max: float


class Golden(msgspec.Struct, frozen=True):
    """A row with the answer that the trained model gave before its export."""

    features: list[float]
    prediction: int
    probability: float


class Reference(msgspec.Struct, frozen=True):
    """What traffic is compared with: training rows, and answers to them by models that had not seen them."""

    features: list[list[float]]
    """The values of each feature, in the order of `Facts.features`."""
    predictions: list[int]
    """How often each class was the answer."""
    probabilities: list[float]
    """The probability of each answer."""


class Facts(msgspec.Struct, frozen=True):
    """model.json: what the registry knows of the model beside it. The pipeline writes it."""

    name: str
    version: str
    run_id: str
    algorithm: str
    sha256: str
    features: list[Feature]
    classes: list[str]
    golden: list[Golden]
    golden_tolerance: Annotated[float, msgspec.Meta(gt=0)]
    """How far a probability may be from the golden one: float32 arithmetic is not scikit-learn's float64."""
    reference: Reference | None = None
    """None in a folder that was written before there was one."""


def read_bytes(path: Path) -> bytes:
    """Return what the file of a model folder holds. Raises ModelError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot read {path}: {error.strerror}; `python -m pipeline export` writes the model folder, "
            "IRIS_MODEL_DIR says where it is"
        ) from error


def read_facts(path: Path) -> Facts:
    """Return what that model.json says. Raises ModelError: unreadable, or contradictory."""
    try:
        facts = msgspec.json.decode(read_bytes(path), type=Facts)
    except msgspec.DecodeError as error:
        raise ModelError(f"{path} is not a model description: {error}") from error
    for field, value, longest in (("name", facts.name, 255), ("version", facts.version, 50)):
        if not (0 < len(value) <= longest and value.isprintable()):
            raise ModelError(f"{path} has a {field} that the log's column cannot hold: 1 to {longest} characters")
    if not facts.features or not facts.classes or not facts.golden:
        raise ModelError(f"{path} must name at least one feature, one class and one golden vector")
    if not all(0 <= row.prediction < len(facts.classes) for row in facts.golden):
        raise ModelError(f"{path} has a golden vector of a class that it does not name")
    if not all(feature.min < feature.max for feature in facts.features):
        raise ModelError(f"{path} has a feature whose lower bound is not below its upper bound")
    if not all(_within(facts.features, row.features) for row in facts.golden):
        raise ModelError(f"{path} has a golden vector that is not one value within the bounds for each feature")
    if facts.reference and not _describes(facts.reference, facts):
        raise ModelError(
            f"{path} has a reference without values for each feature, a count for each class, or a probability "
            "for each answer"
        )
    return facts


def _within(features: list[Feature], row: list[float]) -> bool:
    return len(row) == len(features) and all(
        feature.min <= value <= feature.max for feature, value in zip(features, row, strict=True)
    )


def _describes(reference: Reference, facts: Facts) -> bool:
    return (
        len(reference.features) == len(facts.features)
        and all(reference.features)
        and len(reference.predictions) == len(facts.classes)
        and min(reference.predictions) >= 0
        and sum(reference.predictions) == len(reference.probabilities) > 0
    )
