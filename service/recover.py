"""`python -m service.recover`: insert into the log what is readable in the journals that were quarantined."""

import mmap
import os
import re
import shutil
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
    """Yield the records in a quarantined journal, which need not be a whole database any more.

    This works on a copy on disk: the pod's memory is smaller than a few copies of a full journal.
    """
    copy = file.with_name("journal.sqlite.recovering")
    try:
        _copy_with_wal(file, copy)
        try:
            for _ in _in_groups(copy):  # to the end, before the first record counts as read
                pass
        except (sqlite3.Error, msgspec.DecodeError):
            # Also those that were shipped and removed before. The log has them, so nothing happens to them.
            with copy.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as content:
                yield from (match[0] for match in RECORD.finditer(content))
        else:
            yield from _in_groups(copy)
    finally:
        copy.unlink(missing_ok=True)


def _in_groups(file: Path) -> Iterator[bytes]:
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        for (group,) in connection.execute("SELECT records FROM groups ORDER BY id"):
            yield from map(bytes, msgspec.json.decode(group, type=list[msgspec.Raw]))


def _copy_with_wal(file: Path, copy: Path) -> None:
    """Copy the database with the committed pages of its WAL, whatever the checksums of its header say."""
    wal = file.with_name(f"{file.name}-wal")
    frames = wal.read_bytes()[32:] if wal.exists() else b""
    with copy.open("w+b") as content:
        if file.exists():
            with file.open("rb") as original:
                shutil.copyfileobj(original, content)
        largest = content.tell() + len(frames)
        content.seek(16)
        size = int.from_bytes(content.read(2), "big") or 4096
        pages: dict[int, bytes] = {}
        for start in range(0, len(frames) - 24 - size + 1, 24 + size):
            number, committed, salt = struct.unpack(">II8s", frames[start : start + 16])
            if salt != frames[8:16] or not 0 < number * size <= largest:
                break  # the rest is from before, or not a frame
            pages[number] = frames[start + 24 : start + 24 + size]
            for page in list(pages) if committed else ():
                content.seek((page - 1) * size)
                content.write(pages.pop(page))
        content.seek(18)
        content.write(b"\x01\x01")  # not in WAL mode: there is no WAL beside the copy


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
    """Recover the journals; return 1 if there is none, or PostgreSQL or the disk fails."""
    try:
        lines = list(recover(from_environ(os.environ)))
    except (SettingsError, psycopg2.Error, OSError) as error:
        print(f"recover: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print("\n".join(lines) or "no quarantined journal in IRIS_JOURNAL_DIR")  # noqa: T201
    return 0 if lines else 1


if __name__ == "__main__":
    sys.exit(main())
