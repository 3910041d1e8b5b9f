"""Run other programs: to their end, or in the background for as long as a block lasts."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tools import local_http
from tools.errors import ToolError

START_SECONDS = 60.0  # the service takes about one


def output(
    command: Sequence[str],
    *,
    name: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    seconds: float | None = None,
) -> str:
    """Run a command and return its standard output.

    Raises ToolError with the command's `name` and the last lines that it printed, or after that many seconds.
    """
    name = name or " ".join(command[:4])
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env, input=stdin, timeout=seconds, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"`{name}` took more than {seconds:.0f} s") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-4:]
        raise ToolError(f"`{name}` failed: {' | '.join(last)}")
    return done.stdout


def run_visibly(command: Sequence[str], *, env: Mapping[str, str] | None = None, failure: str) -> None:
    """Run a command and pass its output on to stderr. Raises ToolError, which begins with `failure`."""
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode:
        raise ToolError(f"{failure}; the last lines above say why")


@contextmanager
def serving(environ: Mapping[str, str], host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m service` until the block ends; yield its process once it is ready. Raises ToolError."""
    try:
        socket.create_server((host, port)).close()  # otherwise another server could answer for this one
    except OSError as error:
        raise ToolError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}; IRIS_PORT=8001 sets another port"
        ) from error
    address = {"IRIS_HOST": host, "IRIS_PORT": str(port)}
    with child([sys.executable, "-m", "service"], {**environ, **address}) as process:
        wait_ready(process, f"http://{host}:{port}/readyz")
        yield process


@contextmanager
def child(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a running process, and end it by SIGTERM when the block ends."""
    process = subprocess.Popen(command, env=dict(environ))
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def wait_ready(process: subprocess.Popen[bytes], url: str) -> None:
    """Wait until `url` answers 200. Raises ToolError if the process ends first, or after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            local_http.get(url, 5)
        except OSError:
            time.sleep(0.005)
        else:
            return
    if process.poll() is None:
        raise ToolError(f"nothing answered at {url} within {START_SECONDS:.0f} s")
    raise ToolError(f"the process ended with exit code {process.returncode}; its last line above says why")
