"""The model folder: its content, its verification, and that a write never leaves a partial folder."""

import json
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import model_folder
from pipeline.data import Data
from pipeline.evaluation import Evaluation
from pipeline.model_folder import FolderError, ModelMetadata, RegisteredModelMetadata
from pipeline.names import Algorithm
from pipeline.onnx_export import TOLERANCE, predict
from tests.support.workspace import folder

finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.dictionaries(st.text(), st.text())
registered_metadata = st.fixed_dictionaries(
    {
        "name": st.text(),
        "version": st.text(),
        "run_id": st.text(),
        "algorithm": st.text(),
        "sha256": st.text(),
        "features": st.lists(st.fixed_dictionaries({"name": st.text(), "min": finite, "max": finite})),
        "classes": st.lists(st.text()),
        "metrics": st.dictionaries(st.text(), finite),
        "libraries": texts,
        "golden": st.lists(
            st.fixed_dictionaries(
                {"features": st.lists(finite), "prediction": st.integers(), "probability": finite}
            )
        ),
    }
)


@pytest.fixture
def metadata(iris: Data, evaluations: dict[Algorithm, Evaluation], onnx: bytes) -> ModelMetadata:
    return deepcopy(model_folder.describe(evaluations[Algorithm.LOGISTIC_REGRESSION], iris, onnx))


@pytest.fixture
def onnx(exported: dict[Algorithm, bytes]) -> bytes:
    return exported[Algorithm.LOGISTIC_REGRESSION]


@given(onnx=st.binary(), metadata=registered_metadata)
def test_a_written_folder_reads_back_unchanged(onnx: bytes, metadata: RegisteredModelMetadata) -> None:
    with TemporaryDirectory() as path:
        out = Path(path) / "model"
        model_folder.write(out, onnx, metadata)
        assert (out / "model.onnx").read_bytes() == onnx
        read = json.loads((out / "model.json").read_text(encoding="utf-8"))
        assert read == metadata
        assert list(read) == list(metadata)


def test_a_write_replaces_the_folder_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "model"
    for content in (b"old", b"new"):
        model_folder.write(out, content, example_metadata())
    assert folder(out)["model.onnx"] == b"new"
    assert list(tmp_path.iterdir()) == [out]


def test_a_reader_never_sees_a_partial_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename, seen = tmp_path / "model", Path.rename, []

    def rename_and_read(path: Path, target: Path) -> None:
        rename(path, target)
        seen.append(folder(out))

    model_folder.write(out, b"old", example_metadata())
    old = folder(out)
    monkeypatch.setattr(Path, "rename", rename_and_read)
    model_folder.write(out, b"new", {**example_metadata(), "version": "2"})
    assert seen == [{}, folder(out)]
    assert folder(out).keys() == old.keys()
    assert all(folder(out)[name] != old[name] for name in old)


def test_a_failed_write_keeps_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "model"
    model_folder.write(out, b"old", example_metadata())
    before = folder(out)
    with pytest.raises(ValueError, match="not JSON compliant"):
        model_folder.write(out, b"new", {**example_metadata(), "metrics": {"f1": float("nan")}})
    assert folder(out) == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FolderError, match="is not a model folder, and writing would delete it"):
        model_folder.write(tmp_path, b"", example_metadata())
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.write_text("a file")
    with pytest.raises(FolderError, match="is not a model folder"):
        model_folder.write(out, b"", example_metadata())


def test_a_model_that_a_configmap_cannot_hold_is_not_written(tmp_path: Path) -> None:
    out = tmp_path / "model"
    metadata = example_metadata()
    metadata["classes"] = ["x" * 1000] * 990
    model_folder.write(out, b"", metadata)
    metadata["classes"] = ["x" * 1000] * 1000
    with pytest.raises(FolderError, match=r"would have 1,0\d\d,\d{3} bytes, and 1,000,000 can be delivered"):
        model_folder.write(tmp_path / "other", b"", metadata)
    assert list(tmp_path.iterdir()) == [out]


