"""What a person sees: lines, a table of the candidates, an error; plain text where there is no terminal."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # --help is not to wait for scikit-learn
    from pipeline.evaluation import Evaluation

COLUMNS = ("algorithm", "cv f1", "sd", "test accuracy", "precision", "recall", "f1")


class Terminal:
    """Prints to standard output, and errors to standard error."""

    def __init__(self) -> None:
        self._out = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
        self._error = Console(stderr=True, highlight=False)

    def say(self, step: str, text: str) -> None:
        """Print one line: the step, and what came of it."""
        self._out.print(Text.assemble((f"{step:<11}", "bold"), text), soft_wrap=True)

    def fail(self, text: str) -> None:
        """Print one line about what went wrong."""
        self._error.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)

    def results(self, evaluations: Sequence["Evaluation"], winner: "Evaluation") -> None:
        """Print the candidates' figures side by side, the winner marked."""
        table = Table(box=None, pad_edge=False)
        for column in COLUMNS:
            table.add_column(column, no_wrap=True)
        for evaluation in evaluations:
            style, mark = ("bold green", " *") if evaluation is winner else ("", "")
            figures = (evaluation.cv.f1, evaluation.cv_std.f1, *evaluation.test)
            table.add_row(evaluation.algorithm + mark, *(f"{figure:.3f}" for figure in figures), style=style)
        self._out.print(table)
