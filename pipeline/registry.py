"""The MLflow registry: it records every training run and stores the model's versions with their metadata."""

import fcntl
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from textwrap import shorten
from typing import cast
from urllib.parse import unquote, urlsplit

import mlflow
import numpy as np
import onnx as onnx_library
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from pipeline import gate, model_folder, plots
from pipeline.data import SPLIT_SEED, Data
from pipeline.dataset import CLASSES, FEATURES, MODEL_NAME, NAME
from pipeline.errors import PipelineError
from pipeline.evaluation import FOLD_SEED, Evaluation
from pipeline.gate import GateMetrics
from pipeline.model_folder import METADATA, MODEL, ModelMetadata, RegisteredModelMetadata
from pipeline.names import PRODUCTION_ALIAS, Algorithm
from pipeline.onnx_export import TOLERANCE

SQLITE = "sqlite:///"
SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(FEATURES)), "features")]),
    outputs=Schema(
        [
            TensorSpec(np.dtype(np.int64), (-1,), "label"),
            TensorSpec(np.dtype(np.float32), (-1, len(CLASSES)), "probabilities"),
        ]
    ),
)


class RegistryError(PipelineError):
    """MLflow is unavailable, or does not have the requested version."""


@contextmanager
def connected(uri: str) -> Iterator[None]:
    """Use the tracking server or SQLite file at `uri`; raise MLflow's errors in the block as RegistryError."""
    _refuse_escapes(uri)
    try:
        with _lock(uri):
            mlflow.set_tracking_uri(uri)
            experiment = mlflow.get_experiment_by_name(MODEL_NAME)
            if experiment is None:
                mlflow.create_experiment(MODEL_NAME, artifact_location=_artifacts(uri))
            mlflow.set_experiment(MODEL_NAME)
    except MlflowException as error:
        raise RegistryError(
            f"cannot use the registry at {uri}: {_brief(error)}. "
            "Start it, or unset MLFLOW_TRACKING_URI to use the SQLite file in this repository's .local/"
        ) from error
    if experiment and uri.startswith(SQLITE):
        _refuse_moved(experiment.artifact_location, uri)
    try:
        yield
    except MlflowException as error:
        raise RegistryError(f"the registry at {uri} failed: {_brief(error)}. Fix it and try again") from error


def _artifacts(uri: str) -> str | None:
    # A server has its own artifact location. Without a server, artifacts are stored beside the SQLite file, not in
    # the current directory, which is MLflow's default.
    if not uri.startswith(SQLITE):
        return None
    return Path(uri.removeprefix(SQLITE)).resolve().with_name("mlartifacts").as_uri()


def _refuse_escapes(uri: str) -> None:
    # MLflow reads them as such in one place and as part of the path in another, and writes to both.
    if uri.startswith(SQLITE) and set("%?") & set(uri):
        raise RegistryError(
            f"cannot use the registry at {uri}: the path of a SQLite file may contain neither % nor ?. Move this "
            "checkout, or set MLFLOW_TRACKING_URI to another path or to a server"
        )


