"""`python -m service.recover`: insert into the log what is readable in the journals that were quarantined."""

import os
import re
import sqlite3
import struct
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import psycopg2

from service import database
from service.settings import Settings, SettingsError, from_environ

# A record as the journal stores it: no member of it is an object. One that spans two pages is not found.
RECORD = re.compile(rb'\{"request_id":"[^{}\x00-\x1f]*\}')


def records(file: Path) -> Iterator[bytes]:
    """Yield the records in a quarantined journal, which need not be a whole database any more."""
    content = _with_wal(file)
    try:
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(content)
            for (group,) in connection.execute("SELECT records FROM groups ORDER BY id").fetchall():
                yield from map(bytes, msgspec.json.decode(group, type=list[msgspec.Raw]))
    except (sqlite3.Error, msgspec.DecodeError):
        # Also those that were shipped and removed before. The log has them, so nothing happens to them.
        yield from RECORD.findall(content)


def _with_wal(file: Path) -> bytes:
    """Return the database with the committed pages of its WAL, whatever the checksums of its header say."""
    wal = file.with_name(f"{file.name}-wal")
    content = bytearray(file.read_bytes() if file.exists() else b"")
    frames = wal.read_bytes()[32:] if wal.exists() else b""
    size = int.from_bytes(content[16:18], "big") or 4096
    largest = len(content) + len(frames)
    pages: dict[int, bytes] = {}
    for start in range(0, len(frames) - 24 - size + 1, 24 + size):
        number, committed, salt = struct.unpack(">II8s", frames[start : start + 16])
        if salt != frames[8:16] or not 0 < number * size <= largest:
            break  # the rest is from before, or not a frame
        pages[number] = frames[start + 24 : start + 24 + size]
        for page in list(pages) if committed else ():
            content.extend(bytes(max(0, page * size - len(content))))
            content[(page - 1) * size : page * size] = pages.pop(page)
    content[18:20] = b"\x01\x01"  # not in WAL mode, which a database in memory cannot have
    return bytes(content)


def recover(settings: Settings) -> Iterator[str]:
    """Insert the records of all quarantined journals; yield a line about each. Raises psycopg2.Error."""
    files = settings.journal_dir.glob("journal.sqlite.corrupt-*")
    with closing(database.connect(settings.database_url)) as connection, connection.cursor() as cursor:
        for name in sorted({re.sub("-(wal|shm)$", "", str(file)) for file in files}):
            read = new = refused = 0
            for record in records(Path(name)):
                read += 1
                try:
                    cursor.execute(database.INSERT, [f"[{record.decode()}]"])
                    new += cursor.rowcount
                except (psycopg2.Error, ValueError) as error:
                    if not database.rejects_row(error):
                        raise
                    refused += 1
            yield f"{name}: read {read} predictions; {new} were missing in the log, {refused} cannot be inserted"


def main() -> int:
    """Recover the journals; return 1 if there is none, or PostgreSQL is unavailable."""
    try:
        lines = list(recover(from_environ(os.environ)))
    except (SettingsError, psycopg2.Error) as error:
        print(f"recover: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print("\n".join(lines) or "no quarantined journal in IRIS_JOURNAL_DIR")  # noqa: T201
    return 0 if lines else 1


if __name__ == "__main__":
    sys.exit(main())
