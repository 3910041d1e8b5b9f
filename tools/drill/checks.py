"""Check that a release is promoted, or rolled back, as expected."""

from typing import NamedTuple

from delivery.changes import REJECTED
from delivery.explanation import FAILED_MARK, METRIC_LABELS
from delivery.manifests import REVERTED
from tools.cluster import git_server, node
from tools.drill.environment import Environment, Shipment
from tools.drill.recording import EventKind
from tools.drill.traffic import Answer
from tools.errors import ToolError
from tools.progress import wait_for

PROMOTED, ROLLED_BACK = "promoted", "rolled back"


class Outcome(NamedTuple):
    """The result of a release."""

    verdict: str
    failed: int  # requests
    seconds: float | None = None  # from the new version's first answer to weight 0
    revert: str = ""  # the commit

    def cells(self) -> tuple[str, str, str, str]:
        """Return the fields as they are shown in a table."""
        seconds = "" if self.seconds is None else f"{self.seconds:.1f} s"
        return f"[green]{self.verdict}[/]", seconds, str(self.failed), self.revert


class Rollback(NamedTuple):
    """The expected course of a rollback."""

    weight: int | None  # the highest weight of the canary in percent; None with blue-green, which has no weights
    metrics: frozenset[str] = frozenset()  # a gate must fail at least one of them
    phrase: str = ""  # in the message of the revert commit
    min_percent: int = 85  # of the requests have to be answered correctly while the canary has 10 %


def expect_promotion(environment: Environment, shipment: Shipment, *, at_once: bool = False) -> Outcome:
    """Check that a release passes its gates and serves all traffic, and that all its answers are logged.

    `at_once` is the course of a person's revert: the golden gate, then all traffic.
    """
    expected, gates = ([100], 1) if at_once else ([10, 100], 3)
    watch, begun = environment.watch, shipment.begun
    watch.until(lambda: environment.is_aborted() or environment.is_promoted(begun), 600, "a promotion or an abort")
    require(not environment.is_aborted(), f"it was rolled back: {watch.state()}")
    weights = [weight for weight in environment.weights(begun) if weight]
    require(weights == expected, f"the weights were {weights}")
    require(len(environment.events(begun, "promoted")) == 1, "more than one version was promoted")
    pod_hash = watch.rollout("prod")["status"]["currentPodHash"]
    of_pods = ("--namespace=iris-prod", f"--selector=rollouts-pod-template-hash={pod_hash}")
    oldest_first = ("--sort-by=.metadata.creationTimestamp", "--output=jsonpath={.items[*].status.phase}")
    phases = node.run("kubectl", "get", "analysisruns.argoproj.io", *of_pods, *oldest_first).split()[-gates:]
    require(phases == ["Successful"] * gates, f"its gates were {phases}")
    environment.wait_until_synced()
    environment.wait_until_served_by(shipment.image)
    assert_all_logged(environment, begun)
    return Outcome(PROMOTED, count_failed(environment, begun))


def expect_rollback(environment: Environment, shipment: Shipment, expected: Rollback) -> Outcome:
    """Check that a release is rolled back as expected, and that git has the previous release again."""
    watch, begun = environment.watch, shipment.begun
    watch.until(lambda: bool(environment.events(begun, "abort", "promoted")), 420, "a promotion or an abort")
    require(not environment.events(begun, "promoted"), "it was promoted")
    watch.until(lambda: watch.weight() == 0, 15, "a canary at 0 %")
    weights = environment.weights(begun)
    require(max(weights, default=0) == (expected.weight or 0), f"the weights were {weights}")

    operator = environment.operator
    watch.until(lambda: operator.current_release().digest == shipment.previous, 60, "the revert in git")
    commit, message = find_revert(shipment.image.digest)
    _require_cause(environment, expected, begun, message)
    environment.wait_until_stable()
    environment.wait_until_synced()

    seconds = _require_stable_unharmed(environment, shipment, expected)
    assert_all_logged(environment, begun)
    return Outcome(ROLLED_BACK, count_failed(environment, begun), seconds, commit[:10])


def _require_cause(environment: Environment, expected: Rollback, begun: float, message: str) -> None:
    """Check that an expected metric failed, and that the revert commit says so and has the expected phrase."""
    measurements = [one for event in environment.events(begun, "gate") for one in event.measurements]
    failed = {measurement.metric for measurement in measurements if measurement.phase == "Failed"}
    lines = [f"{FAILED_MARK}  {METRIC_LABELS[metric]}" for metric in failed & expected.metrics]
    if expected.metrics:
        require(bool(lines), f"none of {sorted(expected.metrics)} failed, but {sorted(failed)}")
        require(any(line in message for line in lines), f"the revert does not say one of {lines}: {message}")
    require(expected.phrase in message, f"the revert does not say {expected.phrase!r}: {message}")


