"""The demo: a first model, a better one that is promoted, and a bad image that is taken back; told in a report."""

import time
from pathlib import Path

from drill import images, scenarios
from drill.images import Shipped
from drill.report import write
from drill.scenarios import Stage, hold
from drill.screen import console, heading
from drill.story import Act, Story
from local import cache

REPORT = cache.root() / "drill" / "report.html"


def perform(stage: Stage) -> Path:
    """Play the three releases and return the report. Raises WrongError, ClusterError, RefusedError."""
    begun = time.time()
    console.print(f"{stage.traffic.users} users ask for a prediction every 0.64 s, from before the first canary on")
    acts = [_first(stage), _second(stage), _third(stage)]
    samples = tuple(sample for sample in stage.watch.samples if sample.at >= begun)
    write(Story("Three releases of an iris classifier", samples, tuple(acts)), REPORT)
    return REPORT


def _first(stage: Stage) -> Act:
    title = "Release 1: a logistic regression, to dev and then to prod"
    heading(title)
    begun = time.time()
    commit = stage.loop.release(stage.good["model-1"])
    stage.watch.until(lambda: stage.settled("dev", stage.good["model-1"]), 180, "dev runs it")
    in_dev = time.time()
    commit = stage.loop.promote()
    stage.watch.until(lambda: stage.settled("prod", stage.good["model-1"]), 180, "prod runs it")
    served = time.time()
    time.sleep(5)
    scenarios.served_by(stage, stage.good["model-1"])
    seconds = {"from the commit to running in dev": in_dev - begun, "from the promotion to running in prod": served - in_dev}
    reason = "The first release of an environment has nothing to be compared with: it goes to all users at once."
    return _act(stage, title, "released", reason, begun, seconds)
