"""The Makefile makes .venv anew when it has to."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.running import ROOT

FRESH, TO_BE_MADE = 0, 1  # exit codes of `make --question`


@pytest.mark.parametrize("name", ["checkout", "a, checkout's (second)"])
def test_a_virtual_environment_is_made_anew_only_after_its_checkout_was_moved(tmp_path: Path, name: str) -> None:
    checkout, moved = tmp_path / name, tmp_path / "moved"
    assert _made(checkout) == TO_BE_MADE
    (checkout / ".venv").mkdir()
    # As `python -m venv` writes it.
    recorded = f"home = /usr/bin\ncommand = /usr/bin/python3 -m venv --clear {checkout}/.venv\n"
    (checkout / ".venv/pyvenv.cfg").write_text(recorded)
    (checkout / ".venv/ready").touch()
    assert _made(checkout) == FRESH
    checkout.rename(moved)
    assert _made(moved) == TO_BE_MADE


def _made(checkout: Path) -> int:
    """Return whether `make` would make .venv in a checkout."""
    checkout.mkdir(exist_ok=True)
    for name in ("Makefile", "requirements.txt"):
        if not (checkout / name).exists():
            shutil.copy2(ROOT / name, checkout)
    command = ["make", "--question", ".venv/ready"]
    return subprocess.run(command, cwd=checkout, capture_output=True, check=False).returncode
