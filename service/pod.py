"""What the pod knows of itself: its labels, as the downward API writes them into a file."""

import re
from pathlib import Path

# role and canary-percentage are set by the rollout (canaryMetadata, stableMetadata) and change while a pod lives.
LABEL = re.compile(r'^(role|canary-percentage)="([^"]*)"$', re.MULTILINE)


def role(labels: Path) -> tuple[str, int]:
    """Return this pod's role and its share of the traffic in percent; `stable` and 100 outside a cluster."""
    try:
        found = dict(LABEL.findall(labels.read_text()))
    except OSError:
        found = {}
    percentage = found.get("canary-percentage", "")
    return found.get("role", "stable"), int(percentage) if percentage.isdigit() else 100
