"""The model folder: read, verified against its own digest and golden vectors, and asked for predictions."""

import hashlib
import os
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported; it would report to its makers
import onnxruntime

GOLDEN_TOLERANCE = 1e-5  # what float32 arithmetic may differ from scikit-learn's float64; the folder's contract


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


class Model:
    """A verified model; it answers rows in the order of `facts.features`, in any thread."""

    def __init__(self, folder: Path) -> None:
        """Load and verify `folder`. Raises ModelError: unreadable, wrong digest, another golden answer."""
        self.facts = _read_facts(folder / "model.json")
        onnx = _read(folder / "model.onnx")
        digest = hashlib.sha256(onnx).hexdigest()
        if digest != self.facts.sha256:
            raise ModelError(
                f"{folder / 'model.onnx'} has sha256 {digest}, but model.json says {self.facts.sha256}; "
                "write the folder anew with `python -m pipeline export`"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # one row needs no second thread, and threads cost more than the row
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(
                f"{folder / 'model.onnx'} is not a model onnxruntime can run: {_say(error)}"
            ) from error
        self._verify_golden(folder)

    def predict(self, rows: NDArray[np.float32]) -> tuple[list[int], list[float]]:
        """Return for rows (n, features) the n class indices and the n probabilities of those classes."""
        labels, probabilities = self._session.run(["label", "probabilities"], {"features": rows})
        return labels.tolist(), probabilities[np.arange(len(labels)), labels].tolist()

    def _verify_golden(self, folder: Path) -> None:
        golden = self.facts.golden
        try:
            labels, probabilities = self.predict(np.array([row.features for row in golden], np.float32))
        except Exception as error:
            raise ModelError(
                f"{folder / 'model.onnx'} does not answer its golden vectors: {_say(error)}"
            ) from error
        for number, (row, label, probability) in enumerate(zip(golden, labels, probabilities, strict=True)):
            if label != row.prediction or not abs(probability - row.probability) <= GOLDEN_TOLERANCE:
                raise ModelError(
                    f"golden vector {number} of {folder / 'model.json'} is not reproduced: expected class "
                    f"{row.prediction} with probability {row.probability:.6f}, got {label} with "
                    f"{probability:.6f}; write the folder anew with `python -m pipeline export`"
                )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot read {path}: {error.strerror}; `python -m pipeline export` writes the model folder, "
            "IRIS_MODEL_DIR says where it is"
        ) from error


def _read_facts(path: Path) -> Facts:
    try:
        facts = msgspec.json.decode(_read(path), type=Facts)
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
    return facts


def _within(features: list[Feature], row: list[float]) -> bool:
    return len(row) == len(features) and all(
        feature.min <= value <= feature.max for feature, value in zip(features, row, strict=True)
    )


def _say(error: Exception) -> str:
    return " ".join(str(error).split())
