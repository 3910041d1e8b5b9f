"""What a person sees meanwhile: each change as a line, and on a terminal, where prod is right now."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from tools.drill.recording import Mark, Sample
from tools.drill.watch import Watch

QUIET = 15.0  # seconds between two lines about the state where nothing can be shown in place
WIDE = 40  # columns of the bar
COLOURS = {True: "green", False: "red", None: "cyan"}

console = Console(stderr=True, highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 140  # of tables; there is no window that they would have to fit


@contextmanager
def screen(watch: Watch) -> Iterator[None]:
    """Show what is watched as long as the block lasts."""
    over = threading.Event()
    thread = threading.Thread(target=_show, args=(watch, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def heading(text: str) -> None:
    """Show what comes next."""
    console.print(f"\n[bold]{escape(text)}[/]")


def _show(watch: Watch, over: threading.Event) -> None:
    live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
    if live:
        live.start()
    shown, said, begun = len(watch.marks), time.monotonic(), time.time()
    while not over.wait(0.3):
        for mark in watch.marks[shown:]:
            console.print(_line(mark, begun))
            shown += 1
        sample = watch.samples[-1] if watch.samples else None
        if sample and live:
            live.update(panel(watch, sample), refresh=True)
        elif sample and time.monotonic() - said > QUIET:
            said = time.monotonic()
            console.print(f"[dim]{sample.at - begun:6.0f} s            {escape(now(sample))}[/]")
    if live:
        live.stop()


def panel(watch: Watch, sample: Sample) -> Panel:
    """Return what a terminal shows in place: git, Argo CD, the rollout, and both versions side by side."""
    table = Table.grid(padding=(0, 2))
    commits = [mark.text for mark in watch.marks if mark.kind in {"commit", "revert"}]
    table.add_row("git", escape(commits[-1] if commits else "as before"))
    table.add_row("Argo CD", escape(watch.argo_cd()))
    table.add_row("rollout", escape(watch.state()))
    table.add_row("users", _bar(sample.weight))
    for name, errors, p95 in (
        ("stable", sample.stable_errors, sample.stable_p95),
        ("new", sample.canary_errors, sample.canary_p95),
    ):
        table.add_row(name, f"errors {_percent(errors):>7}   P95 {_milliseconds(p95):>7}")
    answers = "   ".join(f"model {version}: {count}" for version, count in sample.answers.items())
    bad = f"   [red]bad: {sample.bad}[/]" if sample.bad else ""
    table.add_row("answers/s", f"{escape(answers) or 'none'}{bad}")
    return Panel(table, title="prod", title_align="left")


def _bar(weight: int) -> str:
    filled = round(weight / 100 * WIDE)
    return f"[cyan]{'█' * filled}[/][dim]{'░' * (WIDE - filled)}[/] {weight} % have the new version"


def _line(mark: Mark, begun: float) -> str:
    return f"{mark.at - begun:6.1f} s  [{COLOURS[mark.good]}]{mark.kind:<8}[/]  {escape(mark.text)}"


def now(sample: Sample) -> str:
    """Return in one line what a sample says."""
    answers = ", ".join(f"{count} by model {version}" for version, count in sample.answers.items())
    return (
        f"new version {sample.weight} %; errors {_percent(sample.stable_errors)} stable, "
        f"{_percent(sample.canary_errors)} new; P95 {_milliseconds(sample.stable_p95)} stable, "
        f"{_milliseconds(sample.canary_p95)} new; answers a second: {answers or 'none'}, {sample.bad} bad"
    )


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"
