"""The commands from one end to the other, on a registry that is really MLflow's."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from pipeline import candidates, data, model_folder, onnx_export
from pipeline.data import Data
from pipeline.dataset import FEATURES, MODEL_NAME
from pipeline.model_folder import Document
from pipeline.names import Algorithm
from tests.pipeline.conftest import History
from tests.support.workspace import Workspace, folder


def test_the_first_training_registers_version_1_and_makes_it_the_champion(history: History) -> None:
    assert history.first.exit_code == 0
    assert list(history.after_first.versions) == ["1"]
    assert history.after_first.aliases == {"production": "1"}


def test_the_second_training_registers_version_2_and_moves_the_alias(history: History) -> None:
    assert history.second.exit_code == 0
    assert sorted(history.after_second.versions) == ["1", "2"]
    assert history.after_second.aliases == {"production": "2"}
    assert document(history.after_second.folder)["algorithm"] == "svm"


def test_a_training_leaves_the_earlier_version_as_it_was(history: History) -> None:
    assert history.after_second.versions["1"] == history.after_first.versions["1"]


def test_the_version_carries_its_facts_as_tags(history: History, iris: Data) -> None:
    tags, written = history.after_first.versions["1"], document(history.after_first.folder)
    assert tags["algorithm"] == written["algorithm"] == "logistic_regression"
    assert tags["sha256"] == written["sha256"]
    assert tags["run_id"] == written["run_id"]
    assert tags["data_sha256"] == iris.digest
    assert float(tags["test_accuracy"]) == written["metrics"]["accuracy"]
    assert float(tags["cv_f1"]) > 0.9
    assert {"seed", "git_commit"} <= tags.keys()


def test_the_folder_is_what_the_service_expects(history: History, iris: Data) -> None:
    files = history.after_first.folder
    written = document(files)
    assert files.keys() == {"model.onnx", "model.json"}
    assert list(written) == list(Document.__annotations__)
    assert (written["name"], written["version"]) == (MODEL_NAME, "1")
    assert written["classes"] == ["setosa", "versicolor", "virginica"]
    assert written["features"][0] == {"name": "sepal_length_cm", "min": 0.0, "max": 12.0}
    assert len(written["golden"]) == len(iris.test_rows)
    assert model_folder.digest(files["model.onnx"]) == written["sha256"]


def test_the_golden_answers_are_given_by_onnxruntime_alone(history: History) -> None:
    session = onnxruntime.InferenceSession(history.after_first.folder["model.onnx"])
    for vector in document(history.after_first.folder)["golden"]:
        row = np.array([vector["features"]], dtype=np.float32)
        label, probabilities = session.run(["label", "probabilities"], {"features": row})
        assert label[0] == vector["prediction"]
        assert abs(probabilities[0, label[0]] - vector["probability"]) <= 1e-5


def test_the_first_version_exported_later_has_the_same_bytes(history: History, tmp_path: Path) -> None:
    outcome = history.workspace.run("export", "--version", "1", out=tmp_path / "again")
    assert outcome.exit_code == 0
    assert folder(tmp_path / "again") == history.after_first.folder


def test_the_champion_is_exported_when_nothing_else_is_asked_for(history: History, tmp_path: Path) -> None:
    assert history.workspace.run("export", out=tmp_path / "default").exit_code == 0
    assert history.workspace.run("export", "--alias", "production", out=tmp_path / "alias").exit_code == 0
    assert folder(tmp_path / "default") == folder(tmp_path / "alias") == history.after_second.folder


def test_an_unknown_version_is_an_error_that_names_those_there_are(history: History, tmp_path: Path) -> None:
    outcome = history.workspace.run("export", "--version", "9", out=tmp_path / "none")
    assert outcome.exit_code == 1
    assert "has no version 9, there is 1, 2." in outcome.stderr
    assert not (tmp_path / "none").exists()


def test_an_unknown_alias_is_an_error_that_names_those_there_are(history: History, tmp_path: Path) -> None:
    outcome = history.workspace.run("export", "--alias", "staging", out=tmp_path / "none")
    assert outcome.exit_code == 1
    assert "has the alias 'staging', there is production." in outcome.stderr


def test_an_empty_registry_says_how_to_train(tmp_path: Path) -> None:
    outcome = Workspace(tmp_path, f"sqlite:///{tmp_path}/mlflow.db").run("export")
    assert outcome.exit_code == 1
    assert (
        "there is none yet. Name a version with --version, or train one with: python -m pipeline" in outcome.stderr
    )


def test_a_server_that_is_away_is_one_line_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    outcome = Workspace(tmp_path, "http://127.0.0.1:9").run("export")
    assert outcome.exit_code == 1
    assert outcome.stderr.startswith("error: cannot use the registry at http://127.0.0.1:9: ")
    assert outcome.stderr.count("\n") == 1
    assert "unset MLFLOW_TRACKING_URI" in outcome.stderr


@pytest.mark.parametrize("name", ["model.onnx", "model.json"])
def test_an_artifact_that_was_tampered_with_is_not_exported(
    history: History, tmp_path: Path, name: str, tampered: dict[str, Path]
) -> None:
    path = tampered[name]
    content = path.read_bytes()
    path.write_bytes(
        content.replace(b"skl2onnx", b"skl2onnz") + b" " if name == "model.onnx" else swapped(content)
    )
    outcome = history.workspace.run("export", "--version", "1", out=tmp_path / "none")
    assert outcome.exit_code == 1
    assert "Do not serve it" in outcome.stderr
    assert not (tmp_path / "none").exists()


@pytest.fixture
def tampered(history: History) -> Iterator[dict[str, Path]]:
    """The files that the registry holds for version 1; afterwards they are what they were."""
    root = history.workspace.path / "mlartifacts"
    run_id = history.after_first.versions["1"]["run_id"]
    digest = history.after_first.versions["1"]["sha256"]
    models = [path for path in root.rglob("model.onnx") if model_folder.digest(path.read_bytes()) == digest]
    paths = {"model.onnx": models[0], "model.json": root / run_id / "artifacts" / "model.json"}
    before = {path: path.read_bytes() for path in paths.values()}
    yield paths
    for path, content in before.items():
        path.write_bytes(content)


def swapped(content: bytes) -> bytes:
    """Exchange the answers of two golden vectors."""
    facts = json.loads(content)
    first, last = facts["golden"][0], facts["golden"][-1]
    first["prediction"], last["prediction"] = last["prediction"], first["prediction"]
    return json.dumps(facts).encode()


def test_a_model_trained_on_shuffled_labels_is_refused(
    history: History, iris: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        data, "load", lambda: replace(iris, labels=np.random.RandomState(0).permutation(iris.labels))
    )
    refused(history, "--algorithm", "logistic_regression", reason="below the floor of 0.900")


def test_a_model_worse_than_the_champion_is_refused(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "build", timid)
    reasons = refused(history, "--algorithm", "logistic_regression", reason="below the champion's 0.967")
    assert "floor" not in reasons


def test_a_model_that_answers_differently_as_onnx_is_refused(
    history: History, monkeypatch: pytest.MonkeyPatch, exported: dict[Algorithm, bytes]
) -> None:
    monkeypatch.setattr(onnx_export, "convert", lambda _: exported[Algorithm.RANDOM_FOREST])
    refused(history, "--algorithm", "svm", reason="rows get another label")


def test_a_broken_contract_stops_before_anything_is_trained(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "FEATURES", [feature._replace(high=5.0) for feature in FEATURES])
    monkeypatch.setattr(data, "HIGH", np.full(4, 5.0))
    outcome = history.workspace.run()
    assert outcome.exit_code == 1
    assert "sepal_length_cm from 0.0 to 5.0 wanted, 5.1 in row 0 found" in outcome.stderr
    assert outcome.stdout == ""


def refused(history: History, *arguments: str, reason: str) -> str:
    """Train, see exit code 3 and the reason, and nothing changed; return the reasons."""
    before = history.workspace.state()
    written = history.workspace.out.stat().st_mtime_ns
    outcome = history.workspace.run(*arguments)
    assert outcome.exit_code == 3
    assert "error: the gate refused the model: " in outcome.stderr
    assert reason in outcome.stderr
    assert history.workspace.state() == before
    assert history.workspace.out.stat().st_mtime_ns == written
    return outcome.stderr


def timid(_: Algorithm, seed: int) -> Pipeline:
    """A model that is held back so much (C is small) that it is good, but not as good as it could be."""
    return Pipeline([("classify", LogisticRegression(C=0.05, max_iter=1000, random_state=seed))])


def document(files: dict[str, bytes]) -> Document:
    read: Document = json.loads(files["model.json"])
    return read
