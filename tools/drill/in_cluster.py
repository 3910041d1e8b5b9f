"""A module of the drill that runs in the cluster's network and writes lines of JSON."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

from tools.cluster import node

Received = TypeVar("Received")
_writing = threading.Lock()


class InClusterProcess(Generic[Received]):
    """Run `python -m MODULE` for the duration of the block, and collect `make` of the value in each line.

    The module has to exit when its standard input ends.
    """

    def __init__(self, make: Callable[[Any], Received], module: str, *arguments: str) -> None:
        self.received: list[Received] = []
        self._make, self._command = make, [sys.executable, "-m", module, *arguments]

    def __enter__(self) -> Self:
        # It does not enter the process namespace, so it stays a child of this process and ends with it.
        self._process = subprocess.Popen(
            node.nsenter(self._command, "--net", "--mount"),
            env=node.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin  # noqa: S101 - for the type checker
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._reader.join()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self.received.append(self._make(json.loads(line)))


def write(value: Any) -> None:
    """Write a value as a line of JSON, from any thread of the module that runs in the cluster."""
    with _writing:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()
