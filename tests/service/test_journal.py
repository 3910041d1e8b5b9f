"""The journal, on real files, and the request ids of its predictions."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from service.batcher import new_request_ids
from service.journal import Group, Journal, JournalError
from tests.support.running import ROOT, SmallDisk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    with opened(folder) as journal:
        yield journal


def opened(folder: Path, max_mib: int = 64) -> closing[Journal]:
    return closing(Journal(folder, max_mib))


def as_killed(folder: Path) -> Path:
    """Return a copy of an open journal's folder, as a kill at this moment would leave it."""
    return shutil.copytree(folder, folder.with_name("killed"))


def fill(journal: Journal, size: int) -> None:
    """Append groups of `size` bytes until the journal is full."""
    while True:
        try:
            journal.append(b"x" * size, 1)
        except sqlite3.OperationalError:
            return


# Append, read, remove.


def test_groups_are_returned_in_order_and_unchanged(journal: Journal) -> None:
    journal.append(b'[{"a":1},{"a":2}]', 2)
    journal.append(b'[{"a":3}]', 1)
    assert journal.oldest(0, 100) == [Group(1, 2, b'[{"a":1},{"a":2}]'), Group(2, 1, b'[{"a":3}]')]
    assert (journal.depth, journal.written, journal.shipped) == (3, 3, 0)


def test_groups_survive_a_kill(journal: Journal, folder: Path) -> None:
    for number in range(10):
        journal.append(b"[%d]" % number, 1)
    journal.remove(3)
    with opened(as_killed(folder)) as again:
        assert again.oldest(0, 100) == journal.oldest(0, 100)
        assert again.depth == journal.depth == 7
        assert not again.quarantined


def test_groups_survive_a_restart(folder: Path) -> None:
    with opened(folder) as journal:
        journal.append(b"[1]", 1)
    assert sorted(file.name for file in folder.iterdir()) == ["journal.sqlite", "owner.lock"]
    with opened(folder) as again:
        assert again.oldest(0, 100) == [Group(1, 1, b"[1]")]


@pytest.mark.parametrize(
    ("rows", "ids"), [(1, [1]), (10, [1]), (11, [1, 2]), (25, [1, 2, 3]), (1000, [1, 2, 3, 4])]
)
def test_as_many_groups_are_returned_as_the_rows_require(journal: Journal, rows: int, ids: list[int]) -> None:
    for _ in range(4):
        journal.append(b"[]", 10)
    assert [group.id for group in journal.oldest(0, rows)] == ids


def test_only_groups_above_an_id_are_returned(journal: Journal) -> None:
    for _ in range(4):
        journal.append(b"[]", 1)
    assert [group.id for group in journal.oldest(2, 100)] == [3, 4]
    assert journal.oldest(4, 100) == []


def test_removed_groups_are_counted_as_shipped(journal: Journal, folder: Path) -> None:
    for _ in range(4):
        journal.append(b"[]", 10)
    journal.remove(3)
    journal.remove(3)
    assert [group.id for group in journal.oldest(0, 100)] == [4]
    assert (journal.depth, journal.written, journal.shipped) == (10, 40, 30)
    with opened(as_killed(folder)) as again:
        assert (again.depth, again.written, again.shipped) == (10, 0, 0)


def test_ids_of_removed_groups_are_not_reused(journal: Journal) -> None:
    for _ in range(3):
        journal.append(b"[]", 1)
    journal.remove(3)
    journal.append(b"[]", 1)
    assert [group.id for group in journal.oldest(3, 100)] == [4]


def test_a_new_process_continues_above_the_ids_of_waiting_groups(journal: Journal, folder: Path) -> None:
    for _ in range(3):
        journal.append(b"[]", 1)
    journal.remove(2)
    with opened(as_killed(folder)) as again:
        again.append(b"[]", 1)
        assert [group.id for group in again.oldest(0, 100)] == [3, 4]


def test_the_age_is_that_of_the_oldest_waiting_group(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert journal.oldest_age() == 0
    now, wall = time.monotonic(), time.time()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "time", lambda: wall)
    journal.append(b"[]", 1)
    now += 60
    wall += 60
    journal.append(b"[]", 1)
    assert journal.oldest_age() == pytest.approx(60, abs=5)
    with opened(as_killed(folder)) as again:
        assert again.oldest_age() == pytest.approx(60, abs=5)
    journal.remove(1)
    assert journal.oldest_age() == pytest.approx(0, abs=1e-3)
    now += 60
    wall -= 3600  # the clock is set back
    assert journal.oldest_age() == pytest.approx(60, abs=1e-3)
    shutil.rmtree(folder.parent / "killed")
    with opened(as_killed(folder)) as again:
        assert again.oldest_age() == pytest.approx(0, abs=1e-3)
        now += 30
        again.append(b"[]", 1)
        assert again.oldest_age() == pytest.approx(30, abs=1e-3)
    wall += 7200
    assert journal.oldest_age() == pytest.approx(90, abs=1e-3)
    journal.remove(2)
    assert journal.oldest_age() == 0


