"""`python -m tools` serves until it is interrupted, and reports an error as one line that says what to do."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import ROOT, environment, free_port

NO_PROXY = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"), "http://127.0.0.1:1")
"""A proxy that does not answer, for every address."""


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


# A terminal that is closed sends SIGHUP, often twice; a shell starts background jobs with SIGINT ignored.
@pytest.mark.parametrize("signals", ["TERM", "HUP", "HUP HUP TERM", "INT"])
def test_make_run_serves_beside_a_broken_proxy_and_stops_all_that_it_started(
    model: Path, tmp_path: Path, signals: str
) -> None:
    port = free_port()
    variables = {"IRIS_MODEL_DIR": str(model), "IRIS_PORT": str(port), "PYTHONPATH": str(ROOT), **NO_PROXY}
    # Not as these tests themselves were started: nohup, for instance, ignores SIGHUP.
    started = ["env", "--default-signal=HUP", "--ignore-signal=INT", sys.executable, "-m", "tools", "run"]
    environ = {**environment(**variables), "no_proxy": "", "NO_PROXY": ""}
    with subprocess.Popen(started, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert any(line.startswith("serving on ") for line in process.stdout)
            for name in signals.split():
                process.send_signal(signal.Signals[f"SIG{name}"])
            assert process.wait(60) == 0
        finally:
            process.terminate()  # or a failure would wait for the process for ever
    assert not (tmp_path / ".local/postgres/data/postmaster.pid").exists()
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0
