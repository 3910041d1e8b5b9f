"""Every way in which a release can go, and what has to become of it: by commit only, on the real cluster."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from delivery import rollout as rollouts
from tools.cluster import git_server, node, secrets
from tools.drill import dashboards, release_images
from tools.drill.checks import (
    PROMOTED,
    SPARED,
    TAKEN_BACK,
    Outcome,
    WrongError,
    bad,
    failures,
    hold,
    nothing_lost,
    promoted,
    reach,
    revert_of,
    see_promoted,
    served_by,
    taken_back,
)
from tools.drill.environment import Stage
from tools.drill.operator import Edit, RefusedError
from tools.drill.release_images import Shipped
from tools.drill.watch import PROMETHEUS
from tools.progress import wait_for

HOST = "iris.localhost"
ERRORS = "no  server errors"  # by whichever view has enough requests first
CONTROLLERS = {
    "the rollouts controller": ("argo-rollouts", "app.kubernetes.io/name=argo-rollouts"),
    "Argo CD": ("argocd", "app.kubernetes.io/name=argocd-application-controller"),
    "the router": ("traefik", "app.kubernetes.io/name=traefik"),
}


class Scenario(NamedTuple):
    """A release, and what is expected of it."""

    name: str
    expected: str
    play: Callable[[Stage], Outcome]


def fault(name: str, *, at: int, reason: str) -> Callable[[Stage], Outcome]:
    """Return the play of an image with that fault."""
    return lambda stage: taken_back(stage, stage.faulty(name), at=at, reason=reason)


def many_errors(stage: Stage) -> Outcome:
    """Taken back; who watches and who is on call are told, and every panel of the dashboards shows what was."""
    begun = time.time()
    outcome = taken_back(
        stage,
        stage.faulty("errors-30"),
        at=10,
        reason=ERRORS,
        during=lambda: watched_in_vain(stage, "prod"),
    )
    # The alert comes with the next look at the rules.
    wait_for(lambda: next(dashboards.faults(PROMETHEUS, begun, time.time()), None), 30, lambda _: None)
    told(stage, "RolloutAborted", "iris-prod")  # of this one, or of one from just before the drill
    return outcome


def watched_in_vain(stage: Stage, environment: str) -> str:
    """Watch a release as a person does until users do not get it; return what was said."""
    try:
        stage.loop.delivery("watch", environment, "--minutes=10")
    except RefusedError as error:
        hold(f"python -m delivery why {environment}" in str(error), f"delivery watch: {error}")
        return str(error)
    raise WrongError("delivery watch has taken it for promoted")


def a_good_release(stage: Stage) -> Outcome:
    """Promoted, and nobody notices."""
    begun = time.time()
    # It ends well only when all users have the release.
    outcome = promoted(stage, stage.next_good(), during=lambda: stage.loop.delivery("watch", "prod"))
    hold(outcome.bad == 0, f"{outcome.bad} requests failed: {failures(stage.traffic.between(begun), begun)}")
    return outcome


def another_model_than_git_says(stage: Stage) -> Outcome:
    """The image holds one model, git's model.json is of the other."""
    other = stage.other()
    running = next(name for name in release_images.MODELS if name != other)
    shipped = Shipped(release_images.bad(running, "none").digest, stage.good[other].model)
    return taken_back(stage, shipped, at=0, reason="git says")


def an_image_that_is_not_there(stage: Stage) -> Outcome:
    """A digest that was signed, and that the registry has no more."""
    return taken_back(stage, release_images.gone(stage.other()), at=0, reason="was not ready within")


def an_image_that_nobody_signed(stage: Stage) -> Outcome:
    """Nothing of it is started anywhere, `delivery watch` and `status` say why, and a person reverts."""
    shipped, begun = release_images.unsigned(stage.other()), time.time()
    stage.loop.ship(shipped)
    why = "signature of its image could not be verified"
    for name in ("dev", "prod"):
        said = watched_in_vain(stage, name), stage.loop.delivery("status", name)
        hold(all(why in text for text in said), f"it is not said why: {said}")
    asked = ("rollouts,replicasets,deployments,pods", "--all-namespaces", "--output=jsonpath={..image}")
    hold(shipped.digest not in node.run("kubectl", "get", *asked), "the cluster was asked to run it")
    stage.loop.revert()
    stage.watch.until(
        lambda: stage.watch.synced("iris-prod") == git_server.head(), 90, "Argo CD says that it is synced"
    )
    sha, body = revert_of(shipped.digest)
    hold(why in body, f"the revert does not say why: {body}")
    hold(not stage.marks(begun, "weight", "gate", "abort", "promoted"), "the rollout did something of its own")
    hold(bad(stage, begun) == 0, f"requests failed: {failures(stage.traffic.between(begun), begun)}")
    return Outcome("not started", None, bad(stage, begun), sha[:10])


