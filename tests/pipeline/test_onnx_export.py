"""The ONNX export: the same bytes for the same seed, and the same answers as scikit-learn."""

import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from sklearn.neighbors import RadiusNeighborsClassifier
from sklearn.pipeline import Pipeline

from pipeline import candidates, onnx_export
from pipeline.data import HIGH, LOW, Data
from pipeline.errors import PipelineError
from pipeline.evaluation import Evaluation
from pipeline.names import SEED, Algorithm
from pipeline.onnx_export import RANDOM_ROWS, TOLERANCE
from tests.support.running import ROOT

TRAIN_AND_PRINT_DIGESTS = """
import hashlib
from pipeline import candidates, data, onnx_export
from pipeline.names import SEED, Algorithm
iris = data.load()
for algorithm in Algorithm:
    model = candidates.build(algorithm, SEED).fit(iris.features[iris.train_rows], iris.labels[iris.train_rows])
    print(algorithm, hashlib.sha256(onnx_export.convert(model)).hexdigest())
"""


def test_two_processes_produce_the_same_bytes() -> None:
    printed = []
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-c", TRAIN_AND_PRINT_DIGESTS]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        printed.append(subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True).stdout)
    assert printed[0] == printed[1]
    assert printed[0].count(b"\n") == 3


def test_another_seed_gives_another_forest(iris: Data, exported: dict[Algorithm, bytes]) -> None:
    other = candidates.build(Algorithm.RANDOM_FOREST, SEED + 1)
    other.fit(iris.features[iris.train_rows], iris.labels[iris.train_rows])
    assert onnx_export.convert(other) != exported[Algorithm.RANDOM_FOREST]


def test_inputs_and_outputs_have_the_names_types_and_shapes_of_the_contract(
    exported: dict[Algorithm, bytes],
) -> None:
    for model in exported.values():
        session = onnxruntime.InferenceSession(model)
        tensors = [
            (tensor.name, tensor.type, tensor.shape) for tensor in session.get_inputs() + session.get_outputs()
        ]
        assert tensors == [
            ("features", "tensor(float)", [None, 4]),
            ("label", "tensor(int64)", [None]),
            ("probabilities", "tensor(float)", [None, 3]),
        ]


@pytest.mark.parametrize("algorithm", Algorithm)
def test_every_candidate_answers_as_scikit_learn_does(
    iris: Data, evaluations: dict[Algorithm, Evaluation], exported: dict[Algorithm, bytes], algorithm: Algorithm
) -> None:
    rows = np.vstack([iris.features, onnx_export.random_rows(seed=1)])
    parity = onnx_export.compare(evaluations[algorithm].model, exported[algorithm], rows)
    assert parity.rows == 150 + RANDOM_ROWS
    assert parity.wrong_labels == 0
    assert parity.difference <= TOLERANCE


def test_an_estimator_that_cannot_be_converted_is_named(iris: Data) -> None:
    model = Pipeline([("classify", RadiusNeighborsClassifier(50.0).fit(iris.features, iris.labels))])
    model[-1].__class__ = type("Homemade", (RadiusNeighborsClassifier,), {})
    with pytest.raises(PipelineError, match=r"skl2onnx cannot convert Homemade: .*pipeline/candidates\.py"):
        onnx_export.convert(model)


def test_the_comparison_detects_a_different_model(
    evaluations: dict[Algorithm, Evaluation], exported: dict[Algorithm, bytes]
) -> None:
    model, other = evaluations[Algorithm.SVM].model, exported[Algorithm.RANDOM_FOREST]
    parity = onnx_export.compare(model, other, onnx_export.random_rows(seed=1))
    assert parity.wrong_labels > 0
    assert parity.difference > TOLERANCE


def test_random_rows_are_within_bounds_on_a_half_millimetre_grid_and_reproducible() -> None:
    rows = onnx_export.random_rows(seed=3)
    assert rows.shape == (RANDOM_ROWS, 4)
    assert np.all((rows >= LOW) & (rows <= HIGH))
    assert np.allclose(rows * 20, np.round(rows * 20))
    assert np.array_equal(rows, onnx_export.random_rows(seed=3))


def test_random_rows_hit_thresholds_and_ties_of_the_forest(
    evaluations: dict[Algorithm, Evaluation],
) -> None:
    forest, rows = evaluations[Algorithm.RANDOM_FOREST].model, onnx_export.random_rows(SEED)
    thresholds = {
        (feature, np.float32(threshold))
        for tree in forest[-1].estimators_
        for feature, threshold in zip(tree.tree_.feature, tree.tree_.threshold, strict=True)
    }
    hits = {(column, np.float32(value)) for row in rows for column, value in enumerate(row)} & thresholds
    votes = np.sort(forest.predict_proba(rows), axis=1)
    assert len(hits) > 20
    assert np.any(votes[:, 2] == votes[:, 1])
