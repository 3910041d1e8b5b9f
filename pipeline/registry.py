"""MLflow: where every training is recorded, and the model's versions are kept with their facts."""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple, cast

import mlflow
import numpy as np
import onnx as onnx_format
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from pipeline import figures, gate
from pipeline.data import SPLIT_SEED, Data
from pipeline.dataset import CLASSES, FEATURES, MODEL_NAME, NAME
from pipeline.errors import PipelineError
from pipeline.evaluation import FOLD_SEED, Evaluation
from pipeline.gate import Figures
from pipeline.model_folder import DOCUMENT, MODEL, Facts
from pipeline.names import CHAMPION, Algorithm

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
    """MLflow cannot be used, or does not hold what was asked for."""


class Stored(NamedTuple):
    """A registered version as the registry holds it; sha256 is the tag, not computed from the bytes."""

    version: str
    run_id: str
    sha256: str
    onnx: bytes
    facts: Facts


@contextmanager
def connected(uri: str) -> Iterator[None]:
    """Use the tracking server or the SQLite file at uri; inside, what MLflow refuses is a RegistryError."""
    try:
        mlflow.set_tracking_uri(uri)
        if mlflow.get_experiment_by_name(MODEL_NAME) is None:
            mlflow.create_experiment(MODEL_NAME, artifact_location=_artifacts(uri))
        mlflow.set_experiment(MODEL_NAME)
    except MlflowException as error:
        raise RegistryError(
            f"cannot use the registry at {uri}: {_brief(error)}. "
            "Start it, or unset MLFLOW_TRACKING_URI to use the one in this repository's .local/"
        ) from error
    try:
        yield
    except MlflowException as error:
        raise RegistryError(
            f"the registry at {uri} refused: {_brief(error)}. Put that right, then try again"
        ) from error


def _artifacts(uri: str) -> str | None:
    # A server knows its own place for artifacts. Without one they go beside the SQLite file: MLflow's default is
    # the folder that the command happens to be typed in.
    if not uri.startswith(SQLITE):
        return None
    folder = Path(uri.removeprefix(SQLITE)).resolve().parent
    return (folder / "mlartifacts").as_uri()


def _brief(error: Exception) -> str:
    return shorten(str(error), 200, placeholder=" ...")


@contextmanager
def training_run(data: Data, seed: int) -> Iterator[None]:
    """Record a training: one run, in which each candidate's run is nested."""
    with mlflow.start_run(run_name="training"):
        _log_data(data)
        mlflow.log_params({"seed": seed, "split_seed": SPLIT_SEED, "fold_seed": FOLD_SEED})
        yield


@contextmanager
def candidate_run(algorithm: Algorithm, data: Data) -> Iterator[str]:
    """Record a candidate's training; yield the run's id."""
    with mlflow.start_run(run_name=algorithm.value, nested=True) as run:
        _log_data(data)
        yield run.info.run_id


def _log_data(data: Data) -> None:
    # MLflow keeps 36 characters of a digest; the tag has all of it.
    dataset = from_numpy(data.features, targets=data.labels, name=NAME, digest=data.digest[:36])
    mlflow.log_input(dataset, context="training")
    mlflow.set_tag("data_sha256", data.digest)


def log_evaluation(evaluation: Evaluation) -> None:
    """Record a candidate's parameters, figures and pictures in the run that is open."""
    mlflow.log_params({"algorithm": evaluation.algorithm.value} | evaluation.model[-1].get_params())
    for prefix, scores in (("cv", evaluation.cv), ("cv_std", evaluation.cv_std), ("test", evaluation.test)):
        mlflow.log_metrics({f"{prefix}_{name}": value for name, value in scores._asdict().items()})
    mlflow.log_text(evaluation.report, "classification_report.txt")
    mlflow.log_figure(figures.confusion(evaluation), "confusion_matrix.png")
    if evaluation.importance:
        mlflow.log_dict(evaluation.importance, "feature_importance.json")
        mlflow.log_figure(figures.importance(evaluation.importance), "feature_importance.png")