def no_traffic(stage: Stage) -> Outcome:
    """Without users there is no verdict; somebody is told, and reverts, also when pods were added."""
    shipped, begun = release_images.bad(stage.other(), "none"), time.time()
    with stage.traffic.away():
        stage.loop.ship(shipped)
        reach(stage, 10, begun)
        told(stage, "RolloutWaiting", "iris-prod", since=begun, minutes=15)
        hold(stage.watch.weight() == 10 and not stage.is_aborted(), f"it did not wait: {stage.watch.state()}")
        with autoscaled(stage):
            stage.loop.revert("--reason=Nobody uses it; it waits for ever.")
            stage.watch.until(stage.rests, 90, "the version before is all that runs")
    hold(stage.weights(begun) == [10, 0], f"the weights were {stage.weights(begun)}")
    return Outcome("waits", None, bad(stage, begun), revert_of(shipped.digest)[0][:10])


def prometheus_away(*, healthy: bool) -> Callable[[Stage], Outcome]:
    """Return the play in which nobody measures for a minute, by a commit to monitoring/."""

    def play(stage: Stage) -> Outcome:
        def away() -> None:
            none = Edit("monitoring/kubernetes/prometheus-deployment.yaml", "  replicas: 1", "  replicas: 0")
            with stage.loop.changed("monitoring: Prometheus is away", none) as gone:
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

        if healthy:
            return promoted(stage, stage.next_good(), during=away)
        return taken_back(stage, stage.faulty("errors-30"), at=10, reason=ERRORS, during=away)

    return play


def a_second_release(stage: Stage) -> Outcome:
    """The first is abandoned in its canary, the second judged by all gates of its own."""
    first, second = release_images.bad(stage.other(), "none"), stage.next_good()
    begun = time.time()
    stage.loop.ship(first)
    reach(stage, 10, begun)
    outcome = promoted(stage, second)
    hold(outcome.bad == 0, f"requests failed: {failures(stage.traffic.between(begun), begun)}")
    hold(not stage.marks(begun, "abort"), "the first was aborted")
    return outcome


def a_person_reverts_in_git(stage: Stage) -> Outcome:
    """`delivery revert` in mid-canary: the users go back, and nothing is aborted."""
    shipped, begun = release_images.bad(stage.other(), "none"), time.time()
    stage.loop.ship(shipped)
    reach(stage, 10, begun)
    stage.loop.revert()
    stage.watch.until(stage.rests, 90, "the version before is all that runs")
    hold(not stage.marks(begun, "abort", "promoted"), "the rollout did something of its own")
    hold(stage.weights(begun) == [10, 0], f"the weights were {stage.weights(begun)}")
    return Outcome(TAKEN_BACK, None, bad(stage, begun), revert_of(shipped.digest)[0][:10])


def a_person_aborts(stage: Stage) -> Outcome:
    """`kubectl argo rollouts abort`: git follows."""

    shipped = release_images.bad(stage.other(), "none")
    return taken_back(stage, shipped, at=10, reason="a person has aborted it", during=lambda: argo("abort"))


def a_person_promotes(stage: Stage) -> Outcome:
    """`kubectl argo rollouts promote --full`: it is done at once, as git says."""
    shipped, begun = stage.next_good(), time.time()
    stage.loop.ship(shipped, "--override")
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
    hold(rollouts.digest(stage.watch.rollout("prod")) == digest, "the cluster runs something else than git says")
    hold(max(stage.weights(begun), default=0) == 0, "users were sent to what git does not say")
    return Outcome("as git says", None, bad(stage, begun), "")


def a_person_reverts_later(stage: Stage) -> Outcome:
    """`delivery revert` of what all users have: the release before comes back, through all gates of its own."""
    before = stage.good[next(name for name in release_images.MODELS if name != stage.other())]
    a_person_promotes(stage)
    begun = time.time()
    stage.loop.revert("--reason=It was promoted, and should not have been.")
    hold(stage.next_good() != before, "git says something else than the release before")
    outcome = see_promoted(stage, before, begun)
    hold(outcome.bad == 0, f"requests failed: {failures(stage.traffic.between(begun), begun)}")
    return outcome._replace(revert=git_server.head()[:10])


