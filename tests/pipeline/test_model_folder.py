"""The model folder: whole or not there at all, at every step of being written."""

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
from pipeline.model_folder import Document, Facts, FolderError
from pipeline.names import Algorithm
from pipeline.onnx_export import TOLERANCE, answer
from tests.support.workspace import folder

finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.dictionaries(st.text(), st.text())
documents = st.fixed_dictionaries(
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
def facts(iris: Data, evaluations: dict[Algorithm, Evaluation], onnx: bytes) -> Facts:
    return deepcopy(model_folder.facts(evaluations[Algorithm.LOGISTIC_REGRESSION], iris, onnx))


@pytest.fixture
def onnx(exported: dict[Algorithm, bytes]) -> bytes:
    return exported[Algorithm.LOGISTIC_REGRESSION]


@given(onnx=st.binary(), document=documents)
def test_what_is_written_is_what_is_read(onnx: bytes, document: Document) -> None:
    with TemporaryDirectory() as path:
        out = Path(path) / "model"
        model_folder.write(out, onnx, document)
        assert (out / "model.onnx").read_bytes() == onnx
        read = json.loads((out / "model.json").read_text(encoding="utf-8"))
        assert read == document
        assert list(read) == list(document)


def test_a_folder_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "model"
    for content in (b"old", b"new"):
        model_folder.write(out, content, a_document())
    assert folder(out)["model.onnx"] == b"new"
    assert list(tmp_path.iterdir()) == [out]


def test_at_no_step_is_there_half_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename, seen = tmp_path / "model", Path.rename, []

    def look_after(path: Path, target: Path) -> None:
        rename(path, target)
        seen.append(folder(out))

    model_folder.write(out, b"old", a_document())
    old = folder(out)
    monkeypatch.setattr(Path, "rename", look_after)
    model_folder.write(out, b"new", {**a_document(), "version": "2"})
    assert seen == [{}, folder(out)]
    assert folder(out).keys() == old.keys()
    assert all(folder(out)[name] != old[name] for name in old)


def test_a_write_that_fails_halfway_leaves_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "model"
    model_folder.write(out, b"old", a_document())
    before = folder(out)
    with pytest.raises(ValueError, match="not JSON compliant"):
        model_folder.write(out, b"new", {**a_document(), "metrics": {"f1": float("nan")}})
    assert folder(out) == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_with_anything_else_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FolderError, match="is not a model folder, and would be replaced"):
        model_folder.write(tmp_path, b"", a_document())
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.write_text("a file")
    with pytest.raises(FolderError, match="is not a model folder"):
        model_folder.write(out, b"", a_document())


def test_golden_vectors_are_the_test_rows_with_the_answers_of_scikit_learn(
    iris: Data, evaluations: dict[Algorithm, Evaluation], facts: Facts
) -> None:
    rows = iris.features[iris.test_rows]
    model = evaluations[Algorithm.LOGISTIC_REGRESSION].model
    assert [vector["features"] for vector in facts["golden"]] == rows.tolist()
    assert [vector["prediction"] for vector in facts["golden"]] == model.predict(rows).tolist()
    probabilities = [vector["probability"] for vector in facts["golden"]]
    assert probabilities == pytest.approx(model.predict_proba(rows).max(axis=1), abs=1e-6)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_the_reference_is_training_rows_and_answers_to_rows_that_were_not_seen(
    iris: Data, evaluations: dict[Algorithm, Evaluation], algorithm: Algorithm
) -> None:
    x, y = iris.features[iris.train_rows], iris.labels[iris.train_rows]
    reference = model_folder.reference(evaluations[algorithm], iris)
    assert reference["features"] == [sorted(column) for column in x.T.tolist()]
    assert sum(reference["predictions"]) == len(reference["probabilities"]) == len(x)
    assert reference["probabilities"] == sorted(reference["probabilities"])
    assert reference["probabilities"][0] > 1 / 3
    assert reference["probabilities"][-1] <= 1
    # As many of each class as there are, but for the few mistakes that cross-validation counts.
    wrong = round((1 - evaluations[algorithm].cv.accuracy) * len(x))
    assert sum(abs(np.array(reference["predictions"]) - np.bincount(y))) <= 2 * wrong
    # Surer of itself where it was fitted: what traffic must not be compared with.
    fitted = evaluations[algorithm].model.predict_proba(x).max(axis=1)
    assert np.mean(reference["probabilities"]) < fitted.mean() - 0.001
    assert reference == model_folder.reference(evaluations[algorithm], iris)


def test_a_version_of_before_there_was_a_reference_is_exported_as_it_is(
    tmp_path: Path, onnx: bytes, facts: Facts
) -> None:
    del facts["reference"]
    model_folder.verify(onnx, facts["sha256"], facts)
    document = Document(name="iris", version="1", run_id="ab", golden_tolerance=TOLERANCE, **facts)
    model_folder.write(tmp_path / "model", onnx, document)
    assert "reference" not in json.loads((tmp_path / "model/model.json").read_text())


def test_a_model_that_is_what_was_recorded_passes(onnx: bytes, facts: Facts) -> None:
    model_folder.verify(onnx, facts["sha256"], facts)


def test_other_bytes_than_recorded_are_refused(onnx: bytes, facts: Facts) -> None:
    with pytest.raises(FolderError, match="was changed after it was registered"):
        model_folder.verify(onnx + b"\0", facts["sha256"], facts)


@pytest.mark.parametrize("algorithm", [Algorithm.SVM, Algorithm.RANDOM_FOREST])
def test_another_model_gives_other_answers_and_is_refused(
    exported: dict[Algorithm, bytes], facts: Facts, algorithm: Algorithm
) -> None:
    other = exported[algorithm]
    with pytest.raises(FolderError, match="does not give the golden answer"):
        model_folder.verify(other, model_folder.digest(other), facts)


def test_a_probability_may_differ_by_the_tolerance_and_not_by_more(onnx: bytes, facts: Facts) -> None:
    facts["golden"][7]["probability"] -= 0.9 * TOLERANCE
    model_folder.verify(onnx, facts["sha256"], facts)
    facts["golden"][7]["probability"] -= 0.2 * TOLERANCE
    with pytest.raises(FolderError, match="does not give the golden answer"):
        model_folder.verify(onnx, facts["sha256"], facts)


def test_a_golden_label_that_is_not_given_is_refused(onnx: bytes, facts: Facts) -> None:
    vector = facts["golden"][0]
    vector["prediction"] = 2
    with pytest.raises(FolderError, match=r"wanted 2 with .*, got 0 with"):
        model_folder.verify(onnx, facts["sha256"], facts)


def test_a_right_probability_does_not_excuse_a_wrong_label(
    onnx: bytes, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, probabilities = answer(onnx, np.array([v["features"] for v in facts["golden"]]))
    monkeypatch.setattr(model_folder, "answer", lambda *_: ((labels + 1) % 3, probabilities))
    with pytest.raises(FolderError, match=r"wanted 0 with .*, got 1 with"):
        model_folder.verify(onnx, facts["sha256"], facts)


def a_document() -> Document:
    return Document(
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
