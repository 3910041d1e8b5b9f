"""The commands end to end, with a real MLflow registry."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from pipeline import candidates, data, gate, model_folder, onnx_export, registry, terminal
from pipeline.data import Data
from pipeline.dataset import FEATURES, MODEL_NAME
from pipeline.model_folder import RegisteredModelMetadata
from pipeline.names import Algorithm
from tests.pipeline.conftest import History
from tests.support.running import ROOT
from tests.support.workspace import Workspace, folder


def test_the_first_training_registers_version_1_and_sets_the_alias(history: History) -> None:
    assert history.first.exit_code == 0
    assert list(history.after_first.versions) == ["1"]
    assert history.after_first.aliases == {"production": "1"}


def test_the_second_training_registers_version_2_and_moves_the_alias(history: History) -> None:
    assert history.second.exit_code == 0
    assert sorted(history.after_second.versions) == ["1", "2"]
    assert history.after_second.aliases == {"production": "2"}
    assert metadata(history.after_second.folder)["algorithm"] == "svm"


def test_a_training_does_not_change_the_earlier_version(history: History) -> None:
    assert history.after_second.versions["1"] == history.after_first.versions["1"]


def test_the_version_has_its_metadata_as_tags(history: History, iris: Data) -> None:
    tags, written = history.after_first.versions["1"], metadata(history.after_first.folder)
    assert tags["algorithm"] == written["algorithm"] == "logistic_regression"
    assert tags["sha256"] == written["sha256"]
    assert tags["run_id"] == written["run_id"]
    assert tags["data_sha256"] == iris.digest
    assert float(tags["test_accuracy"]) == written["metrics"]["accuracy"]
    assert float(tags["cv_f1"]) > 0.9
    assert {"seed", "git_commit"} <= tags.keys()


def test_the_folder_has_the_format_that_the_service_expects(history: History, iris: Data) -> None:
    files = history.after_first.folder
    written = metadata(files)
    assert files.keys() == {"model.onnx", "model.json"}
    assert list(written) == list(RegisteredModelMetadata.__annotations__)
    assert (written["name"], written["version"]) == (MODEL_NAME, "1")
    assert written["classes"] == ["setosa", "versicolor", "virginica"]
    assert written["features"][0] == {"name": "sepal_length_cm", "min": 0.0, "max": 12.0}
    assert len(written["golden"]) == len(iris.test_rows)
    assert model_folder.digest(files["model.onnx"]) == written["sha256"]


def test_onnxruntime_reproduces_the_golden_vectors(history: History) -> None:
    session = onnxruntime.InferenceSession(history.after_first.folder["model.onnx"])
    written = metadata(history.after_first.folder)
    for vector in written["golden"]:
        row = np.array([vector["features"]], dtype=np.float32)
        label, probabilities = session.run(["label", "probabilities"], {"features": row})
        assert label[0] == vector["prediction"]
        assert abs(probabilities[0, label[0]] - vector["probability"]) <= written["golden_tolerance"]


def test_a_later_export_of_the_first_version_has_the_same_bytes(history: History, tmp_path: Path) -> None:
    outcome = history.workspace.run("export", "--version", "1", out=tmp_path / "again")
    assert outcome.exit_code == 0
    assert folder(tmp_path / "again") == history.after_first.folder


def test_export_uses_the_production_version_by_default(history: History, tmp_path: Path) -> None:
    assert history.workspace.run("export", out=tmp_path / "default").exit_code == 0
    assert history.workspace.run("export", "--alias", "production", out=tmp_path / "alias").exit_code == 0
    assert folder(tmp_path / "default") == folder(tmp_path / "alias") == history.after_second.folder


def test_the_error_for_an_unknown_version_lists_the_existing_ones(history: History, tmp_path: Path) -> None:
    outcome = history.workspace.run("export", "--version", "9", out=tmp_path / "none")
    assert outcome.exit_code == 1
    assert "has no version 9 (versions: 1, 2)." in outcome.stderr
    assert not (tmp_path / "none").exists()


def test_the_error_for_an_unknown_alias_lists_the_existing_ones(history: History, tmp_path: Path) -> None:
    outcome = history.workspace.run("export", "--alias", "staging", out=tmp_path / "none")
    assert outcome.exit_code == 1
    assert "has the alias 'staging' (aliases: production)." in outcome.stderr


def test_the_error_for_an_empty_registry_says_how_to_train(tmp_path: Path) -> None:
    outcome = Workspace(tmp_path, f"sqlite:///{tmp_path}/mlflow.db").run("export")
    assert outcome.exit_code == 1
    assert (
        "(aliases: none yet). Choose a version with --version, or train one: python -m pipeline" in outcome.stderr
    )


def test_an_unavailable_server_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    outcome = Workspace(tmp_path, "http://127.0.0.1:9").run("export")
    assert outcome.exit_code == 1
    assert outcome.stderr.startswith("error: cannot use the registry at http://127.0.0.1:9: ")
    assert outcome.stderr.count("\n") == 1
    assert "unset MLFLOW_TRACKING_URI" in outcome.stderr


def test_a_password_in_any_line_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say("next", "use postgresql://127.0.0.1:9/x?password=s@cret&user=ada")
    terminal.fail("GET http://ada:s@cret@127.0.0.1:9/x failed")
    printed = capsys.readouterr()
    assert printed.out == "next       use postgresql://127.0.0.1:9/x?password=***&user=ada\n"
    assert printed.err == "error: GET http://***@127.0.0.1:9/x failed\n"


@pytest.mark.parametrize("uri", ["http://ada:s@cret@127.0.0.1:9", "http://s@cret@127.0.0.1:9"])
def test_the_password_in_the_registrys_address_is_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    outcome = Workspace(tmp_path, uri).run("export")
    assert outcome.exit_code == 1
    assert "cannot use the registry at " in outcome.stderr
    assert "cret" not in outcome.stdout + outcome.stderr


def test_two_first_trainings_at_once_share_the_registry(tmp_path: Path) -> None:
    script = "import sys; from pipeline import registry; registry.connected(sys.argv[1]).__enter__()"
    command = [sys.executable, "-c", script, f"sqlite:///{tmp_path}/mlflow.db"]
    started = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], printed


def test_a_registry_that_was_moved_is_named(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    with registry.connected(f"sqlite:///{old}/mlflow.db"):
        pass
    old.rename(new)
    outcome = Workspace(new, f"sqlite:///{new}/mlflow.db").run("export")
    assert outcome.exit_code == 1
    assert f"was moved: its files were in file://{old}/mlartifacts. Move it back, or " in outcome.stderr


@pytest.mark.parametrize("name", ["model.onnx", "model.json"])
def test_a_tampered_artifact_is_not_exported(
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
    """The registry's files of version 1, restored after the test."""
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
    """Swap the answers of two golden vectors."""
    metadata = json.loads(content)
    first, last = metadata["golden"][0], metadata["golden"][-1]
    first["prediction"], last["prediction"] = last["prediction"], first["prediction"]
    return json.dumps(metadata).encode()


