"""`python -m delivery.push COMMAND...`: run a command of `delivery` on the newest main, and push its commit.

Each attempt decides again, in a fresh clone: somebody may push in between, and the message about an abort may
arrive before the cluster itself reports the abort. Prints outputs of a workflow step: commit, subject and body of
the pushed commit, or the error.
"""

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from delivery.git import git
from delivery.release import ReleaseError

ROOT = Path(__file__).parent.parent
ATTEMPTS = 8
PAUSE = 2.0  # seconds
RETRIED = (3, 4)  # exit codes of `delivery`: the cluster does not confirm the message yet, or is unavailable


def run_and_push(origin: str, command: Sequence[str]) -> tuple[int, str]:
    """Run a command of `delivery` on the newest main of a repository, and push its commit, with retries.

    Return the command's exit code, and the outputs, empty if there was nothing to commit. Raises ReleaseError.
    """
    code, error = 1, ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE)
        with tempfile.TemporaryDirectory(prefix="iris-push-") as temporary:
            clone = Path(temporary)
            git(clone, "clone", "--quiet", "--branch=main", origin, ".")
            code, error = _delivery(clone, command)
            if git(clone, "rev-parse", "HEAD") != git(clone, "rev-parse", "origin/main"):
                try:
                    git(clone, "push", "--quiet", "origin", "HEAD:main")
                except ReleaseError as refused:
                    code, error = 1, f"{refused}\n"
                    sys.stderr.write(error)
                else:
                    return 0, _outputs(clone)
            elif code not in RETRIED:
                break
    return code, _multiline("error", error) if code else ""


def _delivery(clone: Path, command: Sequence[str]) -> tuple[int, str]:
    """Run a command; return its exit code and its standard error, which is printed as well."""
    argv = [sys.executable, "-P", "-m", "delivery", *command]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        argv,
        cwd=clone,
        env=environ,
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    sys.stderr.write(done.stderr)
    return done.returncode, done.stderr


def _outputs(clone: Path) -> str:
    sha, subject, body = git(clone, "log", "-1", "--format=%H%x00%s%x00%b").split("\0")
    return f"commit={sha}\nsubject={subject}\n{_multiline('body', body)}"


def _multiline(name: str, text: str) -> str:
    end = secrets.token_hex(16)  # unpredictable: the text quotes programs, and must not be able to end itself
    return f"{name}<<{end}\n{text.strip()}\n{end}\n"


def main() -> int:
    """Run and push the command in this process's arguments; return its exit code."""
    try:
        code, outputs = run_and_push(git(Path(), "remote", "get-url", "origin").strip(), sys.argv[1:])
    except ReleaseError as error:
        sys.stderr.write(f"delivery.push: {error}\n")
        sys.stdout.write(_multiline("error", str(error)))
        return 1
    sys.stdout.write(outputs)
    return code


if __name__ == "__main__":
    sys.exit(main())
