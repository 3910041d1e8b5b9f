"""What a person sees of a long command: each step's name, its time, and where to look when it fails."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tools.errors import ToolError

console = Console(stderr=True, highlight=False, soft_wrap=True)
QUIET = 30.0  # seconds between two lines of progress where nothing can be shown in place

Say = Callable[[str], None]
"""Shows what a step does right now: on a terminal in place, elsewhere a line now and then."""


class NotRunningError(ToolError):
    """There is no cluster on this machine, or no longer."""

    def __init__(self) -> None:
        super().__init__("no cluster runs here; `make up` starts one")


@contextmanager
def step(name: str, log: Path | None = None) -> Iterator[Say]:
    """Print `name` with its seconds when the block ends, or with the reason and the log when it fails."""
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
        reason = escape(str(error) or "interrupted; the same command goes on from here")
        look = f"\n      log: {log}" if log else ""
        console.print(f"  [red]no[/]  {escape(name)} ({time.monotonic() - begun:.0f} s): {reason}{look}")
        raise
    finally:
        if status:
            status.stop()
    console.print(f"  [green]ok[/]  {escape(name)} ({time.monotonic() - begun:.1f} s)")


def wait_for(missing: Callable[[], str | None], seconds: float, say: Say) -> None:
    """Wait until `missing` returns None: neither says what is missing nor raises ToolError.

    Raises ToolError with what is missing after that many seconds, NotRunningError at once.
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
