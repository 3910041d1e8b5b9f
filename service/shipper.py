"""The shipper: a supervised thread that copies the journal to PostgreSQL, each prediction exactly once."""

import hashlib
import logging
import threading
import time

import msgspec
import psycopg2
import psycopg2.extensions

from service import database
from service.journal import Group, Journal

log = logging.getLogger(__name__)

# Rows that arrive within LINGER_SECONDS share a statement, whose fixed cost to PostgreSQL equals that of 15 rows.
# Larger statements would save little, and would delay predictions where service and PostgreSQL share a core.
ROWS_A_STATEMENT = 500
LINGER_SECONDS = 0.02
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between retries while PostgreSQL is unavailable, doubling
ROW_ERRORS = (psycopg2.Error, ValueError)


class Shipper:
    """Ships the journal to the PostgreSQL at `url` for as long as the process lives.

    Inserts are idempotent (ON CONFLICT DO NOTHING), so every failure is retried. A row that PostgreSQL rejects is
    stored in the table predictions_rejected, with the reason.
    """

    def __init__(self, journal: Journal, url: str) -> None:
        self._journal = journal
        self._url = url
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._shipped_up_to = 0  # id of the last group that PostgreSQL has
        self._thread = threading.Thread(target=self._run, name="shipper", daemon=True)
        self.rejected = 0
        self.error: str | None = "not connected yet"

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Notify the thread that the journal has a new group."""
        self._wake.set()

    def drain(self, seconds: float) -> None:
        """Ship the rest of the journal and end the thread. Returns after `seconds` at the latest."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            started = time.monotonic()
            try:
                connection = database.connect(self._url)
                try:
                    self._ship_until_drained(connection)
                    return
                finally:
                    connection.close()
            except Exception as error:  # noqa: BLE001 - supervision: without this thread the log would silently stop
                reason = " ".join(str(error).split())
                if self.error != reason:
                    log.warning(
                        "cannot ship to PostgreSQL; predictions wait in the journal",
                        extra={"reason": reason, "waiting": self._journal.depth},
                    )
                self.error = reason
            if self._stopping.is_set() and not self._journal.depth:
                return
            pause = FIRST_PAUSE if time.monotonic() - started > LONGEST_PAUSE else min(2 * pause, LONGEST_PAUSE)
            if self._stopping.wait(pause):
                time.sleep(FIRST_PAUSE)  # while draining, retry soon instead of waiting for the whole pause

    def _ship_until_drained(self, connection: psycopg2.extensions.connection) -> None:
        if self.error:
            log.info("shipping to PostgreSQL", extra={"waiting": self._journal.depth})
            self._warn_of_short_ids(connection)
        self.error = None
        while True:
            self._wake.clear()
            groups = self._journal.oldest(self._shipped_up_to, ROWS_A_STATEMENT)
            if groups:
                self._ship(connection, groups)
                self._shipped_up_to = groups[-1].id
            self._journal.remove(self._shipped_up_to)  # and retry groups that a full disk kept from being removed
            if groups:
                continue
            if self._stopping.is_set():
                return
            self._wake.wait()
            self._stopping.wait(LINGER_SECONDS)

    def _warn_of_short_ids(self, connection: psycopg2.extensions.connection) -> None:
        with connection.cursor() as cursor:
            cursor.execute(database.HAS_SHORT_IDS)
            if cursor.fetchall():
                log.warning("the ids in predictions end at 2147483647", extra={"command": database.MIGRATE})

    def _ship(self, connection: psycopg2.extensions.connection, groups: list[Group]) -> None:
        records = b"[" + b",".join(group.records[1:-1] for group in groups if group.size) + b"]"
        with connection.cursor() as cursor:
            try:
                self._insert(cursor, records, sum(group.size for group in groups))
            except ROW_ERRORS as error:
                if not database.rejects_row(error):
                    raise
                for group in groups:
                    self._ship_one_by_one(cursor, group)

    def _insert(self, cursor: psycopg2.extensions.cursor, records: bytes, size: int) -> None:
        """Insert records. Skip those that PostgreSQL already has; reject other content under their ids."""
        cursor.execute(database.INSERT, [records.decode()])
        if cursor.rowcount < size:
            cursor.execute(database.CONFLICTS, [records.decode()])
            for (record,) in cursor.fetchall():
                self._reject(cursor, record.encode(), "another prediction has this request_id")

    def _ship_one_by_one(self, cursor: psycopg2.extensions.cursor, group: Group) -> None:
        try:
            records = msgspec.json.decode(group.records, type=list[msgspec.Raw])
        except msgspec.DecodeError as error:
            self._reject(cursor, group.records, error)
            return
        for record in map(bytes, records):
            try:
                self._insert(cursor, b"[" + record + b"]", 1)
            except ROW_ERRORS as error:
                if not database.rejects_row(error):
                    raise
                self._reject(cursor, record, error)

    def _reject(self, cursor: psycopg2.extensions.cursor, record: bytes, why: object) -> None:
        reason = str(why).strip()
        try:
            cursor.execute(database.REJECT, {"record": record.decode(), "reason": reason})
        except ROW_ERRORS as again:
            if not database.rejects_row(again):
                raise
            # The disk damaged the record: it is not a JSON object with a request_id. Keep its bytes, as base64.
            request_id = f"damaged-{hashlib.sha256(record).hexdigest()}"
            substitute = msgspec.json.encode({"request_id": request_id, "bytes": record}).decode()
            cursor.execute(database.REJECT, {"record": substitute, "reason": reason})
        if cursor.rowcount:  # 0 if an earlier attempt rejected it, and the connection broke before the answer
            self.rejected += 1
            log.error("PostgreSQL rejected a prediction; it is in predictions_rejected", extra={"reason": reason})
