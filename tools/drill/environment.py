"""Where a release is played: good models, a cluster that runs one, users, those who are told, a clone, a watch."""

import time

from delivery import rollout as rollouts
from tools.drill import release_images
from tools.drill.operator import Loop
from tools.drill.recording import Mark
from tools.drill.release_images import Shipped
from tools.drill.slack_receiver import Told
from tools.drill.traffic import Traffic
from tools.drill.watch import Watch
from tools.errors import ToolError


class Stage:
    """What a scenario has to do with."""

    def __init__(self, good: dict[str, Shipped], loop: Loop, traffic: Traffic, told: Told, watch: Watch) -> None:
        self.good, self.loop, self.traffic, self.told, self.watch = good, loop, traffic, told, watch

    def settle(self) -> None:
        """Have a good model in prod, all users on it, and nothing under way. Raises ToolError."""
        if self.loop.is_first():
            self.loop.ship(self.good["model-1"], "--override")
        try:
            self.watch.until(self.rests, 120, "a stable version in prod")
        except ToolError:  # a scenario that went wrong has left it half-way
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
        return release_images.bad(self.other(), fault)

    def pod_hash(self) -> str:
        """Return the pod-template hash of what prod is being moved to."""
        return str(self.watch.rollout("prod").get("status", {}).get("currentPodHash", ""))

    def is_aborted(self) -> bool:
        """Whether prod's release was taken back by the cluster."""
        return rollouts.is_aborted(self.watch.rollout("prod"))

    def has(self, environment: str, shipped: Shipped) -> bool:
        """Whether an environment runs an image and nothing else."""
        rollout = self.watch.rollout(environment)
        is_asked_for = bool(rollout) and rollouts.digest(rollout) == shipped.digest
        return is_asked_for and rollouts.is_promoted(rollout)

    def marks(self, since: float, *kinds: str) -> list[Mark]:
        """Return what has changed since then."""
        return [mark for mark in list(self.watch.marks) if mark.at >= since and mark.kind in kinds]

    def weights(self, since: float) -> list[int]:
        """Return the weights that the canary has had since then, in order."""
        return [int(mark.text.split()[0]) for mark in self.marks(since, "weight")]

    def rests(self) -> bool:
        """Whether prod has one version, which all users have."""
        rollout = self.watch.rollout("prod")
        return bool(rollout) and rollouts.is_promoted(rollout) and self.watch.weight() == 0