def a_rejected_release(stage: Stage) -> Outcome:
    """Refused; with --override it goes its way, and is taken back once more."""
    shipped = stage.faulty("errors-30")
    taken_back(stage, shipped, at=10, reason=ERRORS)
    stage.settle()
    try:
        stage.loop.ship(shipped)
    except RefusedError as error:
        hold("was rejected before" in str(error), f"it was refused for another reason: {error}")
    else:
        raise WrongError("it was not refused")
    return taken_back(stage, shipped, at=10, reason=ERRORS, options=("--override",))


def killed(what: str) -> Callable[[Stage], Outcome]:
    """Return the play in which a part of the platform dies in mid-canary."""

    def play(stage: Stage) -> Outcome:
        def kill() -> None:
            namespace, selector = CONTROLLERS[what]
            at_once = ("--wait=false", "--grace-period=0", "--force")
            done = node.run(
                *("kubectl", "delete", "pod", f"--namespace={namespace}", f"--selector={selector}", *at_once)
            )
            hold("deleted" in done, "there was nothing to kill")

        # Without its router nobody is served, until there is another one.
        spared = 0.5 if what == "the router" else SPARED
        return taken_back(stage, stage.faulty("errors-30"), at=10, reason=ERRORS, during=kill, spared=spared)

    return play


def a_forged_event(stage: Stage) -> Outcome:
    """Somebody tells the forge, with its token or without, that what runs well was aborted: git stays as it is."""
    begun, head = time.time(), git_server.head()
    image = stage.watch.rollout("prod")["spec"]["template"]["spec"]["containers"][0]["image"]
    payload = {"namespace": "iris-prod", "rollout": "iris", "image": image}
    message = json.dumps({"event_type": "rollout-aborted", "client_payload": payload})
    answers = [_tell_forge(message, token) for token in ("", "guessed", secrets.git_server_token())]
    hold(answers == ["401", "401", "204"], f"the forge has answered {answers}")
    time.sleep(5)
    hold(git_server.head() == head, "git was changed")
    hold(stage.rests(), "the rollout was changed")
    return Outcome("nothing changed", None, bad(stage, begun), "")


def _tell_forge(message: str, token: str) -> str:
    """Return the status that the forge answers a message with."""
    options = ("--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--data-binary", "@-")
    authorization = f"Authorization: Bearer {token}"
    url = f"http://{node.IP}:{git_server.PORT}{git_server.DISPATCH_PATH}"
    return node.run("curl", *options, "--header", authorization, url, stdin=message)


def blue_green(stage: Stage) -> Outcome:
    """With the blue-green variant: a good release is switched to, a bad one switched back."""
    component = "components:\n  - release\n"
    edits = (
        Edit("overlays/prod/kustomization.yaml", component, f"{component}  - ../../manifests/iris/blue-green\n"),
        Edit(
            "overlays/local/prod/kustomization.yaml", "strategy/canary/scaleDown", "strategy/blueGreen/scaleDown"
        ),
    )
    with stage.loop.changed("prod: blue-green", *edits):
        stage.watch.until(lambda: is_blue_green(stage), 90, "blue-green, with one version's pods")
        stage.settle()
        begun, good = time.time(), stage.next_good()
        stage.loop.ship(good, "--override")
        stage.watch.until(lambda: bool(stage.marks(begun, "promoted", "abort")), 420, "the verdict")
        hold(not stage.is_aborted(), "the good release was taken back")
        failed = stage.traffic.between(begun)
        hold(bad(stage, begun) == 0, f"requests failed: {failures(failed, begun)}")
        stage.settle()
        reason = rf"(?s)Measured with all users.*{ERRORS}.*all had it from the switch on"
        return taken_back(stage, stage.faulty("errors-30"), at=None, reason=reason)


def is_blue_green(stage: Stage) -> bool:
    """Whether prod is blue-green and a canary's pods have gone: there is room for three versions, not for four."""
    rollout = stage.watch.rollout("prod")
    alone = rollout["status"]["replicas"] == rollout["spec"]["replicas"]
    return rollouts.is_blue_green(rollout) and alone


def nobody_judges_or_keeps(stage: Stage) -> Outcome:
    """Neither the log's database nor the rollouts controller is there: users do not notice, people are told."""
    begun = time.time()
    with stopped("database", "statefulset/postgres"), stopped("argo-rollouts", "deployment/argo-rollouts"):
        told(stage, "TargetGone", "argo-rollouts", since=begun)
        told(stage, "JournalGrowing", "iris-prod", since=begun, minutes=15)
    served = stage.traffic.between(begun)
    hold(all(answer.good for answer in served), f"users were not served: {failures(served, begun)}")
    nothing_lost(stage, begun)
    return Outcome("told, nothing lost", None, bad(stage, begun), "")


