"""The command line: exit codes and output."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.conftest import History
from tests.support.running import ROOT
from tests.support.workspace import pipeline

BOX_DRAWING = set(map(chr, range(0x2500, 0x2580)))


def test_help_does_not_import_the_heavy_libraries() -> None:
    script = "import sys, pipeline.__main__; print({'sklearn', 'mlflow', 'onnxruntime'} & sys.modules.keys())"
    printed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True).stdout
    assert printed == b"set()\n"


def test_output_is_plain_text_without_a_terminal(history: History) -> None:
    assert "\x1b" not in history.first.stdout
    assert BOX_DRAWING.isdisjoint(history.first.stdout)


def test_a_successful_training_prints_nothing_to_stderr(history: History) -> None:
    assert history.first.stderr == ""
    assert history.second.stderr == ""


def test_a_training_prints_its_steps_and_ends_with_the_next_command(history: History) -> None:
    lines = history.first.stdout.splitlines()
    steps = [line.split()[0] for line in lines]
    assert steps == [
        *("data", "trained", "trained", "trained"),
        *("algorithm", "logistic_regression", "svm", "random_forest"),
        *("parity", "registered", "exported", "alias", "next"),
    ]
    assert lines[-1].endswith("python -m service (or: make run)")


def test_the_table_marks_only_the_winner(history: History) -> None:
    marked = [line for line in history.first.stdout.splitlines() if " * " in line]
    assert [line.split()[0] for line in marked] == ["logistic_regression"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--algorithm", "gradient_boosting"),
        ("--seed", "-1"),
        ("--seed", "1", "export"),
        ("--out", "elsewhere", "export"),
        ("export", "--version", "1", "--alias", "production"),
        ("export", "--version", "0"),
        ("deploy",),
    ],
    ids=" ".join,
)
def test_contradictory_or_unknown_arguments_are_a_usage_error(arguments: tuple[str, ...]) -> None:
    assert pipeline(*arguments).exit_code == 2


@pytest.mark.parametrize("command", [(), ("export",)])
@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
def test_an_address_of_postgresql_without_its_driver_is_an_error_in_one_line(
    tmp_path: Path, command: tuple[str, ...], name: str
) -> None:
    variables = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        name: "postgresql://me:secret@db/mlflow",
    }
    outcome = pipeline(*command, "--out", str(tmp_path / "model"), **variables)
    assert outcome.exit_code == 1
    assert outcome.stdout == ""
    assert outcome.stderr == (
        f"error: {name} begins with postgresql://; write postgresql+psycopg2:// to name the driver\n"
    )


def test_a_folder_that_is_not_a_model_folder_is_rejected_before_training(history: History) -> None:
    outcome = history.workspace.run(out=history.workspace.path)
    assert outcome.exit_code == 1
    assert "is not a model folder, and writing would delete it. Choose another with --out" in outcome.stderr
    assert outcome.stdout == ""
