"""What tests of several packages share: a real PostgreSQL, and a model that the pipeline really trained."""

import fcntl
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest

from tests.support.running import ROOT, RunningService, environment
from tools.postgres import Postgres, temporary

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for tests that import onnxruntime themselves; nothing above does
# The clients of the tests reach the servers of the tests without the user's proxy.
os.environ["no_proxy"] = f"127.0.0.1,localhost,{os.environ.get('no_proxy') or os.environ.get('NO_PROXY', '')}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for the whole run; tests that stop or hang one start their own."""
    with temporary() as server:
        yield server


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """The address of an empty database of the test's own."""
    with _empty_database(postgres) as url:
        yield url


@pytest.fixture(scope="module")
def module_database(postgres: Postgres) -> Iterator[str]:
    """The address of an empty database for all tests of a module."""
    with _empty_database(postgres) as url:
        yield url


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, fresh from the pipeline. The workers of a run share it: the first to get here trains it."""
    run = tmp_path_factory.getbasetemp()
    folder = (run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "trained"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "model").exists():
            subprocess.run(
                [sys.executable, "-m", "pipeline", "--out", str(folder / "model")],
                cwd=ROOT,
                env=environment(MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db"),
                check=True,
                capture_output=True,
            )
    return folder / "model"


@pytest.fixture
def service(model: Path, database: str, tmp_path: Path) -> Iterator[RunningService]:
    """The service, ready, with an empty log and journal."""
    with RunningService(model, database, tmp_path / "journal") as running:
        yield running


@pytest.fixture(scope="session")
def shared_service(
    model: Path, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    """One service for all tests that neither stop it nor mind what others have sent before."""
    with (
        _empty_database(postgres) as url,
        RunningService(model, url, tmp_path_factory.mktemp("shared") / "journal") as running,
    ):
        yield running


@contextmanager
def _empty_database(postgres: Postgres) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    admin = psycopg2.connect(postgres.url)
    admin.autocommit = True
    try:
        with admin.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
            yield postgres.url.replace("/postgres?", f"/{name}?")
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        admin.close()
