"""The model folder: a model is served only if it is exactly what was trained."""

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

from service.model import Model
from service.model_metadata import Feature, ModelError

Document = dict[str, Any]
KEYS = ["name", "version", "run_id", "algorithm", "sha256", "features", "classes", "golden"]

# Each example makes its own model folder; a fixture would be shared by all examples.
examples = settings(max_examples=50, deadline=None, database=None)


def test_the_trained_model_is_loaded_with_its_metadata(model: Path) -> None:
    document = json.loads((model / "model.json").read_text())
    metadata = Model(model).metadata
    assert [
        metadata.name,
        metadata.version,
        metadata.run_id,
        metadata.algorithm,
        metadata.sha256,
        metadata.classes,
    ] == [document[key] for key in ("name", "version", "run_id", "algorithm", "sha256", "classes")]
    assert metadata.features == [Feature(**feature) for feature in document["features"]]


def test_a_model_is_loaded_with_or_without_a_reference(model: Path) -> None:
    document = json.loads((model / "model.json").read_text())
    reference = Model(model).metadata.reference
    assert reference
    assert reference.probabilities == document["reference"]["probabilities"]
    del document["reference"]
    with _copy(model) as folder:
        (folder / "model.json").write_text(json.dumps(document))
        assert Model(folder).metadata.reference is None


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
def test_a_reference_that_does_not_match_the_model_is_rejected(
    model: Path, part: str, change: Callable[[Any], Any]
) -> None:
    document = json.loads((model / "model.json").read_text())
    document["reference"][part] = change(document["reference"][part])
    with _copy(model) as folder:
        (folder / "model.json").write_text(json.dumps(document))
        assert "a reference without values for each feature" in _error(folder, "model.json")


def test_every_golden_vector_is_reproduced(model: Path) -> None:
    verified = Model(model)
    golden = verified.metadata.golden
    labels, probabilities = verified.predict(np.array([row.features for row in golden], np.float32))
    assert labels == [row.prediction for row in golden]
    assert probabilities == pytest.approx([row.probability for row in golden], abs=1e-5)


@examples
@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_model_with_a_changed_byte_is_rejected(model: Path, position: int, difference: int) -> None:
    content = bytearray((model / "model.onnx").read_bytes())
    content[position % len(content)] ^= difference
    with _copy(model) as folder:
        (folder / "model.onnx").write_bytes(content)
        assert "sha256" in _error(folder, "model.onnx")


@pytest.mark.parametrize("content", [lambda onnx: onnx[:-1], lambda onnx: onnx + b"\0", lambda _: b""])
def test_a_truncated_or_extended_model_is_rejected(model: Path, content: Callable[[bytes], bytes]) -> None:
    with _copy(model) as folder:
        (folder / "model.onnx").write_bytes(content((model / "model.onnx").read_bytes()))
        assert "sha256" in _error(folder, "model.onnx")


@pytest.mark.parametrize("file", ["model.onnx", "model.json"])
@pytest.mark.parametrize("instead", [None, Path.mkdir], ids=["missing", "a folder"])
def test_the_error_for_an_unreadable_file_gives_the_remedy(
    model: Path, file: str, instead: Callable[[Path], None] | None
) -> None:
    with _copy(model) as folder:
        (folder / file).unlink()
        if instead:
            instead(folder / file)
        assert "python -m pipeline export" in (message := _error(folder, file))
        assert "IRIS_MODEL_DIR" in message


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_rejected_by_name(model: Path, key: str) -> None:
    assert f"`{key}`" in _error_of(model, lambda document: document.pop(key))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, 1, True, {}, [1], [[]]], ids=str)
def test_a_key_of_the_wrong_type_is_rejected_by_name(model: Path, key: str, value: object) -> None:
    assert f"$.{key}" in _error_of(model, lambda document: document.update({key: value}))


@pytest.mark.parametrize("key", ["features", "classes", "golden"])
def test_an_empty_list_is_rejected(model: Path, key: str) -> None:
    assert "at least one" in _error_of(model, lambda document: document.update({key: []}))


def test_a_missing_golden_tolerance_is_rejected_by_name(model: Path) -> None:
    assert "`golden_tolerance`" in _error_of(model, lambda document: document.pop("golden_tolerance"))


