"""The iris data: read, held to its contract, and divided into training and test rows once and for all."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_iris

from pipeline.errors import PipelineError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Feature(NamedTuple):
    """One measurement of a flower, and the values in cm that are believed, both ends included."""

    name: str
    low: float
    high: float


# From nothing to half as much again as the largest flower in the data (7.9, 4.4, 6.9 and 2.5 cm), in whole
# centimetres: wide enough for any flower of the three species, and a row in millimetres falls outside.
FEATURES = (
    Feature("sepal_length_cm", 0.0, 12.0),
    Feature("sepal_width_cm", 0.0, 7.0),
    Feature("petal_length_cm", 0.0, 10.0),
    Feature("petal_width_cm", 0.0, 4.0),
)
LOW, HIGH = np.array([(feature.low, feature.high) for feature in FEATURES]).T
CLASSES = ("setosa", "versicolor", "virginica")
ROWS = 150
ROWS_PER_CLASS = ROWS // len(CLASSES)
TEST_ROWS_PER_CLASS = 10

# The division belongs to the data, not to a training: whatever its seed, a challenger answers the same thirty
# flowers as the champion did. 0 because no other number is less chosen.
SPLIT_SEED = 0


class ContractError(PipelineError):
    """The data is not what the pipeline was built for."""

    def __init__(self, rule: str, found: str) -> None:
        super().__init__(
            f"the iris data breaks its contract: {rule} wanted, {found} found. "
            "Put scikit-learn's own data set back, or change the contract in pipeline/data.py."
        )


@dataclass(frozen=True)
class Iris:
    """Features [150, 4] in cm, labels [150] that index CLASSES, and the numbers [30] of the rows held out."""

    features: Floats
    labels: Ints
    test_rows: Ints

    @property
    def train_rows(self) -> Ints:
        """The numbers [120] of the rows that are not held out."""
        return np.setdiff1d(np.arange(len(self.labels)), self.test_rows)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the values and of their division."""
        parts = (self.features.astype("<f8"), self.labels.astype("<i8"), self.test_rows.astype("<i8"))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def load() -> Iris:
    """Return scikit-learn's iris, divided; raise ContractError if it is not what it should be."""
    bunch = load_iris()
    features, labels = bunch.data.astype(np.float64), bunch.target.astype(np.int64)
    iris = Iris(features, labels, hold_out(features, labels))
    check(iris)
    return iris


def flowers(features: Floats) -> Ints:
    """Number the flowers of rows [n, 4]: equal rows get the same number, [n]."""
    return np.unique(features, axis=0, return_inverse=True)[1].astype(np.int64).reshape(-1)


def hold_out(features: Floats, labels: Ints) -> Ints:
    """Draw ten test rows of each class, among the rows that occur once; return their numbers [30], ascending.

    Iris holds one flower twice (5.8 2.7 5.1 1.9, virginica). Both rows stay, and both in training, so that no
    model is tested on a flower that it has seen.
    """
    number = flowers(features)
    once = np.bincount(number)[number] == 1
    random = np.random.RandomState(SPLIT_SEED)  # its stream is frozen for good; a Generator's is not
    drawn = [
        random.choice(np.flatnonzero(once & (labels == label)), TEST_ROWS_PER_CLASS, replace=False)
        for label in range(len(CLASSES))
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def check(iris: Iris) -> None:
    """Raise ContractError for the first broken rule, with the row and the column that break it."""
    _check_shape(iris)
    _check_values(iris.features)
    _check_classes(iris.labels)
    _check_division(iris)


def _check_shape(iris: Iris) -> None:
    if iris.features.shape != (ROWS, len(FEATURES)):
        raise ContractError(f"{ROWS} rows of {len(FEATURES)} features", f"shape {iris.features.shape}")
    if iris.labels.shape != (ROWS,):
        raise ContractError(f"{ROWS} labels", f"shape {iris.labels.shape}")


def _check_values(features: Floats) -> None:
    for row, column in np.argwhere(~np.isfinite(features)):
        raise ContractError(f"finite {FEATURES[column].name}", f"{features[row, column]} in row {row}")
    for row, column in np.argwhere((features < LOW) | (features > HIGH)):
        name, low, high = FEATURES[column]
        raise ContractError(f"{name} from {low} to {high}", f"{features[row, column]} in row {row}")


def _check_classes(labels: Ints) -> None:
    for row in np.flatnonzero((labels < 0) | (labels >= len(CLASSES))):
        raise ContractError(f"labels from 0 to {len(CLASSES) - 1}", f"{labels[row]} in row {row}")
    for name, count in zip(CLASSES, np.bincount(labels, minlength=len(CLASSES)), strict=True):
        if count != ROWS_PER_CLASS:
            raise ContractError(f"{ROWS_PER_CLASS} rows of {name}", f"{count}")


def _check_division(iris: Iris) -> None:
    held = np.bincount(iris.labels[iris.test_rows], minlength=len(CLASSES))
    for name, count in zip(CLASSES, held, strict=True):
        if count != TEST_ROWS_PER_CLASS:
            raise ContractError(f"{TEST_ROWS_PER_CLASS} test rows of {name}", f"{count}")
    number = flowers(iris.features)
    for row in iris.test_rows[np.isin(number[iris.test_rows], number[iris.train_rows])]:
        raise ContractError("test rows that training has not seen", f"test row {row} in training too")
