"""`python -m service`: settings, verification, then serving until SIGTERM."""

import gc
import os
import signal
import socket
import sys
from types import FrameType

import uvicorn

from service import logs
from service.app import Service, create_app
from service.facts import ModelError
from service.journal import JournalError
from service.settings import SettingsError, from_environ


class Server(uvicorn.Server):
    """uvicorn, which says that it is draining as soon as it is told to end."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Turn readiness off, then close as uvicorn does."""
        self._service.draining = True
        super().handle_exit(sig, frame)


class ListenError(Exception):
    """The address is taken or not ours; the message says which, and what to do."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address. Raises ListenError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ListenError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}; "
            "IRIS_HOST and IRIS_PORT set another address"
        ) from error


def main() -> int:
    """Serve; return 0 after a drain, 1 with one line on standard error when it cannot start."""
    try:
        settings = from_environ(os.environ)
        logs.set_up(settings.log_level)
        listener = listen(settings.host, settings.port)
        service = Service(settings)
    except (SettingsError, ListenError, ModelError, JournalError) as error:
        print(f"service: cannot start: {error}", file=sys.stderr)  # noqa: T201
        return 1
    config = uvicorn.Config(
        create_app(service),
        interface="asgi3",
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # Longer than a router keeps an idle connection (Traefik: 90 s), so that it is never this side that closes:
        # a request that is just being sent would be lost, and the router would answer 502.
        timeout_keep_alive=120,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    # uvicorn raises the signal that ended it once more when it is done; by then there is nothing left to do.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    gc.collect()
    gc.freeze()  # what start-up made stays; the collector need not look at it again
    server = Server(config, service)
    server.run([listener])
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
