"""The timeline of a recording: panels of events, gates, weight, errors, latency and answers over one time axis."""

from collections.abc import Sequence
from itertools import groupby
from textwrap import shorten
from typing import NamedTuple

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator, NullLocator
from numpy.typing import NDArray

from tools.checkout import ROOT
from tools.drill.recording import Event, Recording, Release, Sample

Values = NDArray[np.float64]

# The colours also differ in lightness, for colour-blind readers and grey prints.
STABLE, CANARY, GOOD, BAD, INK, MUTED = "#1f5fa8", "#e39b0b", "#00796b", "#b3123f", "#1f2933", "#616e7c"
PAPER, FAINT, NEUTRAL, ROSE = "#ffffff", "#d9dfe6", "#f0f3f7", "#fbecef"
VERSIONS = ("#c3cedb", "#8d9db1", "#b49fcd", "#79b0a5", "#d8c7a8", "#a9797f")
SLO_GATE = ROOT / "manifests/iris/analysistemplate-slo.yaml"

WIDTH, LEFT, RIGHT, BOTTOM, GAP, EDGE = 12.0, 0.5, 0.12, 0.3, 0.4, 0.06  # inches
TITLES, ROW, LEVEL = 0.42, 0.16, 0.11  # inches
SMALL = 8.0  # points
LETTER = 0.62 * SMALL  # mean width of a letter, rounded up
TICKS = (5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)  # seconds


class Scale(NamedTuple):
    """The time axis."""

    begin: float
    length: float  # seconds

    @property
    def point(self) -> float:
        """Return the seconds in a typographic point."""
        return self.length / ((WIDTH - LEFT - RIGHT) * 72)

    def x(self, event: Event) -> float:
        """Return the position of an event."""
        return event.at - self.begin

    def after(self, event: Event) -> float:
        """Return where the event's label ends."""
        return self.x(event) + (len(event.kind) + 1.5) * LETTER * self.point


def span(recording: Recording) -> tuple[float, float]:
    """Return the times of the first and the last sample or event, in seconds since 1970; 0 if there is none."""
    events = [event.at for release in recording.releases for event in release.events]
    times = [sample.at for sample in recording.samples] + events
    return min(times, default=0.0), max(times, default=0.0)


def ends(release: Release) -> tuple[Event, Event]:
    """Return the first and the last event of a release that has events."""
    ordered = sorted(release.events, key=lambda event: event.at)
    return ordered[0], ordered[-1]


def limit(metric: str) -> float:
    """Return the slo gate's limit for a metric: a ratio, or seconds."""
    metrics = {each["name"]: each for each in yaml.safe_load(SLO_GATE.read_text())["spec"]["metrics"]}
    return float(metrics[metric]["failureCondition"].rpartition("> ")[2])


