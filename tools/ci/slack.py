"""Send a message to an incoming webhook of Slack. Its address is a secret, which no error shows."""

import http.client
import json
import urllib.error
import urllib.request


def notify(webhook: str, text: str) -> str | None:
    """Send a text, in which nobody can be mentioned; return the error, None if there is none."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    body = json.dumps({"text": escaped}).encode()
    try:
        request = urllib.request.Request(webhook, body, {"Content-Type": "application/json"})  # noqa: S310 - ours
        with urllib.request.urlopen(request, timeout=20):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        return f"Slack answered {error.code}"
    except OSError as error:
        return str(error)
    except (ValueError, http.client.HTTPException):  # their texts show parts of the address or the answer
        return "SLACK_WEBHOOK is not the address of an HTTP server"
