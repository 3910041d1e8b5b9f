"""The shipper's thread, between a real journal and a real PostgreSQL behind a faulty connection."""

import json
import logging
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg2.extensions
import pytest

from service import database as db
from service import shipper as module
from service.journal import Group, Journal
from service.shipper import Shipper
from tests.support.running import SETOSA, query, wait_until


class Proxy:
    """A proxy between the shipper and PostgreSQL that handles each new connection by calling `behaviour`."""

    def __init__(self, database_url: str) -> None:
        parts = psycopg2.extensions.parse_dsn(database_url)
        self._server = f"{parts['host']}/.s.PGSQL.5432"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"postgresql://postgres@127.0.0.1:{self._listener.getsockname()[1]}/{parts['dbname']}"
        self.behaviour: Callable[[socket.socket], None] = self.forward
        self.connections = 0
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._listen)]

    def forward(self, client: socket.socket) -> None:
        """Forward to PostgreSQL."""
        self._forward(client, lambda _: True)

    def lose_the_response(self, client: socket.socket) -> None:
        """Forward to PostgreSQL, but break the connection between the commit of an INSERT and its response."""
        self._forward(client, lambda answer: b"INSERT 0 " not in answer)

    def _forward(self, client: socket.socket, passes: Callable[[bytes], bool]) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._server)
        self._open.append(server)
        self._start(self._copy, client, server, lambda _: True)
        self._copy(server, client, passes)

    def _copy(self, source: socket.socket, target: socket.socket, passes: Callable[[bytes], bool]) -> None:
        with suppress(OSError):
            while (data := source.recv(1 << 20)) and passes(data):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break all open connections."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                self._open.append(client)
                self._start(self.behaviour, client)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> "Proxy":
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._open):
            end.close()


def talk_nonsense(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100)
    client.shutdown(socket.SHUT_WR)


def hang_up(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_RDWR)


def say_nothing(client: socket.socket) -> None:
    pass


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with Proxy(database) as proxy:
        yield proxy


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(tmp_path / "journal", 64)) as journal:
        yield journal


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make timeouts and retry pauses short."""
    monkeypatch.setattr(db, "STATEMENT_SECONDS", 2)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.4)
    db.bound_waits()
    yield
    psycopg2.extensions.set_wait_callback(None)


@contextmanager
def shipping(journal: Journal, url: str) -> Iterator[Shipper]:
    shipper = Shipper(journal, url)
    shipper.start()
    try:
        yield shipper
    finally:
        shipper.drain(60)


def put(journal: Journal, *request_ids: str, **changes: Any) -> None:
    """Append a group of predictions with these ids to the journal."""
    records = [
        {
            "request_id": request_id,
            "model_name": "iris-classifier",
            "model_version": "3",
            "features": SETOSA,
            "prediction": 0,
            "probability": 0.9766,
            "latency_ms": 0.21,
            "time": 1.7e9,
            **changes,
        }
        for request_id in request_ids
    ]
    journal.append(json.dumps(records).encode(), len(records))


def logged(database_url: str) -> list[str]:
    """Return the request ids in the log, in order. Assert that no row was rejected."""
    assert query(database_url, "SELECT * FROM predictions_rejected") == []
    return [row[0] for row in query(database_url, "SELECT request_id FROM predictions ORDER BY id")]


def is_empty(journal: Journal) -> Callable[[], bool]:
    return lambda: journal.depth == 0


def test_existing_and_new_groups_are_shipped_in_order(journal: Journal, database: str) -> None:
    put(journal, "a", "b")
    put(journal, "c")
    with shipping(journal, database) as shipper:
        wait_until(is_empty(journal), "the first groups to be shipped")
        assert shipper.error is None
        put(journal, "d")
        shipper.wake()
        wait_until(is_empty(journal), "the next group to be shipped")
    assert logged(database) == ["a", "b", "c", "d"]
    assert (journal.shipped, shipper.rejected) == (4, 0)


def test_more_rows_than_fit_a_statement_are_shipped(
    journal: Journal, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS_A_STATEMENT", 10)
    ids = [str(number) for number in range(95)]
    for start in range(0, 95, 7):
        put(journal, *ids[start : start + 7])
    with shipping(journal, database):
        wait_until(is_empty(journal), "the groups to be shipped")
    assert logged(database) == ids


def test_an_insert_whose_response_is_lost_is_not_logged_twice(
    journal: Journal, database: str, proxy: Proxy
) -> None:
    proxy.behaviour = proxy.lose_the_response
    put(journal, "a", "b")
    with shipping(journal, proxy.url) as shipper:
        wait_until(lambda: proxy.connections >= 3, "the shipper to try again")
        assert journal.depth == 2
        proxy.behaviour = proxy.forward
        wait_until(is_empty(journal), "the group to be shipped")
    assert logged(database) == ["a", "b"]
    assert (journal.shipped, shipper.rejected) == (2, 0)


@pytest.mark.parametrize("behaviour", [talk_nonsense, hang_up, say_nothing])
def test_the_connection_is_retried_until_postgresql_responds(
    journal: Journal,
    database: str,
    proxy: Proxy,
    behaviour: Callable[[socket.socket], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    proxy.behaviour = behaviour
    put(journal, "a")
    with shipping(journal, proxy.url) as shipper:
        wait_until(lambda: proxy.connections >= 2, "the shipper to try again")
        assert shipper.error
        assert journal.depth == 1
        proxy.behaviour = proxy.forward
        wait_until(is_empty(journal), "the group to be shipped")
        assert shipper.error is None
    assert logged(database) == ["a"]
    unavailable, *more, recovered = [line.message for line in caplog.records]
    assert unavailable == "cannot ship to PostgreSQL; predictions wait in the journal"
    assert len(more) <= 1  # a reason is logged once, not at every attempt
    assert recovered == "shipping to PostgreSQL"


def test_a_broken_connection_is_replaced(journal: Journal, database: str, proxy: Proxy) -> None:
    ids = [str(number) for number in range(5)]
    with shipping(journal, proxy.url) as shipper:
        for request_id in ids:
            put(journal, request_id)
            shipper.wake()
            wait_until(is_empty(journal), "the group to be shipped")
            proxy.cut()
    assert logged(database) == ids
    assert proxy.connections >= 5


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), MemoryError(), KeyError("a bug")])
@pytest.mark.parametrize("method", ["oldest", "remove"])
def test_the_thread_survives_any_exception(
    journal: Journal, database: str, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> None:
    works = getattr(journal, method)
    failures = 2

    def fail(*arguments: int) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise error
        return works(*arguments)

    monkeypatch.setattr(journal, method, fail)
    put(journal, "a", "b")
    with shipping(journal, database):
        wait_until(is_empty(journal), "the group to be shipped")
    assert failures == 0
    assert logged(database) == ["a", "b"]


def test_groups_that_cannot_be_removed_are_removed_later(
    journal: Journal, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True
    delete = journal._delete
    monkeypatch.setattr(journal, "_delete", lambda up_to: not full and delete(up_to))
    put(journal, "a")
    oldest = journal.oldest

    def oldest_while_another_comes(after: int, rows: int) -> list[Group]:
        groups = oldest(after, rows)
        if groups and full:
            put(journal, f"after {groups[-1].id}")
        return groups

    monkeypatch.setattr(journal, "oldest", oldest_while_another_comes)
    with shipping(journal, database):
        wait_until(lambda: journal.written > 3, "shipping to go on")
        assert journal.depth > 3
        full = False
        wait_until(is_empty(journal), "the journal to be empty")
    assert len(logged(database)) == journal.shipped == journal.written


BREAKS_ONCE = """
CREATE SEQUENCE attempts;
CREATE FUNCTION break_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.request_id = 'rejected' THEN
        RAISE EXCEPTION 'not this one';
    ELSIF NEW.request_id = 'breaks' AND nextval('attempts') = 1 THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER break_once BEFORE INSERT ON predictions FOR EACH ROW EXECUTE FUNCTION break_once();
