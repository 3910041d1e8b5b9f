"""Every way in which a release can go, and what has to become of it: by commit only, on the real cluster."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cluster import forge, machine, secrets
from cluster.steps import ClusterError, step, wait_for
from delivery.changes import REJECTED
from drill import images
from drill.images import Shipped
from drill.loop import Loop, RefusedError
from drill.story import Mark
from drill.traffic import Answer, Traffic
from drill.watch import Watch

HOST = "iris.localhost"
PROMOTED, TAKEN_BACK = "promoted", "taken back"
COUNTED = "no  server errors, as its own pods counted them"
CONTROLLERS = {
    "the rollouts controller": ("argo-rollouts", "app.kubernetes.io/name=argo-rollouts"),
    "Argo CD": ("argocd", "app.kubernetes.io/name=argocd-application-controller"),
    "the router": ("traefik", "app.kubernetes.io/name=traefik"),
}


class WrongError(Exception):
    """Something came about that must not, or did not that must."""


class Outcome(NamedTuple):
    """What became of a release; `seconds` are those from the first answer of the new version to weight 0."""

    verdict: str
    seconds: float | None
    bad: int
    revert: str


class Scenario(NamedTuple):
    """A release, and what is expected of it."""

    name: str
    expected: str
    play: Callable[["Stage"], Outcome]


class Stage:
    """Where scenarios are played: a cluster with a model in prod, users, a person's clone, what is watched."""

    def __init__(self, loop: Loop, traffic: Traffic, watch: Watch) -> None:
        self.loop, self.traffic, self.watch = loop, traffic, watch
        self.good = {name: _ready(name, algorithm) for name, algorithm in images.MODELS.items()}

    def settle(self) -> None:
        """Have a good model in prod, all users on it, and nothing under way. Raises ClusterError."""
        rollout = self.watch.rollout("prod")
        if not rollout:
            self.loop.ship(self.good["model-1"], "--override")
        try:
            self.watch.until(self.rests, 120, "a stable version in prod")
        except ClusterError:  # a scenario that went wrong has left it half-way
            self.loop.revert()
            self.watch.until(self.rests, 180, "a stable version in prod")
        # The router learns of a first release's route a moment after the pods are ready.
        self.watch.until(self.all_served, 60, "every user being served")

    def all_served(self) -> bool:
        """Whether all users got the right answer for the last two seconds."""
        answers = self.traffic.between(time.time() - 2)
        return bool(answers) and all(answer.good for answer in answers)

    def other(self) -> str:
        """Return the name of the model that does not run in prod."""
        runs = self.loop.runs("prod").facts["sha256"]
        return next(name for name, good in self.good.items() if good.sha256 != runs)

    def next_good(self) -> Shipped:
        """Return an image that is good and another one than what runs."""
        return self.good[self.other()]

    def faulty(self, fault: str) -> Shipped:
        """Return an image of the model that does not run, with that fault."""
        return images.bad(self.other(), fault)

    def pod_hash(self) -> str:
        """Return the pod-template hash of what prod is being moved to."""
        return str(self.watch.rollout("prod").get("status", {}).get("currentPodHash", ""))

    def is_aborted(self) -> bool:
        """Whether prod's release was taken back by the cluster."""
        return bool(self.watch.rollout("prod").get("status", {}).get("abort"))

    def has(self, environment: str, shipped: Shipped) -> bool:
        """Whether an environment runs an image and nothing else."""
        rollout = self.watch.rollout(environment)
        status = rollout.get("status", {})
        image = rollout["spec"]["template"]["spec"]["containers"][0]["image"] if rollout else ""
        over = status.get("currentPodHash") == status.get("stableRS")
        seen = str(status.get("observedGeneration")) == str(rollout.get("metadata", {}).get("generation"))
        return bool(image.endswith(shipped.digest) and over and seen and status.get("phase") == "Healthy")

    def marks(self, since: float, *kinds: str) -> list[Mark]:
        """Return what has changed since then."""
        return [mark for mark in list(self.watch.marks) if mark.at >= since and mark.kind in kinds]

    def weights(self, since: float) -> list[int]:
        """Return the weights that the canary has had since then, in order."""
        return [int(mark.text.split()[0]) for mark in self.marks(since, "weight")]

    def rests(self) -> bool:
        """Whether prod has one version, which all users have."""
        status = self.watch.rollout("prod").get("status", {})
        over = bool(status.get("stableRS")) and status.get("currentPodHash") == status.get("stableRS")
        return over and status.get("phase") == "Healthy" and not status.get("abort") and self.watch.weight() == 0


