"""Delete predictions that the log received more than IRIS_LOG_DAYS ago: a thread of the drift process.

There is one drift process in an environment, so the serving pods need no connections for this.
"""

import logging
import threading
from contextlib import closing

import psycopg2.extensions
from prometheus_client import CollectorRegistry, Gauge

from service import database
from service.settings import Settings

log = logging.getLogger(__name__)
TABLES = ("predictions", "predictions_rejected")
PASS_SECONDS = 600.0
# A batch takes milliseconds and the pause many times as long, so inserts and autovacuum get their turn.
ROWS_A_BATCH = 1000
BATCH_PAUSE_SECONDS = 0.1


class Retention:
    """Deletes old predictions of the PostgreSQL in the settings until `stopping` is set."""

    def __init__(self, settings: Settings, registry: CollectorRegistry, stopping: threading.Event) -> None:
        self._url = settings.database_url
        self._days = settings.log_days
        self._stopping = stopping
        self._last_success = Gauge(
            "iris_retention_last_success_timestamp_seconds",
            "Unix time at which old predictions were last deleted; 0 before the first time.",
            registry=registry,
        )

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="retention", daemon=True).start()

    def delete_old(self) -> dict[str, int]:
        """Delete what is too old, unless another process does; return the rows by table. Raises psycopg2.Error."""
        with closing(database.open_session(self._url, "iris-retention")) as connection:
            cursor = connection.cursor()
            cursor.execute(f"SELECT pg_try_advisory_lock({database.RETENTION_LOCK})")
            if cursor.fetchall() != [(True,)]:
                return {}
            return {table: self._delete_from(table, cursor) for table in TABLES}

    def _delete_from(self, table: str, cursor: psycopg2.extensions.cursor) -> int:
        """Delete from the lowest id up, until a batch has nothing that is old: ids ascend with created_at."""
        total = after = 0
        values = {"days": self._days, "rows": ROWS_A_BATCH}
        while not self._stopping.wait(BATCH_PAUSE_SECONDS if total else 0):
            cursor.execute(database.DELETE_OLD.format(table=table), {**values, "after": after})
            deleted = [row_id for (row_id,) in cursor.fetchall()]
            if not deleted:
                break
            total += len(deleted)
            after = max(deleted)  # the index still has the deleted rows: do not read them again
        return total

    def _run(self) -> None:
        failure = ""
        while not self._stopping.is_set():
            try:
                deleted = self.delete_old()
            except Exception as error:  # noqa: BLE001 - supervision: without this thread the log would grow silently
                reason = " ".join(str(error).split()) or type(error).__name__
                if reason != failure and not self._stopping.is_set():
                    log.warning("old predictions cannot be deleted", extra={"reason": reason})
                failure = reason
            else:
                self._last_success.set_to_current_time()
                failure = ""
                if any(deleted.values()):
                    log.info("old predictions were deleted", extra={"days": self._days, **deleted})
            self._stopping.wait(PASS_SECONDS)