def log_verdict(winner: Evaluation, reasons: Sequence[str]) -> None:
    """Record in the run that is open who won, with which figures, and what the gate said."""
    mlflow.log_metrics(gate.figures(winner)._asdict())
    mlflow.set_tags({"winner": winner.algorithm.value, "gate": "; ".join(reasons) or "passed"})


def champion() -> Figures | None:
    """Return the figures of the version that carries the champion's alias, or None while there is none."""
    number = _aliases().get(CHAMPION)
    if number is None:
        return None
    version = _version(number)
    return Figures(*(float(_tag(version, name)) for name in Figures._fields))


def register(run_id: str, onnx: bytes, facts: Facts, tags: dict[str, str]) -> str:
    """Log the model to its candidate's run, make it a version with those tags, and return the number."""
    example = np.array([vector["features"] for vector in facts["golden"][:3]], dtype=np.float32)
    with mlflow.start_run(run_id=run_id, nested=True) as run, warnings.catch_warnings():
        # As it loads, MLflow warns about its own type hints.
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        mlflow.log_dict(dict(facts), DOCUMENT)
        model = mlflow.onnx.log_model(
            onnx_format.load_model_from_string(onnx),
            name="model",
            signature=SIGNATURE,
            input_example={"features": example},
            pip_requirements=mlflow.onnx.get_default_pip_requirements(),
            onnx_execution_providers=["CPUExecutionProvider"],
            onnx_session_options={"intra_op_num_threads": 1},
            save_as_external_data=False,
        )
    commit = run.data.tags.get("mlflow.source.git.commit", "unknown")  # as it is outside of git
    tags = tags | {"run_id": run_id, "git_commit": commit}
    with redirect_stderr(StringIO()):  # there it announces success; failure is an exception
        return str(mlflow.register_model(model.model_uri, MODEL_NAME, tags=tags).version)


def promote(number: str) -> None:
    """Give the champion's alias to a version."""
    mlflow.MlflowClient().set_registered_model_alias(MODEL_NAME, CHAMPION, number)


def find(alias: str) -> str:
    """Return the number of the version that carries the alias."""
    aliases = _aliases()
    if alias not in aliases:
        raise RegistryError(
            f"no version of {MODEL_NAME} has the alias {alias!r}, there is {', '.join(aliases) or 'none yet'}. "
            "Name a version with --version, or train one with: python -m pipeline"
        )
    return aliases[alias]


def fetch(number: str) -> Stored:
    """Return a version with its bytes and facts; nothing is trained, and nothing is unpickled."""
    version = _version(number)
    with tempfile.TemporaryDirectory() as folder:
        model = mlflow.artifacts.download_artifacts(f"models:/{MODEL_NAME}/{number}", dst_path=folder)
        onnx = (Path(model) / MODEL).read_bytes()
    run_id = _tag(version, "run_id")
    facts = mlflow.artifacts.load_dict(f"runs:/{run_id}/{DOCUMENT}")
    return Stored(number, run_id, _tag(version, "sha256"), onnx, cast("Facts", facts))


def _aliases() -> dict[str, str]:
    # A search, because it answers with an empty list where a question by name is an error like any other.
    models = mlflow.MlflowClient().search_registered_models(filter_string=f"name = '{MODEL_NAME}'")
    return {alias: str(number) for model in models for alias, number in model.aliases.items()}


def _version(number: str) -> ModelVersion:
    found = mlflow.MlflowClient().search_model_versions(f"name = '{MODEL_NAME}'")
    versions = {str(version.version): version for version in found}
    if number not in versions:
        there = ", ".join(sorted(versions, key=int)) or "none yet"
        raise RegistryError(
            f"{MODEL_NAME} has no version {number}, there is {there}. "
            "Name one of them with --version, or train one with: python -m pipeline"
        )
    return versions[number]


def _tag(version: ModelVersion, name: str) -> str:
    if name not in version.tags:
        raise RegistryError(
            f"version {version.version} of {MODEL_NAME} has no tag {name!r}, so it is not of this pipeline. "
            f"Give the alias {CHAMPION!r} to one that is"
        )
    return str(version.tags[name])
