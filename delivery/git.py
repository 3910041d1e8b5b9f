"""Run git: the one place that starts it."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from delivery.release import ReleaseError

CONFIGURATION = {
    "clone.defaultRemoteName": "origin",
    "core.commentChar": "#",
    "core.quotePath": "false",
    "i18n.commitEncoding": "UTF-8",
    "i18n.logOutputEncoding": "UTF-8",
    "log.follow": "false",
    "log.showSignature": "false",
    "status.showUntrackedFiles": "normal",
    "trailer.separators": ":",
}
"""Settings that would change what is committed or read here, whatever the user's configuration says."""
SECONDS = 120.0
"""How long a git command may take: a server that accepts a connection and is silent must not stop all reverts."""


class GitError(ReleaseError):
    """A git command failed; the message says which one and what git printed."""


def git(root: Path, *arguments: str, stdin: str = "", environ: Mapping[str, str] | None = None) -> str:
    """Run a git command in a repository and return its output.

    `environ` is added to this process's environment. Bytes that are not UTF-8, which any commit may contain, are
    replaced. Raises GitError.
    """
    return git_bytes(root, *arguments, stdin=stdin.encode(errors="replace"), environ=environ).decode(
        errors="replace"
    )


def git_bytes(root: Path, *arguments: str, stdin: bytes = b"", environ: Mapping[str, str] | None = None) -> bytes:
    """Run a git command in a repository and return its output as it is. Raises GitError."""
    settings = [word for name, value in CONFIGURATION.items() for word in ("-c", f"{name}={value}")]
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *settings, *arguments],
            input=stdin,
            env={**os.environ, **(environ or {})},
            capture_output=True,
            check=False,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise GitError(f"git {arguments[0]}: no answer in {SECONDS:.0f} seconds") from error
    if done.returncode:
        message = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise GitError(f"git {arguments[0]}: {message}")
    return done.stdout


def identity(name: str, email: str) -> dict[str, str]:
    """Return the environment variables that make a person or a machine the author and committer."""
    return {
        f"GIT_{role}_{field}": value
        for role in ("AUTHOR", "COMMITTER")
        for field, value in (("NAME", name), ("EMAIL", email))
    }
