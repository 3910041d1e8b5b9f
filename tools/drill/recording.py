"""What a demo records for its report: a sample every second, and events where something changed."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

EventKind = Literal["commit", "sync", "gate", "weight", "promoted", "abort", "revert"]
Verdict = Literal["released", "promoted", "rolled back"]


class Sample(NamedTuple):
    """One second. Ratios and quantiles are None while Prometheus has too few requests for them."""

    at: float  # seconds since 1970
    weight: int  # of the canary, in percent
    stable_errors: float | None  # ratio, as the router counts it
    canary_errors: float | None
    stable_p95: float | None  # seconds
    canary_p95: float | None
    answers: dict[str, int]  # correct answers since the previous sample, by model version
    failed: int  # requests since the previous sample that got no answer, an error or a wrong answer


class Measurement(NamedTuple):
    """A gate's measurement of one metric: its phase in Argo Rollouts' terms, and its value if it has one."""

    metric: str
    phase: str
    value: float | None = None


class Event(NamedTuple):
    """A change or a gate's measurements in prod; only the fields of its kind are set."""

    at: float  # seconds since 1970
    kind: EventKind
    commit: str = ""  # id: what was committed, reverted with, or synced to
    subject: str = ""  # of that commit or revert
    weight: int = 0  # of the canary from now on, in percent
    model_version: str = ""  # that was promoted
    measurements: tuple[Measurement, ...] = ()  # that the gate took at the same time

    @property
    def good(self) -> bool | None:
        """Whether the release passed (True) or failed (False); None where the event says neither."""
        if self.kind == "gate":
            phases = {measurement.phase for measurement in self.measurements}
            if "Failed" in phases:
                return False
            return True if phases == {"Successful"} else None
        return {"promoted": True, "abort": False, "revert": False}.get(self.kind)


def describe(event: Event) -> str:
    """Return one line that says what happened."""
    commit = event.commit[:10]
    return {
        "commit": f"{commit} {event.subject}",
        "revert": f"{commit} {event.subject}",
        "sync": f"Argo CD synced prod to {commit}",
        "gate": ", ".join(map(_describe_measurement, event.measurements)),
        "weight": f"{event.weight} % of the traffic to the canary",
        "promoted": f"model {event.model_version} is the stable version",
        "abort": "all traffic back to the stable version",
    }[event.kind]


def _describe_measurement(measurement: Measurement) -> str:
    value = measurement.phase if measurement.value is None else f"{measurement.value:.3g}"
    return f"{measurement.metric} {value}"


class Release(NamedTuple):
    """One release, from its commit to its verdict."""

    title: str
    verdict: Verdict
    reason: str  # several lines of text
    events: tuple[Event, ...]  # in order of time
    seconds: dict[str, float]  # durations by name, for instance "commit to synced"
    requests: int  # during the release
    failed: int  # of these


class Recording(NamedTuple):
    """Everything that the report shows."""

    title: str
    samples: tuple[Sample, ...]
    releases: tuple[Release, ...]


def ignore_failures_before(served: float, samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Return the samples without the failed requests up to `served`, when the first release served all traffic.

    Before that there is no release to blame: nothing runs that could answer.
    """
    return tuple(sample if sample.at > served else sample._replace(failed=0) for sample in samples)