@contextmanager
def _lock(uri: str) -> Iterator[None]:
    # Two processes that create the tables of a SQLite file at once leave it broken; a server creates its own.
    if not uri.startswith(SQLITE):
        yield
        return
    database = Path(uri.removeprefix(SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        yield


def _refuse_moved(location: str, uri: str) -> None:
    # MLflow records absolute paths: a registry that was moved has its files in the old place, or nowhere.
    if location != _artifacts(uri) and not Path(unquote(urlsplit(location).path)).exists():
        raise RegistryError(
            f"the registry at {uri} was moved: its files were in {location}. Move it back, or remove it and train "
            "again: python -m pipeline"
        )


def _brief(error: Exception) -> str:
    return shorten(str(error), 200, placeholder=" ...")


@contextmanager
def training_run(data: Data, seed: int) -> Iterator[None]:
    """Record a training run, in which the candidates' runs are nested."""
    with mlflow.start_run(run_name="training"):
        _log_data(data)
        mlflow.log_params({"seed": seed, "split_seed": SPLIT_SEED, "fold_seed": FOLD_SEED})
        yield


@contextmanager
def candidate_run(algorithm: Algorithm, data: Data) -> Iterator[str]:
    """Record the training of a candidate; yield the run's ID."""
    with mlflow.start_run(run_name=algorithm.value, nested=True) as run:
        _log_data(data)
        yield run.info.run_id


def _log_data(data: Data) -> None:
    # MLflow limits the digest of a dataset to 36 characters; the tag has all of it.
    dataset = from_numpy(data.features, targets=data.labels, name=NAME, digest=data.digest[:36])
    mlflow.log_input(dataset, context="training")
    mlflow.set_tag("data_sha256", data.digest)


def log_evaluation(evaluation: Evaluation) -> None:
    """Log a candidate's parameters, scores and plots to the active run."""
    mlflow.log_params({"algorithm": evaluation.algorithm.value} | evaluation.model[-1].get_params())
    for prefix, scores in (("cv", evaluation.cv), ("cv_std", evaluation.cv_std), ("test", evaluation.test)):
        mlflow.log_metrics({f"{prefix}_{name}": value for name, value in scores._asdict().items()})
    mlflow.log_text(evaluation.report, "classification_report.txt")
    mlflow.log_figure(plots.confusion_matrix(evaluation), "confusion_matrix.png")
    if evaluation.importance:
        mlflow.log_dict(evaluation.importance, "feature_importance.json")
        mlflow.log_figure(plots.feature_importance(evaluation.importance), "feature_importance.png")


def log_verdict(winner: Evaluation, reasons: Sequence[str]) -> None:
    """Log the winner, its gate metrics and the gate's verdict to the active run."""
    mlflow.log_metrics(gate.metrics(winner)._asdict())
    mlflow.set_tags({"winner": winner.algorithm.value, "gate": "; ".join(reasons) or "passed"})


def production() -> str | None:
    """Return the number of the production version, None without one."""
    return _aliases().get(PRODUCTION_ALIAS)


def best_metrics(data_sha256: str) -> GateMetrics | None:
    """Return the best value of each gate metric among the versions that were measured on this data.

    Return None without one. Raises RegistryError if another pipeline registered the production version.
    """
    if number := production():
        for name in GateMetrics._fields:
            _tag(_version(number), name)
    same = [version.tags for version in _versions() if version.tags.get("data_sha256") == data_sha256]
    measured = [GateMetrics(*(float(tags[name]) for name in GateMetrics._fields)) for tags in same]
    return GateMetrics(*map(max, zip(*measured, strict=True))) if measured else None


def registered(metadata: ModelMetadata, data_sha256: str) -> str | None:
    """Return the number of the newest version that is this model, trained on this data; None without one."""
    wanted = {"sha256": metadata["sha256"], "data_sha256": data_sha256}.items()
    same = {
        int(version.version): version.tags["run_id"] for version in _versions() if wanted <= version.tags.items()
    }
    for number, run_id in sorted(same.items(), reverse=True):
        # The model's bytes say nothing of the bounds of its features or the names of its classes.
        if mlflow.artifacts.load_dict(f"runs:/{run_id}/{METADATA}") == metadata:
            return str(number)
    return None


def register(run_id: str, onnx: bytes, metadata: ModelMetadata, tags: dict[str, str]) -> str:
    """Log the model to its candidate's run, register it as a version with those tags, and return its number."""
    example = np.array([vector["features"] for vector in metadata["golden"][:3]], dtype=np.float32)
    with mlflow.start_run(run_id=run_id, nested=True) as run, warnings.catch_warnings():
        # MLflow warns about its own type hints when it loads.
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        mlflow.log_dict(dict(metadata), METADATA)
        model = mlflow.onnx.log_model(
            onnx_library.load_model_from_string(onnx),
            name="model",
            signature=SIGNATURE,
            input_example={"features": example},
            pip_requirements=mlflow.onnx.get_default_pip_requirements(),
            onnx_execution_providers=["CPUExecutionProvider"],
            onnx_session_options={"intra_op_num_threads": 1},
            save_as_external_data=False,
        )
    commit = run.data.tags.get("mlflow.source.git.commit", "unknown")  # outside of a git repository
    tags = tags | {"run_id": run_id, "git_commit": commit}
    with redirect_stderr(StringIO()):  # MLflow reports success there; a failure is an exception
        return str(mlflow.register_model(model.model_uri, MODEL_NAME, tags=tags).version)


def set_production(number: str) -> None:
    """Point the production alias to a version."""
    mlflow.MlflowClient().set_registered_model_alias(MODEL_NAME, PRODUCTION_ALIAS, number)


def version_of(alias: str) -> str:
    """Return the number of the version that has the alias. Raises RegistryError."""
    aliases = _aliases()
    if alias not in aliases:
        raise RegistryError(
            f"no version of {MODEL_NAME} has the alias {alias!r} (aliases: {', '.join(aliases) or 'none yet'}). "
            "Choose a version with --version, or train one: python -m pipeline"
        )
    return aliases[alias]


def fetch(number: str) -> tuple[bytes, RegisteredModelMetadata]:
    """Return a version's verified ONNX model and metadata, without unpickling anything. Raises PipelineError."""
    version = _version(number)
    run_id = _tag(version, "run_id")  # before the download: another pipeline's version has other files
    with tempfile.TemporaryDirectory() as folder:
        model = mlflow.artifacts.download_artifacts(f"models:/{MODEL_NAME}/{number}", dst_path=folder)
        onnx = (Path(model) / MODEL).read_bytes()
    metadata = cast("ModelMetadata", mlflow.artifacts.load_dict(f"runs:/{run_id}/{METADATA}"))
    model_folder.verify(onnx, _tag(version, "sha256"), metadata)
    return onnx, RegisteredModelMetadata(
        **metadata, name=MODEL_NAME, version=number, run_id=run_id, golden_tolerance=TOLERANCE
    )


def _aliases() -> dict[str, str]:
    # A search returns an empty list for a model that does not exist; a lookup by name raises the same exception as
    # for any other error.
    models = mlflow.MlflowClient().search_registered_models(filter_string=f"name = '{MODEL_NAME}'")
    return {alias: str(number) for model in models for alias, number in model.aliases.items()}


def _versions() -> Sequence[ModelVersion]:
    found: Sequence[ModelVersion] = mlflow.MlflowClient().search_model_versions(f"name = '{MODEL_NAME}'")
    return found


def _version(number: str) -> ModelVersion:
    versions = {str(version.version): version for version in _versions()}
    if number not in versions:
        existing = ", ".join(sorted(versions, key=int)) or "none yet"
        raise RegistryError(
            f"{MODEL_NAME} has no version {number} (versions: {existing}). "
            "Choose one of them with --version, or train one: python -m pipeline"
        )
    return versions[number]


def _tag(version: ModelVersion, name: str) -> str:
    if name not in version.tags:
        raise RegistryError(
            f"version {version.version} of {MODEL_NAME} has no tag {name!r}: another pipeline registered it. "
            f"Move the alias {PRODUCTION_ALIAS!r} to a version of this pipeline"
        )
    return str(version.tags[name])
