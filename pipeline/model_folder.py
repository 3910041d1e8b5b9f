"""The model folder: the contract with the service, replaced as a whole so that no reader sees a partial folder."""

import hashlib
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import NotRequired, TypedDict

import numpy as np
from sklearn.model_selection import cross_val_predict

from pipeline.data import Data
from pipeline.dataset import CLASSES, FEATURES
from pipeline.errors import PipelineError
from pipeline.evaluation import Evaluation, folds
from pipeline.onnx_export import TOLERANCE, as_float32, predict

MODEL, METADATA = "model.onnx", "model.json"
LARGEST = 1_000_000  # bytes of model.json: a ConfigMap holds 1 MiB with its other fields
LIBRARIES = ("scikit-learn", "skl2onnx", "onnx", "mlflow")


class FolderError(PipelineError):
    """The model folder must not be written."""


class Bounds(TypedDict):
    """A feature and the range of values that the service accepts, both ends included."""

    name: str
    min: float
    max: float


class GoldenVector(TypedDict):
    """A test row, the label that scikit-learn predicts for it, and that label's probability."""

    features: list[float]
    prediction: int
    probability: float


class Reference(TypedDict):
    """The drift reference: the training rows, and out-of-fold predictions for them."""

    features: list[list[float]]  # [features, training rows], ascending for each feature
    predictions: list[int]  # how often each class was predicted
    probabilities: list[float]  # of the predicted classes, ascending


class ModelMetadata(TypedDict):
    """The metadata of a model that is not registered yet."""

    algorithm: str
    sha256: str  # of model.onnx, in hex
    features: list[Bounds]
    classes: list[str]
    metrics: dict[str, float]  # on the test rows
    libraries: dict[str, str]
    golden: list[GoldenVector]
    reference: NotRequired[Reference]  # older versions lack it


class RegisteredModelMetadata(ModelMetadata):
    """The content of model.json: the model's metadata, its place in the registry, and the golden tolerance."""

    name: str
    version: str
    run_id: str
    golden_tolerance: float  # of a golden probability


def describe(evaluation: Evaluation, data: Data, onnx: bytes) -> ModelMetadata:
    """Return the metadata of a candidate and its ONNX model."""
    return ModelMetadata(
        algorithm=evaluation.algorithm.value,
        sha256=digest(onnx),
        features=[Bounds(name=feature.name, min=feature.low, max=feature.high) for feature in FEATURES],
        classes=list(CLASSES),
        metrics=evaluation.test._asdict(),
        libraries={"python": python_version()} | {name: version(name) for name in LIBRARIES},
        golden=golden(evaluation, data),
        reference=reference(evaluation, data),
    )


def golden(evaluation: Evaluation, data: Data) -> list[GoldenVector]:
    """Return the scikit-learn model's answers for the test rows."""
    rows = data.features[data.test_rows]
    labels = evaluation.model.predict(as_float32(rows))
    probabilities = evaluation.model.predict_proba(as_float32(rows))
    return [
        GoldenVector(features=row.tolist(), prediction=int(label), probability=float(probability[label]))
        for row, label, probability in zip(rows, labels, probabilities, strict=True)
    ]


def reference(evaluation: Evaluation, data: Data) -> Reference:
    """Return the training rows by feature, and the model's out-of-fold predictions for them.

    The fitted model is more confident on its own training rows than on any traffic, so its answers for them cannot
    serve as a reference. The test rows alone are too few: chance would explain a large shift.
    """
    x, y = data.features[data.train_rows], data.labels[data.train_rows]
    probabilities = cross_val_predict(evaluation.model, x, y, cv=folds(x, y), method="predict_proba")
    return Reference(
        features=np.sort(x, axis=0).T.tolist(),
        predictions=np.bincount(probabilities.argmax(axis=1), minlength=len(CLASSES)).tolist(),
        probabilities=np.sort(probabilities.max(axis=1)).tolist(),
    )


def digest(onnx: bytes) -> str:
    """Return the SHA-256 of the bytes, in hex."""
    return hashlib.sha256(onnx).hexdigest()


def verify(onnx: bytes, sha256: str, metadata: ModelMetadata) -> None:
    """Check that the model has that digest and reproduces its golden vectors. Raises FolderError."""
    remedy = "Do not serve it; export another version, or train a new one: python -m pipeline"
    if (found := digest(onnx)) != sha256:
        raise FolderError(f"{MODEL} was changed after it was registered: SHA-256 {found}, not {sha256}. {remedy}")
    labels, probabilities = predict(onnx, np.array([vector["features"] for vector in metadata["golden"]]))
    for vector, label, probability in zip(metadata["golden"], labels, probabilities, strict=True):
        expected = vector["prediction"]
        if label != expected or not abs(probability[expected] - vector["probability"]) <= TOLERANCE:
            raise FolderError(
                f"{MODEL} does not reproduce the golden vector {vector['features']}: expected class {expected} "
                f"with probability {vector['probability']:.6f}, got class {label} with {probability[label]:.6f}. "
                + remedy
            )


def write(out: Path, onnx: bytes, metadata: RegisteredModelMetadata) -> None:
    """Write the model folder `out`; a reader sees the old folder, for an instant none, then the new folder."""
    require_model_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Staged in the parent folder, because a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as staging:
        new = Path(staging) / "new"
        new.mkdir()
        (new / MODEL).write_bytes(onnx)
        (new / METADATA).write_text(text(metadata), encoding="utf-8")
        if out.exists():
            out.rename(Path(staging) / "old")
        new.rename(out)


def text(metadata: ModelMetadata) -> str:
    """Return the content of model.json. Raises FolderError if it is too large to be delivered."""
    content = json.dumps(metadata, allow_nan=False, separators=(",", ":"), ensure_ascii=False) + "\n"
    if (size := len(content.encode())) > LARGEST:
        raise FolderError(
            f"{METADATA} would have {size:,} bytes, and {LARGEST:,} can be delivered: a ConfigMap hands it to the "
            "golden gate. Use fewer or rounded features, or fewer rows"
        )
    return content


def require_model_folder(out: Path) -> None:
    """Check that `out` does not exist or is a model folder, because writing deletes it. Raises FolderError."""
    if out.exists() and (not out.is_dir() or {entry.name for entry in out.iterdir()} - {MODEL, METADATA}):
        raise FolderError(f"{out} is not a model folder, and writing would delete it. Choose another with --out")
