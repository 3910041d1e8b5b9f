"""`python -m local`: what `make run`, `make bench` and `make image` do."""

import sys
from pathlib import Path

import typer

from local import bench as benchmark
from local import image as images
from local import run as running
from local.engine import ImageError
from local.packages import PackageError
from local.postgres import PostgresError
from local.process import StartError

STATE = Path(".local")
app = typer.Typer(help="Run the service on this machine, or measure it.", pretty_exceptions_enable=False)


@app.command()
def run() -> None:
    """Serve on http://localhost:8000 with a PostgreSQL that keeps its data between runs."""
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
    try:
        app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return 0
    except (PostgresError, StartError, benchmark.BenchError, ImageError, PackageError) as error:
        print(f"local: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