def test_concurrent_append_and_remove_pass_every_group_once(journal: Journal) -> None:
    sent = [b"[%d]" % number for number in range(500)]

    def append() -> None:
        for group in sent:
            journal.append(group, 1)

    writer = threading.Thread(target=append)
    writer.start()
    received: list[bytes] = []
    last = 0
    while writer.is_alive() or journal.depth:
        groups = journal.oldest(last, 50)
        received += [group.records for group in groups]
        last = groups[-1].id if groups else last
        journal.remove(last)
    writer.join()
    assert received == sent
    assert (journal.depth, journal.shipped) == (0, 500)


# Write errors.


def test_a_full_journal_raises_and_stores_nothing_of_the_group(folder: Path) -> None:
    with opened(folder, max_mib=1) as journal:
        fill(journal, 10_000)
        assert journal.error == "database or disk is full"
        kept = journal.oldest(0, 10**6)
        assert journal.depth == journal.written == len(kept) > 50
        assert {group.records for group in kept} == {b"x" * 10_000}
        journal.remove(kept[-1].id)
        journal.append(b"[]", 1)
        assert journal.error is None
        assert [group.id for group in journal.oldest(0, 100)] == [kept[-1].id + 1]


@pytest.mark.parametrize("size", [1_000, 10_000, 100_000])
def test_a_full_journal_is_writable_only_when_the_failed_group_would_fit(folder: Path, size: int) -> None:
    with opened(folder, max_mib=1) as journal:
        fill(journal, size)
        for _ in range(200):
            journal.probe()
            assert journal.error == "database or disk is full"
        assert journal.depth == journal.written
        journal.remove(journal.oldest(0, 10**6)[-1].id)
        journal.probe()
        assert journal.error is None
        assert journal.depth == 0


def test_the_error_for_an_unusable_folder_names_it_and_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=r"file/journal: Not a directory; IRIS_JOURNAL_DIR is its path"):
        opened(tmp_path / "file" / "journal")


def test_a_folder_belongs_to_one_journal_until_it_is_closed(folder: Path) -> None:
    with opened(folder) as journal:
        with pytest.raises(JournalError, match="is in use by another process; stop that, or set IRIS_JOURNAL_DIR"):
            opened(folder)
        journal.append(b"[]", 1)
    with opened(folder) as again:
        assert again.depth == 1