def test_golden_vectors_are_test_rows_with_the_answers_of_scikit_learn(
    iris: Data, evaluations: dict[Algorithm, Evaluation], metadata: ModelMetadata
) -> None:
    rows = iris.features[iris.test_rows]
    model = evaluations[Algorithm.LOGISTIC_REGRESSION].model
    assert [vector["features"] for vector in metadata["golden"]] == rows.tolist()
    assert [vector["prediction"] for vector in metadata["golden"]] == model.predict(rows).tolist()
    probabilities = [vector["probability"] for vector in metadata["golden"]]
    assert probabilities == pytest.approx(model.predict_proba(rows).max(axis=1), abs=1e-6)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_the_reference_has_the_training_rows_and_out_of_fold_predictions(
    iris: Data, evaluations: dict[Algorithm, Evaluation], algorithm: Algorithm
) -> None:
    x, y = iris.features[iris.train_rows], iris.labels[iris.train_rows]
    reference = model_folder.reference(evaluations[algorithm], iris)
    assert reference["features"] == [sorted(column) for column in x.T.tolist()]
    assert sum(reference["predictions"]) == len(reference["probabilities"]) == len(x)
    assert reference["probabilities"] == sorted(reference["probabilities"])
    assert reference["probabilities"][0] > 1 / 3
    assert reference["probabilities"][-1] <= 1
    # The class counts are those of the data, except for the errors that cross-validation counts.
    wrong = round((1 - evaluations[algorithm].cv.accuracy) * len(x))
    assert sum(abs(np.array(reference["predictions"]) - np.bincount(y))) <= 2 * wrong
    # The model is more confident on the rows it was fitted on, which makes them a poor reference for traffic.
    fitted = evaluations[algorithm].model.predict_proba(x).max(axis=1)
    assert np.mean(reference["probabilities"]) < fitted.mean() - 0.001
    assert reference == model_folder.reference(evaluations[algorithm], iris)


def test_an_older_version_without_a_reference_is_exported_unchanged(
    tmp_path: Path, onnx: bytes, metadata: ModelMetadata
) -> None:
    del metadata["reference"]
    model_folder.verify(onnx, metadata["sha256"], metadata)
    registered = RegisteredModelMetadata(
        name="iris", version="1", run_id="ab", golden_tolerance=TOLERANCE, **metadata
    )
    model_folder.write(tmp_path / "model", onnx, registered)
    assert "reference" not in json.loads((tmp_path / "model/model.json").read_text())


def test_an_unchanged_model_passes_verification(onnx: bytes, metadata: ModelMetadata) -> None:
    model_folder.verify(onnx, metadata["sha256"], metadata)


def test_changed_bytes_are_rejected(onnx: bytes, metadata: ModelMetadata) -> None:
    with pytest.raises(FolderError, match="was changed after it was registered"):
        model_folder.verify(onnx + b"\0", metadata["sha256"], metadata)


@pytest.mark.parametrize("algorithm", [Algorithm.SVM, Algorithm.RANDOM_FOREST])
def test_a_model_with_different_answers_is_rejected(
    exported: dict[Algorithm, bytes], metadata: ModelMetadata, algorithm: Algorithm
) -> None:
    other = exported[algorithm]
    with pytest.raises(FolderError, match="does not reproduce the golden vector"):
        model_folder.verify(other, model_folder.digest(other), metadata)


def test_a_probability_beyond_the_tolerance_is_rejected(onnx: bytes, metadata: ModelMetadata) -> None:
    metadata["golden"][7]["probability"] -= 0.9 * TOLERANCE
    model_folder.verify(onnx, metadata["sha256"], metadata)
    metadata["golden"][7]["probability"] -= 0.2 * TOLERANCE
    with pytest.raises(FolderError, match="does not reproduce the golden vector"):
        model_folder.verify(onnx, metadata["sha256"], metadata)


def test_a_wrong_label_is_rejected(onnx: bytes, metadata: ModelMetadata) -> None:
    vector = metadata["golden"][0]
    vector["prediction"] = 2
    with pytest.raises(FolderError, match=r"expected class 2 with .*, got class 0 with"):
        model_folder.verify(onnx, metadata["sha256"], metadata)


def test_a_wrong_label_with_the_right_probability_is_rejected(
    onnx: bytes, metadata: ModelMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, probabilities = predict(onnx, np.array([v["features"] for v in metadata["golden"]]))
    monkeypatch.setattr(model_folder, "predict", lambda *_: ((labels + 1) % 3, probabilities))
    with pytest.raises(FolderError, match=r"expected class 0 with .*, got class 1 with"):
        model_folder.verify(onnx, metadata["sha256"], metadata)


def example_metadata() -> RegisteredModelMetadata:
    return RegisteredModelMetadata(
        name="iris-classifier",
        version="1",
        run_id="0" * 32,
        algorithm="svm",
        sha256="",
        features=[],
        classes=[],
        metrics={},
        libraries={},
        golden=[],
        golden_tolerance=TOLERANCE,
    )
