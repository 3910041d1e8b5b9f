"""A message to Slack's incoming webhook, whose address is a secret: no error shows it."""

import http.client
import json
import urllib.error
import urllib.request


def tell(webhook: str, text: str) -> str | None:
    """Send a text; return why that failed, None when it did not. What is in it cannot mention anybody."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    body = json.dumps({"text": escaped}).encode()
    try:
        request = urllib.request.Request(webhook, body, {"Content-Type": "application/json"})  # noqa: S310 - ours
        with urllib.request.urlopen(request, timeout=20):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        return f"it answered {error.code}"
    except OSError as error:
        return str(error)
    except (ValueError, http.client.HTTPException):  # whose texts show pieces of the address, or of the answer
        return "SLACK_WEBHOOK is no address, or one where HTTP is not spoken"
