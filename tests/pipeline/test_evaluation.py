"""The scores of a candidate, and the folds that they are means over."""

import numpy as np
import pytest

from pipeline import data, evaluation
from pipeline.data import Data
from pipeline.dataset import FEATURES
from pipeline.evaluation import Evaluation, evaluate, folds, score
from pipeline.names import Algorithm


def test_scores_are_means_over_the_classes() -> None:
    # setosa: precision 1, recall 1/2; versicolor: 1/2, 1; virginica: 1, 1.
    scores = score(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]))
    assert scores == pytest.approx((3 / 4, 5 / 6, 5 / 6, 7 / 9))


def test_a_class_that_is_never_predicted_counts_as_nothing() -> None:
    assert score(np.array([0, 1, 2]), np.array([0, 0, 0])) == pytest.approx((1 / 3, 1 / 9, 1 / 3, 1 / 6))


def test_five_folds_hold_every_training_row_once_and_eight_of_each_class(iris: Data) -> None:
    x, y = training(iris)
    held = [held for _, held in folds(x, y)]
    assert sorted(np.concatenate(held)) == list(range(120))
    assert [np.bincount(y[rows]).tolist() for rows in held] == [[8, 8, 8]] * 5


@pytest.mark.parametrize("seed", range(10))
def test_the_flower_that_occurs_twice_is_never_on_both_sides_of_a_fold(
    iris: Data, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(evaluation, "FOLD_SEED", seed)
    x, y = training(iris)
    number = data.groups(x)
    assert all(set(number[rest]).isdisjoint(number[held]) for rest, held in folds(x, y))


@pytest.mark.parametrize("algorithm", Algorithm)
def test_every_candidate_is_fit_to_be_registered(
    evaluations: dict[Algorithm, Evaluation], algorithm: Algorithm
) -> None:
    candidate = evaluations[algorithm]
    assert candidate.test.accuracy >= 0.9
    assert candidate.cv.f1 >= 0.9
    assert 0 < candidate.cv_std.f1 < 0.1


def test_the_test_scores_come_from_the_rows_held_out(evaluations: dict[Algorithm, Evaluation]) -> None:
    candidate = evaluations[Algorithm.LOGISTIC_REGRESSION]
    assert candidate.confusion.sum(axis=1).tolist() == [10, 10, 10]
    assert candidate.confusion.trace() / 30 == pytest.approx(candidate.test.accuracy)


def test_the_model_has_not_seen_the_rows_held_out(iris: Data) -> None:
    """A forest knows by heart what it was fitted on: were the test rows among it, it would make no mistake."""
    labels = iris.labels.copy()
    labels[iris.test_rows] = (labels[iris.test_rows] + 1) % 3
    spoilt = Data(iris.features, labels, iris.test_rows)
    assert evaluate(Algorithm.RANDOM_FOREST, spoilt, seed=1).test.accuracy < 0.2


def test_only_the_forest_tells_what_it_looks_at(evaluations: dict[Algorithm, Evaluation]) -> None:
    shares = evaluations[Algorithm.RANDOM_FOREST].importance
    assert shares
    assert list(shares) == [feature.name for feature in FEATURES]
    assert sum(shares.values()) == pytest.approx(1)
    assert evaluations[Algorithm.SVM].importance is None


def training(iris: Data) -> tuple[data.Floats, data.Ints]:
    return iris.features[iris.train_rows], iris.labels[iris.train_rows]
