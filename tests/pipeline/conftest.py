"""Fixtures of the pipeline's tests: data, fitted candidates, a registry with two trainings, a tracking server."""

import importlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy.exc import SADeprecationWarning

from pipeline import data, onnx_export
from pipeline.data import Data
from pipeline.evaluation import Evaluation, evaluate
from pipeline.names import SEED, Algorithm
from tests.support.running import free_port
from tests.support.workspace import Outcome, State, Workspace

SERVER_SECONDS = 120  # generous: its imports take ten seconds on an idle machine


@pytest.fixture(scope="session", autouse=True)
def _mlflow_loaded() -> None:
    # MLflow 3.17 uses a feature that SQLAlchemy 2.1 deprecates. The warning appears once, at this import.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy", SADeprecationWarning)
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")


@pytest.fixture(scope="session")
def iris() -> Data:
    return data.load()


@pytest.fixture(scope="session")
def evaluations(iris: Data) -> dict[Algorithm, Evaluation]:
    """All candidates, fitted with the default seed."""
    return {algorithm: evaluate(algorithm, iris, SEED) for algorithm in Algorithm}


@pytest.fixture(scope="session")
def exported(evaluations: dict[Algorithm, Evaluation]) -> dict[Algorithm, bytes]:
    """All candidates as ONNX."""
    return {algorithm: onnx_export.convert(evaluation.model) for algorithm, evaluation in evaluations.items()}


@dataclass(frozen=True)
class History:
    """Two trainings in one registry, each with its output and the state after it. No test adds a third."""

    workspace: Workspace
    first: Outcome
    after_first: State
    second: Outcome
    after_second: State


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    path = tmp_path_factory.mktemp("registry")
    workspace = Workspace(path, f"sqlite:///{path}/mlflow.db")
    first = workspace.run_program()
    after_first = workspace.state()
    second = workspace.run("--algorithm", "svm")
    return History(workspace, first, after_first, second, workspace.state())


@pytest.fixture
def tracking_server(tmp_path: Path) -> Iterator[str]:
    """The URL of an empty MLflow server."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = tmp_path / "server.log"
    with log.open("w") as output:
        # In its own session, because the server starts child processes.
        server = subprocess.Popen(
            command, env=os.environ | quiet, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"the tracking server did not start:\n{log.read_text()}")
