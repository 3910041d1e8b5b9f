"""The commands: parse, call, and turn an error into a line and an exit code."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import PipelineError, Refused
from pipeline.names import CHAMPION, SEED, Algorithm
from pipeline.terminal import Terminal

REPOSITORY = Path(__file__).parents[1]
ERROR, REFUSED = 1, 3
# How MLflow and onnxruntime behave unless the environment says otherwise. They read some of this when they are
# imported, and take their time to be: hence the imports inside of the commands.
LIBRARIES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # both would report their use to their makers
    "ORT_DISABLE_TELEMETRY": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with its own 7, minutes pass until a server that is away is an error
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",  # a machine without git is no reason to complain
}
SERVE = "python -m service (or: make run)"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Out = Annotated[Path, typer.Option(help="The model folder to write.", resolve_path=True)]


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    algorithm: Annotated[list[Algorithm] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the candidates.")] = SEED,
    out: Out = REPOSITORY / "model",
) -> None:
    """Train the candidates, choose one, judge it, register it, and write the model folder.

    The registry is MLFLOW_TRACKING_URI, or else a SQLite file in .local/ of this repository.
    Exit codes: 0 done, 1 error, 2 usage, 3 refused by the gate.
    """
    if context.invoked_subcommand:
        _refuse_options(context)
        return
    with _session() as terminal:
        from pipeline import training  # noqa: PLC0415

        training.train(list(dict.fromkeys(algorithm or Algorithm)), seed, out, _registry(), terminal)
        terminal.say("next", SERVE)


@app.command()
def export(
    version: Annotated[int | None, typer.Option(min=1, help="The number of a registered version.")] = None,
    alias: Annotated[str | None, typer.Option(help=f"The alias of one; {CHAMPION} if neither is given.")] = None,
    out: Out = REPOSITORY / "model",
) -> None:
    """Write the model folder from a registered version; nothing is trained."""
    if version and alias:
        raise typer.BadParameter("--version and --alias exclude each other")
    with _session() as terminal:
        from pipeline import training  # noqa: PLC0415

        training.export(str(version) if version else None, alias or CHAMPION, out, _registry(), terminal)
        terminal.say("next", SERVE)


@app.command()
def card(
    check: Annotated[  # noqa: FBT002  a flag, as typer spells it
        bool, typer.Option("--check", help="Change nothing; exit 1 if the figures are stale.")
    ] = False,
) -> None:
    """Write the figures of the model card, docs/MODEL_CARD.md; the rest of it is written by hand."""
    with _session() as terminal:
        from pipeline import card as model_card  # noqa: PLC0415

        if check:
            model_card.check()
            terminal.say("card", "its figures are what the pipeline gives")
            terminal.say("next", "python -m pipeline")
        else:
            model_card.rewrite()
            terminal.say("card", f"wrote the figures of {model_card.CARD}")
            terminal.say("next", "git diff docs/MODEL_CARD.md")


def _refuse_options(context: typer.Context) -> None:
    # `--out x export` would otherwise be accepted, and x forgotten.
    for name in context.params:
        source = context.get_parameter_source(name)
        if source and source.name != "DEFAULT":
            raise typer.BadParameter(f"--{name} belongs to training: put it after {context.invoked_subcommand}")


def _registry() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{REPOSITORY}/.local/mlflow.db"


@contextmanager
def _session() -> Iterator[Terminal]:
    for name, value in LIBRARIES.items():
        os.environ.setdefault(name, value)
    terminal = Terminal()
    try:
        yield terminal
    except Refused as refused:
        for reason in refused.reasons:
            terminal.fail(f"the gate refused the model: {reason}")
        terminal.say("next", f"compare the runs: mlflow ui --backend-store-uri {_registry()}")
        raise typer.Exit(REFUSED) from None
    except (PipelineError, OSError) as error:
        terminal.fail(str(error))
        raise typer.Exit(ERROR) from None


if __name__ == "__main__":
    app(prog_name="python -m pipeline")