def clock(seconds: float) -> str:
    """Return seconds since the beginning as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def printable(text: str) -> str:
    """Return the text with control and other unprintable characters replaced."""
    return "".join(sign if sign.isprintable() or sign in "\n\t\u00a0" else "\ufffd" for sign in text)


def timeline(recording: Recording) -> Figure:
    """Draw a recording that has samples; a missing value is a gap."""
    begin, end = span(recording)
    scale = Scale(begin, max(end - begin, 1.0))
    samples, releases = recording.samples, recording.releases
    events = sorted((event for release in releases for event in release.events), key=lambda event: event.at)
    flags = _flags([event for event in events if event.kind not in {"gate", "weight"}], scale)
    dots = _dots([event for event in events if event.kind == "gate"], scale)
    rows = 1 + max((row for _, row in flags), default=-1)
    levels = 1 + max((level for _, level in dots), default=0)
    figure, panels = _panels([TITLES + rows * ROW, levels * LEVEL, 0.8, 1.1, 1.1, 1.35])
    head, gates, weight, errors, latency, answers = panels
    _head(head, releases, flags, scale)
    _gates(gates, dots, scale)
    _weight(weight, samples, [event for event in events if event.kind == "weight"], scale)
    _errors(errors, samples, scale)
    _latency(latency, samples, scale)
    _answers(answers, samples, scale)
    for axes in panels:
        _spans(axes, releases, scale)
    for axes in panels[1:]:
        for event, _ in flags:
            axes.axvline(scale.x(event), color=_tone(event), lw=0.7, alpha=0.6, zorder=1.5)
    _time(panels, max([scale.length, *(scale.after(event) for event, _ in flags)]))
    return figure


def _tone(event: Event) -> str:
    return {None: MUTED, True: GOOD, False: BAD}[event.good]


def _flags(events: Sequence[Event], scale: Scale) -> list[tuple[Event, int]]:
    """Return each event with the row of its label: above all labels to its right that it would overlap."""
    flags: list[tuple[Event, int]] = []
    for event in reversed(events):
        overlapping = [row for other, row in flags if scale.x(other) < scale.after(event)]
        flags.append((event, 1 + max(overlapping, default=-1)))
    return flags


def _dots(events: Sequence[Event], scale: Scale) -> list[tuple[Event, int]]:
    """Return each event with its level: dots that would overlap are stacked."""
    dots: list[tuple[Event, int]] = []
    for event in events:
        taken = {level for other, level in dots if event.at - other.at < 7 * scale.point}
        dots.append((event, min(set(range(len(taken) + 1)) - taken)))
    return dots


def _panels(heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    height = EDGE + sum(heights) + GAP * (len(heights) - 1) + BOTTOM
    figure = Figure(figsize=(WIDTH, height), dpi=100, facecolor=PAPER)
    panels: list[Axes] = []
    top = height - EDGE
    for each in heights:
        place = (LEFT / WIDTH, (top - each) / height, 1 - (LEFT + RIGHT) / WIDTH, each / height)
        axes = figure.add_axes(place, sharex=panels[0] if panels else None, facecolor="none")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
        axes.tick_params(length=0, labelsize=SMALL, labelcolor=MUTED)
        axes.tick_params(axis="x", labelbottom=False)
        panels.append(axes)
        top -= each + GAP
    return figure, panels


def _spans(axes: Axes, releases: Sequence[Release], scale: Scale) -> None:
    for release in releases:
        if release.events:
            tint = ROSE if release.verdict == "rolled back" else NEUTRAL
            axes.axvspan(*(scale.x(event) for event in ends(release)), color=tint, lw=0, zorder=0)


def _head(axes: Axes, releases: Sequence[Release], flags: Sequence[tuple[Event, int]], scale: Scale) -> None:
    top = TITLES + ROW * (1 + max((row for _, row in flags), default=-1))
    axes.set_ylim(0, top)
    axes.set_axis_off()
    shown = [release for release in releases if release.events]
    begins = [scale.x(ends(release)[0]) for release in shown]
    for release, x, until in zip(shown, begins, [*begins[1:], scale.length], strict=False):
        title = _short(release.title, max(3, int((until - x) / scale.point / LETTER)))
        left, color = x + 4 * scale.point, BAD if release.verdict == "rolled back" else GOOD
        _text(axes, left, top - 0.13, title, color=INK, weight="bold")
        _text(axes, left, top - 0.28, release.verdict, color=color)
    for event, row in flags:
        y = (row + 0.5) * ROW
        axes.vlines(scale.x(event), 0, y + 0.06, color=_tone(event), lw=0.7, alpha=0.6)
        _text(axes, scale.x(event) + 2.5 * scale.point, y, event.kind, color=_tone(event))


def _gates(axes: Axes, dots: Sequence[tuple[Event, int]], scale: Scale) -> None:
    for good, name, marker, size, face, edge in (
        (True, "passed", "o", 4.0, GOOD, GOOD),
        (False, "failed", "X", 6.0, BAD, PAPER),
        (None, "no data", "o", 3.6, PAPER, MUTED),
    ):
        x = [scale.x(event) for event, _ in dots if event.good is good]
        y = [level for event, level in dots if event.good is good]
        axes.plot(x, y, marker, ms=size, mfc=face, mec=edge, mew=0.8, label=name, clip_on=False)
    axes.set_ylim(-0.6, max((level for _, level in dots), default=0) + 0.6)
    axes.set_yticks([])
    _title(axes, "Gate measurements")


def _weight(axes: Axes, samples: Sequence[Sample], changes: Sequence[Event], scale: Scale) -> None:
    x, weights = _x(samples, scale), [sample.weight for sample in samples]
    axes.fill_between(x, weights, step="post", color=CANARY, alpha=0.18, lw=0)
    axes.step(x, weights, where="post", color=CANARY, lw=1.8)
    y = [event.weight for event in changes]
    axes.plot([scale.x(event) for event in changes], y, "o", ms=4.5, mfc=PAPER, mec=CANARY, mew=1.4, clip_on=False)
    for weight, group in groupby(samples, key=lambda sample: sample.weight):
        if 0 < weight < 100:
            left = next(group).at - scale.begin + 5 * scale.point
            _text(axes, left, weight + 9, f"{weight} %", color=INK)
    axes.set_ylim(0, 104)
    axes.set_yticks([0, 50, 100])
    _title(axes, "Canary weight, %")


def _errors(axes: Axes, samples: Sequence[Sample], scale: Scale) -> None:
    stable = _values([sample.stable_errors for sample in samples]) * 100
    canary = _values([sample.canary_errors for sample in samples]) * 100
    axes.set_yscale(
        "symlog", linthresh=1, linscale=0.7
    )  # the limit is one percent, and a bad release reaches a hundred
    axes.set_ylim(-0.06, 130)
    axes.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    _pair(axes, _x(samples, scale), stable, canary)
    percent = 100 * limit("router-errors")
    axes.axhline(percent, color=BAD, lw=1, ls=(0, (4, 3)), label=f"gate limit, {percent:g} %")
    _title(axes, "Server errors at the router, %")


def _latency(axes: Axes, samples: Sequence[Sample], scale: Scale) -> None:
    stable = _values([sample.stable_p95 for sample in samples])
    canary = _values([sample.canary_p95 for sample in samples])
    seen = np.concatenate([stable, canary])
    seen = seen[seen > 0]
    axes.set_yscale("log")
    axes.set_ylim(min([0.01, *seen]) / 1.3, max([1, *seen]) * 1.3)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _pair(axes, _x(samples, scale), stable, canary)
    seconds = limit("router-latency-p95")
    axes.axhline(seconds, color=BAD, lw=1, ls=(0, (4, 3)), label=f"gate limit, {seconds:g} s")
    _title(axes, "P95 latency at the router, s")


def _pair(axes: Axes, x: Values, stable: Values, canary: Values) -> None:
    # The canary's line is thinner, so that both are visible where they coincide.
    for values, color, width, name in ((stable, STABLE, 2.3, "stable"), (canary, CANARY, 1.5, "canary")):
        axes.plot(x, values, color=color, lw=width, label=name)
        known = np.pad(~np.isnan(values), 1)
        alone = known[1:-1] & ~known[:-2] & ~known[2:]  # a value between two gaps, where no line is drawn
        axes.plot(x[alone], values[alone], "o", color=color, ms=width, mew=0)


def _answers(axes: Axes, samples: Sequence[Sample], scale: Scale) -> None:
    x = _x(samples, scale)
    seconds = np.maximum(np.diff(x, prepend=x[0] - 1), 1)
    versions = sorted({each for sample in samples for each in sample.answers}, key=lambda each: (len(each), each))
    # Failed requests are at the bottom, where even one is visible.
    counts = [[sample.failed for sample in samples]]
    counts += [[sample.answers.get(version, 0) for sample in samples] for version in versions]
    colors = [BAD] + [VERSIONS[number % len(VERSIONS)] for number in range(len(versions))]
    names = ["failed"] + [f"model {_short(version, 16)}" for version in versions]
    layers = np.array(counts) / seconds
    axes.stackplot(x, layers, step="pre", colors=colors, labels=names, lw=0)
    axes.set_ylim(0, max(1.0, layers.sum(axis=0).max()) * 1.08)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    _title(axes, "Answers per second")


def _time(panels: Sequence[Axes], last: float) -> None:
    step = next((tick for tick in TICKS if last / tick <= 16), last / 16)
    panels[0].set_xlim(0, last)
    panels[-1].xaxis.set_major_locator(MultipleLocator(step))
    panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value)))
    panels[-1].tick_params(axis="x", labelbottom=True)


def _x(samples: Sequence[Sample], scale: Scale) -> Values:
    return np.array([sample.at - scale.begin for sample in samples])


def _values(values: Sequence[float | None]) -> Values:
    return np.array(values, dtype=float)  # None becomes NaN, which is not drawn


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=SMALL + 1, fontweight="bold", color=INK, pad=7)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[1]:
        style = {"frameon": False, "fontsize": SMALL, "labelcolor": INK, "borderpad": 0}
        legend = axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=9, **style)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _text(axes: Axes, x: float, y: float, text: str, color: str, weight: str = "normal") -> None:
    # Texts come from commits, so a dollar sign does not begin a formula.
    axes.text(x, y, text, color=color, fontsize=SMALL, fontweight=weight, va="center", parse_math=False)


def _short(text: str, letters: int) -> str:
    return shorten(printable(text), letters, placeholder="…")