def _require_stable_unharmed(environment: Environment, shipment: Shipment, expected: Rollback) -> float | None:
    """Check that no request failed before or after the canary had traffic, and few while it had 10 %.

    Return the seconds from the canary's first answer to weight 0, None if it answered nothing.
    """
    traffic, begun = environment.traffic, shipment.begun
    changes, abort = environment.events(begun, "weight"), environment.events(begun, "abort")[0].at
    by_canary = [answer.at for answer in traffic.between(begun) if answer.version == shipment.image.version]
    require(expected.weight != 0 or not by_canary, f"it answered {len(by_canary)} requests")
    first = ([event.at for event in changes] or by_canary or [abort])[0]
    last = ([event.at for event in changes if event.weight == 0] or [abort])[-1]
    without_canary = [*traffic.between(begun, first - 1), *traffic.between(last + 3)]
    require(bool(without_canary), "there was no traffic")
    failures = describe_failures(without_canary, begun)
    require(not failures, f"requests to the stable version failed: {failures}")
    if expected.weight == 10:
        answers = traffic.between(first, last)
        percent = 100 * sum(answer.good for answer in answers) / len(answers)
        failed = f"only {percent:.0f} % were answered correctly at 10 %: {describe_failures(answers, begun)}"
        require(percent >= expected.min_percent, failed)
    return round(last - by_canary[0], 1) if by_canary else None


def assert_all_logged(environment: Environment, since: float) -> None:
    """Raise ToolError unless prod's log has every answered prediction within a minute."""
    ids = [answer.request_id for answer in environment.traffic.between(since) if answer.request_id]
    query = "SELECT count(*) FROM seen LEFT JOIN predictions ON request_id = seen.id WHERE predictions.id IS NULL;"
    script = "\n".join(["CREATE TEMP TABLE seen (id text);", "COPY seen FROM stdin;", *ids, "\\.", query, ""])
    psql = ("psql", "--username=iris", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1")

    def missing() -> str | None:
        command = ("kubectl", "exec", "--stdin", "--namespace=database", "postgres-0", "--", *psql)
        count = node.run(*command, stdin=script).strip()
        return None if count == "0" else f"{count} of {len(ids)} predictions are not in the log"

    require(bool(ids), "there was no traffic")
    wait_for(missing, 60)


def assert_alerted(
    environment: Environment, alert: str, namespace: str, *, since: float = 0, minutes: float = 6
) -> None:
    """Wait for an alert in Slack; Alertmanager sends a namespace's new alerts every five minutes."""
    wait_for(lambda: environment.slack.missing(alert, namespace, since), 60 * minutes)


def assert_no_failures(environment: Environment, since: float) -> None:
    """Raise ToolError if a request failed."""
    failures = describe_failures(environment.traffic.between(since), since)
    require(not failures, f"requests failed: {failures}")


def assert_no_events(environment: Environment, since: float, *kinds: EventKind) -> None:
    """Raise ToolError if prod had an event of one of these kinds."""
    events = environment.events(since, *kinds)
    require(not events, f"there should be no such events: {events}")


def find_revert(digest: str) -> tuple[str, str]:
    """Return the commit that rejects an image in prod, and its message. Raises ToolError without one."""
    trailer = f"--grep={REJECTED}: {digest}"
    found = git_server.git("log", "--format=%H%n%B", trailer, "--max-count=1", "main", "--", "overlays/prod")
    require(bool(found), "git was not reverted")
    commit, _, message = found.partition("\n")
    return commit, message


def find_undo(bad: str) -> tuple[str, str]:
    """Return the commit that undoes everything that happened since `bad`, and its message, without its subject.

    Raises ToolError if main has another commit since, or other files than before `bad`.
    """
    since = git_server.git("log", "--format=%H", f"{bad}..main").split()
    require(len(since) == 1, f"not exactly one commit follows: {since}")
    require(not git_server.git("diff", f"{bad}^", "main"), "git has other files than before")
    commit, _, message = git_server.git("log", "--format=%H%n%b", f"--grep={REVERTED}: {bad}", "main").partition(
        "\n"
    )
    require(commit == since[0], "the revert does not name the commit in its trailer")
    return commit, message


def count_failed(environment: Environment, since: float) -> int:
    """Return the number of requests that got no answer, an error or a wrong answer."""
    return sum(not answer.good for answer in environment.traffic.between(since))


def require(condition: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Raise ToolError unless the condition is true."""
    if not condition:
        raise ToolError(otherwise)


def describe_failures(answers: list[Answer], since: float) -> str:
    """Return the status and time of the first ten requests that failed, empty if none did."""
    failed = [answer for answer in answers if not answer.good]
    return ", ".join(f"{answer.status} after {answer.at - since:.1f} s" for answer in failed[:10])
