"""Export to ONNX, and the parity check against scikit-learn."""

import warnings
from textwrap import shorten
from typing import NamedTuple

import numpy as np
import onnxruntime
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.pipeline import Pipeline

from pipeline.data import HIGH, LOW, STEP, Floats, Ints
from pipeline.dataset import FEATURES, MODEL_NAME
from pipeline.errors import PipelineError

OPSET = 17  # ONNX 1.12 (2022): supported by every runtime in use, and sufficient for these models
RANDOM_ROWS = 1000
TOLERANCE = 1e-5  # of a probability: float32 holds about seven digits, and the computation loses some of them


class Parity(NamedTuple):
    """Differences between the answers of the ONNX model and those of scikit-learn."""

    rows: int
    wrong_labels: int
    difference: float  # largest absolute difference between two probabilities


def convert(model: Pipeline) -> bytes:
    """Return a fitted model as ONNX.

    Input `features`, float32 [N, features]; outputs `label`, int64 [N], and `probabilities`, float32 [N, classes].
    """
    with warnings.catch_warnings():
        # skl2onnx 1.20 reads attributes of SVC that scikit-learn 1.9 deprecates; they are empty here.
        warnings.filterwarnings("ignore", "Attribute `prob[AB]_`", FutureWarning)
        try:
            proto = convert_sklearn(
                model,
                name=MODEL_NAME,  # the default is random, and no two exports would have the same bytes
                initial_types=[("features", FloatTensorType([None, len(FEATURES)]))],
                options={"zipmap": False},
                target_opset=OPSET,
            )
        except (RuntimeError, NotImplementedError, NameError, ValueError) as error:
            name, reason = type(model[-1]).__name__, shorten(str(error), 200, placeholder=" ...")
            raise PipelineError(
                f"skl2onnx cannot convert {name}: {reason} Choose another estimator in pipeline/candidates.py"
            ) from error
    return bytes(proto.SerializeToString())


def predict(onnx: bytes, features: Floats) -> tuple[Ints, Floats]:
    """Return the ONNX model's labels [N] and probabilities [N, classes] for rows [N, features]."""
    options = onnxruntime.SessionOptions()
    # One thread, as in the service, so that the forest sums its votes in a fixed order. With more threads, partial
    # sums round differently, and a tie of 48 votes against 48 may go either way.
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    labels, probabilities = session.run(["label", "probabilities"], {"features": features.astype(np.float32)})
    return labels, probabilities.astype(np.float64)


def as_float32(features: Floats) -> Floats:
    """Round to values that float32 can represent, so that both models get exactly the same row."""
    return features.astype(np.float32).astype(np.float64)


def random_rows(seed: int) -> Floats:
    """Draw rows [1000, features] within bounds, on a grid of half of each feature's step.

    A tree's thresholds lie on this grid, halfway between two measured values. The rows hit thresholds exactly, so
    the parity check notices a threshold that is rounded the wrong way.
    """
    points_per_unit = 2 / STEP
    drawn = np.random.RandomState(seed).uniform(LOW, HIGH, (RANDOM_ROWS, len(FEATURES)))
    on_grid: Floats = np.round(drawn * points_per_unit) / points_per_unit
    return on_grid


def compare(model: Pipeline, onnx: bytes, features: Floats) -> Parity:
    """Compare the answers of both models for rows [N, features]."""
    rows = as_float32(features)
    labels, probabilities = predict(onnx, rows)
    return Parity(
        rows=len(rows),
        wrong_labels=int(np.sum(labels != model.predict(rows))),
        difference=float(np.abs(probabilities - model.predict_proba(rows)).max()),
    )
