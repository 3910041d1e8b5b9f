"""A registry and a model folder for one test, and the pipeline commands that use them."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mlflow
from typer.testing import CliRunner

from pipeline import registry
from pipeline.__main__ import app
from pipeline.dataset import MODEL_NAME
from tests.support.running import ROOT, environment


@dataclass(frozen=True)
class Outcome:
    """The exit code and output of a command."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class State:
    """All that a command may change: the registered versions with their tags, the aliases and the model folder."""

    versions: dict[str, dict[str, str]]
    aliases: dict[str, str]
    folder: dict[str, bytes]


def pipeline(*arguments: str, **variables: str) -> Outcome:
    """Run `python -m pipeline` in this process."""
    result = CliRunner().invoke(app, arguments, env=variables, catch_exceptions=False)
    return Outcome(result.exit_code, result.stdout, result.stderr)


@dataclass(frozen=True)
class Workspace:
    """The place that the commands write to; `uri` names a SQLite file or a tracking server."""

    path: Path
    uri: str

    @property
    def out(self) -> Path:
        return self.path / "model"

    def run(self, *arguments: str, out: Path | None = None) -> Outcome:
        """Run a command with this registry and, by default, this model folder."""
        return pipeline(*arguments, "--out", str(out or self.out), MLFLOW_TRACKING_URI=self.uri)

    def run_program(self, *arguments: str) -> Outcome:
        """Run a command in a separate process, as a user does."""
        command = [sys.executable, "-m", "pipeline", *arguments, "--out", str(self.out)]
        variables = environment(MLFLOW_TRACKING_URI=self.uri)
        done = subprocess.run(command, cwd=ROOT, env=variables, check=False, capture_output=True, text=True)
        return Outcome(done.returncode, done.stdout, done.stderr)

    def state(self) -> State:
        """Read the current state."""
        with registry.connected(self.uri):
            client = mlflow.MlflowClient()
            versions = client.search_model_versions(f"name = '{MODEL_NAME}'")
            models = client.search_registered_models()
            return State(
                versions={str(version.version): dict(version.tags) for version in versions},
                aliases={alias: str(number) for model in models for alias, number in model.aliases.items()},
                folder=folder(self.out),
            )


def folder(path: Path) -> dict[str, bytes]:
    """Read the files of a folder; return an empty dict if it does not exist."""
    return {file.name: file.read_bytes() for file in path.iterdir()} if path.exists() else {}
