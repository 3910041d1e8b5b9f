"""Terminal output: progress, the table of candidates, and errors; plain text if it is not a terminal."""

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # `--help` must not load scikit-learn
    from pipeline.evaluation import Evaluation

PASSWORD = re.compile(r"(?<=://)[^/\s]+(?=@)|(?<=password=)[^&\s]+")
COLUMNS = ("algorithm", "cv f1", "cv f1 std", "test accuracy", "precision", "recall", "f1")


def say(step: str, text: str) -> None:
    """Print one line to standard output: the step and its result."""
    Console(highlight=False).print(Text.assemble((f"{step:<11}", "bold"), _public(text)), soft_wrap=True)


def fail(text: str) -> None:
    """Print one line to standard error."""
    Console(stderr=True, highlight=False).print(
        Text.assemble(("error: ", "bold red"), _public(text)), soft_wrap=True
    )


def _public(text: str) -> str:
    # The registry's address may contain a password, and MLflow repeats it in its errors.
    return PASSWORD.sub("***", text)


def results(evaluations: Sequence["Evaluation"], winner: "Evaluation") -> None:
    """Print the scores of all candidates as a table in which an asterisk marks the winner."""
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for evaluation in evaluations:
        style, mark = ("bold green", " *") if evaluation is winner else ("", "")
        scores = (evaluation.cv.f1, evaluation.cv_std.f1, *evaluation.test)
        table.add_row(evaluation.algorithm + mark, *(f"{score:.3f}" for score in scores), style=style)
    Console(highlight=False, width=None if sys.stdout.isatty() else 100).print(table)
