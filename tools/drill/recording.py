"""What happened, as it is told afterwards: a sample every second, and marks where something changed."""

from typing import Literal, NamedTuple

Verdict = Literal["released", "promoted", "taken back"]


class Sample(NamedTuple):
    """One second. Ratios and quantiles are None while Prometheus has too few requests for them."""

    at: float  # seconds since 1970
    weight: int  # of the canary, in percent
    stable_errors: float | None  # ratio, as the router sees it
    canary_errors: float | None
    stable_p95: float | None  # seconds
    canary_p95: float | None
    answers: dict[str, int]  # good answers that users got since the sample before, by model version
    bad: int  # requests of users since then that failed or were answered wrongly


class Mark(NamedTuple):
    """Something that changed, or that was measured; `good` is None where it is neither good nor bad."""

    at: float
    kind: Literal["commit", "sync", "gate", "weight", "promoted", "abort", "revert"]
    text: str
    good: bool | None = None


class Act(NamedTuple):
    """One release, from its commit to what became of it."""

    title: str
    verdict: Verdict
    reason: str  # several lines, for people
    marks: tuple[Mark, ...]
    seconds: dict[str, float]  # durations by what they are, for instance "from the commit to synced"
    requests: int  # of users while it lasted
    bad: int  # of these, failed or answered wrongly


class Story(NamedTuple):
    """Everything that the report shows."""

    title: str
    samples: tuple[Sample, ...]
    acts: tuple[Act, ...]
