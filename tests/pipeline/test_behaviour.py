"""Properties that every candidate must have, tested with onnxruntime as in the service."""

import numpy as np
import pytest

from pipeline import onnx_export
from pipeline.data import HIGH, Data, Floats
from pipeline.dataset import CLASSES
from pipeline.names import Algorithm

PETAL_LENGTH, PETAL_WIDTH = 2, 3
CONFIDENT = 0.9
HALF_A_MILLIMETRE = 0.05  # the reading error of a careful person: the data is in whole millimetres


@pytest.fixture(params=Algorithm, ids=str)
def model(request: pytest.FixtureRequest, exported: dict[Algorithm, bytes]) -> bytes:
    return exported[request.param]


def test_a_single_row_gets_the_same_answer_as_in_a_batch(model: bytes, iris: Data) -> None:
    rows = np.vstack([iris.features, onnx_export.random_rows(seed=5)[:100]])
    labels, probabilities = onnx_export.predict(model, rows)
    alone = [onnx_export.predict(model, row[np.newaxis]) for row in rows]
    assert np.array_equal(labels, np.concatenate([label for label, _ in alone]))
    # Equal except for the last digit of float32: a single row is summed in another order than a batch.
    assert np.allclose(probabilities, np.concatenate([p for _, p in alone]), rtol=0, atol=1e-6)


def test_the_order_of_rows_does_not_matter(model: bytes, iris: Data) -> None:
    order = np.random.RandomState(0).permutation(len(iris.features))
    labels, probabilities = onnx_export.predict(model, iris.features)
    shuffled_labels, shuffled = onnx_export.predict(model, iris.features[order])
    assert np.array_equal(labels[order], shuffled_labels)
    assert np.array_equal(probabilities[order], shuffled)


def test_probabilities_sum_to_one_and_the_label_has_the_largest(model: bytes) -> None:
    labels, probabilities = onnx_export.predict(model, onnx_export.random_rows(seed=6))
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.all((probabilities >= 0) & (probabilities <= 1 + 1e-5))
    chosen = probabilities[np.arange(len(labels)), labels]
    assert np.allclose(chosen, probabilities.max(axis=1), atol=1e-5)


def test_a_measurement_error_does_not_change_a_confident_answer(model: bytes, iris: Data) -> None:
    labels, probabilities = onnx_export.predict(model, iris.features)
    confident = probabilities.max(axis=1) >= CONFIDENT
    assert confident.sum() > 75
    random = np.random.RandomState(0)
    for _ in range(50):
        noise = random.uniform(-HALF_A_MILLIMETRE, HALF_A_MILLIMETRE, (confident.sum(), 4))
        assert np.array_equal(onnx_export.predict(model, iris.features[confident] + noise)[0], labels[confident])


def test_larger_petals_move_answers_from_setosa_to_virginica_only(model: bytes, iris: Data) -> None:
    before = onnx_export.predict(model, iris.features)[0]
    for growth in np.linspace(0.1, 3.0, 30):
        after = onnx_export.predict(model, with_longer_petals(iris.features, growth))[0]
        assert np.all(after >= before)
        before = after
    assert np.all(before[iris.labels != CLASSES.index("setosa")] == CLASSES.index("virginica"))


def with_longer_petals(flowers: Floats, growth: float) -> Floats:
    """Lengthen the petals by `growth` cm and widen them by 0.4 of that, the ratio in the data."""
    grown = flowers.copy()
    grown[:, PETAL_LENGTH] += growth
    grown[:, PETAL_WIDTH] += 0.4 * growth
    return grown.clip(max=HIGH)
