"""Send a message to an incoming webhook of Slack. Its address is a secret, which no error shows."""

import http.client
import json
import urllib.error
import urllib.request

from tools.errors import ToolError


def notify(webhook: str, text: str) -> None:
    """Send a text, in which nobody can be mentioned. Raises ToolError."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    body = json.dumps({"text": escaped}).encode()
    try:
        request = urllib.request.Request(webhook, body, {"Content-Type": "application/json"})  # noqa: S310 - ours
        urllib.request.urlopen(request, timeout=20).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        raise ToolError(f"no message was sent: Slack answered {error.code}") from None
    except OSError as error:
        raise ToolError(f"no message was sent: {error}") from None
    except (ValueError, http.client.HTTPException):  # their texts show parts of the address or the answer
        raise ToolError("no message was sent: SLACK_WEBHOOK is not the address of an HTTP server") from None
