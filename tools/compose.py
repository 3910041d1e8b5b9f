"""`make .env`: write the passwords and the pip configuration that docker-compose.yml needs.

This runs before anything is installed: import only the standard library, here and in imported modules.
"""

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from tools.checkout import ROOT
from tools.pip_configuration import pip_configuration

PASSWORDS = ("POSTGRES_PASSWORD", "IRIS_DATABASE_PASSWORD", "MLFLOW_DATABASE_PASSWORD", "GRAFANA_ADMIN_PASSWORD")
HEAD = """\
# Written by `make .env` for this machine. The databases keep their first passwords. To start again with new ones:
#   docker compose down --volumes && rm .env && make .env"""
NEXT = """\
wrote {file}
next: docker compose up --detach
      (Grafana's user is admin; its password is GRAFANA_ADMIN_PASSWORD in that file)"""


def write(root: Path, environ: Mapping[str, str]) -> Path:
    """Write .env and the files that it names below `root`; return its path.

    Raises FileExistsError, and changes nothing, if there is an .env already.
    """
    file, folder = root / ".env", root / ".local" / "secrets"
    pip_conf, certificates = pip_configuration(environ)
    lines = [f"{name}={secrets.token_urlsafe(24)}" for name in PASSWORDS]
    if pip_conf:
        lines.append("IRIS_PIP_CONF=.local/secrets/pip.conf")
    if certificates:
        lines.append(f"IRIS_CERTIFICATES='{certificates}'")
    # Created with its final mode, so that nobody else can read it at any time, and never overwritten.
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
        out.write("\n".join([HEAD, *lines, ""]))
    # Other users of the host cannot enter the outer folder. The inner one is mounted in a container whose user may
    # have any id.
    for inner, mode in ((folder, 0o700), (folder / "alertmanager", 0o755)):
        inner.mkdir(parents=True, exist_ok=True)
        inner.chmod(mode)
    (folder / "pip.conf").write_text(pip_conf)
    return file


def main() -> None:
    """Write the .env of this checkout; exit with 1 if there is one."""
    try:
        file = write(ROOT, os.environ)
    except FileExistsError as error:
        sys.exit(f"{error.filename} exists and is not overwritten; its first lines say how to replace it")
    print(NEXT.format(file=file))  # noqa: T201


if __name__ == "__main__":
    main()
