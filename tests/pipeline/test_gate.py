"""The gate: which candidate it chooses, and where exactly it begins to reject."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import gate
from pipeline.evaluation import Evaluation
from pipeline.gate import FLOOR, MARGIN, GateMetrics
from pipeline.names import Algorithm
from pipeline.onnx_export import TOLERANCE, Parity

GOOD = GateMetrics(cv_f1=0.96, test_accuracy=29 / 30)
IN_PARITY = Parity(rows=1150, wrong_labels=0, difference=1e-7)

metrics = st.builds(GateMetrics, st.floats(0, 1), st.floats(0, 1))


def test_a_good_model_passes_with_and_without_a_production_version() -> None:
    assert gate.check(GOOD, None, IN_PARITY) == []
    assert gate.check(GOOD, GOOD, IN_PARITY) == []


@pytest.mark.parametrize("name", GateMetrics._fields)
def test_a_metric_at_its_floor_passes_and_one_below_is_rejected(name: str) -> None:
    at = GOOD._replace(**{name: getattr(FLOOR, name)})
    below = GOOD._replace(**{name: math.nextafter(getattr(FLOOR, name), 0)})
    assert gate.check(at, None, IN_PARITY) == []
    assert gate.check(below, None, IN_PARITY) == [f"{name} is 0.900, below the floor of 0.900"]


def test_three_errors_in_thirty_rows_pass_and_four_are_rejected() -> None:
    assert gate.check(GateMetrics(0.96, 27 / 30), None, IN_PARITY) == []
    assert gate.check(GateMetrics(0.96, 26 / 30), None, IN_PARITY) == [
        "test_accuracy is 0.867, below the floor of 0.900"
    ]


def test_one_flower_below_production_passes_and_two_are_rejected() -> None:
    production = GateMetrics(cv_f1=1.0, test_accuracy=1.0)
    assert gate.check(GateMetrics(119 / 120, 29 / 30), production, IN_PARITY) == []
    assert gate.check(GateMetrics(118 / 120, 28 / 30), production, IN_PARITY) == [
        "cv_f1 is 0.983, more than 0.010 below the best version's 1.000",
        "test_accuracy is 0.933, more than 0.034 below the best version's 1.000",
    ]


def test_a_single_different_label_is_rejected() -> None:
    assert gate.check(GOOD, None, IN_PARITY._replace(wrong_labels=1)) == [
        "the ONNX model labels 1 of 1150 rows differently"
    ]


def test_a_probability_at_the_tolerance_passes_and_one_beyond_is_rejected() -> None:
    assert gate.check(GOOD, None, IN_PARITY._replace(difference=TOLERANCE)) == []
    assert gate.check(GOOD, None, IN_PARITY._replace(difference=1.1e-5)) == [
        "a probability of the ONNX model differs by 1.1e-05, more than 1e-05"
    ]


@pytest.mark.parametrize(
    ("candidate", "production", "parity"),
    [
        (GOOD._replace(cv_f1=math.nan), None, IN_PARITY),
        (GOOD._replace(test_accuracy=math.nan), None, IN_PARITY),
        (GOOD, GOOD._replace(cv_f1=math.nan), IN_PARITY),
        (GOOD, None, IN_PARITY._replace(difference=math.nan)),
    ],
)
def test_nan_is_rejected(candidate: GateMetrics, production: GateMetrics | None, parity: Parity) -> None:
    assert gate.check(candidate, production, parity)


@given(candidate=metrics, production=st.none() | metrics, better=metrics)
def test_a_better_metric_never_adds_a_reason(
    candidate: GateMetrics, production: GateMetrics | None, better: GateMetrics
) -> None:
    improved = GateMetrics(*map(max, candidate, better))
    assert len(gate.check(improved, production, IN_PARITY)) <= len(gate.check(candidate, production, IN_PARITY))


@given(candidate=metrics, production=metrics)
def test_a_passing_model_meets_the_floor_and_the_margin(candidate: GateMetrics, production: GateMetrics) -> None:
    if not gate.check(candidate, production, IN_PARITY):
        assert all(value >= floor for value, floor in zip(candidate, FLOOR, strict=True))
        assert all(v >= current - m for v, current, m in zip(candidate, production, MARGIN, strict=True))


def test_cross_validation_decides_and_not_the_test_rows(
    evaluations: dict[Algorithm, Evaluation],
) -> None:
    best_cv = with_f1(evaluations[Algorithm.RANDOM_FOREST], 0.97)
    best_test = with_f1(evaluations[Algorithm.SVM], 0.96, test=1.0)
    assert gate.choose([best_test, best_cv]) is best_cv


def test_the_simplest_of_equal_candidates_is_chosen_in_any_order(
    evaluations: dict[Algorithm, Evaluation],
) -> None:
    regression, svm, forest = (with_f1(evaluations[algorithm], 0.96) for algorithm in Algorithm)
    assert gate.choose([forest, svm, regression]) is regression
    assert gate.choose([forest, svm]) is svm


def test_a_difference_within_1e_9_is_a_tie(evaluations: dict[Algorithm, Evaluation]) -> None:
    regression = with_f1(evaluations[Algorithm.LOGISTIC_REGRESSION], 0.96)
    forest = evaluations[Algorithm.RANDOM_FOREST]
    tied, better = with_f1(forest, 0.96 + 5e-10), with_f1(forest, 0.96 + 2e-9)
    assert gate.choose([tied, regression]) is regression
    assert gate.choose([better, regression]) is better


def with_f1(evaluation: Evaluation, f1: float, test: float = 0.9) -> Evaluation:
    return replace(
        evaluation, cv=evaluation.cv._replace(f1=f1), test=evaluation.test._replace(accuracy=test, f1=test)
    )
