"""The demo: a first model, another one that is promoted, and a bad image that is taken back; told in a report."""

import time
from pathlib import Path

from tools import cache
from tools.drill import checks
from tools.drill.environment import Stage
from tools.drill.recording import Act, Story, Verdict
from tools.drill.release_images import Shipped
from tools.drill.report import picture, write
from tools.drill.scenarios import ERRORS
from tools.drill.screen import console, heading

REPORT = cache.root() / "drill" / "report.html"
FAULT = "errors-30"


def perform(stage: Stage) -> Path:
    """Play the three releases and return the report. Raises WrongError, ToolError, RefusedError."""
    begun = time.time()
    console.print(f"{stage.traffic.users} users ask for predictions, from before the first release to the end")
    acts = (_first(stage),) if stage.loop.is_first() else ()
    stage.settle()
    acts = (*acts, _second(stage), _third(stage))
    # Before the first release there is nobody to answer: that harms no one.
    served = next((answer.at for answer in stage.traffic.between(begun) if answer.good), begun)
    seen = (sample for sample in stage.watch.samples if sample.at >= begun)
    samples = tuple(sample if sample.at > served else sample._replace(bad=0) for sample in seen)
    story = Story("Three releases of an iris classifier", samples, acts)
    write(story, REPORT)
    for act in acts[-2:]:
        picture(story, act, REPORT.with_name(f"{act.verdict.replace(' ', '-')}.png"))
    return REPORT


def _first(stage: Stage) -> Act:
    title = "Release 1: a first model"
    begun, shipped = time.time(), stage.good["model-1"]
    heading(title)
    promotion = _through_dev(stage, shipped)
    stage.watch.until(lambda: stage.has("prod", shipped) and stage.rests(), 180, "prod runs it")
    served = time.time()
    stage.watch.until(lambda: checks.served_by(stage, shipped), 20, "all users being served by it")
    reason = "The first release of an environment has nothing to be compared with: all users get it at once."
    seconds = {"from the promotion to running in prod": served - promotion}
    return _act(stage, title, "released", reason, begun, time.time() - 2, seconds)


def _second(stage: Stage) -> Act:
    title = "Release 2: another model, which is good"
    begun, shipped = time.time(), stage.next_good()
    heading(title)
    promotion = _through_dev(stage, shipped)
    checks.see_promoted(stage, shipped, promotion)
    done = stage.marks(promotion, "promoted")[0].at
    reason = (
        "It answered the recorded questions as it should, and kept to its limits with 10 % and with all users."
    )
    seconds = {"from the promotion to synced": _since(stage, promotion, "sync"), "to all users": done - promotion}
    return _act(stage, title, "promoted", reason, begun, promotion, seconds)


def _third(stage: Stage) -> Act:
    title = "Release 3: an image that fails three requests in ten"
    begun, shipped, before = time.time(), stage.faulty(FAULT), stage.loop.runs("prod").digest
    heading(title)
    promotion = time.time()
    stage.loop.ship(shipped)
    outcome = checks.see_taken_back(stage, shipped, before, promotion, 10, ERRORS)
    abort, reverted = (stage.marks(promotion, kind)[0].at for kind in ("abort", "revert"))
    _, reason = checks.revert_of(shipped.digest)
    console.print(f"\n{reason}", markup=False)
    seconds = {
        "from the promotion to synced": _since(stage, promotion, "sync"),
        "from its first answer to weight 0": outcome.seconds or 0.0,
        "from the abort to the revert in git": reverted - abort,
    }
    return _act(stage, title, "taken back", reason, begun, promotion, seconds)


def _through_dev(stage: Stage, shipped: Shipped) -> float:
    """Release to dev, see it run there, promote it to prod; return when the promotion was committed.

    An earlier demo or drill may have had it taken back, hence --override.
    """
    stage.loop.release(shipped, "--override")
    stage.watch.until(lambda: stage.has("dev", shipped), 180, "dev runs it")
    promotion = time.time()
    stage.loop.promote("--override")
    return promotion


def _since(stage: Stage, begun: float, kind: str) -> float:
    return stage.marks(begun, kind)[0].at - begun


def _act(
    stage: Stage,
    title: str,
    verdict: Verdict,
    reason: str,
    begun: float,
    counted: float,
    seconds: dict[str, float],
) -> Act:
    """Return the act; users count from the time on at which prod could serve them."""
    kinds = ("commit", "sync", "gate", "weight", "promoted", "abort", "revert")
    requests, bad = len(stage.traffic.between(counted)), checks.bad(stage, counted)
    console.print(f"users: {requests} requests, {bad} bad")
    return Act(title, verdict, reason, tuple(stage.marks(begun, *kinds)), seconds, requests, bad)