@pytest.mark.parametrize("value", [0, -1e-5, None, "1e-5", True, []], ids=str)
def test_a_golden_tolerance_that_is_not_a_positive_number_is_rejected(model: Path, value: object) -> None:
    assert "$.golden_tolerance" in _error_of(model, lambda document: document.update({"golden_tolerance": value}))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"null", b"[]", b'{"name": NaN}'])
def test_invalid_metadata_are_rejected(model: Path, content: bytes) -> None:
    with _copy(model) as folder:
        (folder / "model.json").write_bytes(content)
        _error(folder, "model.json")


@examples
@given(st.data())
def test_a_golden_probability_beyond_the_tolerance_is_rejected(model: Path, data: st.DataObject) -> None:
    # The margins around 1e-5 allow for rounding in float32.
    difference = data.draw(st.one_of(st.floats(1.1e-5, 1), st.floats(-1, -1.1e-5)))
    with _copy(model) as folder:
        number = _differ(folder, data, difference)
        assert f"golden vector {number} " in _error(folder, "model.json")


@examples
@given(st.data())
def test_a_golden_probability_within_the_tolerance_is_accepted(model: Path, data: st.DataObject) -> None:
    difference = data.draw(st.floats(-0.9e-5, 0.9e-5))
    with _copy(model) as folder:
        _differ(folder, data, difference)
        Model(folder)


@examples
@given(st.data())
def test_a_golden_vector_with_another_class_is_rejected(model: Path, data: st.DataObject) -> None:
    with _copy(model) as folder:
        with _changed(folder) as document:
            number = data.draw(st.integers(0, len(document["golden"]) - 1))
            row = document["golden"][number]
            label = data.draw(st.integers(-1, 3))
            assume(label != row["prediction"])
            row["prediction"] = label
        _error(folder, "model.json")


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
        "one feature too few",
        "one feature too many",
        "one class too few",
        "golden vectors out of bounds",
        "equal bounds",
        "swapped bounds",
        "a version that the log cannot hold",
        "a name that the log cannot hold",
        "a short golden vector",
        "a long golden vector",
        "a huge golden value",
    ],
)
def test_inconsistent_metadata_are_rejected(model: Path, change: Callable[[Document], object]) -> None:
    _error_of(model, change)


@pytest.mark.parametrize("content", [b"", b"not a model\n"])
def test_a_file_that_is_not_a_model_is_rejected_despite_its_correct_digest(model: Path, content: bytes) -> None:
    assert "onnxruntime" in _error_of_onnx(model, content)


@pytest.mark.parametrize("key", ["input", "output"])
def test_a_model_with_other_inputs_or_outputs_is_rejected(model: Path, key: str) -> None:
    content = onnx.load(model / "model.onnx")
    old = getattr(content.graph, key)[0].name
    getattr(content.graph, key)[0].name = "other"
    for node in content.graph.node:
        names = getattr(node, key)
        names[:] = ["other" if name == old else name for name in names]
    assert "golden" in _error_of_onnx(model, content.SerializeToString())


def test_a_model_with_another_number_of_features_is_rejected(model: Path) -> None:
    # The metadata are consistent: only running the model shows that it has fewer features.
    def longer(document: Document) -> None:
        document["features"].append({"name": "x", "min": 0, "max": 1})
        for row in document["golden"]:
            row["features"].append(0.5)
        document["reference"]["features"].append([0.5])

    with _copy(model) as folder:
        with _changed(folder) as document:
            longer(document)
        assert "golden" in _error(folder, "model.onnx")


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
    """Make a golden probability differ from the model's by that much; return the number of the vector."""
    verified = Model(folder)
    with _changed(folder) as document:
        number: int = data.draw(st.integers(0, len(document["golden"]) - 1))
        row = document["golden"][number]
        _, (probability,) = verified.predict(np.array([row["features"]], np.float32))
        row["probability"] = probability + difference
    return number


def _error_of(model: Path, change: Callable[[Document], object]) -> str:
    with _copy(model) as folder:
        with _changed(folder) as document:
            change(document)
        return _error(folder, "model.json")


def _error_of_onnx(model: Path, content: bytes) -> str:
    with _copy(model) as folder:
        (folder / "model.onnx").write_bytes(content)
        with _changed(folder) as document:
            document["sha256"] = hashlib.sha256(content).hexdigest()
        return _error(folder, "model.onnx")


def _error(folder: Path, file: str) -> str:
    with pytest.raises(ModelError) as error:
        Model(folder)
    message = str(error.value)
    assert str(folder / file) in message
    assert "\n" not in message
    return message
