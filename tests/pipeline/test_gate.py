"""The gate: what passes, what is refused, and where exactly the line is."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import gate
from pipeline.evaluation import Evaluation
from pipeline.gate import FLOOR, MARGIN, Figures
from pipeline.names import Algorithm
from pipeline.onnx_export import TOLERANCE, Parity

GOOD = Figures(cv_f1=0.96, test_accuracy=29 / 30)
FAITHFUL = Parity(rows=1150, wrong_labels=0, difference=1e-7)

figures = st.builds(Figures, st.floats(0, 1), st.floats(0, 1))


def test_a_good_and_faithful_model_passes_with_and_without_a_champion() -> None:
    assert gate.check(GOOD, None, FAITHFUL) == []
    assert gate.check(GOOD, GOOD, FAITHFUL) == []


@pytest.mark.parametrize("name", Figures._fields)
def test_a_figure_at_its_floor_passes_and_one_below_does_not(name: str) -> None:
    at = GOOD._replace(**{name: getattr(FLOOR, name)})
    below = GOOD._replace(**{name: math.nextafter(getattr(FLOOR, name), 0)})
    assert gate.check(at, None, FAITHFUL) == []
    assert gate.check(below, None, FAITHFUL) == [f"{name} is 0.900, below the floor of 0.900"]


def test_three_wrong_flowers_of_thirty_pass_and_four_do_not() -> None:
    assert gate.check(Figures(0.96, 27 / 30), None, FAITHFUL) == []
    assert gate.check(Figures(0.96, 26 / 30), None, FAITHFUL) == [
        "test_accuracy is 0.867, below the floor of 0.900"
    ]


def test_one_flower_below_the_champion_passes_and_two_do_not() -> None:
    champion = Figures(cv_f1=1.0, test_accuracy=1.0)
    assert gate.check(Figures(119 / 120, 29 / 30), champion, FAITHFUL) == []
    assert gate.check(Figures(118 / 120, 28 / 30), champion, FAITHFUL) == [
        "cv_f1 is 0.983, more than 0.010 below the champion's 1.000",
        "test_accuracy is 0.933, more than 0.034 below the champion's 1.000",
    ]


def test_one_row_with_another_label_is_too_many() -> None:
    assert gate.check(GOOD, None, FAITHFUL._replace(wrong_labels=1)) == [
        "as ONNX, 1 of 1150 rows get another label"
    ]


def test_a_probability_at_the_tolerance_passes_and_one_beyond_does_not() -> None:
    assert gate.check(GOOD, None, FAITHFUL._replace(difference=TOLERANCE)) == []
    assert gate.check(GOOD, None, FAITHFUL._replace(difference=1.1e-5)) == [
        "as ONNX, a probability differs by 1.1e-05, more than 1e-05"
    ]


@pytest.mark.parametrize(
    ("candidate", "champion", "parity"),
    [
        (GOOD._replace(cv_f1=math.nan), None, FAITHFUL),
        (GOOD._replace(test_accuracy=math.nan), None, FAITHFUL),
        (GOOD, GOOD._replace(cv_f1=math.nan), FAITHFUL),
        (GOOD, None, FAITHFUL._replace(difference=math.nan)),
    ],
)
def test_what_is_not_a_number_does_not_pass(candidate: Figures, champion: Figures | None, parity: Parity) -> None:
    assert gate.check(candidate, champion, parity)


@given(candidate=figures, champion=st.none() | figures, better=figures)
def test_a_better_figure_is_never_a_reason_more(
    candidate: Figures, champion: Figures | None, better: Figures
) -> None:
    improved = Figures(*map(max, candidate, better))
    assert len(gate.check(improved, champion, FAITHFUL)) <= len(gate.check(candidate, champion, FAITHFUL))


@given(candidate=figures, champion=figures)
def test_whatever_passes_is_at_least_at_the_floor_and_near_the_champion(
    candidate: Figures, champion: Figures
) -> None:
    if not gate.check(candidate, champion, FAITHFUL):
        assert all(value >= floor for value, floor in zip(candidate, FLOOR, strict=True))
        assert all(v >= held - m for v, held, m in zip(candidate, champion, MARGIN, strict=True))


def test_the_best_by_cross_validation_is_chosen_whatever_the_test_rows_say(
    evaluations: dict[Algorithm, Evaluation],
) -> None:
    best = with_f1(evaluations[Algorithm.RANDOM_FOREST], 0.97)
    tested_best = with_f1(evaluations[Algorithm.SVM], 0.96, test=1.0)
    assert gate.choose([tested_best, best]) is best


def test_of_equals_the_simplest_is_chosen_in_whatever_order_they_come(
    evaluations: dict[Algorithm, Evaluation],
) -> None:
    regression, svm, forest = (with_f1(evaluations[algorithm], 0.96) for algorithm in Algorithm)
    assert gate.choose([forest, svm, regression]) is regression
    assert gate.choose([forest, svm]) is svm


def test_a_billionth_is_a_tie_and_more_is_a_victory(evaluations: dict[Algorithm, Evaluation]) -> None:
    regression = with_f1(evaluations[Algorithm.LOGISTIC_REGRESSION], 0.96)
    forest = evaluations[Algorithm.RANDOM_FOREST]
    hardly, truly = with_f1(forest, 0.96 + 5e-10), with_f1(forest, 0.96 + 2e-9)
    assert gate.choose([hardly, regression]) is regression
    assert gate.choose([truly, regression]) is truly


def with_f1(evaluation: Evaluation, f1: float, test: float = 0.9) -> Evaluation:
    return replace(
        evaluation, cv=evaluation.cv._replace(f1=f1), test=evaluation.test._replace(accuracy=test, f1=test)
    )