def run(code: str, folder: Path, *prefix: str) -> list[str]:
    """Run Python code with an open `journal` in a new process; return the lines that it prints."""
    opened = "from pathlib import Path; from service.journal import *; journal = Journal(Path(sys.argv[1]), 64)\n"
    done = subprocess.run(
        [*prefix, sys.executable, "-c", f"import sys; {opened}{code}", str(folder)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return done.stdout.splitlines()


# Code after which fsync and fdatasync fail in its process, by a seccomp filter, which needs no privileges.
DISK_DOES_NOT_SYNC = """
import ctypes, errno, os, struct
numbers = {"x86_64": (74, 75), "aarch64": (82, 83)}[os.uname().machine]
steps = [(0x20, 0, 0, 0)]  # load the system call number
steps += [(0x15, 3 - i, 0, number) for i, number in enumerate(numbers, 1)]  # if equal, jump to the last step
steps += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | errno.EIO)]  # allow; fail with EIO
filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = struct.pack("HL", len(steps), ctypes.addressof(filters))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0, ctypes.get_errno()
"""


def test_append_raises_when_fsync_fails(folder: Path) -> None:
    append = 'journal.append(b"[]", 1)\n'  # the first group also creates the WAL, with an fsync of its own
    append_again = """
try:
    journal.append(b"[]", 1)
except sqlite3.OperationalError as error:
    print(error.sqlite_errorname, journal.error, journal.depth)
"""
    lines = run(append + DISK_DOES_NOT_SYNC + append_again, folder)
    assert lines == ["SQLITE_IOERR_FSYNC disk I/O error 1"]


# Code that fills the disk with the journal.
FILL_THE_DISK = """
group = b"[" + b"1," * 10_000 + b"1]"
try:
    while True:
        journal.append(group, 1)
except sqlite3.OperationalError:
    print(journal.error)
*_, last = journal.oldest(0, 10**6)
"""


def test_a_disk_that_the_journal_filled_is_freed_when_all_groups_are_shipped(tmp_path: Path) -> None:
    ship = """
journal.remove(last.id - 1)
print(journal.depth == last.id, journal.shipped)
journal.probe()
print(journal.error)
journal.remove(last.id)
print(journal.depth, journal.shipped == last.id)
journal.append(group, 1)
print(journal.error, journal.oldest(0, 10)[0].id == last.id + 1, journal.quarantined)
"""
    with SmallDisk(tmp_path / "disk", 6000) as disk:
        full = "database or disk is full"
        lines = [full, "True 0", full, "0 True", "None True False"]
        assert run(FILL_THE_DISK + ship, disk.folder / "journal", *disk.prefix) == lines


def test_recreating_the_journal_is_retried_when_another_process_takes_the_freed_space(tmp_path: Path) -> None:
    ship = """
another = Path(sys.argv[1]) / "another"
def unlink(path, missing_ok):
    path.exists() and os.unlink(path)
    try:
        with another.open("ab", buffering=0) as opened:
            while opened.write(bytes(4096)):
                pass
    except OSError:
        pass
Path.unlink = unlink
try:
    journal.remove(last.id)
except sqlite3.OperationalError as error:
    print(error)
journal.probe()
print(journal.error, journal.depth, journal.oldest_age())
os.unlink(another)
journal.probe()
print(journal.error)
journal.append(group, 1)
groups = journal.oldest(last.id, 10)
print(journal.depth, len(groups))
journal.remove(groups[-1].id)
print(journal.depth, len(journal.oldest(0, 10)))
"""
    with SmallDisk(tmp_path / "disk", 6000) as disk:
        lines = run(FILL_THE_DISK + ship, disk.folder / "journal", *disk.prefix)
    full = "database or disk is full"
    assert lines == [full, full, f"{full} 0 0.0", "None", "1 2", "0 0"]


# Damaged files are quarantined.


def overwrite(file: Path) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def halve(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def tear_the_last_page(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1000)


def flip_a_page(file: Path) -> None:
    content = bytearray(file.read_bytes())
    page = len(content) // 4096 // 2 * 4096
    content[page : page + 4096] = (byte ^ 0xFF for byte in content[page : page + 4096])
    file.write_bytes(content)


def flip_a_bit_of_the_header(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [overwrite, halve, tear_the_last_page, flip_a_page])
def test_a_damaged_file_is_quarantined_unchanged_and_a_new_one_created(
    folder: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    with opened(folder) as journal:
        for number in range(100):
            journal.append(b"[%0*d]" % (600, number), 1)
    damage(folder / "journal.sqlite")
    content = (folder / "journal.sqlite").read_bytes()
    with opened(folder) as again:
        assert again.quarantined
        assert (again.depth, again.oldest(0, 10)) == (0, [])
        again.append(b"[]", 1)
    (line,) = caplog.records
    assert line.levelname == "ERROR"
    assert Path(vars(line)["file"]).read_bytes() == content
    with opened(folder) as once_more:
        assert (once_more.quarantined, once_more.depth) == (True, 1)
    for file in folder.glob("*.corrupt-*"):
        file.unlink()
    with opened(folder) as without_the_file:
        assert not without_the_file.quarantined


@pytest.mark.parametrize(
    ("damaged", "damage", "expected"),
    [
        ("journal.sqlite-wal", overwrite, [b"[1]"]),
        ("journal.sqlite-wal", flip_a_bit_of_the_header, [b"[1]"]),
        ("journal.sqlite", empty, []),
        ("journal.sqlite", Path.unlink, []),
    ],
)
def test_a_wal_that_sqlite_would_silently_overwrite_is_quarantined(
    folder: Path,
    damaged: str,
    damage: Callable[[Path], None],
    expected: list[bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with opened(folder) as journal:
        journal.append(b"[1]", 1)
    with opened(folder) as journal:
        journal.append(b"[2]", 1)
        left_behind = as_killed(folder)
    damage(left_behind / damaged)
    content = (left_behind / "journal.sqlite-wal").read_bytes()
    with opened(left_behind) as again:
        assert again.quarantined
        assert [group.records for group in again.oldest(0, 10)] == expected
        again.append(b"[3]", 1)
    (line,) = caplog.records
    assert line.levelname == "ERROR"
    assert Path(vars(line)["file"]).read_bytes() == content


def test_a_torn_end_of_the_wal_is_not_damage(journal: Journal, folder: Path) -> None:
    for number in range(3):
        journal.append(b"[%d]" % number, 1)
    left_behind = as_killed(folder)
    wal = left_behind / "journal.sqlite-wal"
    os.truncate(wal, wal.stat().st_size - 100)
    with opened(left_behind) as again:
        assert not again.quarantined
        assert [group.records for group in again.oldest(0, 10)] == [b"[0]", b"[1]"]


# Request ids.


def test_request_ids_are_unique_uuids_of_version_7() -> None:
    ids = new_request_ids(100_000, time.time())
    assert len(set(ids)) == 100_000
    for text in ids[::100]:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


def test_request_ids_start_with_their_millisecond_and_ascend_with_time() -> None:
    times = [1.7e9, 1.7e9 + 0.001, 1.7e9 + 1, 1.7e9 + 86_400, 4e9]
    ids = [new_request_ids(1, now)[0] for now in times]
    assert [uuid.UUID(text).int >> 80 for text in ids] == [int(now * 1000) for now in times]
    assert all(before < after for before, after in pairwise(ids))
