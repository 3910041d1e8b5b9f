"""What has to be true of a release that is promoted, and of one that is taken back."""

import re
import time
from collections.abc import Callable
from typing import NamedTuple

from delivery.changes import REJECTED
from tools.cluster import git_server, node
from tools.drill.environment import Stage
from tools.drill.release_images import Shipped
from tools.drill.traffic import Answer
from tools.errors import ToolError
from tools.progress import wait_for

PROMOTED, TAKEN_BACK = "promoted", "taken back"
SPARED = 0.85
"""The least part of the requests that is answered well while a bad version has 10 % of them."""


class WrongError(ToolError):
    """Something came about that must not, or did not that must."""


class Outcome(NamedTuple):
    """What became of a release; `seconds` are those from the first answer of the new version to weight 0."""

    verdict: str
    seconds: float | None
    bad: int
    revert: str


def promoted(stage: Stage, shipped: Shipped, *, during: Callable[[], object] | None = None) -> Outcome:
    """Ship a good release and see it promoted; `during` happens while it has 10 % of the users."""
    begun = time.time()
    stage.loop.ship(shipped, "--override")
    if during:
        reach(stage, 10, begun)
        during()
    return see_promoted(stage, shipped, begun)


def see_promoted(stage: Stage, shipped: Shipped, begun: float) -> Outcome:
    """See a release that was committed promoted: all users on it, and its answers in the log."""

    def decided() -> bool:
        return stage.is_aborted() or (bool(stage.marks(begun, "promoted")) and stage.rests())

    stage.watch.until(decided, 600, "the promotion")
    hold(not stage.is_aborted(), f"it was taken back: {stage.watch.state()}")
    weights = [weight for weight in stage.weights(begun) if weight]
    hold(weights == [10, 100], f"the weights were {weights}")
    hold(len(stage.marks(begun, "promoted")) == 1, "more than one version was promoted")
    phases = [run["status"]["phase"] for run in stage.watch.runs(stage.pod_hash())][-3:]
    hold(phases == ["Successful"] * 3, f"its gates were {phases}")
    stage.watch.until(
        lambda: stage.watch.synced("iris-prod") == git_server.head(), 60, "Argo CD says that it is synced"
    )
    stage.watch.until(lambda: served_by(stage, shipped), 20, "all users being served by it")
    nothing_lost(stage, begun)
    return Outcome(PROMOTED, None, bad(stage, begun), "")


def taken_back(
    stage: Stage,
    shipped: Shipped,
    *,
    at: int | None,
    reason: str,
    options: tuple[str, ...] = (),
    during: Callable[[], object] | None = None,
    spared: float = SPARED,
) -> Outcome:
    """Ship a bad release and see it taken back, at that weight and for that reason, and git with it.

    `spared` is the least part of the requests that are answered well while it has 10 % of them.
    """
    before, begun = stage.loop.runs("prod"), time.time()
    stage.loop.ship(shipped, *options)
    if during:
        reach(stage, at or 0, begun)
        during()
    return see_taken_back(stage, shipped, before.digest, begun, at, reason, spared)


