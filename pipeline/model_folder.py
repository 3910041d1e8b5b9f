"""The model folder: the contract with the service, written so that nobody ever sees half of it."""

import hashlib
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import NotRequired, TypedDict

import numpy as np
from sklearn.base import clone

from pipeline.data import Data
from pipeline.dataset import CLASSES, FEATURES
from pipeline.errors import PipelineError
from pipeline.evaluation import Evaluation, folds
from pipeline.onnx_export import TOLERANCE, answer, as_float32

MODEL, DOCUMENT = "model.onnx", "model.json"
LIBRARIES = ("scikit-learn", "skl2onnx", "onnx", "mlflow")


class FolderError(PipelineError):
    """The folder must not be written."""


class Bounds(TypedDict):
    """A feature, and the values that the service accepts, both ends included."""

    name: str
    min: float
    max: float


class Golden(TypedDict):
    """A test row, the label that scikit-learn gave it, and that label's probability."""

    features: list[float]
    prediction: int
    probability: float


class Reference(TypedDict):
    """What traffic is compared with: training rows, and answers to them by models that had not seen them."""

    features: list[list[float]]  # [features, training rows] values, ascending
    predictions: list[int]  # [classes] answers
    probabilities: list[float]  # of the answers, ascending


class Facts(TypedDict):
    """What is known of a model before the registry numbers it."""

    algorithm: str
    sha256: str  # of model.onnx, in hex
    features: list[Bounds]
    classes: list[str]
    metrics: dict[str, float]  # on the test rows
    libraries: dict[str, str]
    golden: list[Golden]
    reference: NotRequired[Reference]  # older versions have none


class Document(Facts):
    """model.json: the facts, the model's place in the registry, and how near its answers have to come."""

    name: str
    version: str
    run_id: str
    golden_tolerance: float  # on a golden probability


def facts(evaluation: Evaluation, data: Data, onnx: bytes) -> Facts:
    """Describe a candidate and its ONNX form."""
    return Facts(
        algorithm=evaluation.algorithm.value,
        sha256=digest(onnx),
        features=[Bounds(name=feature.name, min=feature.low, max=feature.high) for feature in FEATURES],
        classes=list(CLASSES),
        metrics=evaluation.test._asdict(),
        libraries={"python": python_version()} | {name: version(name) for name in LIBRARIES},
        golden=golden(evaluation, data),
        reference=reference(evaluation, data),
    )


def golden(evaluation: Evaluation, data: Data) -> list[Golden]:
    """Return what the scikit-learn model answers for the test rows."""
    rows = data.features[data.test_rows]
    labels = evaluation.model.predict(as_float32(rows))
    probabilities = evaluation.model.predict_proba(as_float32(rows))
    return [
        Golden(features=row.tolist(), prediction=int(label), probability=float(probability[label]))
        for row, label, probability in zip(rows, labels, probabilities, strict=True)
    ]


def reference(evaluation: Evaluation, data: Data) -> Reference:
    """Return the training rows by feature, and what clones of the model answer to the fold that they did not see.

    On the rows that it was fitted on the model is surer of itself than it will ever be again, and the test rows
    alone would let a large shift pass for chance.
    """
    x, y = data.features[data.train_rows], data.labels[data.train_rows]
    probabilities = np.empty((len(x), len(CLASSES)))
    for rest, held in folds(x, y):
        probabilities[held] = clone(evaluation.model).fit(x[rest], y[rest]).predict_proba(as_float32(x[held]))
    return Reference(
        features=np.sort(x, axis=0).T.tolist(),
        predictions=np.bincount(probabilities.argmax(axis=1), minlength=len(CLASSES)).tolist(),
        probabilities=np.sort(probabilities.max(axis=1)).tolist(),
    )


def digest(onnx: bytes) -> str:
    """Return the SHA-256 of the bytes, in hex."""
    return hashlib.sha256(onnx).hexdigest()


def verify(onnx: bytes, sha256: str, facts: Facts) -> None:
    """Raise FolderError unless the bytes have that digest and give every golden answer."""
    if digest(onnx) != sha256:
        raise FolderError(
            f"{MODEL} was changed after it was registered: its digest is {digest(onnx)}, recorded is {sha256}. "
            "Do not serve it; export another version, or train anew with: python -m pipeline"
        )
    labels, probabilities = answer(onnx, np.array([vector["features"] for vector in facts["golden"]]))
    for vector, label, probability in zip(facts["golden"], labels, probabilities, strict=True):
        wanted = vector["prediction"]
        if label != wanted or not abs(probability[wanted] - vector["probability"]) <= TOLERANCE:
            raise FolderError(
                f"{MODEL} does not give the golden answer for {vector['features']}: wanted {wanted} with "
                f"{vector['probability']:.6f}, got {label} with {probability[label]:.6f}. "
                "Do not serve it; train anew with: python -m pipeline"
            )


def write(out: Path, onnx: bytes, document: Document) -> None:
    """Put the model into the folder out; a reader meets the old folder, for an instant none, or the new one."""
    refuse_other(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Aside, but beside: a rename brings a folder in whole only within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as aside:
        new = Path(aside) / "new"
        new.mkdir()
        (new / MODEL).write_bytes(onnx)
        (new / DOCUMENT).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        if out.exists():
            out.rename(Path(aside) / "old")
        new.rename(out)


def refuse_other(out: Path) -> None:
    """Raise FolderError if out is there and is anything but a model folder: writing would delete it."""
    if out.exists() and (not out.is_dir() or {entry.name for entry in out.iterdir()} - {MODEL, DOCUMENT}):
        raise FolderError(f"{out} is not a model folder, and would be replaced. Give another one with --out")
