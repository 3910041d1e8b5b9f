"""Load a model folder, verify it against its digest and its golden vectors, and predict with it."""

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads this on import
import onnxruntime

from service.model_metadata import ModelError, read_bytes, read_model_metadata

REMEDY = "rewrite the folder with `python -m pipeline export`"


class Model:
    """A verified model. It predicts rows in the order of `metadata.features`, from any thread."""

    def __init__(self, folder: Path) -> None:
        """Load and verify `folder`. Raises ModelError: unreadable, wrong digest, golden vectors not reproduced."""
        self.metadata = read_model_metadata(folder / "model.json")
        path = folder / "model.onnx"
        onnx = read_bytes(path)
        digest = hashlib.sha256(onnx).hexdigest()
        if digest != self.metadata.sha256:
            raise ModelError(f"{path} has sha256 {digest}, but model.json has {self.metadata.sha256}; {REMEDY}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # starting a second thread would take longer than predicting a row
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"{path} is not a model that onnxruntime can load: {_one_line(error)}") from error
        self._verify_golden(folder)

    def predict(self, rows: NDArray[np.float32]) -> tuple[list[int], list[float]]:
        """Return the class index of each row [n, features], and the probability of that class."""
        labels, probabilities = self._session.run(["label", "probabilities"], {"features": rows})
        return labels.tolist(), probabilities[np.arange(len(labels)), labels].tolist()

    def _verify_golden(self, folder: Path) -> None:
        golden = self.metadata.golden
        try:
            labels, probabilities = self.predict(np.array([row.features for row in golden], np.float32))
        except Exception as error:
            path = folder / "model.onnx"
            raise ModelError(f"{path} cannot predict its golden vectors: {_one_line(error)}") from error
        for number, (row, label, probability) in enumerate(zip(golden, labels, probabilities, strict=True)):
            close = abs(probability - row.probability) <= self.metadata.golden_tolerance  # false if it is NaN
            if label != row.prediction or not close:
                expected = f"expected class {row.prediction} with probability {row.probability:.6f}"
                got = f"got class {label} with {probability:.6f}"
                path = folder / "model.json"
                raise ModelError(
                    f"golden vector {number} of {path} is not reproduced: {expected}, {got}; {REMEDY}"
                )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