def see_taken_back(
    stage: Stage, shipped: Shipped, before: str, begun: float, at: int | None, reason: str, spared: float = SPARED
) -> Outcome:
    """See a release that was committed taken back, and the release `before` in its place again.

    `at` is the most that it has of the users, None where there are no shares; `reason` is a regular expression.
    """
    stage.watch.until(lambda: bool(stage.marks(begun, "abort", "promoted")), 420, "the verdict")
    hold(not stage.marks(begun, "promoted"), "it was promoted")
    aborted = stage.marks(begun, "abort")[0].at
    stage.watch.until(lambda: stage.watch.weight() == 0, 15, "weight 0")
    weights = stage.weights(begun)
    hold(max(weights, default=0) == (at or 0), f"the weights were {weights}")

    # Git tells the truth again, by itself, and says why.
    stage.watch.until(lambda: stage.loop.runs("prod").digest == before, 60, "the revert in git")
    sha, body = revert_of(shipped.digest)
    hold(bool(re.search(reason, body)), f"the revert's reason does not say {reason!r}: {body}")
    stage.watch.until(stage.rests, 90, "the version before is all that runs")
    stage.watch.until(
        lambda: stage.watch.synced("iris-prod") == git_server.head(), 60, "Argo CD says that it is synced"
    )

    # Who was not sent to it noticed nothing: nothing failed before the first one was, nor after the last.
    version = shipped.version
    theirs = [answer for answer in stage.traffic.between(begun) if answer.version == version]
    hold(at != 0 or not theirs, f"{len(theirs)} users were sent to it")
    rise = [mark.at for mark in stage.marks(begun, "weight")] or [answer.at for answer in theirs] or [aborted]
    fall = [mark.at for mark in stage.marks(begun, "weight") if mark.text.startswith("0 ")] or [aborted]
    calm = [*stage.traffic.between(begun, rise[0] - 1), *stage.traffic.between(fall[-1] + 3)]
    hold(bool(calm), "there were no users")
    hold(all(answer.good for answer in calm), f"stable's users were not served: {failures(calm, begun)}")
    if at == 10:
        shared = stage.traffic.between(rise[0], fall[-1])
        well = sum(answer.good for answer in shared) / len(shared)
        hold(well >= spared, f"only {100 * well:.0f} % were served at 10 %: {failures(shared, begun)}")
    nothing_lost(stage, begun)
    seconds = round(fall[-1] - theirs[0].at, 1) if theirs else None
    return Outcome(TAKEN_BACK, seconds, bad(stage, begun), sha[:10])


def reach(stage: Stage, weight: int, since: float) -> None:
    """Wait until the canary has that weight."""
    stage.watch.until(lambda: weight in stage.weights(since), 120, f"{weight} % for the canary")
    time.sleep(3)


def served_by(stage: Stage, shipped: Shipped) -> bool:
    """Whether all users have been served by that version for the last two seconds."""
    versions = {answer.version for answer in stage.traffic.between(time.time() - 2)}
    return stage.all_served() and versions == {shipped.version}


def nothing_lost(stage: Stage, since: float) -> None:
    """Raise ToolError unless each prediction that a user got is in the log of prod, within a minute."""
    ids = [answer.request_id for answer in stage.traffic.between(since) if answer.request_id]
    query = "SELECT count(*) FROM seen LEFT JOIN predictions ON request_id = seen.id WHERE predictions.id IS NULL;"
    script = "\n".join(["CREATE TEMP TABLE seen (id text);", "COPY seen FROM stdin;", *ids, "\\.", query, ""])
    psql = ("psql", "--username=iris", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1")

    def missing() -> str | None:
        command = ("kubectl", "exec", "--stdin", "--namespace=database", "postgres-0", "--", *psql)
        count = node.run(*command, stdin=script).strip()
        return None if count == "0" else f"{count} of {len(ids)} predictions are not in the log"

    hold(bool(ids), "there were no users")
    wait_for(missing, 60, lambda _: None)


def revert_of(digest: str) -> tuple[str, str]:
    """Return the commit that took an image back in prod, and what it says. Raises WrongError without."""
    said = f"--grep={REJECTED}: {digest}"
    sha = git_server.git("log", "--format=%H", said, "--max-count=1", "main", "--", "overlays/prod")
    hold(bool(sha), "git was not reverted")
    return sha, git_server.git("show", "--no-patch", "--format=%B", sha)


def bad(stage: Stage, since: float) -> int:
    """Return how many users got something else than the right answer."""
    return len([answer for answer in stage.traffic.between(since) if not answer.good])


def hold(true: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Raise WrongError unless it is true."""
    if not true:
        raise WrongError(otherwise)


def failures(answers: list[Answer], since: float) -> str:
    """Return which answers were not good, and when; no more than ten."""
    failed = [answer for answer in answers if not answer.good]
    return ", ".join(f"{answer.status} after {answer.at - since:.1f} s" for answer in failed[:10])