@contextmanager
def autoscaled(stage: Stage) -> Iterator[None]:
    """Have the autoscaler add pods to prod, by a commit, as long as the block lasts."""
    three = Edit("manifests/iris/hpa.yaml", "minReplicas: 2", "minReplicas: 3")
    with stage.loop.changed("iris: at least three pods", three):
        stage.watch.until(lambda: stage.watch.rollout("prod")["spec"]["replicas"] >= 3, 90, "the third pod")
        yield


@contextmanager
def stopped(namespace: str, workload: str) -> Iterator[None]:
    """Have no pod of a workload as long as the block lasts."""
    scale = ("kubectl", "scale", workload, f"--namespace={namespace}")
    node.run(*scale, "--replicas=0")
    try:
        yield
    finally:
        node.run(*scale, "--replicas=1")
        node.run("kubectl", "rollout", "status", workload, f"--namespace={namespace}", "--timeout=90s")


def told(stage: Stage, alert: str, namespace: str, *, since: float = 0, minutes: float = 6) -> None:
    """See that people are told: Alertmanager adds to what they know of a namespace every five minutes."""
    wait_for(lambda: stage.told.of(alert, namespace, since), 60 * minutes, lambda _: None)


def argo(*command: str) -> None:
    """Do what a person does with `kubectl argo rollouts`."""
    node.run("kubectl", "argo", "rollouts", command[0], "iris", *command[1:], "--namespace=iris-prod")


def every() -> Iterator[Scenario]:
    """Yield all scenarios, those first that tell most."""
    ready, seen = "was not ready within", "no  server errors, as the router saw them"
    yield Scenario("good", "promoted, no failed request", a_good_release)
    yield Scenario("errors-30", "taken back at 10 %", many_errors)
    yield Scenario(
        "wrong-answers", "taken back before any user", fault("swapped", at=0, reason="recorded is class")
    )
    yield Scenario("crash", "taken back before any user", fault("crash", at=0, reason=ready))
    yield Scenario("unsigned", "not started", an_image_that_nobody_signed)
    yield Scenario("errors-3", "taken back at 10 %", fault("errors-3", at=10, reason=ERRORS))
    yield Scenario(
        "slow",
        "taken back at 10 %",
        fault("slow", at=10, reason="no  95 of 100 answers took at most, by its own pods"),
    )
    yield Scenario("resets", "taken back at 10 %", fault("resets", at=10, reason=seen))
    gone = f"{seen}|no  requests for which there was no pod"  # as it comes: too few may have met a pod
    yield Scenario("exits", "taken back at 10 %", fault("exits", at=10, reason=gone))
    yield Scenario("other-model", "taken back before any user", another_model_than_git_says)
    yield Scenario("never-ready", "taken back before any user", fault("never-ready", at=0, reason=ready))
    yield Scenario("no-image", "taken back before any user", an_image_that_is_not_there)
    yield Scenario("fails-at-100", "taken back at 100 %", fault("under-load", at=100, reason=ERRORS))
    yield Scenario("no-traffic", "waits, and an alert says so", no_traffic)
    yield Scenario("unmeasured-good", "promoted", prometheus_away(healthy=True))
    yield Scenario("unmeasured-bad", "taken back at 10 %", prometheus_away(healthy=False))
    yield Scenario("second-release", "the second is promoted", a_second_release)
    yield Scenario("person-reverts", "taken back", a_person_reverts_in_git)
    yield Scenario("person-aborts", "taken back, git follows", a_person_aborts)
    yield Scenario("person-promotes", "promoted", a_person_promotes)
    yield Scenario("person-undoes", "as git says", a_person_undoes)
    yield Scenario("reverted-later", "the one before is promoted", a_person_reverts_later)
    yield Scenario("rejected-again", "refused; with --override taken back", a_rejected_release)
    yield Scenario("forged-event", "nothing changes", a_forged_event)
    yield Scenario("controller-dies", "taken back at 10 %", killed("the rollouts controller"))
    yield Scenario("argocd-dies", "taken back at 10 %", killed("Argo CD"))
    yield Scenario("router-dies", "taken back at 10 %", killed("the router"))
    yield Scenario("blue-green", "good: switched; bad: switched back", blue_green)
    yield Scenario("unkept", "people are told, nothing is lost", nobody_judges_or_keeps)


CORE = ("good", "errors-30", "wrong-answers", "crash", "unsigned")
"""What CI plays: a verdict for each of the three gates, a good one, and what no gate ever sees."""
