"""The scores of a candidate, and the folds of its cross-validation."""

import numpy as np
import pytest

from pipeline import data, evaluation
from pipeline.data import Data
from pipeline.dataset import FEATURES
from pipeline.evaluation import Evaluation, evaluate, folds, score
from pipeline.names import Algorithm


def test_scores_are_macro_averages() -> None:
    # setosa: precision 1, recall 1/2; versicolor: 1/2, 1; virginica: 1, 1.
    scores = score(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]))
    assert scores == pytest.approx((3 / 4, 5 / 6, 5 / 6, 7 / 9))


def test_a_class_that_is_never_predicted_scores_zero() -> None:
    assert score(np.array([0, 1, 2]), np.array([0, 0, 0])) == pytest.approx((1 / 3, 1 / 9, 1 / 3, 1 / 6))


def test_five_stratified_folds_contain_every_training_row_once(iris: Data) -> None:
    x, y = training_rows(iris)
    by_fold = [fold for _, fold in folds(x, y)]
    assert sorted(np.concatenate(by_fold)) == list(range(120))
    assert [np.bincount(y[rows]).tolist() for rows in by_fold] == [[8, 8, 8]] * 5


@pytest.mark.parametrize("seed", range(10))
def test_both_copies_of_the_duplicated_flower_are_in_the_same_fold(
    iris: Data, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(evaluation, "FOLD_SEED", seed)
    x, y = training_rows(iris)
    group = data.groups(x)
    assert all(set(group[rest]).isdisjoint(group[fold]) for rest, fold in folds(x, y))


@pytest.mark.parametrize("algorithm", Algorithm)
def test_every_candidate_is_good_enough_for_the_gate(
    evaluations: dict[Algorithm, Evaluation], algorithm: Algorithm
) -> None:
    candidate = evaluations[algorithm]
    assert candidate.test.accuracy >= 0.9
    assert candidate.cv.f1 >= 0.9
    assert 0 < candidate.cv_std.f1 < 0.1


def test_test_scores_come_from_the_held_out_rows(evaluations: dict[Algorithm, Evaluation]) -> None:
    candidate = evaluations[Algorithm.LOGISTIC_REGRESSION]
    assert candidate.confusion.sum(axis=1).tolist() == [10, 10, 10]
    assert candidate.confusion.trace() / 30 == pytest.approx(candidate.test.accuracy)


def test_the_model_has_not_seen_the_held_out_rows(iris: Data) -> None:
    """A forest memorises its training rows: if the test rows were among them, it would make no error."""
    labels = iris.labels.copy()
    labels[iris.test_rows] = (labels[iris.test_rows] + 1) % 3
    mislabelled = Data(iris.features, labels, iris.test_rows)
    assert evaluate(Algorithm.RANDOM_FOREST, mislabelled, seed=1).test.accuracy < 0.2


def test_only_the_forest_has_feature_importances(evaluations: dict[Algorithm, Evaluation]) -> None:
    importance = evaluations[Algorithm.RANDOM_FOREST].importance
    assert importance
    assert list(importance) == [feature.name for feature in FEATURES]
    assert sum(importance.values()) == pytest.approx(1)
    assert evaluations[Algorithm.SVM].importance is None


def training_rows(iris: Data) -> tuple[data.Floats, data.Ints]:
    return iris.features[iris.train_rows], iris.labels[iris.train_rows]
