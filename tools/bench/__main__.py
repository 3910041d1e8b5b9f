"""`python -m tools.bench`: the command behind `make bench`."""

import sys
from pathlib import Path

import typer

from tools import command_line
from tools.bench.benchmark import bench

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def run() -> None:
    """Measure the service against bare uvicorn and print the results as a Markdown table."""
    bench(Path(".local/bench"))


if __name__ == "__main__":
    sys.exit(command_line.run(app, "bench"))