def test_a_model_trained_on_shuffled_labels_is_rejected(
    history: History, iris: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        data, "load", lambda: replace(iris, labels=np.random.RandomState(0).permutation(iris.labels))
    )
    rejected(history, "--algorithm", "logistic_regression", reason="below the floor of 0.900")


def test_a_model_worse_than_the_production_version_is_rejected(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "build", underfitted)
    reasons = rejected(history, "--algorithm", "logistic_regression", reason="below the best version's 0.967")
    assert "floor" not in reasons


def test_small_steps_down_add_up(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest version may be worse than an older one: the older one is what a model is compared with."""
    with registry.connected(history.workspace.uri):
        client, tags = mlflow.MlflowClient(), history.after_second.versions["2"]
        client.set_model_version_tag(MODEL_NAME, "2", "cv_f1", "0.91")
        client.set_model_version_tag(MODEL_NAME, "2", "test_accuracy", "0.91")
    try:
        assert outcome_of(history, monkeypatch) == 3
    finally:
        with registry.connected(history.workspace.uri):
            for name in ("cv_f1", "test_accuracy"):
                client.set_model_version_tag(MODEL_NAME, "2", name, tags[name])


def outcome_of(history: History, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(candidates, "build", underfitted)
    return history.workspace.run("--algorithm", "logistic_regression").exit_code


def test_a_version_that_was_measured_on_other_data_is_not_compared(
    history: History, iris: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "load", lambda: replace(iris, labels=iris.labels[::-1].copy()))
    monkeypatch.setattr(candidates, "build", underfitted)  # it is worse than the best version
    monkeypatch.setattr(gate, "FLOOR", gate.GateMetrics(2.0, 2.0))
    reasons = rejected(history, "--algorithm", "logistic_regression", reason="below the floor")
    assert "below the best version" not in reasons


def test_a_model_that_answers_differently_as_onnx_is_rejected(
    history: History, monkeypatch: pytest.MonkeyPatch, exported: dict[Algorithm, bytes]
) -> None:
    monkeypatch.setattr(onnx_export, "convert", lambda _: exported[Algorithm.RANDOM_FOREST])
    rejected(history, "--algorithm", "svm", reason="rows differently")


def test_a_model_that_cannot_be_delivered_is_not_registered(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = history.workspace.state()
    monkeypatch.setattr(model_folder, "LARGEST", 1000)
    outcome = history.workspace.run("--algorithm", "random_forest")
    assert outcome.exit_code == 1
    assert "1,000 can be delivered" in outcome.stderr
    assert history.workspace.state() == before


def test_a_contract_violation_stops_before_training(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "FEATURES", [feature._replace(high=5.0) for feature in FEATURES])
    monkeypatch.setattr(data, "HIGH", np.full(4, 5.0))
    outcome = history.workspace.run()
    assert outcome.exit_code == 1
    assert "expected sepal_length_cm from 0.0 to 5.0, found 5.1 in row 0" in outcome.stderr
    assert outcome.stdout == ""


def rejected(history: History, *arguments: str, reason: str) -> str:
    """Train, assert that the gate rejects the model and nothing changes, and return the reasons."""
    before = history.workspace.state()
    written = history.workspace.out.stat().st_mtime_ns
    outcome = history.workspace.run(*arguments)
    assert outcome.exit_code == 3
    assert "error: the gate rejected the model: " in outcome.stderr
    assert reason in outcome.stderr
    assert history.workspace.state() == before
    assert history.workspace.out.stat().st_mtime_ns == written
    return outcome.stderr


def underfitted(_: Algorithm, seed: int) -> Pipeline:
    """A strongly regularised model (small C): good enough for the floor, but worse than the production version."""
    return Pipeline([("classify", LogisticRegression(C=0.05, max_iter=1000, random_state=seed))])


def metadata(files: dict[str, bytes]) -> RegisteredModelMetadata:
    read: RegisteredModelMetadata = json.loads(files["model.json"])
    return read
