"""The model as ONNX, and the proof that it answers as scikit-learn does."""

import warnings
from typing import NamedTuple

import numpy as np
import onnxruntime
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.pipeline import Pipeline

from pipeline.data import HIGH, LOW, STEP, Floats, Ints
from pipeline.dataset import FEATURES, MODEL_NAME

OPSET = 17  # of ONNX 1.12, 2022: old enough for every runtime in use, and more than these models need
RANDOM_ROWS = 1000
TOLERANCE = 1e-5  # on a probability: float32 holds seven digits, and some are lost on the way


class Parity(NamedTuple):
    """How far the ONNX model's answers are from scikit-learn's."""

    rows: int
    wrong_labels: int
    difference: float  # the largest, of any probability


def convert(model: Pipeline) -> bytes:
    """Return a fitted model as ONNX.

    Input `features`, float32 [N, features]; outputs `label`, int64 [N], and `probabilities`, float32 [N, classes].
    """
    with warnings.catch_warnings():
        # skl2onnx 1.20 reads an attribute of SVC that scikit-learn 1.9 deprecates; it is empty here.
        warnings.filterwarnings("ignore", "Attribute `prob[AB]_`", FutureWarning)
        proto = convert_sklearn(
            model,
            name=MODEL_NAME,  # left out, it is random, and no two exports have the same bytes
            initial_types=[("features", FloatTensorType([None, len(FEATURES)]))],
            options={"zipmap": False},
            target_opset=OPSET,
        )
    return bytes(proto.SerializeToString())


def answer(onnx: bytes, features: Floats) -> tuple[Ints, Floats]:
    """Ask the ONNX model about rows [N, features]; return labels [N] and probabilities [N, classes]."""
    options = onnxruntime.SessionOptions()
    # One thread, as in the service: the hundred trees then vote in order. With more, partial sums round
    # differently, and between two classes of 48 votes each the label is a matter of luck.
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    labels, probabilities = session.run(["label", "probabilities"], {"features": features.astype(np.float32)})
    return labels, probabilities.astype(np.float64)


def as_float32(features: Floats) -> Floats:
    """Round to numbers that float32 holds, so that both models are asked about the same row."""
    return features.astype(np.float32).astype(np.float64)


def random_rows(seed: int) -> Floats:
    """Draw rows [1000, features] within bounds, on a grid of half the step in which each feature comes.

    That is where a tree's thresholds lie, halfway between two rows of the data. These rows hit them exactly: a
    threshold rounded the wrong way sends them down the wrong branch.
    """
    halves = 2 / STEP  # in one unit of each feature
    drawn = np.random.RandomState(seed).uniform(LOW, HIGH, (RANDOM_ROWS, len(FEATURES)))
    on_grid: Floats = np.round(drawn * halves) / halves
    return on_grid


def compare(model: Pipeline, onnx: bytes, features: Floats) -> Parity:
    """Ask both models about rows [N, features] and measure how they differ."""
    rows = as_float32(features)
    labels, probabilities = answer(onnx, rows)
    return Parity(
        rows=len(rows),
        wrong_labels=int(np.sum(labels != model.predict(rows))),
        difference=float(np.abs(probabilities - model.predict_proba(rows)).max()),
    )
