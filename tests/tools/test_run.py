"""The command line of what runs on this machine: an error is a line that says what to do."""

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
def test_a_command_line_that_is_wrong_is_told_what_there_is(arguments: tuple[str, ...]) -> None:
    done = _run(*arguments)
    assert done.returncode == 2
    assert "Usage: " in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("port", ["abc", "0", "99999", "-1", ""])
def test_a_port_that_is_none_is_named_with_what_to_do(port: str) -> None:
    done = _run("run", IRIS_PORT=port)
    assert done.returncode == 1
    assert done.stderr == f"tools: IRIS_PORT is {port!r}, which is not a port; IRIS_PORT=8001 sets another port\n"
