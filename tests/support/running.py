"""Run the service as a process, like an operator or a pod does."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psycopg2
import pytest

ROOT = Path(__file__).parents[2]
SETOSA = [5.1, 3.5, 1.4, 0.2]
START_SECONDS = 30.0  # generous, for shared machines: every wait ends as soon as its condition is true


class RunningService:
    """A process of `python -m service`. As a context manager it is ready inside the block.

    `prefix` precedes its command line, to run it in another namespace. `module` runs another process of the image.
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
        """Start the process and wait until it is ready. Raises AssertionError with its output if it does not."""
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
        raise AssertionError(f"the service did not become ready:\n{self.log.read_text()}")

    def predict(self, features: object = SETOSA, **headers: str) -> httpx.Response:
        """POST one row."""
        return self.client.post("/predict", json={"features": features}, headers=headers)

    def metric(self, name: str, /, **labels: str) -> float:
        """Return the sum of all samples of a metric that have these labels."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(f'{key}="{v}"' in sample for key, v in labels.items()):
                total += float(value)
        return total

    def wait_shipped(self) -> None:
        """Wait until PostgreSQL has all predictions."""
        wait_until(lambda: self.metric("iris_journal_depth") == 0, "the journal to be shipped")

    def kill(self) -> None:
        """Kill the process (SIGKILL)."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Stop the process as Kubernetes does (SIGTERM); return its exit code."""
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
    """A file system of `kib` KiB at `folder`, visible only to processes started with `prefix`.

    It is mounted in a mount namespace of its own, which ends with the block, or earlier with this process.
    """

    def __init__(self, folder: Path, kib: int) -> None:
        self.folder = folder
        self._mount = ["sh", "-c", 'mount -t tmpfs -o "size=$1k" tmpfs "$2" && echo && exec cat', "sh", str(kib)]
        self._user = [] if os.geteuid() == 0 else ["--user"]
        self.prefix: list[str] = []

    def fill(self) -> None:
        """Fill the disk."""
        with self._path("filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Free the space that `fill` took."""
        self._path("filler").unlink()

    def _path(self, name: str) -> Path:
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
            if "CI" in os.environ:
                pytest.fail("no file system can be mounted here, see above")
            pytest.skip("no file system can be mounted here, see above")
        keep = ["--preserve-credentials"] if self._user else []
        self.prefix = ["nsenter", f"--target={self._holder.pid}", *self._user, *keep, "--mount"]
        self.prefix += ["env", f"--chdir={ROOT}"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.communicate()


def query(database_url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Run a statement; return its rows, or an empty list for a statement without rows."""
    connection = psycopg2.connect(database_url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def environment(**variables: str) -> Mapping[str, str]:
    """Return this process's environment with these variables instead of its settings for the service."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("IRIS_") and k != "DATABASE_URL"}
    return {**kept, **variables}


def free_port() -> int:
    """Return a port that is currently free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_until(condition: Callable[..., object], what: str, seconds: float = 60.0) -> None:
    """Wait until `condition()` is true. Raises AssertionError, which names `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out after {seconds} s waiting for {what}"
        time.sleep(0.05)
