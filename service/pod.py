"""Read the pod's own labels, which the downward API writes to a file."""

import re
from pathlib import Path
from typing import NamedTuple

# The Rollout sets role and canary-percentage (canaryMetadata, stableMetadata) and changes them while the pod runs;
# the file follows within a minute. The pod-template hash identifies the pod's version and never changes.
LABEL = re.compile(r'^(role|canary-percentage|rollouts-pod-template-hash)="([^"]*)"$', re.MULTILINE)


class Pod(NamedTuple):
    """A pod's role, its weight in percent of the traffic, and its pod-template hash (empty outside a cluster)."""

    role: str
    canary_percentage: int
    pod_template_hash: str


def read(labels: Path) -> Pod:
    """Return the pod that these labels describe. The defaults, also outside a cluster, are `stable` and 100.

    Raises OSError if the file exists and cannot be read.
    """
    try:
        found = dict(LABEL.findall(labels.read_text()))
    except FileNotFoundError:
        found = {}
    percentage = found.get("canary-percentage", "")
    return Pod(
        found.get("role", "stable"),
        int(percentage) if percentage.isdigit() else 100,
        found.get("rollouts-pod-template-hash", ""),
    )
