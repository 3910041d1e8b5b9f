"""The service as a process of its own, the way a person or a pod runs it."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psycopg2
import pytest

ROOT = Path(__file__).parents[2]
SETOSA = [5.1, 3.5, 1.4, 0.2]
START_SECONDS = 30.0  # generous: machines are shared; every wait here is on a condition


class RunningService:
    """`python -m service` with the given environment; as a context manager it is ready inside the block.

    `prefix` is the start of its command line: what puts the process into another namespace. `module` is another
    process of the same image.
    """

    def __init__(
        self,
        model: Path,
        database_url: str,
        journal: Path,
        *,
        prefix: Sequence[str] = (),
        module: str = "service",
        **settings: str,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.journal = journal
        self.environ = environment(
            DATABASE_URL=database_url,
            IRIS_MODEL_DIR=str(model),
            IRIS_JOURNAL_DIR=str(journal),
            IRIS_PORT=str(self.port),
            **{f"IRIS_{name.upper()}": value for name, value in settings.items()},
        )
        self.client = httpx.Client(base_url=self.url, timeout=30)
        self.command = [*prefix, sys.executable, "-m", module]
        self.process: subprocess.Popen[bytes] | None = None
        self.log = journal.parent / f"{journal.name}.log"

    def start(self) -> None:
        """Start the process and wait until it is ready; an AssertionError shows what it printed."""
        with self.log.open("a") as log:
            process = self.process = subprocess.Popen(self.command, cwd=ROOT, env=self.environ, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if self.client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.02)
        self.kill()
        raise AssertionError(f"the service did not get ready:\n{self.log.read_text()}")

    def predict(self, features: object = SETOSA, **headers: str) -> httpx.Response:
        """POST one row."""
        return self.client.post("/predict", json={"features": features}, headers=headers)

    def metric(self, name: str, /, **labels: str) -> float:
        """Return the sum of the samples of that name whose labels include these."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(f'{key}="{v}"' in sample for key, v in labels.items()):
                total += float(value)
        return total

    def wait_shipped(self) -> None:
        """Wait until no prediction waits for PostgreSQL."""
        wait_until(lambda: self.metric("iris_journal_depth") == 0, "the journal to be shipped")

    def kill(self) -> None:
        """End the process without a word (SIGKILL)."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End the process as Kubernetes does (SIGTERM); return its exit code."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        if self.process and self.process.poll() is None:
            self.stop()


class SmallDisk:
    """A file system of `kib` KiB at `folder`, seen only by processes started with `prefix`.

    It is mounted in a namespace of its own, which ends with the block or with this process, whichever is first.
    """

    def __init__(self, folder: Path, kib: int) -> None:
        self.folder = folder
        self._mount = ["sh", "-c", 'mount -t tmpfs -o "size=$1k" tmpfs "$2" && echo && exec cat', "sh", str(kib)]
        self._user = [] if os.geteuid() == 0 else ["--user"]
        self.prefix: list[str] = []

    def fill(self) -> None:
        """Take all space that is left."""
        with self._inside("filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Give back what `fill` took."""
        self._inside("filler").unlink()

    def _inside(self, name: str) -> Path:
        return Path(f"/proc/{self._holder.pid}/root{self.folder}", name)

    def __enter__(self) -> "SmallDisk":
        self.folder.mkdir()
        as_root = [*self._user, *(["--map-root-user"] if self._user else []), "--mount"]
        self._holder = subprocess.Popen(
            ["unshare", *as_root, *self._mount, str(self.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout
        if not self._holder.stdout.readline():
            self.__exit__(None, None, None)
            (pytest.fail if "CI" in os.environ else pytest.skip)("no file system can be mounted here, see above")
        keep = ["--preserve-credentials"] if self._user else []
        self.prefix = ["nsenter", f"--target={self._holder.pid}", *self._user, *keep, "--mount"]
        self.prefix += ["env", f"--chdir={ROOT}"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.communicate()


def query(database_url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Return the rows that PostgreSQL answers, none for a statement without rows."""
    connection = psycopg2.connect(database_url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def environment(**variables: str) -> Mapping[str, str]:
    """Return this process's environment without settings of the service, and with these variables."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("IRIS_") and k != "DATABASE_URL"}
    return {**kept, **variables}


def free_port() -> int:
    """Return a port on which nothing listens at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_until(condition: object, what: str, seconds: float = 60.0) -> None:
    """Wait until the callable `condition` is true; an AssertionError says `what` did not happen."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.05)
