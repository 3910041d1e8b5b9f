"""The service as a child process: started, waited for, ended."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tools.errors import ToolError

DEADLINE = 60.0  # seconds to get ready; it takes one


@contextmanager
def serving(environ: Mapping[str, str], host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Yield `python -m service`, ready on that address; end it with the block. Raises ToolError."""
    try:
        socket.create_server((host, port)).close()  # else whoever is there would answer for ours
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
    """Yield a started process; end it with the block, by SIGTERM."""
    process = subprocess.Popen(command, env=dict(environ))
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def wait_ready(process: subprocess.Popen[bytes], url: str) -> None:
    """Wait until `url` answers 200. Raises ToolError when the process ends before, or after DEADLINE."""
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - an address of this machine
                return
        except OSError:
            time.sleep(0.005)
    if process.poll() is None:
        raise ToolError(f"nothing answered at {url} within {DEADLINE:.0f} s")
    raise ToolError(f"it ended with exit code {process.returncode}; its last line above says why")
