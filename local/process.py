"""The service as a child process: started, waited for, ended."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

DEADLINE = 60.0  # seconds to get ready; it takes one


class StartError(Exception):
    """The service ended, or did not get ready in time; it has said why on standard error."""


@contextmanager
def serving(environ: Mapping[str, str], url: str, *prefix: str) -> Iterator[subprocess.Popen[bytes]]:
    """Yield `python -m service`, ready at `url`; end it with the block. `prefix` goes before the command.

    Raises StartError.
    """
    with child([*prefix, sys.executable, "-m", "service"], environ) as process:
        wait_ready(process, f"{url}/readyz")
        yield process


@contextmanager
def child(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a started process; end it with the block, by SIGTERM."""
    process = subprocess.Popen(command, env=dict(environ))
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def wait_ready(process: subprocess.Popen[bytes], url: str) -> None:
    """Wait until `url` answers 200. Raises StartError when the process ends before, or after DEADLINE."""
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - an address of this machine
                return
        except OSError:
            time.sleep(0.005)
    if process.poll() is None:
        raise StartError(f"nothing answered at {url} within {DEADLINE:.0f} s")
    raise StartError(f"it ended with exit code {process.returncode}; its last line above says why")
