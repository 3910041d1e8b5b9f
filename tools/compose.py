"""`make .env`: what docker-compose.yml needs of this machine: passwords, and how pip in a build finds its index.

Only the standard library is needed, here and in what is imported: it runs before anything is installed.
"""

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from tools.checkout import ROOT
from tools.image import pip_configuration

PASSWORDS = ("POSTGRES_PASSWORD", "IRIS_DATABASE_PASSWORD", "MLFLOW_DATABASE_PASSWORD", "GRAFANA_ADMIN_PASSWORD")
HEAD = """\
# Made by `make .env` for this machine alone. Databases keep the passwords that they were made with; for others:
#   docker compose down --volumes && rm .env && make .env"""
HOW_TO_GO_ON = """\
made {file}
next: docker compose up --detach
      (Grafana's user is admin, its password GRAFANA_ADMIN_PASSWORD in that file)"""


def write(root: Path, environ: Mapping[str, str]) -> Path:
    """Write .env in `root`, and the files that it names; return it. Raises FileExistsError, nothing changed."""
    file, folder = root / ".env", root / ".local" / "secrets"
    pip_conf, certificates = pip_configuration(environ)
    lines = [f"{name}={secrets.token_urlsafe(24)}" for name in PASSWORDS]
    if pip_conf:
        lines.append("IRIS_PIP_CONF=.local/secrets/pip.conf")
    if certificates:
        lines.append(f"IRIS_CERTIFICATES='{certificates}'")
    # Nobody else can read it, from the first byte on; and it is never written over.
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
        out.write("\n".join([HEAD, *lines, ""]))
    # Who may not pass the outer folder reaches nothing in it; a container gets the inner one alone, whoever it is.
    for inner, mode in ((folder, 0o700), (folder / "alertmanager", 0o755)):
        inner.mkdir(parents=True, exist_ok=True)
        inner.chmod(mode)
    (folder / "pip.conf").write_text(pip_conf)
    return file


def main() -> int:
    """Write the file of this checkout; return the exit code."""
    try:
        file = write(ROOT, os.environ)
    except FileExistsError as error:
        print(f"{error.filename} is there, and stays as it is; its first lines say more", file=sys.stderr)  # noqa: T201
        return 1
    print(HOW_TO_GO_ON.format(file=file))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
