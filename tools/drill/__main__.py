"""`python -m tools.drill`: play the demo, play scenarios, or run a `delivery` command beside the cluster."""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tools import command_line
from tools.cluster import git_server
from tools.drill import demo as three_releases
from tools.drill import release_images
from tools.drill.cluster_watch import Watch
from tools.drill.environment import Environment
from tools.drill.operator import Operator
from tools.drill.scenarios import CORE, SCENARIOS
from tools.drill.screen import heading, screen
from tools.drill.slack_receiver import SlackReceiver
from tools.drill.traffic import Traffic
from tools.progress import console

app = typer.Typer(help="Play releases on the real cluster.", pretty_exceptions_enable=False, no_args_is_help=True)


@app.command()
def demo() -> None:
    """Release two good images and a bad one, and write a report: one is promoted, one is rolled back."""
    with _environment() as environment:
        report = three_releases.perform(environment)
    console.print(f"""
report: {report}
next:
  make shell                   a shell: kubectl argo rollouts get rollout iris -n iris-prod
  .venv/bin/python -m tools.cluster exec -- git -C {git_server.repository()} log main
  make drill                   every other scenario
  make down                    delete the cluster""")


@app.command()
def run(
    names: Annotated[list[str] | None, typer.Argument(help=f"all by default: {', '.join(SCENARIOS)}")] = None,
    core: Annotated[bool, typer.Option("--core", help="the five scenarios that CI plays")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Play scenarios and show the outcome of each; exit code 1 if one fails."""
    wanted = list(CORE) if core else names or list(SCENARIOS)
    if unknown := set(wanted) - SCENARIOS.keys():
        raise typer.BadParameter(f"unknown scenario {', '.join(unknown)}; known: {', '.join(SCENARIOS)}")
    columns = ("scenario", "expected", "outcome", "to weight 0", "failed requests", "revert", "took")
    table, failed = Table(*columns, title="drill"), []
    with _environment() as environment:
        for name in wanted:
            expected, play = SCENARIOS[name]
            heading(f"{name}: {expected}")
            begun = time.monotonic()
            try:
                environment.settle()
                cells = play(environment).cells()
            except Exception as error:  # noqa: BLE001 - any error fails this scenario, and the next one is played
                reason = str(error) or repr(error)
                console.print(f"[red]failed:[/] {escape(reason)}")
                cells = (f"[red]failed:[/] {escape(reason[:60])}", "", "", "")
                failed.append(name)
            table.add_row(name, expected, *cells, f"{time.monotonic() - begun:.0f} s")
    console.print(table)
    if failed:
        console.print(f"failed: {', '.join(failed)}\nnext: .venv/bin/python -m tools.drill run {' '.join(failed)}")
        raise typer.Exit(1)
    console.print(f"all {len(wanted)} passed\nnext: make down")


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def delivery(arguments: Annotated[list[str], typer.Argument(metavar="COMMAND...")]) -> None:
    """Run a `delivery` command in a clone of the cluster's repository, and push its commits."""
    with tempfile.TemporaryDirectory(prefix="iris-drill-") as temporary:
        operator = Operator(Path(temporary))
        before = operator.repository.head()
        typer.echo(operator.delivery(*arguments), nl=False)
        if operator.repository.head() != before:
            typer.echo(f"pushed {operator.push()[:10]}")


@contextmanager
def _environment() -> Iterator[Environment]:
    images = release_images.build_good()
    with (
        tempfile.TemporaryDirectory(prefix="iris-drill-") as temporary,
        Traffic(release_images.shared_questions(images)) as traffic,
        SlackReceiver() as slack,
        Watch(traffic) as watch,
        screen(watch),
    ):
        yield Environment(images, Operator(Path(temporary)), traffic, slack, watch)


if __name__ == "__main__":
    sys.exit(command_line.run(app, "drill"))
