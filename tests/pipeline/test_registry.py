"""The registry: the content of MLflow after a training, and the commands against a tracking server."""

import re
from pathlib import Path
from typing import cast

import mlflow
import numpy as np
import pytest
from mlflow.entities import Run

from pipeline import registry
from pipeline.data import Data
from pipeline.dataset import MODEL_NAME
from pipeline.evaluation import Evaluation
from pipeline.model_folder import ModelMetadata
from pipeline.names import Algorithm
from tests.pipeline.conftest import History
from tests.support.workspace import Workspace


@pytest.fixture(scope="module")
def training_runs(history: History) -> dict[str, Run]:
    """The MLflow runs of the first training by name: `training` and one for each candidate."""
    with registry.connected(history.workspace.uri):
        found = mlflow.search_runs(
            experiment_names=[MODEL_NAME], order_by=["start_time"], max_results=4, output_format="list"
        )
        return {run.info.run_name: run for run in found}


def test_a_training_is_a_run_with_a_nested_run_for_each_candidate(training_runs: dict[str, Run]) -> None:
    parent, nested = training_runs["training"], [training_runs[algorithm] for algorithm in Algorithm]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}
    assert all(run.info.status == "FINISHED" for run in training_runs.values())


def test_a_training_records_the_winner_its_metrics_and_the_verdict(training_runs: dict[str, Run]) -> None:
    training, winner = training_runs["training"].data, training_runs["logistic_regression"].data
    assert training.tags["winner"] == "logistic_regression"
    assert training.tags["gate"] == "passed"
    assert training.metrics == {name: winner.metrics[name] for name in ("cv_f1", "test_accuracy")}


def test_candidates_can_be_compared_by_parameters_and_metrics(
    training_runs: dict[str, Run], evaluations: dict[Algorithm, Evaluation]
) -> None:
    for algorithm, evaluation in evaluations.items():
        run = training_runs[algorithm].data
        assert run.params["algorithm"] == algorithm
        assert run.metrics["cv_f1"] == pytest.approx(evaluation.cv.f1)
        assert run.metrics["cv_std_f1"] == pytest.approx(evaluation.cv_std.f1)
        assert {"test_accuracy", "test_precision", "test_recall", "test_f1"} <= run.metrics.keys()
    assert training_runs[Algorithm.RANDOM_FOREST].data.params["n_estimators"] == "100"
    assert len({frozenset(training_runs[algorithm].data.metrics) for algorithm in Algorithm}) == 1


def test_every_run_records_the_digest_of_its_data(training_runs: dict[str, Run], iris: Data) -> None:
    for run in training_runs.values():
        assert run.inputs
        assert [used.dataset.digest for used in run.inputs.dataset_inputs] == [iris.digest[:36]]
        assert run.data.tags["data_sha256"] == iris.digest


def test_candidates_log_their_report_and_plots(history: History, training_runs: dict[str, Run]) -> None:
    artifacts = {name: listing(history, run) for name, run in training_runs.items()}
    assert artifacts["svm"] == {"classification_report.txt", "confusion_matrix.png"}
    assert artifacts["random_forest"] == artifacts["svm"] | {"feature_importance.json", "feature_importance.png"}
    assert artifacts["logistic_regression"] == artifacts["svm"] | {"model.json"}


def test_the_registered_version_contains_onnx_and_no_pickle(history: History, tmp_path: Path) -> None:
    with registry.connected(history.workspace.uri):
        stored = Path(mlflow.artifacts.download_artifacts(f"models:/{MODEL_NAME}/1", dst_path=str(tmp_path)))
    files = {path.name for path in stored.rglob("*") if path.is_file()}
    about = {"MLmodel", "registered_model_meta", "requirements.txt", "conda.yaml", "python_env.yaml"}
    assert files == {"model.onnx", "input_example.json", "serving_input_example.json"} | about
    assert (stored / "model.onnx").read_bytes() == history.after_first.folder["model.onnx"]


def test_a_model_is_registered_already_only_if_its_bytes_data_and_metadata_are_the_same(
    history: History, iris: Data
) -> None:
    with registry.connected(history.workspace.uri):
        _, found = registry.fetch("1")
        about = {name: value for name, value in found.items() if name in ModelMetadata.__annotations__}
        metadata = cast("ModelMetadata", about)
        assert registry.registered(metadata, iris.digest) == "1"
        assert registry.registered(metadata, "another") is None
        assert registry.registered({**metadata, "sha256": "another"}, iris.digest) is None
        assert registry.registered({**metadata, "classes": ["a", "b", "c"]}, iris.digest) is None


def test_mlflow_can_load_the_version_and_predict(history: History, iris: Data) -> None:
    with registry.connected(history.workspace.uri):
        model = mlflow.pyfunc.load_model(f"models:/{MODEL_NAME}@production")
    answers = model.predict({"features": iris.features[:3].astype(np.float32)})
    assert answers["label"].tolist() == [0, 0, 0]


def test_a_production_version_of_another_pipeline_is_an_error(tmp_path: Path) -> None:
    with registry.connected(f"sqlite:///{tmp_path}/mlflow.db"):
        client = mlflow.MlflowClient()
        client.create_registered_model(MODEL_NAME)
        client.create_model_version(MODEL_NAME, source=tmp_path.as_uri())
        registry.set_production("1")
        with pytest.raises(registry.RegistryError, match="version 1 of iris-classifier has no tag 'cv_f1'"):
            registry.best_metrics("")
        with pytest.raises(registry.RegistryError, match="has no tag 'run_id': another pipeline registered it"):
            registry.fetch("1")


def test_a_registry_works_in_a_folder_with_an_odd_name(tmp_path: Path) -> None:
    folder = tmp_path / "l'\u00e9t\u00e9, $HOME #1;&(a)"
    with registry.connected(f"sqlite:///{folder}/mlflow.db"):
        with mlflow.start_run() as run:
            mlflow.log_text("text", "a file.txt")
        assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/a file.txt") == "text"
    assert list(tmp_path.iterdir()) == [folder]
    assert {"mlflow.db", "mlartifacts"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["100%20", "why?"])
def test_a_registry_whose_path_mlflow_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    refused = rf"at sqlite:///{re.escape(str(tmp_path / name))}/.*neither % nor \?\. Move this checkout, or set "
    with (
        pytest.raises(registry.RegistryError, match=refused),
        registry.connected(f"sqlite:///{tmp_path / name}/mlflow.db"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_commands_work_with_a_tracking_server(tracking_server: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "client", tracking_server)
    trained = workspace.run("--algorithm", "logistic_regression")
    assert trained.exit_code == 0, trained.stderr
    first = workspace.state()
    assert first.aliases == {"production": "1"}
    assert workspace.run("export", "--version", "1").exit_code == 0
    assert workspace.state() == first

    again = workspace.run("--algorithm", "logistic_regression")
    assert "registered iris-classifier version 1 already is this model\n" in again.stdout
    assert workspace.state() == first

    # The alias moves last: it stays where it is if the folder cannot be written.
    (tmp_path / "file").touch()
    failed = workspace.run("--algorithm", "svm", out=tmp_path / "file" / "model")
    assert failed.exit_code == 1
    assert sorted(workspace.state().versions) == ["1", "2"]
    assert workspace.state().aliases == {"production": "1"}


def listing(history: History, run: Run) -> set[str]:
    with registry.connected(history.workspace.uri):
        return {file.path for file in mlflow.artifacts.list_artifacts(run_id=run.info.run_id) if not file.is_dir}
