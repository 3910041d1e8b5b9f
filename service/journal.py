"""The local journal: it stores predictions before they are answered, and until PostgreSQL has them."""

import fcntl
import logging
import os
import shutil
import sqlite3
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS groups (
    id INTEGER PRIMARY KEY,
    size INTEGER NOT NULL,
    created REAL NOT NULL,
    records BLOB NOT NULL
)
"""


class JournalError(Exception):
    """The journal cannot be used; the message names the cause and the remedy."""


class Group(NamedTuple):
    """Predictions that were committed together. `records` is a JSON array of `size` objects."""

    id: int
    size: int
    records: bytes


class Journal:
    """A durable queue of groups of predictions, for one writer and one shipper.

    `append` returns when the group is on disk (SQLite, WAL, synchronous=FULL: one fsync a group).
    One process at a time owns the folder.
    """

    def __init__(self, folder: Path, max_mib: int) -> None:
        """Open or create the journal in `folder`. Raises JournalError if the folder is not writable or is in use.

        A corrupt journal may contain acknowledged predictions, so it is quarantined under another name. The
        service then starts with an empty journal instead of crash-looping.
        """
        self._path = folder / "journal.sqlite"
        self._max_mib = max_mib
        self._owner = _lock_folder(folder)
        # The wall clock of this moment, going on at its own pace: ages must not change when a clock is set.
        self._started = time.time() - time.monotonic()
        self._lock = threading.Lock()  # SQLite allows one writer at a time; a lock is cheaper than its polling
        if reason := _wal_damage(self._path):
            self._quarantine(("-wal", "-shm"), reason)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise JournalError(f"cannot write the journal {self._path}: {error}") from error
            self._quarantine(("", "-wal", "-shm"), str(error))
            self._open()
        self.depth, self._last, self._oldest, newest = self._writer.execute(
            "SELECT coalesce(sum(size), 0), coalesce(max(id), 0), coalesce(min(created), 0), "
            "coalesce(max(created), 0) FROM groups"
        ).fetchone()
        self._started = max(self._started, newest - time.monotonic())  # the clock was set back while nothing ran
        self.quarantined = any(folder.glob(f"{self._path.name}.corrupt-*"))  # also by a process before this one
        self.written = 0
        self.shipped = 0
        self.error: str | None = None
        self._failed_bytes = 0  # size of the last group that could not be written

    def append(self, records: bytes, size: int) -> None:
        """Store a group on disk. On failure raises sqlite3.Error and stores nothing of it."""
        created = self._now()
        try:
            with self._lock:
                if self._closed:
                    self._open()
                # Never reuse a removed group's id: the shipper remembers the last id that it shipped.
                group = (self._last + 1, size, created, records)
                self._writer.execute("INSERT INTO groups VALUES (?, ?, ?, ?)", group)
                self._last += 1
                if not self.depth:
                    self._oldest = created
                self.depth += size
        except sqlite3.Error as error:
            self.error, self._failed_bytes = str(error), len(records)
            raise
        self.error = None
        self.written += size

    def oldest(self, after: int, rows: int) -> list[Group]:
        """Return the oldest groups with an id above `after`, until they have `rows` rows or more together."""
        groups: list[Group] = []
        with self._lock:
            for row in self._shipper.execute(
                "SELECT id, size, records FROM groups WHERE id > ? ORDER BY id", (after,)
            ):
                groups.append(Group(*row))
                rows -= groups[-1].size
                if rows <= 0:
                    break
        return groups

    def remove(self, up_to: int) -> None:
        """Remove the groups up to this id, which PostgreSQL has.

        Without an fsync: after a crash they are shipped again, which has no effect. On a full disk SQLite cannot
        delete, because its WAL would have to grow. The groups then remain until PostgreSQL has all of them, and
        the files are recreated.
        """
        with self._lock:
            size, next_created = self._shipper.execute(
                "SELECT coalesce(sum(size), 0), (SELECT created FROM groups WHERE id > ? ORDER BY id LIMIT 1) "
                "FROM groups WHERE id <= ?",
                (up_to, up_to),
            ).fetchone()
            deleted = self._delete(up_to)
            if not deleted and size < self.depth:
                return
            self.depth -= size
            self.shipped += size
            self._oldest = next_created or self._oldest
            if not deleted:
                self._recreate()

    def oldest_age(self) -> float:
        """Return how long the oldest unshipped group has been waiting (seconds), 0 when the journal is empty."""
        # Without the lock: the event loop calls this, and a slow disk may hold the lock for long.
        return self._now() - self._oldest if self.depth else 0.0

    def probe(self) -> None:
        """Test whether a journal that failed is writable again, with an empty group of the same size."""
        try:
            self.append(b"[]".ljust(self._failed_bytes), 0)
        except sqlite3.Error:
            log.warning("the journal cannot be written", extra={"reason": self.error})

    def close(self) -> None:
        """Close the files and release the folder."""
        with self._lock:
            self._shipper.close()
            self._writer.close()
            os.close(self._owner)

    def _now(self) -> float:
        return self._started + time.monotonic()

    def _open(self) -> None:
        self._closed = True
        self._writer = _connect(self._path, "FULL")
        (page_size,) = self._writer.execute("PRAGMA page_size").fetchone()
        self._writer.execute(f"PRAGMA max_page_count = {self._max_mib * 1024 * 1024 // page_size}")
        if (check := self._writer.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(check)
        self._writer.execute(SCHEMA)
        self._shipper = _connect(self._path, "NORMAL")
        self._closed = False

    def _delete(self, up_to: int) -> bool:
        try:
            self._shipper.execute("DELETE FROM groups WHERE id <= ?", (up_to,))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            return False
        return True

    def _recreate(self) -> None:
        log.warning("the disk is full and PostgreSQL has the whole journal; recreating the journal's files")
        self._closed = True
        self._shipper.close()
        self._writer.close()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._open()

    def _quarantine(self, suffixes: tuple[str, ...], reason: str) -> None:
        now = time.time_ns()
        when = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now // 10**9))}.{now % 10**9:09}"
        quarantine = self._path.with_name(f"{self._path.name}.corrupt-{when}")
        for suffix in suffixes:
            file = self._path.with_name(self._path.name + suffix)
            if file.exists():
                file.rename(quarantine.with_name(quarantine.name + suffix))
        if "" not in suffixes and self._path.exists():
            with suppress(OSError):  # a full disk
                shutil.copyfile(self._path, quarantine)  # the pages of a WAL mean nothing without their database
        log.error(
            "the journal is corrupt and was quarantined; `python -m service.recover` inserts what is readable",
            extra={"file": str(quarantine) + suffixes[0], "reason": reason},
        )


def _wal_damage(path: Path) -> str | None:
    """Describe damage to the WAL that SQLite would ignore silently before it overwrites the file."""
    wal = path.with_name(path.name + "-wal")
    if not wal.exists() or not wal.stat().st_size:
        return None
    if not path.exists() or not path.stat().st_size:
        return f"{path.name} is missing"
    with wal.open("rb") as file:
        header = file.read(32)
    # https://www.sqlite.org/fileformat2.html#walformat: the last bit of the magic number is the byte order of the
    # checksum over the header's first 24 bytes.
    order = {b"\x37\x7f\x06\x82": "<", b"\x37\x7f\x06\x83": ">"}.get(header[:4])
    if order is None or len(header) < 32:
        return f"{wal.name} does not start with a WAL header"
    words = struct.unpack(f"{order}6I", header[:24])
    first = second = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    if (first, second) != struct.unpack(">2I", header[24:]):
        return f"{wal.name} has a damaged header"
    return None


def _connect(path: Path, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=16)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection


def _lock_folder(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        owner = os.open(folder / "owner.lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        message = f"cannot write the journal's folder {folder}: {error.strerror}; IRIS_JOURNAL_DIR is its path"
        raise JournalError(message) from error
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(owner)
        raise JournalError(
            f"the journal's folder {folder} is in use by another process; stop that, or set IRIS_JOURNAL_DIR"
        ) from error
    return owner
