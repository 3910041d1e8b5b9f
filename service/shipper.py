"""The shipper: a supervised thread that carries the journal to PostgreSQL, exactly once."""

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

# Rows that come within LINGER_SECONDS share a statement, which costs PostgreSQL as much as 15 rows. More at once
# would save little, and hold up the predictions of a service that shares its core with PostgreSQL.
ROWS_A_STATEMENT = 500
LINGER_SECONDS = 0.02
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between attempts while PostgreSQL is away, doubling
REFUSALS = (psycopg2.Error, UnicodeDecodeError)


class Shipper:
    """Ships what `journal` holds to the PostgreSQL at `url`, for as long as the process lives.

    Repeating is harmless (ON CONFLICT DO NOTHING), so whatever fails is repeated. A row that the database
    refuses goes to the table predictions_rejected with the reason.
    """

    def __init__(self, journal: Journal, url: str) -> None:
        self._journal = journal
        self._url = url
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._shipped_up_to = 0  # id of a group in the journal
        self._thread = threading.Thread(target=self._run, name="shipper", daemon=True)
        self.rejected = 0
        self.error: str | None = "not connected yet"

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Tell the thread that the journal has something."""
        self._wake.set()

    def drain(self, seconds: float) -> None:
        """Ship what is left, for at most `seconds`, and end the thread."""
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
            except Exception as error:  # noqa: BLE001 - supervision: a shipper that dies loses the log in silence
                reason = " ".join(str(error).split())
                if self.error != reason:
                    log.warning(
                        "PostgreSQL does not take the log; predictions wait in the journal",
                        extra={"reason": reason, "waiting": self._journal.depth},
                    )
                self.error = reason
            if self._stopping.is_set() and not self._journal.depth:
                return
            pause = FIRST_PAUSE if time.monotonic() - started > LONGEST_PAUSE else min(2 * pause, LONGEST_PAUSE)
            if self._stopping.wait(pause):
                time.sleep(FIRST_PAUSE)  # what time is left for draining is not waited away

    def _ship_until_drained(self, connection: psycopg2.extensions.connection) -> None:
        if self.error:
            log.info("shipping to PostgreSQL", extra={"waiting": self._journal.depth})
        self.error = None
        while True:
            self._wake.clear()
            groups = self._journal.oldest(self._shipped_up_to, ROWS_A_STATEMENT)
            if groups:
                self._ship(connection, groups)
                self._shipped_up_to = groups[-1].id
            self._journal.remove(self._shipped_up_to)  # also what a full disk kept from being removed before
            if groups:
                continue
            if self._stopping.is_set():
                return
            self._wake.wait()
            self._stopping.wait(LINGER_SECONDS)

    def _ship(self, connection: psycopg2.extensions.connection, groups: list[Group]) -> None:
        records = b"[" + b",".join(group.records[1:-1] for group in groups if group.size) + b"]"
        with connection.cursor() as cursor:
            try:
                cursor.execute(database.INSERT, [records.decode()])
            except REFUSALS as error:
                if not database.refuses_the_row(error):
                    raise
                for group in groups:
                    self._ship_singly(cursor, group)

    def _ship_singly(self, cursor: psycopg2.extensions.cursor, group: Group) -> None:
        try:
            records = msgspec.json.decode(group.records, type=list[msgspec.Raw])
        except msgspec.DecodeError as error:
            self._reject(cursor, group.records, error)
            return
        for record in map(bytes, records):
            try:
                cursor.execute(database.INSERT, [f"[{record.decode()}]"])
            except REFUSALS as error:
                if not database.refuses_the_row(error):
                    raise
                self._reject(cursor, record, error)

    def _reject(self, cursor: psycopg2.extensions.cursor, record: bytes, error: Exception) -> None:
        reason = str(error).strip()
        try:
            cursor.execute(database.REJECT, {"record": record.decode(), "reason": reason})
        except REFUSALS as again:
            if not database.refuses_the_row(again):
                raise
            # Not even a JSON object with a request_id: the disk has changed it. Its bytes are kept, as base64.
            name = f"damaged-{hashlib.sha256(record).hexdigest()}"
            stand_in = msgspec.json.encode({"request_id": name, "bytes": record}).decode()
            cursor.execute(database.REJECT, {"record": stand_in, "reason": reason})
        if cursor.rowcount:  # else it was rejected before, and the connection broke before that was noted
            self.rejected += 1
            log.error("PostgreSQL refused a prediction; it is in predictions_rejected", extra={"reason": reason})
