"""The bundled data: its contract, and its split into training and test rows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import data, dataset
from pipeline.data import ContractError, Data
from pipeline.dataset import CLASSES, FEATURES
from pipeline.errors import PipelineError


def test_the_bundled_data_meets_its_contract(iris: Data) -> None:
    data.check(iris)
    assert iris.features.shape == (150, 4)


def test_each_class_has_40_training_rows_and_10_test_rows(iris: Data) -> None:
    assert np.bincount(iris.labels[iris.train_rows]).tolist() == [40, 40, 40]
    assert np.bincount(iris.labels[iris.test_rows]).tolist() == [10, 10, 10]


def test_every_row_is_in_exactly_one_part_of_the_split(iris: Data) -> None:
    assert sorted([*iris.train_rows, *iris.test_rows]) == list(range(150))


def test_the_split_is_deterministic(iris: Data) -> None:
    assert data.load().digest == iris.digest


@pytest.mark.parametrize("seed", range(20))
def test_both_copies_of_the_duplicated_flower_are_training_rows_for_any_seed(
    iris: Data, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(data, "SPLIT_SEED", seed)
    test_rows = iris.features[data.hold_out(iris.features, iris.labels)]
    assert [5.8, 2.7, 5.1, 1.9] in iris.features.tolist()
    assert [5.8, 2.7, 5.1, 1.9] not in test_rows.tolist()


def test_upper_bounds_are_1_5_times_the_largest_flower_in_whole_centimetres(iris: Data) -> None:
    assert [feature.high for feature in FEATURES] == np.round(iris.features.max(axis=0) * 1.5).tolist()
    assert [feature.low for feature in FEATURES] == [0.0] * 4


def test_every_row_in_millimetres_is_out_of_bounds(iris: Data) -> None:
    assert np.all(np.any(iris.features * 10 > data.HIGH, axis=1))


def test_a_missing_row_violates_the_contract(iris: Data) -> None:
    broken = Data(iris.features[:-1], iris.labels[:-1], iris.test_rows)
    with pytest.raises(ContractError, match=r"expected 150 rows of 4 features, found shape \(149, 4\)"):
        data.check(broken)


def test_a_missing_column_violates_the_contract(iris: Data) -> None:
    with pytest.raises(ContractError, match=r"expected 150 rows of 4 features, found shape \(150, 3\)"):
        data.check(replace(iris, features=iris.features[:, :3]))


def test_a_missing_label_violates_the_contract(iris: Data) -> None:
    with pytest.raises(ContractError, match=r"expected 150 labels, found shape \(149,\)"):
        data.check(replace(iris, labels=iris.labels[:-1]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_error_names_row_and_column_of_a_value_that_is_not_finite(iris: Data, value: float) -> None:
    with pytest.raises(ContractError, match=f"expected finite petal_length_cm, found {value} in row 77"):
        data.check(replace(iris, features=changed(iris, 77, 2, value)))


@given(row=st.integers(0, 149), column=st.integers(0, 3), beyond=st.floats(1e-6, 1e6), below=st.booleans())
def test_the_error_names_row_and_column_of_a_value_out_of_bounds(
    row: int, column: int, beyond: float, below: bool
) -> None:
    iris, (name, low, high, _) = data.load(), FEATURES[column]
    value = low - beyond if below else high + beyond
    with pytest.raises(ContractError, match=f"expected {name} from {low} to {high}, found .* in row {row}"):
        data.check(replace(iris, features=changed(iris, row, column, value)))


@pytest.mark.parametrize("label", [-1, 3])
def test_the_error_names_the_row_of_an_unknown_class(iris: Data, label: int) -> None:
    labels = iris.labels.copy()
    labels[12] = label
    with pytest.raises(ContractError, match=f"expected labels from 0 to 2, found {label} in row 12"):
        data.check(replace(iris, labels=labels))


def test_unbalanced_classes_violate_the_contract(iris: Data) -> None:
    labels = iris.labels.copy()
    labels[0] = CLASSES.index("virginica")
    with pytest.raises(ContractError, match="expected 50 rows of setosa, found 49"):
        data.check(replace(iris, labels=labels))


def test_a_missing_test_row_violates_the_contract(iris: Data) -> None:
    with pytest.raises(ContractError, match="expected 10 test rows of virginica, found 9"):
        data.check(replace(iris, test_rows=iris.test_rows[:-1]))


def test_a_test_row_that_is_also_a_training_row_violates_the_contract(iris: Data) -> None:
    seen, test_row = iris.train_rows[0], iris.test_rows[0]
    features = iris.features.copy()
    features[test_row] = features[seen]
    with pytest.raises(
        ContractError, match=f"expected no test row among the training rows, found test row {test_row}"
    ):
        data.check(replace(iris, features=features))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x, y: ([*x.astype(object).tolist()[:-1], ["1,4", 1, 1, 1]], y), "expected numbers, and labels"),
        (lambda x, y: (x, [CLASSES[label] for label in y]), "expected numbers, and labels"),
        (lambda x, y: (x, [None, *y[1:]]), "expected numbers, and labels"),
        (lambda x, y: (x, np.where(y == 2, 1, y)), "expected 50 rows of versicolor, found 100"),
        (lambda x, y: (x[:0], y[:0]), r"expected 150 rows of 4 features, found shape \(0, 4\)"),
    ],
)
def test_unusable_rows_violate_the_contract_before_they_are_split(
    iris: Data, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Any], message: str
) -> None:
    monkeypatch.setattr(dataset, "read", lambda: broken(iris.features, iris.labels))
    with pytest.raises(ContractError, match=message):
        data.load()


def test_more_test_rows_than_a_class_has_violate_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "TEST_ROWS", 51)
    with pytest.raises(ContractError, match="expected 51 rows of setosa that occur once, to hold out, found"):
        data.load()


@pytest.mark.parametrize("name", ["prediction", "confidence"])
def test_a_feature_must_not_have_a_name_of_the_drift_check(
    iris: Data, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(data, "FEATURES", (FEATURES[0]._replace(name=name), *FEATURES[1:]))
    with pytest.raises(ContractError, match=f"expected features with names other than .*, found {name}"):
        data.check(iris)


def test_a_contract_error_is_a_pipeline_error() -> None:
    assert issubclass(ContractError, PipelineError)


def test_the_digest_depends_on_values_labels_and_split(iris: Data) -> None:
    labels = iris.labels.copy()
    labels[0] = 1
    digests = {
        iris.digest,
        replace(iris, features=changed(iris, 0, 0, 5.11)).digest,
        replace(iris, labels=labels).digest,
        replace(iris, test_rows=iris.test_rows[::-1]).digest,
    }
    assert len(digests) == 4


def changed(iris: Data, row: int, column: int, value: float) -> data.Floats:
    features = iris.features.copy()
    features[row, column] = value
    return features
