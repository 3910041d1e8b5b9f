"""Show the progress of a long command: each step with its time, and the reason and the log if it fails."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tools.errors import ToolError

console = Console(stderr=True, highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 140  # for tables, which have no window to fit
QUIET = 30.0  # seconds between two lines of progress when stderr is not a terminal

Say = Callable[[str], None]
"""Show what a step is doing: on a terminal in place, elsewhere as a line every QUIET seconds."""


class NotRunningError(ToolError):
    """No cluster is running on this host."""

    def __init__(self) -> None:
        super().__init__("no cluster is running; `make up` starts one")


@contextmanager
def step(name: str, log: Path | None = None) -> Iterator[Say]:
    """Print `name` and its seconds when the block ends; if it fails, print the reason and the log as well."""
    title = escape(name)
    status = console.status(title)  # shows nothing without a terminal
    begun = said = time.monotonic()

    def say(text: str) -> None:
        nonlocal said
        now = time.monotonic()
        line = f"{title} ({now - begun:.0f} s): {escape(text)}"
        status.update(line)
        if not console.is_terminal and now - said > QUIET:
            said = now
            console.print(f"  ..  {line}")

    try:
        with status:
            yield say
    except (Exception, KeyboardInterrupt) as error:
        reason = escape(str(error) or "interrupted; run the same command again to continue")
        hint = f"\n      log: {log}" if log else ""
        console.print(f"  [red]no[/]  {title} ({time.monotonic() - begun:.0f} s): {reason}{hint}")
        raise
    console.print(f"  [green]ok[/]  {title} ({time.monotonic() - begun:.1f} s)")


def wait_for(missing: Callable[[], str | None], seconds: float, say: Say = lambda _: None) -> None:
    """Call `missing` until it returns None instead of a reason, and does not raise ToolError.

    Raises ToolError with the last reason after that many seconds. NotRunningError is raised at once.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            reason = missing()
        except NotRunningError:
            raise
        except ToolError as error:
            reason = str(error)
        if not reason:
            return
        if time.monotonic() > deadline:
            raise ToolError(f"after {seconds:.0f} s: {reason}")
        say(reason)
        time.sleep(0.5)