"""


def test_a_rejected_row_is_stored_and_counted_once_even_if_the_connection_breaks(
    journal: Journal, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    db.connect(database).close()
    query(database, BREAKS_ONCE)
    put(journal, "before", "rejected", "breaks")
    put(journal, "after")
    with shipping(journal, database) as shipper:
        wait_until(is_empty(journal), "the groups to be shipped")
    assert query(database, "SELECT last_value FROM attempts") == [(2,)]
    assert query(database, "SELECT request_id FROM predictions ORDER BY id") == [
        ("before",),
        ("breaks",),
        ("after",),
    ]
    ((request_id, reason),) = query(database, "SELECT request_id, reason FROM predictions_rejected")
    assert (request_id, reason.splitlines()[0]) == ("rejected", "not this one")
    assert shipper.rejected == 1
    assert [line.levelname for line in caplog.records].count("ERROR") == 1


def test_other_content_under_an_id_of_the_log_is_rejected_and_the_same_content_is_not(
    journal: Journal, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(journal, "first", "second")
    with shipping(journal, database):
        wait_until(is_empty(journal), "the groups to be shipped")
    put(journal, "first", "new", "second")  # as after a crash
    put(journal, "first", features=[6.5, 3.0, 5.8, 2.2])
    put(journal, "second", latency_ms=0.3)
    put(journal, "second", time=1.8e9)
    with shipping(journal, database) as shipper:
        wait_until(is_empty(journal), "the groups to be shipped")
    assert query(database, "SELECT request_id FROM predictions ORDER BY id") == [("first",), ("second",), ("new",)]
    rejected = query(database, "SELECT record, reason FROM predictions_rejected ORDER BY id")
    assert [(record["request_id"], record["latency_ms"], record["time"]) for record, _ in rejected] == [
        ("first", 0.21, 1.7e9),
        ("second", 0.3, 1.7e9),
        ("second", 0.21, 1.8e9),
    ]
    assert {reason for _, reason in rejected} == {"another prediction has this request_id"}
    assert shipper.rejected == 3
    assert [line.levelname for line in caplog.records].count("ERROR") == 3


def test_draining_ships_the_rest_and_ends_the_thread(journal: Journal, database: str) -> None:
    shipper = Shipper(journal, database)
    shipper.start()
    put(journal, "a")  # without wake()
    shipper.drain(60)
    assert not shipper._thread.is_alive()
    assert logged(database) == ["a"]


def test_draining_interrupts_a_retry_pause(
    journal: Journal, database: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE", 600)
    monkeypatch.setattr(module, "FIRST_PAUSE", 300)
    proxy.behaviour = hang_up
    put(journal, "a")
    shipper = Shipper(journal, proxy.url)
    shipper.start()
    wait_until(lambda: shipper.error != "not connected yet", "the first attempt to fail")
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.1)
    proxy.behaviour = proxy.forward
    shipper.drain(60)
    assert logged(database) == ["a"]


def test_draining_gives_up_in_time_and_keeps_the_rest_in_the_journal(
    journal: Journal, proxy: Proxy, database: str
) -> None:
    proxy.behaviour = hang_up
    put(journal, "a")
    shipper = Shipper(journal, proxy.url)
    shipper.start()
    shipper.drain(0.5)
    assert shipper._thread.is_alive()
    assert journal.depth == 1
    proxy.behaviour = proxy.forward
    shipper.drain(60)
    assert logged(database) == ["a"]