def _ready(name: str, algorithm: str) -> Shipped:
    with step(f"{name}: {algorithm.replace('_', ' ')}, trained, built, pushed"):
        return images.good(name)


def promoted(stage: Stage, shipped: Shipped, *, during: Callable[[], None] | None = None) -> Outcome:
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
        lambda: stage.watch.synced("iris-prod") == forge.main(), 60, "Argo CD says that it is synced"
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
    during: Callable[[], None] | None = None,
) -> Outcome:
    """Ship a bad release and see it taken back, at that weight and for that reason, and git with it."""
    before, begun = stage.loop.runs("prod"), time.time()
    stage.loop.ship(shipped, *options)
    if during:
        reach(stage, at or 0, begun)
        during()
    return see_taken_back(stage, shipped, before.digest, begun, at, reason)


def see_taken_back(
    stage: Stage, shipped: Shipped, before: str, begun: float, at: int | None, reason: str
) -> Outcome:
    """See a release that was committed taken back, and the release `before` in its place again.

    `at` is the most that it has of the users, None where there are no shares.
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
    hold(reason in body, f"the revert's reason does not say {reason!r}: {body}")
    stage.watch.until(stage.rests, 90, "the version before is all that runs")
    stage.watch.until(
        lambda: stage.watch.synced("iris-prod") == forge.main(), 60, "Argo CD says that it is synced"
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
    """Raise ClusterError unless each prediction that a user got is in the log of prod, within a minute."""
    ids = [answer.request_id for answer in stage.traffic.between(since) if answer.request_id]
    query = "SELECT count(*) FROM seen LEFT JOIN predictions ON request_id = seen.id WHERE predictions.id IS NULL;"
    script = "\n".join(["CREATE TEMP TABLE seen (id text);", "COPY seen FROM stdin;", *ids, "\\.", query, ""])
    psql = ("psql", "--username=iris", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1")

    def missing() -> str | None:
        command = ("kubectl", "exec", "--stdin", "--namespace=database", "postgres-0", "--", *psql)
        count = machine.run(*command, stdin=script).strip()
        return None if count == "0" else f"{count} of {len(ids)} predictions are not in the log"

    hold(bool(ids), "there were no users")
    wait_for(missing, 60, lambda _: None)


def revert_of(digest: str) -> tuple[str, str]:
    """Return the commit that took an image back in prod, and what it says. Raises WrongError without."""
    arguments = (
        "log",
        "--format=%H",
        f"--grep={REJECTED}: {digest}",
        "--max-count=1",
        "main",
        "--",
        "overlays/prod",
    )
    sha = forge_git(*arguments)
    hold(bool(sha), "git was not reverted")
    return sha, forge_git("show", "--no-patch", "--format=%B", sha)


def forge_git(*arguments: str) -> str:
    """Return what a git command says about the cluster's repository."""
    command = ["git", f"--git-dir={forge.repository()}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


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


def fault(name: str, *, at: int, reason: str) -> Callable[[Stage], Outcome]:
    """Return the play of an image with that fault."""
    return lambda stage: taken_back(stage, stage.faulty(name), at=at, reason=reason)


def a_good_release(stage: Stage) -> Outcome:
    """Promoted, and nobody notices."""
    begun = time.time()
    outcome = promoted(stage, stage.next_good())
    hold(outcome.bad == 0, f"{outcome.bad} requests failed: {failures(stage.traffic.between(begun), begun)}")
    return outcome


def another_model_than_git_says(stage: Stage) -> Outcome:
    """The image holds one model, git's model.json is of the other."""
    other = stage.other()
    running = next(name for name in images.MODELS if name != other)
    shipped = Shipped(images.bad(running, "none").digest, stage.good[other].model)
    return taken_back(stage, shipped, at=0, reason="git says")


def an_image_that_is_not_there(stage: Stage) -> Outcome:
    """A digest that no registry has."""
    shipped = Shipped(f"sha256:{time.time_ns():064x}", stage.next_good().model)
    return taken_back(stage, shipped, at=0, reason="was not ready within")


def no_traffic(stage: Stage) -> Outcome:
    """Without users there is no verdict; somebody is told, and reverts."""
    shipped, begun = images.bad(stage.other(), "none"), time.time()
    with stage.traffic.away():
        stage.loop.ship(shipped)
        reach(stage, 10, begun)
        inconclusive = "an inconclusive gate"
        stage.watch.until(lambda: _phase_of_gate(stage) == "Inconclusive", 240, inconclusive)
        wait_for(lambda: None if _fires("RolloutWaiting") else "the alert does not fire yet", 300, lambda _: None)
        hold(stage.watch.weight() == 10 and not stage.is_aborted(), f"it did not wait: {stage.watch.state()}")
        stage.loop.revert("--reason=Nobody uses it; it waits for ever.")
        stage.watch.until(stage.rests, 90, "the version before is all that runs")
    hold(stage.weights(begun) == [10, 0], f"the weights were {stage.weights(begun)}")
    return Outcome("waits", None, bad(stage, begun), revert_of(shipped.digest)[0][:10])


def prometheus_away(*, healthy: bool) -> Callable[[Stage], Outcome]:
    """Return the play in which nobody measures for a minute, by a commit to monitoring/."""

    def play(stage: Stage) -> Outcome:
        def away() -> None:
            file, one, none = "monitoring/cluster/deployment.yaml", "  replicas: 1", "  replicas: 0"
            gone = stage.loop.change(file, one, none, "monitoring: Prometheus is away (drill)")
            try:
                stage.watch.until(lambda: stage.watch.synced("monitoring") == gone, 60, "Prometheus away")
                time.sleep(10)
                begun = time.time()
                time.sleep(60)
                measured = [mark.text for mark in stage.marks(begun, "gate") if mark.good is not None]
                hold(not measured, f"something was measured without Prometheus: {measured}")
                hold(
                    stage.watch.weight() == 10 and not stage.is_aborted(),
                    f"it did not hold: {stage.watch.state()}",
                )
            finally:
                stage.loop.change(file, none, one, "monitoring: Prometheus is back (drill)")

        if healthy:
            return promoted(stage, stage.next_good(), during=away)
        return taken_back(stage, stage.faulty("errors-30"), at=10, reason=COUNTED, during=away)

    return play


def a_second_release(stage: Stage) -> Outcome:
    """The first is abandoned in its canary, the second judged by all gates of its own."""
    first, second = images.bad(stage.other(), "none"), stage.next_good()
    begun = time.time()
    stage.loop.ship(first)
    reach(stage, 10, begun)
    outcome = promoted(stage, second)
    hold(outcome.bad == 0, f"requests failed: {failures(stage.traffic.between(begun), begun)}")
    hold(not stage.marks(begun, "abort"), "the first was aborted")
    return outcome


def a_person_reverts_in_git(stage: Stage) -> Outcome:
    """`delivery revert` in mid-canary: the users go back, and nothing is aborted."""
    shipped, begun = images.bad(stage.other(), "none"), time.time()
    stage.loop.ship(shipped)
    reach(stage, 10, begun)
    stage.loop.revert()
    stage.watch.until(stage.rests, 90, "the version before is all that runs")
    hold(not stage.marks(begun, "abort", "promoted"), "the rollout did something of its own")
    hold(stage.weights(begun) == [10, 0], f"the weights were {stage.weights(begun)}")
    return Outcome(TAKEN_BACK, None, bad(stage, begun), revert_of(shipped.digest)[0][:10])


def a_person_aborts(stage: Stage) -> Outcome:
    """`kubectl argo rollouts abort`: git follows."""

    shipped = images.bad(stage.other(), "none")
    return taken_back(stage, shipped, at=10, reason="a person has aborted it", during=lambda: argo("abort"))


def a_person_promotes(stage: Stage) -> Outcome:
    """`kubectl argo rollouts promote --full`: it is done at once, as git says."""
    shipped, begun = stage.next_good(), time.time()
    stage.loop.ship(shipped)
    reach(stage, 10, begun)
    argo("promote", "--full")
    stage.watch.until(lambda: bool(stage.marks(begun, "promoted")) and stage.rests(), 60, "the promotion")
    stage.watch.until(lambda: served_by(stage, shipped), 20, "all users being served by it")
    hold(stage.loop.runs("prod").digest == shipped.digest, "git says something else")
    return Outcome(PROMOTED, None, bad(stage, begun), "")


def a_person_undoes(stage: Stage) -> Outcome:
    """`kubectl argo rollouts undo`: Argo CD brings back what git says, before anybody is sent elsewhere."""
    digest, begun = stage.loop.runs("prod").digest, time.time()
    argo("undo")
    time.sleep(20)
    stage.watch.until(stage.rests, 90, "what git says is all that runs")
    image = stage.watch.rollout("prod")["spec"]["template"]["spec"]["containers"][0]["image"]
    hold(image.endswith(digest), "the cluster runs something else than git says")
    hold(max(stage.weights(begun), default=0) == 0, "users were sent to what git does not say")
    return Outcome("as git says", None, bad(stage, begun), "")


def a_rejected_release(stage: Stage) -> Outcome:
    """Refused; with --override it goes its way, and is taken back once more."""
    shipped = stage.faulty("errors-30")
    taken_back(stage, shipped, at=10, reason=COUNTED)
    stage.settle()
    try:
        stage.loop.ship(shipped)
    except RefusedError as error:
        hold("was rejected before" in str(error), f"it was refused for another reason: {error}")
    else:
        raise WrongError("it was not refused")
    return taken_back(stage, shipped, at=10, reason=COUNTED, options=("--override",))


def killed(what: str) -> Callable[[Stage], Outcome]:
    """Return the play in which a part of the platform dies in mid-canary."""

    def play(stage: Stage) -> Outcome:
        def kill() -> None:
            namespace, selector = CONTROLLERS[what]
            at_once = ("--wait=false", "--grace-period=0", "--force")
            done = machine.run(
                *("kubectl", "delete", "pod", f"--namespace={namespace}", f"--selector={selector}", *at_once)
            )
            hold("deleted" in done, "there was nothing to kill")

        return taken_back(stage, stage.faulty("errors-30"), at=10, reason=COUNTED, during=kill)

    return play


def a_forged_event(stage: Stage) -> Outcome:
    """Somebody tells the forge, with its token or without, that what runs well was aborted: git stays as it is."""
    begun, head = time.time(), forge_git("rev-parse", "main")
    image = stage.watch.rollout("prod")["spec"]["template"]["spec"]["containers"][0]["image"]
    payload = {"namespace": "iris-prod", "rollout": "iris", "image": image}
    message = json.dumps({"event_type": "rollout-aborted", "client_payload": payload})
    answers = [_tell_forge(message, token) for token in ("", "guessed", secrets.token())]
    hold(answers == ["401", "401", "204"], f"the forge has answered {answers}")
    time.sleep(5)
    hold(forge_git("rev-parse", "main") == head, "git was changed")
    hold(stage.rests(), "the rollout was changed")
    return Outcome("nothing changed", None, bad(stage, begun), "")


def _tell_forge(message: str, token: str) -> str:
    """Return the status that the forge answers a message with."""
    options = ("--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--data-binary", "@-")
    authorization = f"Authorization: Bearer {token}"
    url = f"http://{machine.NODE}:{forge.PORT}{forge.DISPATCHES}"
    return machine.run("curl", *options, "--header", authorization, url, stdin=message)


def blue_green(stage: Stage) -> Outcome:
    """With the blue-green variant: a good release is switched to, a bad one switched back."""
    prod, here = "overlays/prod/kustomization.yaml", "cluster/prod/kustomization.yaml"
    canary_only = "      - {op: replace, path: /spec/strategy/canary/scaleDownDelaySeconds, value: 30}\n"
    component = "components:\n  - release\n"
    stage.loop.change(here, canary_only, "", "cluster: no canary (drill)")
    stage.loop.change(
        prod, component, f"{component}  - ../../manifests/iris/blue-green\n", "prod: blue-green (drill)"
    )
    try:
        stage.watch.until(lambda: "blueGreen" in stage.watch.rollout("prod")["spec"]["strategy"], 60, "blue-green")
        stage.settle()
        begun, good = time.time(), stage.next_good()
        stage.loop.ship(good, "--override")
        stage.watch.until(lambda: bool(stage.marks(begun, "promoted", "abort")), 420, "the verdict")
        hold(not stage.is_aborted(), "the good release was taken back")
        failed = stage.traffic.between(begun)
        hold(bad(stage, begun) == 0, f"requests failed: {failures(failed, begun)}")
        stage.settle()
        return taken_back(stage, stage.faulty("errors-30"), at=None, reason=COUNTED)
    finally:
        stage.loop.change(
            prod, f"{component}  - ../../manifests/iris/blue-green\n", component, "prod: canary (drill)"
        )
        patches = "      - {op: replace, path: /spec/progressDeadlineSeconds, value: 60}\n"
        stage.loop.change(here, patches, patches + canary_only, "cluster: a canary again (drill)")


def argo(*command: str) -> None:
    """Do what a person does with `kubectl argo rollouts`."""
    machine.run("kubectl", "argo", "rollouts", command[0], "iris", *command[1:], "--namespace=iris-prod")


def _phase_of_gate(stage: Stage) -> str:
    runs = stage.watch.runs(stage.pod_hash())
    return str(runs[-1].get("status", {}).get("phase", "")) if runs else ""


def _fires(alert: str) -> bool:
    url = "http://prometheus.monitoring.svc.cluster.local:9090/api/v1/alerts"
    found = json.loads(machine.run("curl", "--silent", "--fail", url))["data"]["alerts"]
    return any(one["labels"]["alertname"] == alert and one["state"] == "firing" for one in found)


def every() -> Iterator[Scenario]:
    """Yield all scenarios, those first that tell most."""
    ready, seen = "was not ready within", "no  server errors, as the router saw them"
    yield Scenario("good", "promoted, no failed request", a_good_release)
    yield Scenario("errors-30", "taken back at 10 %", fault("errors-30", at=10, reason=COUNTED))
    yield Scenario(
        "wrong-answers", "taken back before any user", fault("swapped", at=0, reason="recorded is class")
    )
    yield Scenario("crash", "taken back before any user", fault("crash", at=0, reason=ready))
    yield Scenario("errors-3", "taken back at 10 %", fault("errors-3", at=10, reason=COUNTED))
    yield Scenario(
        "slow",
        "taken back at 10 %",
        fault("slow", at=10, reason="no  95 of 100 answers took at most, by its own pods"),
    )
    yield Scenario("resets", "taken back at 10 %", fault("resets", at=10, reason=seen))
    yield Scenario("exits", "taken back at 10 %", fault("exits", at=10, reason=seen))
    yield Scenario("other-model", "taken back before any user", another_model_than_git_says)
    yield Scenario("never-ready", "taken back before any user", fault("never-ready", at=0, reason=ready))
    yield Scenario("no-image", "taken back before any user", an_image_that_is_not_there)
    yield Scenario("fails-at-100", "taken back at 100 %", fault("under-load", at=100, reason=COUNTED))
    yield Scenario("no-traffic", "waits, and an alert says so", no_traffic)
    yield Scenario("unmeasured-good", "promoted", prometheus_away(healthy=True))
    yield Scenario("unmeasured-bad", "taken back at 10 %", prometheus_away(healthy=False))
    yield Scenario("second-release", "the second is promoted", a_second_release)
    yield Scenario("person-reverts", "taken back", a_person_reverts_in_git)
    yield Scenario("person-aborts", "taken back, git follows", a_person_aborts)
    yield Scenario("person-promotes", "promoted", a_person_promotes)
    yield Scenario("person-undoes", "as git says", a_person_undoes)
    yield Scenario("rejected-again", "refused; with --override taken back", a_rejected_release)
    yield Scenario("forged-event", "nothing changes", a_forged_event)
    yield Scenario("controller-dies", "taken back at 10 %", killed("the rollouts controller"))
    yield Scenario("argocd-dies", "taken back at 10 %", killed("Argo CD"))
    yield Scenario("router-dies", "taken back at 10 %", killed("the router"))
    yield Scenario("blue-green", "good: switched; bad: switched back", blue_green)


CORE = ("good", "errors-30", "wrong-answers", "crash")
"""What CI plays: a verdict for each of the three gates, and a good one."""
