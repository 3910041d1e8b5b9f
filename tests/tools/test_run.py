"""`python -m tools` reports an error as one line that says what to do."""

import subprocess
import sys

import pytest

from tests.support.running import ROOT, environment


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("arguments", [(), ("ruin",)])
def test_a_wrong_command_line_prints_the_usage(arguments: tuple[str, ...]) -> None:
    done = _run(*arguments)
    assert done.returncode == 2
    assert "Usage: " in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("port", ["abc", "0", "99999", "-1", ""])
def test_an_invalid_port_is_an_error_that_says_what_to_do(port: str) -> None:
    done = _run("run", IRIS_PORT=port)
    assert done.returncode == 1
    assert done.stderr == f"tools: IRIS_PORT is {port!r}, which is not a port; IRIS_PORT=8001 sets another port\n"
