"""What tests of several packages share: a real PostgreSQL, and a model that the pipeline really trained."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from local.postgres import Postgres, temporary
from tests.running import ROOT, RunningService, environment


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for the whole run; tests that stop or hang one start their own."""
    with temporary() as server:
        yield server


@pytest.fixture
def database(postgres: Postgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of an empty database of the test's own."""
    name = f"test_{abs(hash(request.node.nodeid))}"
    admin = psycopg2.connect(postgres.url)
    admin.autocommit = True
    try:
        with admin.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
            yield postgres.url.replace("/postgres?", f"/{name}?")
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        admin.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, fresh from the pipeline."""
    folder = tmp_path_factory.mktemp("trained")
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
