"""Show the progress of a long command: each step with its time, and the reason and the log if it fails."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tools.errors import ToolError

console = Console(stderr=True, highlight=False, soft_wrap=True)
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
    begun = time.monotonic()
    said = begun
    status = console.status(escape(name)) if console.is_terminal else None

    def say(text: str) -> None:
        nonlocal said
        if status:
            status.update(f"{escape(name)} ({time.monotonic() - begun:.0f} s): {escape(text)}")
        elif time.monotonic() - said > QUIET:
            said = time.monotonic()
            console.print(f"  ..  {escape(name)} ({said - begun:.0f} s): {escape(text)}")

    if status:
        status.start()
    try:
        yield say
    except (Exception, KeyboardInterrupt) as error:
        reason = escape(str(error) or "interrupted; run the same command again to continue")
        hint = f"\n      log: {log}" if log else ""
        console.print(f"  [red]no[/]  {escape(name)} ({time.monotonic() - begun:.0f} s): {reason}{hint}")
        raise
    finally:
        if status:
            status.stop()
    console.print(f"  [green]ok[/]  {escape(name)} ({time.monotonic() - begun:.1f} s)")


def wait_for(missing: Callable[[], str | None], seconds: float, say: Say) -> None:
    """Call `missing` until it returns None, not a reason, and does not raise ToolError.

    Raises ToolError with the last reason after that many seconds. NotRunningError is raised at once.
    """
    deadline = time.monotonic() + seconds
    while reason := _missing(missing):
        if time.monotonic() > deadline:
            raise ToolError(f"after {seconds:.0f} s: {reason}")
        say(reason)
        time.sleep(0.5)


def _missing(missing: Callable[[], str | None]) -> str | None:
    try:
        return missing()
    except NotRunningError:
        raise
    except ToolError as error:
        return str(error)
