"""Evaluation of a candidate: on the test rows, and by cross-validation on the training rows."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.metrics import classification_report, confusion_matrix, precision_recall_fscore_support
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline

from pipeline import candidates
from pipeline.data import Data, Floats, Ints, groups
from pipeline.dataset import CLASSES, FEATURES
from pipeline.names import Algorithm

FOLDS = 5
FOLD_SEED = 0  # a constant for the same reason as data.SPLIT_SEED


class Scores(NamedTuple):
    """Scores from 0 to 1; precision, recall and F1 are macro averages over the classes."""

    accuracy: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Evaluation:
    """A candidate fitted on the training rows, and its scores."""

    algorithm: Algorithm
    model: Pipeline
    test: Scores  # on the held-out rows
    cv: Scores  # mean over the folds
    cv_std: Scores
    confusion: Ints  # [true class, predicted class] counts of the held-out rows
    report: str
    importance: dict[str, float] | None  # by feature, sums to 1; forests only


def evaluate(algorithm: Algorithm, data: Data, seed: int) -> Evaluation:
    """Fit the algorithm on the training rows and score it."""
    x, y = data.features[data.train_rows], data.labels[data.train_rows]
    splits = folds(x, y)
    predictions = cross_val_predict(candidates.build(algorithm, seed), x, y, cv=splits)
    by_fold = [score(y[fold], predictions[fold]) for _, fold in splits]
    model = candidates.build(algorithm, seed).fit(x, y)
    actual, predicted = data.labels[data.test_rows], model.predict(data.features[data.test_rows])
    return Evaluation(
        algorithm=algorithm,
        model=model,
        test=score(actual, predicted),
        cv=Scores(*np.mean(by_fold, axis=0).tolist()),
        cv_std=Scores(*np.std(by_fold, axis=0).tolist()),
        confusion=confusion_matrix(actual, predicted, labels=range(len(CLASSES))),
        report=classification_report(actual, predicted, target_names=CLASSES, zero_division=0.0),
        importance=importance(model),
    )


def folds(x: Floats, y: Ints) -> list[tuple[Ints, Ints]]:
    """Split rows x [n, features] into stratified folds; return the training and the test indices of each."""
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=FOLD_SEED)
    return list(splitter.split(x, y, groups(x)))  # equal rows share a fold


def score(actual: Ints, predicted: Ints) -> Scores:
    """Score the predicted labels [n] against the actual ones; a class that is never predicted has precision 0."""
    means = precision_recall_fscore_support(actual, predicted, average="macro", zero_division=0.0)[:3]
    return Scores(float(np.mean(actual == predicted)), *map(float, means))


def importance(model: Pipeline) -> dict[str, float] | None:
    """Return a forest's mean decrease in impurity by feature (sums to 1), or None for any other model."""
    importances = getattr(model[-1], "feature_importances_", None)
    if importances is None:
        return None
    return {feature.name: float(value) for feature, value in zip(FEATURES, importances, strict=True)}
