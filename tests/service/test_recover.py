"""`python -m service.recover` in a pod, beside the service. test_durability.py runs it on damaged files."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from service.journal import Journal
from tests.support.running import ROOT, SETOSA, environment

READ = """
import re, sys
from pathlib import Path
from service.recover import records

def most() -> int:
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = most()
print(sum(1 for _ in records(Path(sys.argv[1]))), most() - before)
"""


def test_a_journal_is_read_in_a_fraction_of_its_size_in_memory(tmp_path: Path) -> None:
    """A full journal has half the size of the memory of its pod, and the service runs there, too."""
    folder = tmp_path / "journal"
    record = {"request_id": "one", "model_name": "iris-classifier", "features": SETOSA}
    group = json.dumps([record] * 5000, separators=(",", ":")).encode()
    with closing(Journal(folder, 64)) as journal:
        for _ in range(100):
            journal.append(group, 5000)
    quarantined = (folder / "journal.sqlite").rename(folder / "journal.sqlite.corrupt-now")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(quarantined)],
        cwd=ROOT,
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    count, kib = map(int, done.stdout.split())
    assert count == 500_000
    assert kib * 1024 < quarantined.stat().st_size / 3
    assert {file.name for file in folder.iterdir()} == {quarantined.name, "owner.lock"}  # no copy is left
