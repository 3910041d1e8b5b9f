"""The report of a recording: one HTML file with everything in it."""

from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context

from tools.drill import timeline
from tools.drill.recording import Recording, Release, describe

NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
NEXT = (
    ("make shell", "a shell in the cluster, for the next command"),
    ("kubectl argo rollouts get rollout iris -n iris-prod", "the state of the rollout"),
    (
        ".venv/bin/python -m tools.drill delivery history prod",
        "which model ran when, who released it, and why it was superseded or rolled back",
    ),
    ("make drill", "the other scenarios"),
    ("make down", "delete the cluster"),
)


def write(recording: Recording, path: Path) -> None:
    """Write the report of a recording; the same recording gives the same file."""
    begin, end = timeline.span(recording)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        recording=recording,
        headline=headline(recording),
        when=f"{datetime.fromtimestamp(begin, UTC):%Y-%m-%d %H:%M} UTC",
        length=timeline.clock(end - begin),
        figure=_svg(recording) if recording.samples else "",
        durations=list(dict.fromkeys(name for release in recording.releases for name in release.seconds)),
        total=total(recording),
        describe=describe,
        gates=_gates,
        clock=lambda event: timeline.clock(event.at - begin),
        failures=_failures,
        colors=timeline,
        next=NEXT,
    )
    path.write_text(timeline.printable(page), encoding="utf-8")


def picture(recording: Recording, release: Release, path: Path) -> None:
    """Write one release as a PNG, from five seconds before its first event to ten after its last."""
    begin, end = release.events[0].at - 5, release.events[-1].at + 10
    samples = tuple(sample for sample in recording.samples if begin <= sample.at <= end)
    alone = Recording(release.title, samples, (release,))
    timeline.timeline(alone).savefig(path, dpi=110, metadata={"Software": None})


def headline(recording: Recording) -> str:
    """Return in one sentence how the releases and the requests ended."""
    if not recording.releases:
        return "Nothing was released."
    back = sum(release.verdict == "rolled back" for release in recording.releases)
    good = len(recording.releases) - back
    releases = "1 release" if good == 1 else f"{good or 'No'} releases"
    rolled_back = f"{back} rolled back automatically" if back else "none rolled back"
    requests, failed = total(recording)
    answered = f"{f'{failed:,}' if failed else 'none'} of {requests:,} requests failed"
    return f"{releases} succeeded, {rolled_back}; {answered if requests else 'no requests were counted'}."


def total(recording: Recording) -> tuple[int, int]:
    """Return the number of requests from beginning to end, and how many of them failed."""
    failed = sum(sample.failed for sample in recording.samples)
    return failed + sum(sum(sample.answers.values()) for sample in recording.samples), failed


def _failures(failed: int, requests: int) -> str:
    return f"{failed:,} ({failed / requests:.2%})" if failed and requests else f"{failed:,}"


def _gates(release: Release) -> str:
    verdicts = [event.good for event in release.events if event.kind == "gate"]
    counts = f"{verdicts.count(True)} passed, {verdicts.count(False)} failed, {verdicts.count(None)} without data"
    return f"{len(verdicts)} gate measurements: {counts}"


def _svg(recording: Recording) -> str:
    buffer = StringIO()
    # Text stays text, which can be searched; the salt makes the ids the same each time.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "drill"}):
        timeline.timeline(recording).savefig(buffer, format="svg", metadata=NO_METADATA)
    text = buffer.getvalue()
    return text[text.index("<svg") :]  # without the XML declaration, which is not allowed inside HTML
