"""`python -m tools`: the commands behind `make run`, `make image` and `make bench`."""

import sys
from contextlib import suppress
from pathlib import Path

import typer

from tools import command_line
from tools import image as images
from tools import run as running
from tools.bench import benchmark

STATE = Path(".local")
app = typer.Typer(
    help="Run the service, build its image, or measure it.",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


@app.command()
def run() -> None:
    """Serve on http://localhost:8000, with a PostgreSQL that keeps its data between runs."""
    with suppress(KeyboardInterrupt):  # Ctrl-C is the usual way to stop it
        running.run(STATE)


@app.command()
def image() -> None:
    """Build the serving image with the model in model/."""
    built = images.build(Path("model"))
    print(f"{images.TAG} {built}\nnext: make test-image", flush=True)  # noqa: T201


@app.command()
def bench() -> None:
    """Measure the service against bare uvicorn and print the results as a Markdown table."""
    benchmark.bench(STATE / "bench")


if __name__ == "__main__":
    sys.exit(command_line.run(app, "tools"))
