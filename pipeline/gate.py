"""The quality gate: which candidate wins, and whether it may be registered."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.evaluation import Evaluation
from pipeline.names import Algorithm
from pipeline.onnx_export import TOLERANCE, Parity

TIE = 1e-9  # candidates whose F1 differs by no more than this are equal


class GateMetrics(NamedTuple):
    """The metrics that the gate compares: cross-validated macro F1, and accuracy on the test rows."""

    cv_f1: float
    test_accuracy: float


# Guessing scores 0.33, and telling only setosa apart scores 0.67. Whatever the split, a sound model has at most
# three errors in thirty rows and a cross-validated F1 above 0.92 (docs/MODEL_CARD.md, Limitations).
FLOOR = GateMetrics(cv_f1=0.90, test_accuracy=0.90)
# A single flower must not decide: it weighs 1/120 in cross-validation and 1/30 in the test.
MARGIN = GateMetrics(cv_f1=0.01, test_accuracy=0.034)


def choose(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the candidate with the highest cross-validated macro F1; among equals, the first in Algorithm."""
    best = max(evaluation.cv.f1 for evaluation in evaluations)
    equals = [evaluation for evaluation in evaluations if best - evaluation.cv.f1 <= TIE]
    return min(equals, key=lambda evaluation: list(Algorithm).index(evaluation.algorithm))


def metrics(evaluation: Evaluation) -> GateMetrics:
    """Return the metrics of a candidate that the gate compares."""
    return GateMetrics(evaluation.cv.f1, evaluation.test.accuracy)


def check(candidate: GateMetrics, best: GateMetrics | None, parity: Parity) -> list[str]:
    """Return the reasons to reject the candidate; it may be registered if the list is empty.

    `best` has the best metrics of the versions that were measured on the same data; None skips the comparison. If
    the candidate were compared with the newest version only, each could be a margin worse than the last.
    """
    reasons = []
    # The comparisons are negated so that they reject NaN, which compares false with everything.
    for name, value, floor in zip(GateMetrics._fields, candidate, FLOOR, strict=True):
        if not value >= floor:
            reasons.append(f"{name} is {value:.3f}, below the floor of {floor:.3f}")
    if best is not None:
        for name, value, highest, margin in zip(GateMetrics._fields, candidate, best, MARGIN, strict=True):
            if not value >= highest - margin:
                below = f"more than {margin:.3f} below the best version's {highest:.3f}"
                reasons.append(f"{name} is {value:.3f}, {below}")
    if parity.wrong_labels:
        reasons.append(f"the ONNX model labels {parity.wrong_labels} of {parity.rows} rows differently")
    if not parity.difference <= TOLERANCE:
        difference = f"differs by {parity.difference:.1e}, more than {TOLERANCE:.0e}"
        reasons.append(f"a probability of the ONNX model {difference}")
    return reasons
