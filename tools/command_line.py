"""Run a command line of tools: an expected error is one line on stderr and exit code 1."""

import typer

from delivery import command_line
from delivery.release import ReleaseError
from tools.errors import ToolError


def run(app: typer.Typer, name: str) -> int:
    """Run a command and return its exit code."""
    return command_line.run(app, name, ToolError, ReleaseError)
