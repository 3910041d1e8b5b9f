"""The model folder: what is not exactly what was trained is not served."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.facts import Feature, ModelError
from service.model import Model

Document = dict[str, Any]
KEYS = ["name", "version", "run_id", "algorithm", "sha256", "features", "classes", "golden"]

# Folders are made inside the examples, not by a fixture: each example has its own.
examples = settings(max_examples=50, deadline=None, database=None)


def test_the_trained_model_is_served_with_its_facts(model: Path) -> None:
    document = json.loads((model / "model.json").read_text())
    facts = Model(model).facts
    assert [facts.name, facts.version, facts.run_id, facts.algorithm, facts.sha256, facts.classes] == [
        document[key] for key in ("name", "version", "run_id", "algorithm", "sha256", "classes")
    ]
    assert facts.features == [Feature(**feature) for feature in document["features"]]


def test_the_reference_is_read_and_a_folder_without_one_is_served_as_before(model: Path) -> None:
    document = json.loads((model / "model.json").read_text())
    reference = Model(model).facts.reference
    assert reference
    assert reference.probabilities == document["reference"]["probabilities"]
    del document["reference"]
    with _copy(model) as folder:
        (folder / "model.json").write_text(json.dumps(document))
        assert Model(folder).facts.reference is None


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("features", lambda columns: columns[:-1]),
        ("features", lambda columns: [[], *columns[1:]]),
        ("predictions", lambda counts: counts[:-1]),
        ("predictions", lambda counts: [counts[0] + 1, *counts[1:]]),
        ("predictions", lambda counts: [-1, counts[0] + counts[1] + 1, counts[2]]),
        ("probabilities", lambda probabilities: probabilities[1:]),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(model: Path, part: str, change: Callable[[Any], Any]) -> None:
    document = json.loads((model / "model.json").read_text())
    document["reference"][part] = change(document["reference"][part])
    with _copy(model) as folder:
        (folder / "model.json").write_text(json.dumps(document))
        assert "a reference without values for each feature" in _refusal(folder, "model.json")


def test_every_golden_row_is_answered_as_before_the_export(model: Path) -> None:
    verified = Model(model)
    golden = verified.facts.golden
    labels, probabilities = verified.predict(np.array([row.features for row in golden], np.float32))
    assert labels == [row.prediction for row in golden]
    assert probabilities == pytest.approx([row.probability for row in golden], abs=1e-5)


@examples
@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_changed_byte_of_the_model_is_refused(model: Path, position: int, difference: int) -> None:
    content = bytearray((model / "model.onnx").read_bytes())
    content[position % len(content)] ^= difference
    with _copy(model) as folder:
        (folder / "model.onnx").write_bytes(content)
        assert "sha256" in _refusal(folder, "model.onnx")


@pytest.mark.parametrize("content", [lambda onnx: onnx[:-1], lambda onnx: onnx + b"\0", lambda _: b""])
def test_a_shorter_or_longer_model_is_refused(model: Path, content: Callable[[bytes], bytes]) -> None:
    with _copy(model) as folder:
        (folder / "model.onnx").write_bytes(content((model / "model.onnx").read_bytes()))
        assert "sha256" in _refusal(folder, "model.onnx")


@pytest.mark.parametrize("file", ["model.onnx", "model.json"])
@pytest.mark.parametrize("instead", [None, Path.mkdir], ids=["missing", "a folder"])
def test_a_file_that_cannot_be_read_is_refused_with_what_to_do(
    model: Path, file: str, instead: Callable[[Path], None] | None
) -> None:
    with _copy(model) as folder:
        (folder / file).unlink()
        if instead:
            instead(folder / file)
        assert "python -m pipeline export" in (message := _refusal(folder, file))
        assert "IRIS_MODEL_DIR" in message


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_refused_by_name(model: Path, key: str) -> None:
    assert f"`{key}`" in _refusal_of(model, lambda document: document.pop(key))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, 1, True, {}, [1], [[]]], ids=str)
def test_a_key_of_another_type_is_refused_by_name(model: Path, key: str, value: object) -> None:
    assert f"$.{key}" in _refusal_of(model, lambda document: document.update({key: value}))


@pytest.mark.parametrize("key", ["features", "classes", "golden"])
def test_an_empty_list_is_refused(model: Path, key: str) -> None:
    assert "at least one" in _refusal_of(model, lambda document: document.update({key: []}))


def test_a_missing_golden_tolerance_is_refused_by_name(model: Path) -> None:
    assert "`golden_tolerance`" in _refusal_of(model, lambda document: document.pop("golden_tolerance"))


@pytest.mark.parametrize("value", [0, -1e-5, None, "1e-5", True, []], ids=str)
def test_a_golden_tolerance_that_is_not_a_positive_number_is_refused(model: Path, value: object) -> None:
    assert "$.golden_tolerance" in _refusal_of(
        model, lambda document: document.update({"golden_tolerance": value})
    )


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"null", b"[]", b'{"name": NaN}'])
def test_a_description_that_is_none_is_refused(model: Path, content: bytes) -> None:
    with _copy(model) as folder:
        (folder / "model.json").write_bytes(content)
        _refusal(folder, "model.json")


@examples
@given(st.data())
def test_a_golden_probability_that_differs_by_more_than_the_tolerance_is_refused(
    model: Path, data: st.DataObject
) -> None:
    # The rest to 1e-5 is what float32 itself takes.
    difference = data.draw(st.one_of(st.floats(1.1e-5, 1), st.floats(-1, -1.1e-5)))
    with _copy(model) as folder:
        number = _differ(folder, data, difference)
        assert f"golden vector {number} " in _refusal(folder, "model.json")


@examples
@given(st.data())
def test_a_golden_probability_that_differs_by_less_than_the_tolerance_is_accepted(
    model: Path, data: st.DataObject
) -> None:
    difference = data.draw(st.floats(-0.9e-5, 0.9e-5))
    with _copy(model) as folder:
        _differ(folder, data, difference)
        Model(folder)


@examples
@given(st.data())
def test_a_golden_row_with_another_class_is_refused(model: Path, data: st.DataObject) -> None:
    with _copy(model) as folder:
        with _changed(folder) as document:
            number = data.draw(st.integers(0, len(document["golden"]) - 1))
            row = document["golden"][number]
            label = data.draw(st.integers(-1, 3))
            assume(label != row["prediction"])
            row["prediction"] = label
        _refusal(folder, "model.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["features"].pop(),
        lambda document: document["features"].append({"name": "x", "min": 0, "max": 1}),
        lambda document: document["classes"].pop(),
        lambda document: document["features"][0].update(min=100, max=200),
        lambda document: document["features"][0].update(min=5, max=5),
        lambda document: document["features"][1].update(max=-1),
        lambda document: document.update(version="9" * 51),
        lambda document: document.update(name="iris\0"),
        lambda document: document["golden"][0]["features"].pop(),
        lambda document: document["golden"][0]["features"].append(0),
        lambda document: document["golden"][0]["features"].__setitem__(0, 1e300),
    ],
    ids=[
        "a feature less",
        "a feature more",
        "a class less",
        "golden rows out of bounds",
        "no room between the bounds",
        "bounds the wrong way round",
        "a version that the log cannot hold",
        "a name that the log cannot hold",
        "a short golden row",
        "a long golden row",
        "a huge golden value",
    ],
)
def test_a_description_that_contradicts_itself_is_refused(
    model: Path, change: Callable[[Document], object]
) -> None:
    _refusal_of(model, change)


@pytest.mark.parametrize("content", [b"", b"no model\n"])
def test_what_is_no_model_is_refused_even_with_its_right_digest(model: Path, content: bytes) -> None:
    assert "onnxruntime" in _refusal_of_onnx(model, content)


@pytest.mark.parametrize("key", ["input", "output"])
def test_a_model_with_other_inputs_or_outputs_is_refused(model: Path, key: str) -> None:
    content = onnx.load(model / "model.onnx")
    old = getattr(content.graph, key)[0].name
    getattr(content.graph, key)[0].name = "other"
    for node in content.graph.node:
        names = getattr(node, key)
        names[:] = ["other" if name == old else name for name in names]
    assert "golden" in _refusal_of_onnx(model, content.SerializeToString())


def test_a_model_for_more_features_is_refused(model: Path) -> None:
    # Such rows are within their bounds and as long as each other: only the model itself can tell.
    def longer(document: Document) -> None:
        document["features"].append({"name": "x", "min": 0, "max": 1})
        for row in document["golden"]:
            row["features"].append(0.5)
        document["reference"]["features"].append([0.5])

    with _copy(model) as folder:
        with _changed(folder) as document:
            longer(document)
        assert "golden" in _refusal(folder, "model.onnx")


@contextmanager
def _copy(model: Path) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(shutil.copytree(model, Path(folder, "model")))


@contextmanager
def _changed(folder: Path) -> Iterator[Document]:
    document = json.loads((folder / "model.json").read_text())
    yield document
    (folder / "model.json").write_text(json.dumps(document))


def _differ(folder: Path, data: st.DataObject, difference: float) -> int:
    """Add that to the model's own answer to some golden row; return the row's number."""
    verified = Model(folder)
    with _changed(folder) as document:
        number: int = data.draw(st.integers(0, len(document["golden"]) - 1))
        row = document["golden"][number]
        _, (probability,) = verified.predict(np.array([row["features"]], np.float32))
        row["probability"] = probability + difference
    return number


def _refusal_of(model: Path, change: Callable[[Document], object]) -> str:
    with _copy(model) as folder:
        with _changed(folder) as document:
            change(document)
        return _refusal(folder, "model.json")


def _refusal_of_onnx(model: Path, content: bytes) -> str:
    with _copy(model) as folder:
        (folder / "model.onnx").write_bytes(content)
        with _changed(folder) as document:
            document["sha256"] = hashlib.sha256(content).hexdigest()
        return _refusal(folder, "model.onnx")


def _refusal(folder: Path, file: str) -> str:
    with pytest.raises(ModelError) as refusal:
        Model(folder)
    message = str(refusal.value)
    assert str(folder / file) in message
    assert "\n" not in message
    return message
