"""The model folder: read, verified against its own digest and golden vectors, and asked for predictions."""

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported; it would report to its makers
import onnxruntime

from service.facts import ModelError, read_bytes, read_facts


class Model:
    """A verified model; it answers rows in the order of `facts.features`, in any thread."""

    def __init__(self, folder: Path) -> None:
        """Load and verify `folder`. Raises ModelError: unreadable, wrong digest, another golden answer."""
        self.facts = read_facts(folder / "model.json")
        onnx = read_bytes(folder / "model.onnx")
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
            if label != row.prediction or not abs(probability - row.probability) <= self.facts.golden_tolerance:
                raise ModelError(
                    f"golden vector {number} of {folder / 'model.json'} is not reproduced: expected class "
                    f"{row.prediction} with probability {row.probability:.6f}, got {label} with "
                    f"{probability:.6f}; write the folder anew with `python -m pipeline export`"
                )


def _say(error: Exception) -> str:
    return " ".join(str(error).split())
