"""An answered prediction is logged exactly once, whatever fails.

Processes, PostgreSQL, disks and signals are real. KILLS sets how often the service is killed.
"""

import asyncio
import base64
import http.client
import json
import logging
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psycopg2
import pytest
from fastapi import FastAPI

from service.app import Service, create_app
from service.database import STATEMENT_SECONDS
from service.journal import Journal
from service.settings import Settings
from tests.support.running import ROOT, SETOSA, RunningService, SmallDisk, environment, query, wait_until
from tools.postgres import Postgres, temporary

log = logging.getLogger(__name__)

KILLS = int(os.environ.get("KILLS", "8"))
NOWHERE = "postgresql://postgres@/postgres?host=%2Fnowhere"
UNAVAILABLE = re.compile(r"PostgreSQL is unavailable; ([1-9]\d*) predictions wait in the journal")


class Load:
    """Clients that send requests of `rows` rows in a loop, and record the acknowledged predictions.

    A prediction is acknowledged when its response, a 200, has been received completely. With `keyed`, each request
    has an Idempotency-Key and is repeated until it is acknowledged.
    """

    def __init__(self, service: RunningService, clients: int = 4, rows: int = 1, *, keyed: bool = False) -> None:
        self.acknowledged: list[str] = []
        self.statuses: Counter[int] = Counter()
        self.without_retry_after = 0
        self.broken = 0
        """Predictions whose connection broke between request and response. They may or may not be logged."""
        self._service = service
        self._rows = rows
        self._keyed = keyed
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._clients = [threading.Thread(target=self._predict) for _ in range(clients)]

    def wait_for(self, more: int) -> None:
        """Wait until that many more predictions are acknowledged."""
        goal = len(self.acknowledged) + more
        wait_until(lambda: len(self.acknowledged) >= goal, f"{more} more predictions: {self.statuses}")

    def _predict(self) -> None:
        path = "/predict" if self._rows == 1 else "/predict/batch"
        body = json.dumps({"features": SETOSA if self._rows == 1 else [SETOSA] * self._rows})
        headers = {"Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self._service.port, timeout=60)
        while not self._ending.wait(0.002):
            sent = False
            if self._keyed:
                headers.setdefault("Idempotency-Key", str(uuid.uuid4()))
            try:
                if connection.sock is None:
                    connection.connect()
                sent = True
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                answer = json.loads(response.read())
            except (OSError, http.client.HTTPException):
                connection.close()
                with self._lock:
                    self.broken += self._rows if sent else 0
                self._ending.wait(0.05)
                continue
            with self._lock:
                self.statuses[response.status] += 1
                if response.status == 503 and "Retry-After" not in response.headers:
                    self.without_retry_after += 1
                if response.status == 200:
                    answers = answer["predictions"] if self._rows > 1 else [answer]
                    self.acknowledged += [one["request_id"] for one in answers]
                    headers.pop("Idempotency-Key", None)
        connection.close()

    def __enter__(self) -> "Load":
        for client in self._clients:
            client.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        for client in self._clients:
            client.join()


def unacknowledged(database_url: str, *loads: Load) -> int:
    """Assert that each acknowledged prediction is logged once; return the number of other rows in the log."""
    acknowledged = [request_id for load in loads for request_id in load.acknowledged]
    logged = [row[0] for row in query(database_url, "SELECT request_id FROM predictions")]
    assert acknowledged
    assert len(acknowledged) == len(set(acknowledged))
    assert len(logged) == len(set(logged))
    missing = set(acknowledged) - set(logged)
    assert not missing, f"{len(missing)} of {len(acknowledged)} acknowledged predictions are not in the log"
    assert query(database_url, "SELECT * FROM predictions_rejected") == []
    return len(logged) - len(acknowledged)


def assert_logged_or_rejected(server: Postgres, load: Load, later: Load) -> None:
    """Assert that each request got 200, or 503 with Retry-After, and that exactly the former are logged."""
    assert unacknowledged(server.url, load, later) == load.broken == load.without_retry_after == 0
    assert set(load.statuses) == {200, 503}


def waiting(service: RunningService) -> int:
    """Return the number of predictions in the journal, from the 503 of /logs without PostgreSQL."""
    response = service.client.get("/logs", timeout=STATEMENT_SECONDS - 1)  # shorter than a statement's timeout
    assert response.status_code == 503
    found = UNAVAILABLE.fullmatch(response.json()["detail"])
    assert found, response.text
    return int(found[1])


def status(service: RunningService, path: str) -> int:
    return service.client.get(path).status_code


def log_lines(service: RunningService, level: str) -> list[dict[str, Any]]:
    """Return the service's log lines of that level."""
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    return [line for line in lines if line["level"] == level]


def is_logged(service: RunningService, text: str) -> Callable[[], bool]:
    return lambda: text in service.log.read_text()


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A server that tests may stop and hang. It runs before and after each test."""
    with temporary() as server:
        yield server


@pytest.fixture
def server(own_postgres: Postgres) -> Iterator[Postgres]:
    """The server, with an empty prediction log."""
    query(own_postgres.url, "DROP TABLE IF EXISTS predictions, predictions_rejected")
    yield own_postgres
    own_postgres.start()


# The service is killed.


def test_kills_under_load_neither_lose_nor_duplicate_acknowledged_predictions(
    model: Path, database: str, tmp_path: Path
) -> None:
    with RunningService(model, database, tmp_path / "journal") as service:
        loads = Load(service), Load(service, clients=2, rows=20), Load(service, clients=2, keyed=True)
        with loads[0], loads[1], loads[2]:
            for number in range(KILLS):
                loads[0].wait_for(1 + 37 * number % 200)  # at different moments: before, during and after shipping
                service.kill()
                service.start()
                assert service.metric("iris_journal_set_aside") == 0
            for load in loads:
                load.wait_for(1)
        service.wait_shipped()
    extra = unacknowledged(database, *loads)
    acknowledged, broken = sum(len(load.acknowledged) for load in loads), sum(load.broken for load in loads)
    log.info(
        "%d kills, %d acknowledged; also logged: %d of %d whose connection broke",
        KILLS,
        acknowledged,
        extra,
        broken,
    )
    assert extra <= broken
    assert set(loads[0].statuses) | set(loads[1].statuses) == {200}
    assert set(loads[2].statuses) <= {200, 503}  # PostgreSQL may be too slow for requests with a key


def test_a_prediction_is_not_answered_before_its_record_is_on_disk(service: RunningService) -> None:
    with closing(sqlite3.connect(service.journal / "journal.sqlite", isolation_level=None)) as another:
        another.execute("BEGIN IMMEDIATE")
        with pytest.raises(httpx.ReadTimeout):
            service.client.post("/predict", json={"features": SETOSA}, timeout=1)
    assert service.predict().status_code == 200
    service.wait_shipped()
    assert service.client.get("/logs").json()["count"] == 2


def test_the_journal_of_a_killed_process_is_shipped_unchanged_by_a_newer_version(
    model: Path, database: str, tmp_path: Path
) -> None:
    with RunningService(model, NOWHERE, tmp_path / "journal") as service:
        with Load(service) as load:
            load.wait_for(100)
        service.kill()
    newer = shutil.copytree(model, tmp_path / "newer")
    metadata = json.loads((newer / "model.json").read_text())
    (newer / "model.json").write_text(json.dumps({**metadata, "version": "newer"}))
    with RunningService(newer, database, tmp_path / "journal") as service:
        answer = service.predict().json()
        service.wait_shipped()
    load.acknowledged.append(answer["request_id"])
    assert unacknowledged(database, load) == 0
    versions = query(database, "SELECT model_version, count(*) FROM predictions GROUP BY 1 ORDER BY 2")
    assert versions == [("newer", 1), (metadata["version"], len(load.acknowledged) - 1)]


def test_a_second_process_cannot_use_the_same_journal(service: RunningService, model: Path) -> None:
    second = RunningService(model, NOWHERE, service.journal)
    second.log = service.journal.parent / "second.log"
    with (
        pytest.raises(AssertionError, match="is in use by another process; stop that, or set IRIS_JOURNAL_DIR"),
        second,
    ):
        pass
    second.client.close()
    assert second.process
    assert second.process.returncode == 1
    assert service.predict().status_code == 200


# PostgreSQL is unavailable.


def stop(server: Postgres) -> None:
    server.stop()


def postmaster(server: Postgres) -> int:
    """Return the id of the server's main process."""
    return int((server.data / "postmaster.pid").read_text().splitlines()[0])


def stop_immediately(server: Postgres) -> None:
    os.kill(postmaster(server), signal.SIGQUIT)
    wait_until(lambda: not server.running(), "PostgreSQL to end")


def kill(server: Postgres) -> None:
    signal_all(server, signal.SIGKILL)
    wait_until(lambda: not server.running(), "PostgreSQL to end")


def hang(server: Postgres) -> None:
    signal_all(server, signal.SIGSTOP)


def wake(server: Postgres) -> None:
    signal_all(server, signal.SIGCONT)


def start(server: Postgres) -> None:
    server.start()


def signal_all(server: Postgres, number: int) -> None:
    """Send a signal to the server's main process and its child processes."""
    first = postmaster(server)
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if first in (int(folder.name), int(parent)):
                os.kill(int(folder.name), number)


@pytest.mark.parametrize(
    ("fail", "recover", "reason"),
    [
        pytest.param(stop, start, "", id="stopped"),
        pytest.param(stop_immediately, start, "", id="stopped-immediately"),
        pytest.param(kill, start, "", id="killed"),
        pytest.param(hang, wake, "did not answer within", id="hung"),
    ],
)
def test_predictions_continue_without_postgresql_and_are_logged_later(
    model: Path,
    server: Postgres,
    tmp_path: Path,
    fail: Callable[[Postgres], None],
    recover: Callable[[Postgres], None],
    reason: str,
) -> None:
    with RunningService(model, server.url, tmp_path / "journal") as service:
        with Load(service) as single, Load(service, clients=1, rows=20) as several:
            single.wait_for(100)
            wait_until(lambda: service.metric("iris_journal_shipped_total") > 0, "shipping")
            fail(server)
            try:
                for _ in range(3):
                    single.wait_for(50)
                    several.wait_for(20)
                    assert status(service, "/healthz") == status(service, "/readyz") == 200
                    assert waiting(service) > 0
                wait_until(is_logged(service, f"cannot ship to PostgreSQL{reason and '; '}"), "a warning")
                wait_until(is_logged(service, reason), f"the shipper to log: {reason}")
                single.wait_for(50)
            finally:
                recover(server)
            single.wait_for(50)
        service.wait_shipped()
        assert status(service, "/logs") == 200
    assert unacknowledged(server.url, single, several) == single.broken == several.broken == 0
    assert set(single.statuses) | set(several.statuses) == {200}


def test_a_service_started_without_postgresql_predicts_and_ships_later(
    model: Path, server: Postgres, tmp_path: Path
) -> None:
    server.stop()
    with RunningService(model, server.url, tmp_path / "journal") as service:
        with Load(service) as load:
            load.wait_for(100)
            assert status(service, "/healthz") == status(service, "/readyz") == 200
        assert waiting(service) == service.metric("iris_journal_depth") == len(load.acknowledged)
        assert service.metric("iris_journal_oldest_age_seconds") > 0
        server.start()
        service.wait_shipped()
        assert service.metric("iris_journal_oldest_age_seconds") == 0
    assert unacknowledged(server.url, load) == 0


def test_a_dropped_table_is_recreated(service: RunningService, database: str) -> None:
    service.predict()
    service.wait_shipped()
    query(database, "DROP TABLE predictions, predictions_rejected")
    with Load(service) as load:
        load.wait_for(100)
    service.wait_shipped()
    assert unacknowledged(database, load) == 0


# PostgreSQL rejects rows.


def test_rejected_rows_are_stored_with_the_reason_and_the_others_are_logged(
    service: RunningService, database: str
) -> None:
    service.predict()
    service.wait_shipped()
    query(database, "ALTER TABLE predictions ADD CONSTRAINT no_zero CHECK (features[4] <> 0.0)")
    rows = [[5.1, 3.5, 1.4, 0.0 if number % 10 == 0 else 0.2] for number in range(500)]
    response = service.client.post("/predict/batch", json={"features": rows})
    ids = [answer["request_id"] for answer in response.json()["predictions"]]
    service.wait_shipped()
    later = service.predict().json()["request_id"]
    service.wait_shipped()
    rejected = query(database, "SELECT request_id, record, reason FROM predictions_rejected ORDER BY id")
    assert [row[0] for row in rejected] == ids[::10]
    for request_id, record, reason in rejected:
        assert (record["request_id"], record["features"]) == (request_id, rows[0])
        assert 'violates check constraint "no_zero"' in reason
    logged = {row[0] for row in query(database, "SELECT request_id FROM predictions")}
    assert {*ids, later} - logged == set(ids[::10])
    assert service.metric("iris_journal_rejected_total") == 50
    assert service.metric("iris_journal_shipped_total") == 502


@pytest.fixture
def app_url(database: str) -> Iterator[str]:
    """URL of the database for a user without permissions in it."""
    query(database, "CREATE ROLE app LOGIN")
    try:
        yield database.replace("//postgres@", "//app@")
    finally:
        query(database, "DROP OWNED BY app; DROP ROLE app")


def test_without_permissions_predictions_wait_until_they_are_granted(
    model: Path, database: str, app_url: str, tmp_path: Path
) -> None:
    with RunningService(model, app_url, tmp_path / "journal") as service:
        with Load(service) as load:
            load.wait_for(50)
            wait_until(is_logged(service, "permission denied for schema public"), "a warning: no table")
            query(database, "GRANT CREATE ON SCHEMA public TO app")
            wait_until(lambda: service.metric("iris_journal_shipped_total") > 0, "shipping")
            query(database, "ALTER TABLE predictions OWNER TO postgres")
            load.wait_for(50)
            wait_until(is_logged(service, "permission denied for table predictions"), "a warning: no INSERT")
            load.wait_for(50)
        assert service.metric("iris_journal_depth") >= 50
        query(database, "GRANT SELECT, INSERT ON predictions TO app")
        query(database, "GRANT USAGE ON SEQUENCE predictions_id_seq TO app")
        service.wait_shipped()
    assert unacknowledged(database, load) == 0


# The disk hangs.


@pytest.fixture
def in_this_process(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The service in this process, without PostgreSQL. It is not ready after its disk hangs for 0.1 s."""
    monkeypatch.setattr("service.app.STUCK_SECONDS", 0.1)
    yield Service(Settings(database_url=NOWHERE, model_dir=model, journal_dir=tmp_path, drain_seconds=0))
    psycopg2.extensions.set_wait_callback(None)


def test_a_hung_disk_ends_readiness_and_delays_no_other_response(in_this_process: Service, tmp_path: Path) -> None:
    async def watch() -> None:
        transport = httpx.ASGITransport(create_app(in_this_process))
        async with in_this_process.lifespan(FastAPI()), httpx.AsyncClient(transport=transport) as client:

            def predict() -> Awaitable[httpx.Response]:
                return client.post("http://x/predict", json={"features": SETOSA})

            async def readiness() -> str:
                for path in ("/metrics", "/healthz", "/v2/health/ready", "/readyz"):
                    started = time.monotonic()
                    answer = await client.get(f"http://x{path}")
                    assert time.monotonic() - started < 1, path
                return answer.text

            await predict()  # it waits in the journal, so /metrics reports its age
            with closing(sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)) as another:
                another.execute("BEGIN IMMEDIATE")  # SQLite waits for this lock like for a disk, for 5 s
                waiting = asyncio.ensure_future(predict())
                await asyncio.sleep(0.5)
                assert "the journal has not responded for " in await readiness()
                assert (await waiting).status_code == 503
                assert "the journal cannot be written: database is locked" in await readiness()
            while '"ok"' not in await readiness():
                await asyncio.sleep(0.1)

    asyncio.run(asyncio.wait_for(watch(), 60))


# The disk is full, or the journal is.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk", 8 * 1024) as disk:
        yield disk


def fill_until_rejected(service: RunningService, load: Load) -> None:
    """Predict until the journal is full; assert that readiness, metrics and predictions report this."""
    wait_until(lambda: load.statuses[503] > 0, "a 503 response")
    wait_until(lambda: all(status(service, "/readyz") == 503 for _ in range(5)), "readiness to end")
    detail = service.client.get("/readyz").json()["detail"]
    assert detail == "the journal cannot be written: database or disk is full"
    assert status(service, "/healthz") == 200
    # A group that is smaller than those before it may still fit.
    wait_until(lambda: service.metric("iris_journal_writable") == 0, "the metric to report it")
    answer = service.client.post("/predict/batch", json={"features": [SETOSA] * 1000})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def assert_recovers(service: RunningService) -> Load:
    """Assert that the service gets ready by itself and predicts; return the load that it served."""
    wait_until(lambda: status(service, "/readyz") == 200, "readiness to return")
    with Load(service) as load:
        load.wait_for(200)
    assert set(load.statuses) == {200}
    return load


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed"])
def test_a_disk_that_the_journal_filled_is_freed_when_postgresql_is_back(
    model: Path, server: Postgres, disk: SmallDisk, killed: bool
) -> None:
    server.stop()
    with RunningService(model, server.url, disk.folder / "journal", prefix=disk.prefix) as service:
        with Load(service, rows=100) as load:
            fill_until_rejected(service, load)
        if killed:
            service.kill()
            service.start()
        assert waiting(service) == len(load.acknowledged)
        server.start()
        service.wait_shipped()
        later = assert_recovers(service)
        service.wait_shipped()
    assert_logged_or_rejected(server, load, later)


def test_predictions_resume_without_postgresql_when_a_full_disk_is_freed(
    model: Path, server: Postgres, disk: SmallDisk
) -> None:
    server.stop()
    with RunningService(model, server.url, disk.folder / "journal", prefix=disk.prefix) as service:
        with Load(service, rows=100) as load:
            load.wait_for(1000)
            disk.fill()
            fill_until_rejected(service, load)
        disk.free()
        later = assert_recovers(service)
        server.start()
        service.wait_shipped()
    assert_logged_or_rejected(server, load, later)


def test_a_full_disk_loses_nothing_while_postgresql_is_available(
    model: Path, server: Postgres, disk: SmallDisk
) -> None:
    with RunningService(model, server.url, disk.folder / "journal", prefix=disk.prefix) as service:
        with Load(service, rows=100) as load:
            load.wait_for(1000)
            disk.fill()
            wait_until(lambda: load.statuses[503] > 10, "503 responses")
            load.wait_for(1000)  # shipping frees some space again and again
            assert status(service, "/healthz") == 200
            disk.free()
        later = assert_recovers(service)
        service.wait_shipped()
    assert_logged_or_rejected(server, load, later)


def test_a_service_fails_to_start_on_a_full_disk_and_starts_once_it_is_freed(
    model: Path, server: Postgres, disk: SmallDisk
) -> None:
    disk.fill()
    service = RunningService(model, server.url, disk.folder / "journal", prefix=disk.prefix)
    with pytest.raises(AssertionError, match="cannot write the journal"), service:
        pass
    disk.free()
    with service:
        assert service.metric("iris_journal_set_aside") == 0
        later = assert_recovers(service)
        service.wait_shipped()
    assert unacknowledged(server.url, later) == 0


def test_a_full_journal_gets_503_and_is_shipped_when_postgresql_is_back(
    model: Path, server: Postgres, tmp_path: Path
) -> None:
    server.stop()
    with RunningService(model, server.url, tmp_path / "journal", journal_max_mib="1") as service:
        with Load(service, rows=100) as load:
            fill_until_rejected(service, load)
        assert 2000 < waiting(service) == len(load.acknowledged) < 8000
        server.start()
        service.wait_shipped()
        later = assert_recovers(service)
        service.wait_shipped()
    assert_logged_or_rejected(server, load, later)


# The journal is damaged.


def record(number: int) -> dict[str, Any]:
    """Return a prediction as the journal stores it."""
    return {
        "request_id": f"journal-{number}",
        "model_name": "iris-classifier",
        "model_version": "1",
        "features": SETOSA,
        "prediction": 0,
        "probability": 0.9766,
        "latency_ms": 0.21,
        "time": 1.7e9 + number,
    }


def test_a_corrupt_journal_is_quarantined_and_the_service_starts(
    model: Path, database: str, tmp_path: Path
) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    garbage = os.urandom(100_000)
    (folder / "journal.sqlite").write_bytes(garbage)
    with RunningService(model, database, folder) as service:
        (line,) = log_lines(service, "ERROR")
        assert line["message"].startswith("the journal is corrupt and was quarantined")
        assert Path(line["file"]).parent == folder
        assert Path(line["file"]).read_bytes() == garbage
        assert service.metric("iris_journal_set_aside") == 1
        with Load(service) as load:
            load.wait_for(100)
        assert service.stop() == 0
        assert unacknowledged(database, load) == 0
        service.start()
        assert service.metric("iris_journal_set_aside") == 1  # as long as the file is there


def test_a_corrupt_wal_is_quarantined_and_the_rest_of_the_journal_is_shipped(
    model: Path, database: str, tmp_path: Path
) -> None:
    folder = tmp_path / "journal"
    journal = Journal(folder, 256)
    journal.append(json.dumps([record(1)]).encode(), 1)
    journal.close()
    garbage = os.urandom(100_000)
    (folder / "journal.sqlite-wal").write_bytes(garbage)
    with RunningService(model, database, folder) as service:
        (line,) = log_lines(service, "ERROR")
        assert line["reason"] == "journal.sqlite-wal does not start with a WAL header"
        assert Path(line["file"]).read_bytes() == garbage
        assert service.metric("iris_journal_set_aside") == 1
        service.wait_shipped()
    assert query(database, "SELECT request_id FROM predictions") == [("journal-1",)]


def flip_a_byte(position: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        wal = folder / "journal.sqlite-wal"
        content = bytearray(wal.read_bytes())
        content[position] ^= 0x10
        wal.write_bytes(content)

    return damage


def overwrite_a_page(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "journal.sqlite")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (folder / "journal.sqlite").open("r+b") as file:
        file.seek(20 * 4096)
        file.write(os.urandom(4096))


@pytest.mark.parametrize(
    ("damage", "recovered"),
    [
        pytest.param(flip_a_byte(3), 904, id="magic number of the WAL"),
        pytest.param(flip_a_byte(13), 904, id="sequence number of the WAL"),
        pytest.param(flip_a_byte(17), 904, id="salt of the WAL"),
        pytest.param(flip_a_byte(30), 904, id="checksum of the WAL"),
        pytest.param(overwrite_a_page, 800, id="a page of the database"),
    ],
)
def test_a_quarantined_journal_is_recovered_by_the_command_of_the_runbook(
    database: str, tmp_path: Path, damage: Callable[[Path], None], recovered: int
) -> None:
    folder, copy = tmp_path / "journal", tmp_path / "copy"
    journal = Journal(folder, 256)
    for number in range(4):
        journal.append(json.dumps([record(number)], separators=(",", ":")).encode(), 1)
    big = [record(number) for number in range(100, 1000)]  # over many pages
    journal.append(json.dumps(big, separators=(",", ":")).encode(), 900)
    shutil.copytree(folder, copy)  # as a kill leaves it
    journal.close()
    damage(copy)
    with closing(Journal(copy, 256)) as again:
        assert again.quarantined
        again.append(b"[]", 1)
    command = [sys.executable, "-m", "service.recover"]
    assert "-- python -m service.recover`" in (ROOT / "monitoring/RUNBOOK.md").read_text()
    variables = environment(DATABASE_URL=database, IRIS_JOURNAL_DIR=str(copy))
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=variables, check=True, capture_output=True, text=True)
        assert "read " in done.stdout
    ((rows,),) = query(database, "SELECT count(*) FROM predictions")
    assert rows >= recovered
    assert query(database, "SELECT * FROM predictions_rejected") == []


def test_a_corrupt_record_does_not_block_others(model: Path, database: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", 256)
    groups = [
        json.dumps([record(1), record(2)]).encode(),
        json.dumps([record(3)]).encode().replace(b"iris-c", b"iris\xff!"),
        json.dumps([record(4)]).encode().replace(b"request_id", b"requast_id"),
        json.dumps([record(5)]).encode().replace(b"iris-", b"i\\u0000"),
        json.dumps([record(6)]).encode().replace(b"}", b"?"),
        json.dumps([record(9)]).encode().replace(b"iris-", b"iris\0"),
        json.dumps([record(7), record(8)]).encode(),
    ]
    for group in groups:
        journal.append(group, 2)
    journal.close()
    with RunningService(model, database, tmp_path / "journal") as service:
        service.wait_shipped()
        service.predict()
        service.wait_shipped()
    logged = query(database, "SELECT request_id FROM predictions WHERE request_id LIKE 'journal-%' ORDER BY id")
    assert [row[0] for row in logged] == [f"journal-{number}" for number in (1, 2, 7, 8)]
    kept = query(database, "SELECT record ->> 'bytes' FROM predictions_rejected ORDER BY id")
    assert (
        [base64.b64decode(row[0]) for row in kept]
        == [
            *(group[1:-1] for group in groups[1:4]),  # one record of the group
            *groups[4:6],  # not JSON
        ]
    )


# The service is stopped.


def in_journal(folder: Path) -> int:
    """Return the number of predictions in the journal of a stopped process."""
    connection = sqlite3.connect(folder / "journal.sqlite")
    try:
        (count,) = connection.execute("SELECT coalesce(sum(size), 0) FROM groups").fetchone()
        return int(count)
    finally:
        connection.close()


def test_a_service_stopped_under_load_ships_all_answered_predictions(
    model: Path, database: str, tmp_path: Path
) -> None:
    with RunningService(model, database, tmp_path / "journal", drain_seconds="60") as service:
        assert service.process
        with Load(service) as single, Load(service, clients=2, rows=20) as several:
            single.wait_for(100)
            wait_until(lambda: service.metric("iris_journal_shipped_total") > 0, "shipping")
            with closing(psycopg2.connect(database)) as another, another.cursor() as cursor:
                cursor.execute("LOCK TABLE predictions")  # nothing is shipped until the connection is closed
                single.wait_for(50)
                several.wait_for(50)
                service.process.send_signal(signal.SIGTERM)
                with pytest.raises(subprocess.TimeoutExpired):
                    service.process.wait(3)
                assert not listens(service.port)
            assert service.process.wait(60) == 0
            assert unacknowledged(database, single, several) == 0
    assert in_journal(service.journal) == 0
    assert set(single.statuses) | set(several.statuses) == {200}


def test_a_partly_received_request_is_answered_before_the_service_ends(
    service: RunningService, database: str
) -> None:
    body = json.dumps({"features": SETOSA}).encode()
    head = "POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as client:
        client.sendall(request + request[:-5])
        assert service.process
        first = http.client.HTTPResponse(client)
        first.begin()
        answers = [json.loads(first.read())]
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not listens(service.port), "the service to stop listening")
        client.sendall(request[-5:])
        second = http.client.HTTPResponse(client)
        second.begin()
        assert (second.status, second.headers["connection"]) == (200, "close")
        answers.append(json.loads(second.read()))
    assert service.process.wait(60) == 0
    logged = query(database, "SELECT request_id FROM predictions ORDER BY id")
    assert logged == [(answer["request_id"],) for answer in answers]


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("fail", [stop, hang])
def test_a_service_stopped_without_postgresql_ends_in_time_and_keeps_its_journal(
    model: Path, server: Postgres, tmp_path: Path, fail: Callable[[Postgres], None]
) -> None:
    with RunningService(model, server.url, tmp_path / "journal", drain_seconds="1") as service:
        service.predict()
        service.wait_shipped()
        fail(server)
        try:
            with Load(service) as load:
                load.wait_for(100)
            assert waiting(service) > 0
            started = time.monotonic()
            assert service.stop() == 1
            line = log_lines(service, "ERROR")[-1]
            assert line["message"] == "stopped before PostgreSQL has the whole journal"
            assert line["waiting"] == len(load.acknowledged)
            # A second or two on an idle machine. It must not wait for the timeout of a statement, which is 10 s.
            assert time.monotonic() - started < 7
            assert in_journal(service.journal) == len(load.acknowledged)
        finally:
            wake(server) if fail is hang else start(server)
        service.start()
        service.wait_shipped()
    assert unacknowledged(server.url, load) == 1  # the first prediction, outside the load
