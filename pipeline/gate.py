"""Which candidate wins, and whether it may be registered."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.evaluation import Evaluation
from pipeline.names import Algorithm
from pipeline.onnx_export import TOLERANCE, Parity

TIE = 1e-9


class Figures(NamedTuple):
    """What the gate compares: macro F1 by cross-validation, and accuracy on the test rows."""

    cv_f1: float
    test_accuracy: float


# Guessing gets 0.33 right, telling only setosa apart 0.67. However the rows are divided, a sound model has at most
# three of thirty wrong, and more than 0.92 in the folds (docs/MODEL_CARD.md, Limits).
FLOOR = Figures(cv_f1=0.90, test_accuracy=0.90)
# One flower decides nothing against the champion: it weighs 1/120 in the folds, 1/30 in the test.
MARGIN = Figures(cv_f1=0.01, test_accuracy=0.034)


def choose(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the best by cross-validated macro F1; of several within 1e-9, the first in Algorithm."""
    best = max(evaluation.cv.f1 for evaluation in evaluations)
    equals = [evaluation for evaluation in evaluations if best - evaluation.cv.f1 <= TIE]
    return min(equals, key=lambda evaluation: list(Algorithm).index(evaluation.algorithm))


def figures(evaluation: Evaluation) -> Figures:
    """Return the two figures of a candidate."""
    return Figures(evaluation.cv.f1, evaluation.test.accuracy)


def check(candidate: Figures, champion: Figures | None, parity: Parity) -> list[str]:
    """Return the reasons to refuse the candidate: none, and it may be registered."""
    return _below_floor(candidate) + _worse(candidate, champion or candidate) + _unfaithful(parity)


# The comparisons are written so that NaN, which compares false with everything, is refused.
def _below_floor(candidate: Figures) -> list[str]:
    return [
        f"{name} is {value:.3f}, below the floor of {floor:.3f}"
        for name, value, floor in zip(Figures._fields, candidate, FLOOR, strict=True)
        if not value >= floor
    ]


def _worse(candidate: Figures, champion: Figures) -> list[str]:
    return [
        f"{name} is {value:.3f}, more than {margin:.3f} below the champion's {held:.3f}"
        for name, value, held, margin in zip(Figures._fields, candidate, champion, MARGIN, strict=True)
        if not value >= held - margin
    ]


def _unfaithful(parity: Parity) -> list[str]:
    reasons = []
    if parity.wrong_labels:
        reasons.append(f"as ONNX, {parity.wrong_labels} of {parity.rows} rows get another label")
    if not parity.difference <= TOLERANCE:
        reasons.append(f"as ONNX, a probability differs by {parity.difference:.1e}, more than {TOLERANCE:.0e}")
    return reasons
