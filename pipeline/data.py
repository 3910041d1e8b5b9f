"""The data: loaded, checked against its contract, and split into training and test rows."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import dataset
from pipeline.dataset import CLASSES, FEATURES, ROWS, TEST_ROWS
from pipeline.errors import PipelineError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LOW, HIGH, STEP = np.array([(feature.low, feature.high, feature.step) for feature in FEATURES]).T

RESERVED = frozenset({"prediction", "confidence"})
"""Names under which the drift check reports the model's answers beside the features."""

# The split belongs to the data and not to a training run: all models are tested on the same rows.
SPLIT_SEED = 0


class ContractError(PipelineError):
    """The data is not the data that the pipeline was built for."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(
            f"the {dataset.NAME} data violates its contract: expected {expected}, found {found}. "
            "Restore the data, or change the contract in pipeline/dataset.py."
        )


@dataclass(frozen=True)
class Data:
    """Features [rows, features], labels [rows] as indices into CLASSES, and the indices of the held-out rows."""

    features: Floats
    labels: Ints
    test_rows: Ints

    @property
    def train_rows(self) -> Ints:
        """Indices of the rows that are not held out."""
        return np.setdiff1d(np.arange(len(self.labels)), self.test_rows)

    @property
    def digest(self) -> str:
        """SHA-256 of the values and their split, in hex."""
        parts = (self.features.astype("<f8"), self.labels.astype("<i8"), self.test_rows.astype("<i8"))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def load() -> Data:
    """Return the data set with its split. Raises ContractError."""
    values, classes = dataset.read()
    try:
        features, labels = np.asarray(values, np.float64), np.asarray(classes, np.int64)
    except (TypeError, ValueError) as error:
        raise ContractError("numbers, and labels that are indices of classes", str(error)) from error
    for expected, found in _wrong_rows(features, labels):
        raise ContractError(expected, found)
    data = Data(features, labels, hold_out(features, labels))
    check(data)
    return data


def groups(features: Floats) -> Ints:
    """Return a group number [n] for each of the rows [n, features]; only equal rows share a number."""
    return np.unique(features, axis=0, return_inverse=True)[1].astype(np.int64).reshape(-1)


def hold_out(features: Floats, labels: Ints) -> Ints:
    """Draw the test rows of each class from the rows that occur once; return their indices, ascending.

    All copies of a duplicated row go into training, so that no model is tested on a row that it has seen. Iris
    contains one such flower (5.8 2.7 5.1 1.9, virginica).
    """
    group = groups(features)
    unique = np.bincount(group)[group] == 1
    random = np.random.RandomState(SPLIT_SEED)  # NumPy never changes its stream; a Generator's may change
    drawn = []
    for label, name in enumerate(CLASSES):
        rows = np.flatnonzero(unique & (labels == label))
        if len(rows) < TEST_ROWS:
            raise ContractError(f"{TEST_ROWS} rows of {name} that occur once, to hold out", f"{len(rows)}")
        drawn.append(random.choice(rows, TEST_ROWS, replace=False))
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def check(data: Data) -> None:
    """Check the data against the contract. Raises ContractError for the first violation, with row and column."""
    for expected, found in _violations(data):
        raise ContractError(expected, found)


def _violations(data: Data) -> Iterator[tuple[str, str]]:
    """Yield what is expected and what is found; a violation after the first may be a consequence of it."""
    yield from _wrong_rows(data.features, data.labels)
    yield from _wrong_counts(data.labels[data.test_rows], [TEST_ROWS] * len(CLASSES), "test rows")
    group = groups(data.features)
    for row in data.test_rows[np.isin(group[data.test_rows], group[data.train_rows])]:
        yield "no test row among the training rows", f"test row {row}"


def _wrong_rows(features: Floats, labels: Ints) -> Iterator[tuple[str, str]]:
    for name in RESERVED.intersection(feature.name for feature in FEATURES):
        yield f"features with names other than {' and '.join(sorted(RESERVED))}", name
    if features.shape != (sum(ROWS), len(FEATURES)):
        yield f"{sum(ROWS)} rows of {len(FEATURES)} features", f"shape {features.shape}"
    if labels.shape != (sum(ROWS),):
        yield f"{sum(ROWS)} labels", f"shape {labels.shape}"
    for row, column in np.argwhere(~np.isfinite(features)):
        yield f"finite {FEATURES[column].name}", f"{features[row, column]} in row {row}"
    for row, column in np.argwhere((features < LOW) | (features > HIGH)):
        name, low, high, _ = FEATURES[column]
        yield f"{name} from {low} to {high}", f"{features[row, column]} in row {row}"
    for row in np.flatnonzero((labels < 0) | (labels >= len(CLASSES))):
        yield f"labels from 0 to {len(CLASSES) - 1}", f"{labels[row]} in row {row}"
    yield from _wrong_counts(labels, ROWS, "rows")


def _wrong_counts(labels: Ints, expected: Sequence[int], rows: str) -> Iterator[tuple[str, str]]:
    for name, wanted, count in zip(CLASSES, expected, np.bincount(labels, minlength=len(CLASSES)), strict=True):
        if count != wanted:
            yield f"{wanted} {rows} of {name}", f"{count}"
