"""What the pod knows of itself: its labels, as the downward API writes them into a file."""

import re
from pathlib import Path
from typing import NamedTuple

# role and canary-percentage are set by the rollout (canaryMetadata, stableMetadata) and change while a pod lives,
# in this file up to a minute later; the pod-template hash is the version that it was made of, and never changes.
LABEL = re.compile(r'^(role|canary-percentage|rollouts-pod-template-hash)="([^"]*)"$', re.MULTILINE)


class Pod(NamedTuple):
    """A pod's role, its share of the traffic in percent, and its version's hash, empty outside a cluster."""

    role: str
    canary_percentage: int
    pod_template_hash: str


def read(labels: Path) -> Pod:
    """Return what this pod's labels say; `stable` and 100 outside a cluster."""
    try:
        found = dict(LABEL.findall(labels.read_text()))
    except OSError:
        found = {}
    percentage = found.get("canary-percentage", "")
    return Pod(
        found.get("role", "stable"),
        int(percentage) if percentage.isdigit() else 100,
        found.get("rollouts-pod-template-hash", ""),
    )
