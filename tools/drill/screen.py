"""The console: one line for each event and, on a terminal, a panel with the current state of prod."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from tools.drill.cluster_watch import Watch
from tools.drill.recording import Sample, describe
from tools.progress import console

QUIET = 15.0  # seconds between two lines about the state where there is no terminal
COLOURS = {True: "green", False: "red", None: "cyan"}


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
    shown, printed, begun = len(watch.events), time.monotonic(), time.time()
    with Live(console=console, transient=True, auto_refresh=False) as live:  # shows nothing without a terminal
        while not over.wait(0.3):
            for event in watch.events[shown:]:
                label = f"[{COLOURS[event.good]}]{event.kind:<8}[/]"
                console.print(f"{event.at - begun:6.1f} s  {label}  {escape(describe(event))}")
                shown += 1
            if not watch.samples:
                continue
            sample = watch.samples[-1]
            live.update(_panel(watch, sample), refresh=True)
            if not console.is_terminal and time.monotonic() - printed > QUIET:
                printed = time.monotonic()
                state = [f"canary {sample.weight} %", *map(": ".join, _numbers(sample).items())]
                console.print(f"[dim]{sample.at - begun:6.0f} s            {escape('; '.join(state))}[/]")


def _panel(watch: Watch, sample: Sample) -> Panel:
    """Return the terminal's panel: git, Argo CD, the Rollout, and both versions."""
    table = Table.grid(padding=(0, 2))
    commits = [event for event in watch.events if event.kind in {"commit", "revert"}]
    table.add_row("git", escape(describe(commits[-1]) if commits else "no new commit"))
    table.add_row("Argo CD", escape(watch.argo_cd()))
    table.add_row("Rollout", escape(watch.state()))
    bar = ProgressBar(100, sample.weight, width=40, complete_style="cyan", finished_style="cyan")
    table.add_row("canary", bar)
    table.add_row("", f"{sample.weight} % of the traffic")
    for name, text in _numbers(sample).items():
        table.add_row(name, escape(text), style="red" if sample.failed and name == "answers/s" else "")
    return Panel(table, title="prod", title_align="left")


def _numbers(sample: Sample) -> dict[str, str]:
    """Return what was counted and measured in a sample, by name."""
    answers = [f"{count} by model {version}" for version, count in sample.answers.items()]
    return {
        "stable": _health(sample.stable_errors, sample.stable_p95),
        "canary": _health(sample.canary_errors, sample.canary_p95),
        "answers/s": ", ".join([*answers, f"{sample.failed} failed"]),
    }


def _health(errors: float | None, p95: float | None) -> str:
    ratio = "-" if errors is None else f"{errors:.1%}"
    return f"errors {ratio}, P95 " + ("-" if p95 is None else f"{1000 * p95:.0f} ms")
