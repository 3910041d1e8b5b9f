"""Read the message that reports an abort. It comes from outside: every part of it is checked."""

import json
import re
from typing import Literal, NamedTuple, cast

from delivery.release import DIGEST, ENVIRONMENTS, IMAGE, ReleaseError

LARGEST = 64 * 1024  # bytes


class Event(NamedTuple):
    """The sender claims that an image was aborted in an environment; git and the cluster have to confirm it."""

    environment: Literal["dev", "prod"]
    digest: str


def read(message: bytes) -> Event:
    """Return the content of a message. Raises ReleaseError unless it reports an abort of this application."""
    try:
        payload = json.loads(message)["client_payload"]
        namespace, rollout, image = (payload[name] for name in ("namespace", "rollout", "image"))
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseError(
            f"the message does not report an aborted rollout ({error!r:.80}); nothing was changed"
        ) from error
    environment = re.fullmatch(rf"iris-({'|'.join(ENVIRONMENTS)})", str(namespace))
    digest = re.fullmatch(rf"{re.escape(IMAGE)}@({DIGEST.pattern})", str(image))
    if not (environment and digest and rollout == "iris"):
        raise ReleaseError(
            f"the message reports {str(rollout)[:40]!r} in {str(namespace)[:40]!r} with {str(image)[:120]!r}, "
            "which does not belong to this repository; nothing was changed"
        )
    return Event(cast(Literal["dev", "prod"], environment[1]), digest[1])
