"""The command line: train, export and update the model card; an error becomes one line and an exit code."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline import terminal
from pipeline.errors import PipelineError
from pipeline.names import PRODUCTION_ALIAS, SEED, Algorithm

REPOSITORY = Path(__file__).parents[1]
ERROR, REJECTED = 1, 3
# Defaults for MLflow and onnxruntime; the environment overrides them. The libraries read some of these variables
# when they are imported, which takes seconds, so each command imports them itself.
LIBRARY_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default of 7 takes minutes to give up
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",  # no warning on a machine without git
}
SERVE = "python -m service (or: make run)"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Out = Annotated[Path, typer.Option(help="The model folder to write.", resolve_path=True)]


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    algorithm: Annotated[
        list[Algorithm] | None, typer.Option(help="Candidate to train (default: all); repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the candidates.")] = SEED,
    out: Out = REPOSITORY / "model",
) -> None:
    """Train the candidates, register the best one if it passes the gate, and write the model folder.

    The registry is MLFLOW_TRACKING_URI, by default a SQLite file in this repository's .local/.
    Exit codes: 0 success, 1 error, 2 usage error, 3 rejected by the gate.
    """
    if context.invoked_subcommand:
        _reject_options(context)
        return
    with _session():
        from pipeline import training  # noqa: PLC0415

        reasons = training.train(list(dict.fromkeys(algorithm or Algorithm)), seed, out, _registry_uri())
        for reason in reasons:
            terminal.fail(f"the gate rejected the model: {reason}")
        terminal.say(
            "next", f"compare the runs: mlflow ui --backend-store-uri {_quoted_uri()}" if reasons else SERVE
        )
        raise typer.Exit(REJECTED if reasons else 0)


@app.command()
def export(
    version: Annotated[int | None, typer.Option(min=1, help="Number of a registered version.")] = None,
    alias: Annotated[str | None, typer.Option(help=f"Its alias (default: {PRODUCTION_ALIAS}).")] = None,
    out: Out = REPOSITORY / "model",
) -> None:
    """Write the model folder from a registered version, without training."""
    if version and alias:
        raise typer.BadParameter("--version and --alias are mutually exclusive")
    with _session():
        from pipeline import training  # noqa: PLC0415

        training.export(version, alias or PRODUCTION_ALIAS, out, _registry_uri())
        terminal.say("next", SERVE)


@app.command()
def card(
    check: Annotated[  # noqa: FBT002  typer declares a flag this way
        bool, typer.Option("--check", help="Change nothing; exit 1 if the metrics are out of date.")
    ] = False,
) -> None:
    """Write the metrics in docs/MODEL_CARD.md; the rest of the model card is written by hand."""
    with _session():
        from pipeline import card as model_card  # noqa: PLC0415

        if check:
            model_card.check()
            terminal.say("card", "the metrics are up to date")
            terminal.say("next", "python -m pipeline")
        else:
            model_card.rewrite()
            terminal.say("card", f"wrote the metrics in {model_card.CARD}")
            terminal.say("next", "git diff docs/MODEL_CARD.md")


def _reject_options(context: typer.Context) -> None:
    # Otherwise `--out x export` would be accepted, and x ignored.
    for name in context.params:
        source = context.get_parameter_source(name)
        if source and source.name != "DEFAULT":
            raise typer.BadParameter(f"put --{name} after {context.invoked_subcommand}")


def _registry_uri() -> str:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        if os.environ.get(name, "").startswith("postgresql://"):
            # SQLAlchemy's default driver for this address is another one, and MLflow ends with an ImportError.
            raise PipelineError(
                f"{name} begins with postgresql://; write postgresql+psycopg2:// to name the driver"
            )
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{REPOSITORY}/.local/mlflow.db"


def _quoted_uri() -> str:
    # The variable and not its value, which may contain a password.
    return '"$MLFLOW_TRACKING_URI"' if os.environ.get("MLFLOW_TRACKING_URI") else f"'{_registry_uri()}'"


@contextmanager
def _session() -> Iterator[None]:
    for name, value in LIBRARY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        yield
    except (PipelineError, OSError) as error:
        terminal.fail(str(error))
        raise typer.Exit(ERROR) from None


if __name__ == "__main__":
    app(prog_name="python -m pipeline")
