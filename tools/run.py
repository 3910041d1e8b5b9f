"""`make run`: run the service with a PostgreSQL that keeps its data, until Ctrl-C."""

import os
from contextlib import ExitStack
from pathlib import Path

from tools.child_process import serving
from tools.errors import ToolError
from tools.postgres import Postgres

NEXT = """
serving on {url} (Ctrl-C stops the service and everything it started)
predictions are logged to {where}

next:
  curl {url}/predict -H 'Content-Type: application/json' -d '{{"features":[5.1,3.5,1.4,0.2]}}'
  curl {url}/logs
"""


def run(state: Path) -> None:
    """Serve until KeyboardInterrupt, then stop everything that was started. Raises ToolError."""
    environ = dict(os.environ)
    environ.setdefault("IRIS_JOURNAL_DIR", str(state / "journal"))
    host, port = environ.get("IRIS_HOST", "127.0.0.1"), _port(environ.get("IRIS_PORT", "8000"))
    with ExitStack() as stack:
        where = "the database of DATABASE_URL"
        if "DATABASE_URL" not in environ:
            postgres = stack.enter_context(Postgres(state / "postgres"))
            environ["DATABASE_URL"] = postgres.url
            where = f'PostgreSQL: psql "{postgres.url}"'
        process = stack.enter_context(serving(environ, host, port))
        print(NEXT.format(url=f"http://localhost:{port}", where=where), flush=True)  # noqa: T201
        raise ToolError(f"the service ended with exit code {process.wait()}; its last line above says why")


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ToolError(f"IRIS_PORT is {text!r}, which is not a port; IRIS_PORT=8001 sets another port")
    return int(text)
