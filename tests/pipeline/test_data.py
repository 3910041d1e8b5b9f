"""The bundled data: its contract, and how it is divided into what is learned from and what is held out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import data
from pipeline.data import ContractError, Data
from pipeline.dataset import CLASSES, FEATURES
from pipeline.errors import PipelineError


def test_the_bundled_data_meets_its_contract(iris: Data) -> None:
    data.check(iris)
    assert iris.features.shape == (150, 4)


def test_forty_flowers_of_each_class_are_learned_from_and_ten_held_out(iris: Data) -> None:
    assert np.bincount(iris.labels[iris.train_rows]).tolist() == [40, 40, 40]
    assert np.bincount(iris.labels[iris.test_rows]).tolist() == [10, 10, 10]


def test_every_row_is_on_one_side(iris: Data) -> None:
    assert sorted([*iris.train_rows, *iris.test_rows]) == list(range(150))


def test_the_division_is_always_the_same(iris: Data) -> None:
    assert data.load().digest == iris.digest


@pytest.mark.parametrize("seed", range(20))
def test_the_flower_that_occurs_twice_is_learned_from_twice_however_the_dice_fall(
    iris: Data, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(data, "SPLIT_SEED", seed)
    held = iris.features[data.hold_out(iris.features, iris.labels)]
    assert [5.8, 2.7, 5.1, 1.9] in iris.features.tolist()
    assert [5.8, 2.7, 5.1, 1.9] not in held.tolist()


def test_bounds_are_half_as_much_again_as_the_largest_flower_in_whole_centimetres(iris: Data) -> None:
    assert [feature.high for feature in FEATURES] == np.round(iris.features.max(axis=0) * 1.5).tolist()
    assert [feature.low for feature in FEATURES] == [0.0] * 4


def test_every_flower_in_millimetres_is_out_of_bounds(iris: Data) -> None:
    assert np.all(np.any(iris.features * 10 > data.HIGH, axis=1))


def test_a_missing_row_is_named(iris: Data) -> None:
    broken = Data(iris.features[:-1], iris.labels[:-1], iris.test_rows)
    with pytest.raises(ContractError, match=r"150 rows of 4 features wanted, shape \(149, 4\) found"):
        data.check(broken)


def test_a_missing_column_is_named(iris: Data) -> None:
    with pytest.raises(ContractError, match=r"150 rows of 4 features wanted, shape \(150, 3\) found"):
        data.check(replace(iris, features=iris.features[:, :3]))


def test_a_missing_label_is_named(iris: Data) -> None:
    with pytest.raises(ContractError, match=r"150 labels wanted, shape \(149,\) found"):
        data.check(replace(iris, labels=iris.labels[:-1]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_with_row_and_column(iris: Data, value: float) -> None:
    with pytest.raises(ContractError, match=f"finite petal_length_cm wanted, {value} in row 77 found"):
        data.check(replace(iris, features=changed(iris, 77, 2, value)))


@given(row=st.integers(0, 149), column=st.integers(0, 3), beyond=st.floats(1e-6, 1e6), below=st.booleans())
def test_a_value_out_of_bounds_is_named_with_row_and_column(
    row: int, column: int, beyond: float, below: bool
) -> None:
    iris, (name, low, high, _) = data.load(), FEATURES[column]
    value = low - beyond if below else high + beyond
    with pytest.raises(ContractError, match=f"{name} from {low} to {high} wanted, .* in row {row} found"):
        data.check(replace(iris, features=changed(iris, row, column, value)))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_class_that_does_not_exist_is_named_with_its_row(iris: Data, label: int) -> None:
    labels = iris.labels.copy()
    labels[12] = label
    with pytest.raises(ContractError, match=f"labels from 0 to 2 wanted, {label} in row 12 found"):
        data.check(replace(iris, labels=labels))


def test_classes_out_of_balance_are_named(iris: Data) -> None:
    labels = iris.labels.copy()
    labels[0] = CLASSES.index("virginica")
    with pytest.raises(ContractError, match="50 rows of setosa wanted, 49 found"):
        data.check(replace(iris, labels=labels))


def test_a_test_that_lacks_a_flower_is_named(iris: Data) -> None:
    with pytest.raises(ContractError, match="10 test rows of virginica wanted, 9 found"):
        data.check(replace(iris, test_rows=iris.test_rows[:-1]))


def test_a_test_flower_that_training_has_seen_is_named(iris: Data) -> None:
    seen, test_row = iris.train_rows[0], iris.test_rows[0]
    features = iris.features.copy()
    features[test_row] = features[seen]
    with pytest.raises(ContractError, match=f"training has not seen wanted, test row {test_row} in training too"):
        data.check(replace(iris, features=features))


def test_a_broken_contract_is_an_error_for_people() -> None:
    assert issubclass(ContractError, PipelineError)


def test_the_digest_notices_a_tenth_of_a_millimetre_and_a_changed_label(iris: Data) -> None:
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
