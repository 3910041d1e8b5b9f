"""Read the message that reports an abort. It comes from outside: every part of it is checked."""

import json
import re
from typing import Literal, cast

from delivery.release import DIGEST, ENVIRONMENTS, IMAGE, ReleaseError

LARGEST = 64 * 1024  # bytes


def read(message: bytes) -> tuple[Literal["dev", "prod"], str]:
    """Return the environment and the digest that a message claims to be aborted; git and the cluster confirm it.

    Raises ReleaseError unless the message reports an abort of this application.
    """
    try:
        payload = json.loads(message)["client_payload"]
        namespace, rollout, image = (payload[name] for name in ("namespace", "rollout", "image"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
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
    return cast(Literal["dev", "prod"], environment[1]), digest[1]
