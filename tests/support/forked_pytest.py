"""Run pytest many times from one process, so that the libraries are imported once.

Each line of input is a JSON list of arguments. A run is a fork, which imports the tests and reads files afresh.
Each line of output is a JSON object: the exit code, the tests that raised an exception, and what pytest printed.
"""

import json
import os
import sys
import tempfile
from typing import Any

import httpx  # noqa: F401 - the libraries that the tests import; nothing of the checkout
import jsonschema_rs  # noqa: F401
import psycopg2  # noqa: F401
import pytest
import rich.console  # noqa: F401
import yaml  # noqa: F401


class Exceptions:
    """A pytest plugin that records the exceptions that end a test, a fixture or the import of a file."""

    def __init__(self) -> None:
        self.raised: list[tuple[str, str]] = []

    def pytest_exception_interact(self, node: pytest.Item | pytest.Collector, call: pytest.CallInfo[Any]) -> None:
        """Record the name of the test and of the exception."""
        assert call.excinfo
        self.raised.append((node.name, call.excinfo.typename))


def _run(arguments: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as result, tempfile.TemporaryFile("w+") as printed:
        if (child := os.fork()) == 0:
            os.dup2(printed.fileno(), sys.stdout.fileno())
            os.dup2(printed.fileno(), sys.stderr.fileno())
            plugin = Exceptions()
            code = pytest.main(arguments, [plugin])
            json.dump({"code": code, "raised": plugin.raised}, result)
            result.flush()
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)
        for file in (result, printed):
            file.seek(0)
        return {**json.load(result), "printed": printed.read()}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)  # noqa: T201
