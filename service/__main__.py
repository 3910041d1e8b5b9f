"""`python -m service`: read settings, verify the model, and serve until SIGTERM."""

import gc
import os
import signal
import socket
import sys
from functools import partial
from types import FrameType

import uvicorn

from service import logs
from service.app import Service, create_app
from service.http_protocol import HttpProtocol
from service.journal import JournalError
from service.model_metadata import ModelError
from service.schema import max_body_bytes
from service.settings import Settings, SettingsError, cannot_listen, from_environ


class Server(uvicorn.Server):
    """A uvicorn server that fails its readiness probe from SIGTERM on."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End readiness, then shut down as uvicorn does."""
        self._service.draining = True
        super().handle_exit(sig, frame)


def _listen(settings: Settings) -> socket.socket:
    is_ipv6 = ":" in settings.host
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    # `::` also accepts IPv4, as a dual-stack cluster and the image's health check expect.
    both = settings.host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (settings.host, settings.port), family=family, backlog=2048, dualstack_ipv6=both
        )
    except OSError as error:
        raise cannot_listen(settings, error) from error


def main() -> int:
    """Serve until SIGTERM; return 0 when PostgreSQL has the whole journal, otherwise 1.

    If the service cannot start, print one line and return 1.
    """
    try:
        settings = from_environ(os.environ)
        logs.set_up(settings.log_level)
        listener = _listen(settings)
        service = Service(settings)
    except (SettingsError, ModelError, JournalError) as error:
        print(f"service: cannot start: {error}", file=sys.stderr)  # noqa: T201
        return 1
    config = uvicorn.Config(
        create_app(service),
        interface="asgi3",
        loop="uvloop",
        # uvicorn calls it like a class.
        http=partial(HttpProtocol, service.metrics, max_body_bytes(service.model.metadata.features)),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # Longer than a router keeps idle connections (Traefik: 90 s), so that the router always closes them. If
        # this side did, the router would answer 502 to a request that it was just sending.
        timeout_keep_alive=120,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    # After its shutdown uvicorn raises the signal again, which would end the process with an error.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    gc.collect()
    gc.freeze()  # the garbage collector need not traverse the objects from startup again
    server = Server(config, service)
    server.run([listener])
    return 0 if server.started and not service.journal.depth else 1


if __name__ == "__main__":
    sys.exit(main())
