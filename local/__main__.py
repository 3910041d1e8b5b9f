"""`python -m local`: what `make run`, `make bench` and `make image` do."""

import sys
from contextlib import suppress
from pathlib import Path

import typer

from local import bench as benchmark
from local import command_line
from local import image as images
from local import run as running
from local.engine import ImageError
from local.packages import PackageError
from local.postgres import PostgresError
from local.process import StartError

STATE = Path(".local")
app = typer.Typer(
    help="Run the service on this machine, or measure it.", pretty_exceptions_enable=False, no_args_is_help=True
)


@app.command()
def run() -> None:
    """Serve on http://localhost:8000 with a PostgreSQL that keeps its data between runs."""
    with suppress(KeyboardInterrupt):  # which is how it ends
        running.run(STATE)


@app.command()
def bench() -> None:
    """Measure the service against bare uvicorn, and print the table of the README."""
    benchmark.bench(STATE / "bench")


@app.command()
def image() -> None:
    """Build the serving image of the model in model/."""
    built = images.build(Path("model"))
    print(f"{images.TAG} {built}\nnext: make test-image", flush=True)  # noqa: T201


def main() -> int:
    """Run a command; return its exit code."""
    return command_line.run(
        app, "local", PostgresError, StartError, benchmark.BenchError, ImageError, PackageError
    )


if __name__ == "__main__":
    sys.exit(main())
