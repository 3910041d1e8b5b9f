"""The report of a story: one HTML file that needs no other, for people who were not there."""

from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context

from tools.drill import timeline
from tools.drill.recording import Act, Mark, Story

TEMPLATE = "report.html.jinja"
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
NEXT = (
    ("make shell", "a shell in the cluster; in it:"),
    ("kubectl argo rollouts get rollout iris -n iris-prod", "what the rollout is doing"),
    (
        ".venv/bin/python -m tools.drill delivery history prod",
        "which model ran from when to when, who brought it, and why it left",
    ),
    ("make drill", "every way in which a release can go"),
    ("make down", "the end of the cluster; nothing is left"),
)


def write(story: Story, path: Path) -> None:
    """Write the report of the story; the same story gives the same file."""
    begin = timeline.begin(story)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        story=story,
        headline=headline(story),
        when=f"{datetime.fromtimestamp(begin, UTC):%Y-%m-%d %H:%M} UTC",
        length=timeline.clock(timeline.end(story) - begin),
        figure=_svg(story) if story.samples else "",
        durations=list(dict.fromkeys(name for act in story.acts for name in act.seconds)),
        total=total(story),
        marks=_marks,
        gates=_gates,
        clock=lambda mark: timeline.clock(mark.at - begin),
        share=_share,
        colors=timeline,
        next=NEXT,
    )
    path.write_text(timeline.printable(page), encoding="utf-8")


def picture(story: Story, act: Act, path: Path) -> None:
    """Write one release of the story as a PNG, from five seconds before its first mark to ten after its last."""
    begin, end = min(mark.at for mark in act.marks) - 5, max(mark.at for mark in act.marks) + 10
    samples = tuple(sample for sample in story.samples if begin <= sample.at <= end)
    timeline.timeline(Story(act.title, samples, (act,))).savefig(path, dpi=110, metadata={"Software": None})


def headline(story: Story) -> str:
    """Return in one sentence what became of the releases, and what users had of it."""
    if not story.acts:
        return "Nothing was released."
    back = sum(act.verdict == "taken back" for act in story.acts)
    shipped = len(story.acts) - back
    requests, bad = total(story)
    releases = "1 release" if shipped == 1 else f"{shipped or 'no'} releases"
    taken = f"{back} taken back by {'itself' if back == 1 else 'themselves'}" if back else "none taken back"
    return f"{releases} shipped, {taken}; {_users(requests, bad)}.".capitalize()


def total(story: Story) -> tuple[int, int]:
    """Return the requests of users from begin to end, also between the acts, and the bad ones of these."""
    bad = sum(sample.bad for sample in story.samples)
    return bad + sum(sum(sample.answers.values()) for sample in story.samples), bad


def _users(requests: int, bad: int) -> str:
    if not requests:
        return "no requests of users were counted"
    return f"{f'{bad:,}' if bad else 'none'} of {requests:,} requests of users {'was' if bad < 2 else 'were'} bad"


def _share(bad: int, requests: int) -> str:
    return f"{bad:,} ({bad / requests:.2%})" if bad and requests else f"{bad:,}"


def _marks(act: Act, *, gates: bool) -> list[Mark]:
    return sorted((mark for mark in act.marks if (mark.kind == "gate") == gates), key=lambda mark: mark.at)


def _gates(act: Act) -> str:
    verdicts = [mark.good for mark in _marks(act, gates=True)]
    counts = f"{verdicts.count(True)} good, {verdicts.count(False)} bad, {verdicts.count(None)} without data"
    return f"{len(verdicts)} gate measurements: {counts}"


def _svg(story: Story) -> str:
    buffer = StringIO()
    # Text stays text, which can be searched, and ids follow from what is drawn.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "drill"}):
        timeline.timeline(story).savefig(buffer, format="svg", metadata=NO_METADATA)
    text = buffer.getvalue()
    return text[text.index("<svg") :]  # what is before it belongs to a file of its own
