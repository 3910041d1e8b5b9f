"""`python -m tools.bench`: what `make bench` does."""

import sys
from pathlib import Path

import typer

from delivery import command_line
from tools.bench.benchmark import BenchError, bench
from tools.child_process import StartError
from tools.engine import ImageError
from tools.packages import PackageError
from tools.postgres import PostgresError

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def run() -> None:
    """Measure the service against bare uvicorn and print the results as a Markdown table."""
    bench(Path(".local/bench"))


def main() -> int:
    """Run the benchmark; return its exit code."""
    return command_line.run(app, "bench", PostgresError, StartError, BenchError, ImageError, PackageError)


if __name__ == "__main__":
    sys.exit(main())
