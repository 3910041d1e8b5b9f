"""A module of the drill that runs inside the cluster's network, and the lines of JSON that it writes."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from tools.cluster import node


class Inside:
    """`python -m MODULE`, as long as the block lasts; what it writes is given to `take`.

    It has to end when its standard input does.
    """

    def __init__(self, take: Callable[[Any], None], module: str, *arguments: str) -> None:
        self._take, self._command = take, [sys.executable, "-m", module, *arguments]

    def __enter__(self) -> "Inside":
        # Not in the namespace of processes: it is this one's child, and ends with it.
        self._process = subprocess.Popen(
            node.nsenter(self._command, "--net", "--mount"),
            env=node.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout  # noqa: S101 - for the type checker
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin  # noqa: S101
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._reader.join()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self._take(json.loads(line))


def write(event: Any) -> None:
    """Write a line of JSON; called in such a module."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()
