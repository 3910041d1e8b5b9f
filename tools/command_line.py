"""Run a command line of tools: an expected error is one line on stderr and exit code 1."""

import signal

import typer

from delivery import command_line
from delivery.release import ReleaseError
from tools.errors import ToolError


def run(app: typer.Typer, name: str) -> int:
    """Run a command and return its exit code. SIGTERM and SIGHUP interrupt it as Ctrl-C does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    for number in (signal.SIGTERM, signal.SIGHUP):  # SIGHUP comes when the terminal is closed
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, _interrupt)
    return command_line.run(app, name, ToolError, ReleaseError)


def _interrupt(*_: object) -> None:
    """Interrupt the command once: a closed terminal sends several signals, and they must not interrupt its end."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt
