"""The message that tells of an abort: data from outside, of which each part has to be known here."""

import json
import re
from typing import Literal, NamedTuple, cast

from delivery.release import DIGEST, ENVIRONMENTS, IMAGE, ReleaseError

LARGEST = 64 * 1024  # bytes


class Event(NamedTuple):
    """An image was taken back in an environment, says the sender; whether that is true is for git and cluster."""

    environment: Literal["dev", "prod"]
    digest: str


def read(message: bytes) -> Event:
    """Return what a message says. Raises ReleaseError unless it is about an abort of this application."""
    try:
        payload = json.loads(message)["client_payload"]
        namespace, rollout, image = (payload[name] for name in ("namespace", "rollout", "image"))
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseError(
            f"the message is none of an aborted rollout ({error!r:.80}); nothing was changed"
        ) from error
    environment = re.fullmatch(rf"iris-({'|'.join(ENVIRONMENTS)})", str(namespace))
    digest = re.fullmatch(rf"{re.escape(IMAGE)}@({DIGEST.pattern})", str(image))
    if not (environment and digest and rollout == "iris"):
        raise ReleaseError(
            f"the message is about {str(rollout)[:40]!r} in {str(namespace)[:40]!r} with {str(image)[:120]!r}, "
            "which is none of this repository's; nothing was changed"
        )
    return Event(cast(Literal["dev", "prod"], environment[1]), digest[1])
