"""README.md says what happens: its commands are run, and its answers compared."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import ROOT, RunningService

VARYING = {"request_id", "latency_ms", "version", "model_version"}  # another run has others


def console_examples() -> Iterator[tuple[str, str]]:
    """Yield each `$ command` of README's console blocks, with the text printed below it."""
    text = (ROOT / "README.md").read_text()
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = example.partition("\n")
            yield command, output.strip()


EXAMPLES = [example for example in console_examples() if example[0].startswith("curl ")]


def test_readme_shows_predictions_problems_and_the_log() -> None:
    assert len(EXAMPLES) >= 7


@pytest.mark.parametrize(("command", "output"), EXAMPLES, ids=[command[:60] for command, _ in EXAMPLES])
def test_a_curl_of_readme_answers_what_readme_says(service: RunningService, command: str, output: str) -> None:
    address = command.replace("localhost:8000", f"127.0.0.1:{service.port}")
    done = subprocess.run(
        [*shlex.split(address), "--silent", "--show-error", "--write-out", "\n%{http_code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    assert (status == "200") == ("detail" not in output)
    if output:
        said, got = json.loads(output), json.loads(body)
        assert said.keys() == got.keys()
        for name in said.keys() - VARYING:
            assert got[name] == (pytest.approx(said[name]) if isinstance(said[name], float) else said[name])


def test_each_make_target_of_readme_exists() -> None:
    targets = set(re.findall(r"`make ([a-z-]+)`", (ROOT / "README.md").read_text()))
    assert targets
    assert targets <= set(re.findall(r"^([a-z-]+):", Path(ROOT / "Makefile").read_text(), re.MULTILINE))
