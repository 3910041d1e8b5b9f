"""The data: read, held to its contract, and divided into training and test rows once and for all."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import dataset
from pipeline.dataset import CLASSES, FEATURES, ROWS, TEST_ROWS
from pipeline.errors import PipelineError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


LOW, HIGH, STEP = np.array([(feature.low, feature.high, feature.step) for feature in FEATURES]).T

# The division belongs to the data, not to a training: whatever its seed, a challenger answers the same rows as the
# champion did. 0 because no other number is less chosen.
SPLIT_SEED = 0


class ContractError(PipelineError):
    """The data is not what the pipeline was built for."""

    def __init__(self, rule: str, found: str) -> None:
        super().__init__(
            f"the {dataset.NAME} data breaks its contract: {rule} wanted, {found} found. "
            "Put the data back, or change the contract in pipeline/dataset.py."
        )


@dataclass(frozen=True)
class Data:
    """Features [rows, features], labels [rows] that index CLASSES, and the numbers of the rows held out."""

    features: Floats
    labels: Ints
    test_rows: Ints

    @property
    def train_rows(self) -> Ints:
        """The numbers of the rows that are not held out."""
        return np.setdiff1d(np.arange(len(self.labels)), self.test_rows)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the values and of their division."""
        parts = (self.features.astype("<f8"), self.labels.astype("<i8"), self.test_rows.astype("<i8"))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def load() -> Data:
    """Return the data set, divided; raise ContractError if it is not what it should be."""
    values, classes = dataset.read()
    features, labels = np.asarray(values, np.float64), np.asarray(classes, np.int64)
    data = Data(features, labels, hold_out(features, labels))
    check(data)
    return data


def groups(features: Floats) -> Ints:
    """Number rows [n, features] so that equal ones, and no others, have the same number, [n]."""
    return np.unique(features, axis=0, return_inverse=True)[1].astype(np.int64).reshape(-1)


def hold_out(features: Floats, labels: Ints) -> Ints:
    """Draw the test rows of each class, among the rows that occur once; return their numbers, ascending.

    Rows that occur more often stay, all of them in training, so that no model is tested on a row that it has seen.
    Iris has such a flower (5.8 2.7 5.1 1.9, virginica).
    """
    number = groups(features)
    once = np.bincount(number)[number] == 1
    random = np.random.RandomState(SPLIT_SEED)  # its stream is frozen for good; a Generator's is not
    drawn = [
        random.choice(np.flatnonzero(once & (labels == label)), TEST_ROWS, replace=False)
        for label in range(len(CLASSES))
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def check(data: Data) -> None:
    """Raise ContractError for the first broken rule, with the row and the column that break it."""
    _check_shape(data)
    _check_values(data.features)
    _check_classes(data.labels)
    _check_division(data)


def _check_shape(data: Data) -> None:
    if data.features.shape != (sum(ROWS), len(FEATURES)):
        raise ContractError(f"{sum(ROWS)} rows of {len(FEATURES)} features", f"shape {data.features.shape}")
    if data.labels.shape != (sum(ROWS),):
        raise ContractError(f"{sum(ROWS)} labels", f"shape {data.labels.shape}")


def _check_values(features: Floats) -> None:
    for row, column in np.argwhere(~np.isfinite(features)):
        raise ContractError(f"finite {FEATURES[column].name}", f"{features[row, column]} in row {row}")
    for row, column in np.argwhere((features < LOW) | (features > HIGH)):
        name, low, high, _ = FEATURES[column]
        raise ContractError(f"{name} from {low} to {high}", f"{features[row, column]} in row {row}")


def _check_classes(labels: Ints) -> None:
    for row in np.flatnonzero((labels < 0) | (labels >= len(CLASSES))):
        raise ContractError(f"labels from 0 to {len(CLASSES) - 1}", f"{labels[row]} in row {row}")
    for name, wanted, count in zip(CLASSES, ROWS, np.bincount(labels, minlength=len(CLASSES)), strict=True):
        if count != wanted:
            raise ContractError(f"{wanted} rows of {name}", f"{count}")


def _check_division(data: Data) -> None:
    held = np.bincount(data.labels[data.test_rows], minlength=len(CLASSES))
    for name, count in zip(CLASSES, held, strict=True):
        if count != TEST_ROWS:
            raise ContractError(f"{TEST_ROWS} test rows of {name}", f"{count}")
    number = groups(data.features)
    for row in data.test_rows[np.isin(number[data.test_rows], number[data.train_rows])]:
        raise ContractError("test rows that training has not seen", f"test row {row} in training too")
