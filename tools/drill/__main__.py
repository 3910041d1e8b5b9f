"""`python -m tools.drill`: play a release that goes well and one that does not, or every scenario there is."""

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
from tools.drill import demo as performance
from tools.drill import release_images, scenarios
from tools.drill.checks import Outcome
from tools.drill.environment import Stage
from tools.drill.operator import Loop
from tools.drill.scenarios import CORE, HOST, Scenario
from tools.drill.screen import console, heading, screen
from tools.drill.slack_receiver import Told
from tools.drill.traffic import Traffic
from tools.drill.watch import Watch

NAMES = [scenario.name for scenario in scenarios.every()]
app = typer.Typer(help="The whole loop, for real.", pretty_exceptions_enable=False, no_args_is_help=True)


@app.command()
def demo() -> None:
    """Ship two models and a bad image; watch one promoted, one taken back; write a report."""
    with _stage() as stage:
        report = performance.perform(stage)
    console.print(f"""
report: {report}
next:
  make shell                   look at it: kubectl argo rollouts get rollout iris -n iris-prod
  .venv/bin/python -m tools.cluster exec -- git -C {git_server.repository()} log main
  make drill                   every other way in which a release can go
  make down                    end it, and leave nothing""")


@app.command()
def run(
    names: Annotated[list[str] | None, typer.Argument(help=f"which; all without: {', '.join(NAMES)}")] = None,
    core: Annotated[bool, typer.Option("--core", help="the five that CI plays")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Play scenarios, and show what became of each; exit code 1 unless all went as they must."""
    wanted = list(CORE) if core else names
    known = {scenario.name: scenario for scenario in scenarios.every()}
    if unknown := set(wanted or ()) - known.keys():
        raise typer.BadParameter(f"there is no scenario {', '.join(unknown)}, but {', '.join(known)}")
    played = []
    with _stage() as stage:
        for name in wanted or known:
            heading(f"{name}: {known[name].expected}")
            played.append((known[name], *_play(stage, known[name])))
    console.print(_table(played))
    wrong = [scenario.name for scenario, outcome, _, _ in played if outcome is None]
    if wrong:
        console.print(f"wrong: {', '.join(wrong)}\nnext: .venv/bin/python -m tools.drill run {' '.join(wrong)}")
        raise typer.Exit(1)
    console.print(f"all {len(played)} as they must\nnext: make down")


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def delivery(arguments: Annotated[list[str], typer.Argument(metavar="COMMAND...")]) -> None:
    """Run a command of `delivery` in a clone of the cluster's repository, beside the cluster; and push."""
    with tempfile.TemporaryDirectory(prefix="iris-drill-") as temporary:
        loop = Loop(Path(temporary))
        before = loop.repository.head()
        typer.echo(loop.delivery(*arguments), nl=False)
        if loop.repository.head() != before:
            typer.echo(f"pushed {loop.push()[:10]}")


@contextmanager
def _stage() -> Iterator[Stage]:
    good = release_images.good()
    with (
        tempfile.TemporaryDirectory(prefix="iris-drill-") as temporary,
        Traffic(HOST, release_images.questions(good.values())) as traffic,
        Told() as told,
        Watch(traffic) as watch,
        screen(watch),
    ):
        yield Stage(good, Loop(Path(temporary)), traffic, told, watch)


def _play(stage: Stage, scenario: Scenario) -> tuple[Outcome | None, str, float]:
    begun = time.monotonic()
    outcome, wrong = None, ""
    try:
        stage.settle()
        outcome = scenario.play(stage)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this scenario's
        wrong = str(error) or repr(error)
        console.print(f"[red]wrong:[/] {escape(wrong)}")
    return outcome, wrong, time.monotonic() - begun


def _table(played: list[tuple[Scenario, Outcome | None, str, float]]) -> Table:
    table = Table("scenario", "expected", "verdict", "to weight 0", "bad answers", "revert", "took", title="drill")
    for scenario, outcome, wrong, took in played:
        if outcome:
            seconds = "" if outcome.seconds is None else f"{outcome.seconds:.1f} s"
            verdict = (f"[green]{outcome.verdict}[/]", seconds, str(outcome.bad), outcome.revert)
        else:
            verdict = (f"[red]wrong:[/] {escape(wrong[:60])}", "", "", "")
        table.add_row(scenario.name, scenario.expected, *verdict, f"{took:.0f} s")
    return table


if __name__ == "__main__":
    sys.exit(command_line.run(app, "drill"))
