"""How good a candidate is: on the test rows, and by cross-validation on the training rows."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.metrics import classification_report, confusion_matrix, precision_recall_fscore_support
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline

from pipeline import candidates
from pipeline.data import Data, Floats, Ints, groups
from pipeline.dataset import CLASSES, FEATURES
from pipeline.names import Algorithm

FOLDS = 5
FOLD_SEED = 0  # a constant, as data.SPLIT_SEED is, and for the same reason


class Scores(NamedTuple):
    """Four figures from 0 to 1; precision, recall and F1 are means over the classes (macro)."""

    accuracy: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Evaluation:
    """A candidate fitted on the training rows, and what was measured."""

    algorithm: Algorithm
    model: Pipeline
    test: Scores  # of the rows held out
    cv: Scores  # mean over the folds
    cv_std: Scores
    confusion: Ints  # [classes, classes] of the rows held out: true classes down, predicted ones across
    report: str
    importance: dict[str, float] | None  # by feature, sum 1; only a forest has it


def evaluate(algorithm: Algorithm, data: Data, seed: int) -> Evaluation:
    """Fit the algorithm on the training rows and measure it."""
    x, y = data.features[data.train_rows], data.labels[data.train_rows]
    by_fold = cross_validate(candidates.build(algorithm, seed), x, y)
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


def cross_validate(model: Pipeline, x: Floats, y: Ints) -> list[Scores]:
    """Score clones of the model, each on the fold of rows x [n, features] that it was not fitted on."""
    return [score(y[held], clone(model).fit(x[rest], y[rest]).predict(x[held])) for rest, held in folds(x, y)]


def folds(x: Floats, y: Ints) -> list[tuple[Ints, Ints]]:
    """Divide rows x [n, features] into five stratified folds, as (rows of the others, rows of the fold)."""
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=FOLD_SEED)
    return list(splitter.split(x, y, groups(x)))  # equal rows share a fold


def score(actual: Ints, predicted: Ints) -> Scores:
    """Compare labels [n] with labels [n]; a class that was never predicted has precision 0."""
    means = precision_recall_fscore_support(actual, predicted, average="macro", zero_division=0.0)[:3]
    return Scores(float(np.mean(actual == predicted)), *map(float, means))


def importance(model: Pipeline) -> dict[str, float] | None:
    """Return each feature's share in a forest's decrease of impurity, or None for another model."""
    shares = getattr(model[-1], "feature_importances_", None)
    if shares is None:
        return None
    return {feature.name: float(share) for feature, share in zip(FEATURES, shares, strict=True)}
