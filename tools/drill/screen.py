"""The console: one line for each event and, on a terminal, a panel with the current state of prod."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from tools.drill.recording import Event, Sample
from tools.drill.watch import Watch
from tools.drill.wording import describe

QUIET = 15.0  # seconds between two lines about the state where there is no terminal
WIDTH = 40  # columns of the bar
COLOURS = {True: "green", False: "red", None: "cyan"}

console = Console(stderr=True, highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 140  # for tables, which have no window to fit


@contextmanager
def screen(watch: Watch) -> Iterator[None]:
    """Show events and state for the duration of the block."""
    over = threading.Event()
    thread = threading.Thread(target=_show, args=(watch, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def heading(text: str) -> None:
    """Print a heading."""
    console.print(f"\n[bold]{escape(text)}[/]")


def _show(watch: Watch, over: threading.Event) -> None:
    live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
    if live:
        live.start()
    shown, printed, begun = len(watch.events), time.monotonic(), time.time()
    while not over.wait(0.3):
        for event in watch.events[shown:]:
            console.print(_line(event, begun))
            shown += 1
        sample = watch.samples[-1] if watch.samples else None
        if sample and live:
            live.update(panel(watch, sample), refresh=True)
        elif sample and time.monotonic() - printed > QUIET:
            printed = time.monotonic()
            console.print(f"[dim]{sample.at - begun:6.0f} s            {escape(state(sample))}[/]")
    if live:
        live.stop()


def panel(watch: Watch, sample: Sample) -> Panel:
    """Return the terminal's panel: git, Argo CD, the Rollout, and both versions."""
    table = Table.grid(padding=(0, 2))
    commits = [event for event in watch.events if event.kind in {"commit", "revert"}]
    table.add_row("git", escape(describe(commits[-1]) if commits else "no new commit"))
    table.add_row("Argo CD", escape(watch.argo_cd()))
    table.add_row("Rollout", escape(watch.state()))
    table.add_row("canary", _bar(sample.weight))
    for name, errors, p95 in (
        ("stable", sample.stable_errors, sample.stable_p95),
        ("canary", sample.canary_errors, sample.canary_p95),
    ):
        table.add_row(name, f"errors {_percent(errors):>7}   P95 {_milliseconds(p95):>7}")
    answers = "   ".join(f"model {version}: {count}" for version, count in sample.answers.items())
    failed = f"   [red]failed: {sample.failed}[/]" if sample.failed else ""
    table.add_row("answers/s", f"{escape(answers) or 'none'}{failed}")
    return Panel(table, title="prod", title_align="left")


def _bar(weight: int) -> str:
    filled = round(weight / 100 * WIDTH)
    return f"[cyan]{'█' * filled}[/][dim]{'░' * (WIDTH - filled)}[/] {weight} % of the traffic"


def _line(event: Event, begun: float) -> str:
    return f"{event.at - begun:6.1f} s  [{COLOURS[event.good]}]{event.kind:<8}[/]  {escape(describe(event))}"


def state(sample: Sample) -> str:
    """Return a sample in one line."""
    answers = ", ".join(f"{count} by model {version}" for version, count in sample.answers.items())
    return (
        f"canary {sample.weight} %; errors {_percent(sample.stable_errors)} stable, "
        f"{_percent(sample.canary_errors)} canary; P95 {_milliseconds(sample.stable_p95)} stable, "
        f"{_milliseconds(sample.canary_p95)} canary; answers/s: {answers or 'none'}, {sample.failed} failed"
    )


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"
