"""Logging: one JSON object a line, on standard error, without ever waiting for who reads it."""

import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
import time

import msgspec

LONGEST_QUEUE = 1000
"""Lines that wait for standard error. Further lines are dropped, and counted."""
FLUSH_SECONDS = 2.0  # at the end of the process
STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record with its `extra` fields and its traceback as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Times are in UTC."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in STANDARD},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class QueuedHandler(logging.Handler):
    """Writes lines in a thread of its own: standard error may be a pipe that nobody reads."""

    def __init__(self, file: int) -> None:
        super().__init__()
        self.dropped = 0
        self._file = file
        self._lines: queue.Queue[bytes | None] = queue.Queue(LONGEST_QUEUE)
        self._thread = threading.Thread(target=self._write, name="logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line, or count it as dropped."""
        try:
            self._lines.put_nowait(f"{self.format(record)}\n".encode())
        except queue.Full:
            self.dropped += 1

    def flush_and_stop(self) -> None:
        """Write what is queued, within FLUSH_SECONDS."""
        deadline = time.monotonic() + FLUSH_SECONDS
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=FLUSH_SECONDS)
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _write(self) -> None:
        # Not through sys.stderr, whose lock a blocked thread would hold against the end of the interpreter.
        while (line := self._lines.get()) is not None:
            while line:
                try:
                    line = line[os.write(self._file, line) :]
                except OSError:  # nobody reads it any more
                    self.dropped += 1
                    break


def dropped() -> int:
    """Return how many lines were dropped."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, QueuedHandler))


def set_up(level: str) -> None:
    """Log to standard error at this level; from uvicorn, only warnings and errors."""
    handler = QueuedHandler(sys.stderr.fileno())
    handler.setFormatter(JsonFormatter())
    atexit.register(handler.flush_and_stop)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel("ERROR" if level == "ERROR" else "WARNING")
