"""The demo: a first release, one that is promoted, one that is rolled back, and a report of all three."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tools import cache
from tools.drill import checks
from tools.drill.environment import Environment, Shipment
from tools.drill.recording import EventKind, Recording, Release, Verdict, ignore_failures_before
from tools.drill.release_images import ReleaseImage
from tools.drill.report import picture, write
from tools.drill.scenarios import ERRORS_AT_10
from tools.drill.screen import heading
from tools.drill.traffic import USERS
from tools.progress import console

REPORT = cache.root() / "drill" / "report.html"
Course = tuple[str, float, dict[str, float]]
"""Why a release ended as it did, the time since which its requests count, and the seconds that its parts took."""


def perform(environment: Environment) -> Path:
    """Play the releases and return the path of the report. Raises ToolError."""
    begun = time.time()
    console.print(f"{USERS} users send requests from before the first release to the end")
    releases = []
    if environment.operator.is_first_release():
        releases.append(_release(environment, "Release 1: a first model", "released", _first))
    else:
        environment.settle()
    served = time.time()  # all requests of the last two seconds were answered
    releases += [
        _release(environment, "Release 2: another model, a good one", "promoted", _second),
        _release(environment, "Release 3: an image that fails three in ten requests", "rolled back", _third),
    ]
    samples = ignore_failures_before(served, (each for each in environment.watch.samples if each.at >= begun))
    recording = Recording("Three releases of an iris classifier", samples, tuple(releases))
    write(recording, REPORT)
    for release in releases[-2:]:
        picture(recording, release, REPORT.with_name(f"{release.verdict.replace(' ', '-')}.png"))
    return REPORT


def _release(
    environment: Environment, title: str, verdict: Verdict, play: Callable[[Environment], Course]
) -> Release:
    heading(title)
    begun = time.time()
    reason, counted, seconds = play(environment)
    requests, failed = len(environment.traffic.between(counted)), checks.count_failed(environment, counted)
    console.print(f"{requests} requests, {failed} failed")
    return Release(title, verdict, reason, tuple(environment.events(begun)), seconds, requests, failed)


def _first(environment: Environment) -> Course:
    image = environment.images[0]
    promotion = _ship_through_dev(environment, image).begun
    environment.watch.until(lambda: environment.runs_only("prod", image), 180, "prod to run it")
    ready = time.time()
    environment.wait_until_served_by(image)
    reason = "An environment's first release has no stable version to compare with: it gets all traffic at once."
    # Its requests count from when it answered all of them.
    return reason, time.time() - 2, {"promotion to running in prod": ready - promotion}


def _second(environment: Environment) -> Course:
    shipment = _ship_through_dev(environment, environment.other_image())
    checks.expect_promotion(environment, shipment)
    reason = (
        "It reproduced the recorded answers, and stayed within the limits at 10 % and at 100 % of the traffic."
    )
    synced, promoted = _seconds_to(environment, shipment, "sync", "promoted")
    return reason, shipment.begun, {"promotion to synced": synced, "promotion to all traffic": promoted}


def _third(environment: Environment) -> Course:
    shipment = environment.ship(environment.faulty_image("errors-30"))
    outcome = checks.expect_rollback(environment, shipment, ERRORS_AT_10)
    _, reason = checks.find_revert(shipment.image.digest)
    console.print(f"\n{reason}", markup=False)
    synced, abort, revert = _seconds_to(environment, shipment, "sync", "abort", "revert")
    seconds = {
        "promotion to synced": synced,
        "first answer to weight 0": outcome.seconds or 0.0,
        "abort to revert in git": revert - abort,
    }
    return reason, shipment.begun, seconds


def _ship_through_dev(environment: Environment, image: ReleaseImage) -> Shipment:
    """Release an image to dev, wait until it runs there, and promote it to prod.

    An earlier demo or drill may have rejected the image, hence --override.
    """
    environment.operator.run(image.release("--override"))
    environment.watch.until(lambda: environment.runs_only("dev", image), 180, "dev to run it")
    shipment = Shipment(image, time.time())
    environment.operator.run(("promote", "--override"))
    return shipment


def _seconds_to(environment: Environment, shipment: Shipment, *kinds: EventKind) -> Iterator[float]:
    for kind in kinds:
        yield environment.events(shipment.begun, kind)[0].at - shipment.begun
