"""The surroundings of a scenario: images to release, a clone to commit in, traffic, Slack, and the watch."""

import time
from typing import NamedTuple

from delivery import rollout as rollouts
from tools.cluster import git_server
from tools.drill import release_images
from tools.drill.cluster_watch import Watch
from tools.drill.operator import Operator
from tools.drill.recording import Event, EventKind
from tools.drill.release_images import ReleaseImage
from tools.drill.slack_receiver import SlackReceiver
from tools.drill.traffic import Traffic
from tools.errors import ToolError


class Shipment(NamedTuple):
    """An image that was released to prod."""

    image: ReleaseImage
    begun: float  # before its commit, seconds since 1970
    previous: str = ""  # digest of the release that git had in prod before


class Environment(NamedTuple):
    """The surroundings of a scenario, which acts on prod."""

    images: list[ReleaseImage]  # good ones, of two models
    operator: Operator
    traffic: Traffic
    slack: SlackReceiver
    watch: Watch

    def settle(self) -> None:
        """Make a good model serve all of prod's traffic, with no release in progress. Raises ToolError."""
        if self.operator.is_first_release():
            self.operator.run(self.images[0].release("--override"), ("promote", "--override"))
        try:
            self.wait_until_stable(120)
        except ToolError:  # the scenario before failed half-way
            self.operator.run(("revert", "prod"))
            self.wait_until_stable(180)
        # The router learns the route of a first release a moment after the pods are ready.
        self.watch.until(self.is_serving, 60, "all requests to be answered")

    def ship(self, image: ReleaseImage, *options: str, wait_for_canary: bool = False) -> Shipment:
        """Release an image to dev and promote it to prod, and wait until the canary has 10 % of the traffic.

        Raises ToolError: CommandFailed if `delivery` refuses.
        """
        shipment = Shipment(image, time.time(), self.operator.current_release().digest)
        self.operator.run(image.release(*options), ("promote", *options))
        if wait_for_canary:
            self.watch.until(lambda: 10 in self.weights(shipment.begun), 120, "a canary at 10 %")
            time.sleep(3)  # for some of its answers
        return shipment

    def wait_until_stable(self, seconds: float = 90) -> None:
        """Wait until prod has one version only. Raises ToolError."""
        self.watch.until(self.is_stable, seconds, "a stable version in prod")

    def wait_until_synced(self, seconds: float = 60) -> None:
        """Wait until Argo CD has synced prod to the newest commit. Raises ToolError."""
        self.watch.until(
            lambda: self.watch.synced_commit("iris-prod") == git_server.head(), seconds, "Argo CD to sync prod"
        )

    def wait_until_served_by(self, image: ReleaseImage) -> None:
        """Wait until an image has answered all requests of the last two seconds. Raises ToolError."""
        self.watch.until(
            lambda: self.is_serving(image.version), 20, f"model {image.version} to answer all requests"
        )

    def is_serving(self, version: str = "") -> bool:
        """Return whether all answers of the last two seconds were correct, and came from that model version."""
        answers = self.traffic.between(time.time() - 2)
        return bool(answers) and all(answer.good and version in {"", answer.version} for answer in answers)

    def is_stable(self) -> bool:
        """Return whether prod has one version, which serves all traffic."""
        rollout = self.watch.rollout("prod")
        return bool(rollout) and rollouts.is_promoted(rollout) and self.watch.weight() == 0

    def is_promoted(self, since: float) -> bool:
        """Return whether a release was promoted since then, and serves all traffic."""
        return bool(self.events(since, "promoted")) and self.is_stable()

    def is_aborted(self) -> bool:
        """Return whether prod's Rollout is aborted."""
        return rollouts.is_aborted(self.watch.rollout("prod"))

    def runs_only(self, name: str, image: ReleaseImage) -> bool:
        """Return whether dev or prod runs an image and nothing else."""
        rollout = self.watch.rollout(name)
        return bool(rollout) and rollouts.digest(rollout) == image.digest and rollouts.is_promoted(rollout)

    def running_image(self) -> ReleaseImage:
        """Return the good image of the model that runs in prod."""
        running = self.operator.current_release().metadata["sha256"]
        return next(image for image in self.images if image.metadata["sha256"] == running)

    def other_image(self) -> ReleaseImage:
        """Return the good image of the model that does not run in prod."""
        running = self.running_image()
        return next(image for image in self.images if image != running)

    def faulty_image(self, fault: str) -> ReleaseImage:
        """Build an image of the model that does not run in prod, with that fault."""
        return release_images.build_faulty(self.other_image(), fault)

    def events(self, since: float, *kinds: EventKind) -> list[Event]:
        """Return the events since then, of some kinds or of all, in order of time."""
        events = sorted(self.watch.events, key=lambda event: event.at)
        return [event for event in events if event.at >= since and (not kinds or event.kind in kinds)]

    def weights(self, since: float) -> list[int]:
        """Return the canary's weights in percent since then, in order."""
        return [event.weight for event in self.events(since, "weight")]
