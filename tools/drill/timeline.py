"""The timeline of a recording: panels of events, gates, weight, errors, latency and answers over one time axis."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from textwrap import shorten

import numpy as np
import yaml
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator
from numpy.typing import NDArray

from tools.checkout import ROOT
from tools.drill.recording import Event, Recording, Release, Sample

# The colours also differ in lightness, for colour-blind readers and grey prints.
STABLE, CANARY, GOOD, BAD, INK, MUTED = "#1f5fa8", "#e39b0b", "#00796b", "#b3123f", "#1f2933", "#616e7c"
PAPER, NEUTRAL, ROSE = "#ffffff", "#f0f3f7", "#fbecef"
VERSIONS = ("#c3cedb", "#8d9db1", "#b49fcd", "#79b0a5", "#d8c7a8", "#a9797f")
TONES = {None: MUTED, True: GOOD, False: BAD}  # by Event.good
SLO_GATE = ROOT / "manifests/iris/analysistemplate-slo.yaml"

WIDTH, LEFT, RIGHT, BOTTOM, GAP, EDGE = 12.0, 0.5, 0.12, 0.3, 0.4, 0.06  # inches
TITLES, ROW, LEVEL = 0.42, 0.16, 0.11  # inches
LETTER = 0.62 * 8.0  # points: the mean width of a letter, rounded up
TICKS = (5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)  # seconds
Placed = Sequence[tuple[Event, int]]
"""Events, each with the row of its label or the level of its dot."""


def span(recording: Recording) -> tuple[float, float]:
    """Return the times of the first and the last sample or event, in seconds since 1970; 0 if there is none."""
    events = [event.at for release in recording.releases for event in release.events]
    times = [sample.at for sample in recording.samples] + events
    return min(times, default=0.0), max(times, default=0.0)


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


@style.context(Path(__file__).with_suffix(".mplstyle"))
def timeline(recording: Recording) -> Figure:
    """Draw a recording that has samples; a missing value is a gap."""
    begin, end = span(recording)
    end = max(end, begin + 1)
    point = (end - begin) / ((WIDTH - LEFT - RIGHT) * 72)  # seconds
    samples, releases = recording.samples, [release for release in recording.releases if release.events]
    events = [event for release in releases for event in release.events]
    flags = _flags([event for event in events if event.kind not in {"gate", "weight"}], point)
    dots = _dots([event for event in events if event.kind == "gate"], point)
    top = TITLES + ROW * (1 + max((row for _, row in flags), default=-1))
    levels = 1 + max((level for _, level in dots), default=0)
    figure, panels = _panels([top, levels * LEVEL, 0.8, 1.1, 1.1, 1.35])
    head, gates, weight, errors, latency, answers = panels
    _head(head, top, releases, flags, end, point)
    _gates(gates, dots, levels)
    _weight(weight, samples, [event for event in events if event.kind == "weight"], point)
    _errors(errors, samples)
    _latency(latency, samples)
    _answers(answers, samples)
    for axes in panels:
        for release in releases:
            tint = ROSE if release.verdict == "rolled back" else NEUTRAL
            axes.axvspan(release.events[0].at, release.events[-1].at, color=tint, lw=0, zorder=0)
    for axes in panels[1:]:
        for event, _ in flags:
            axes.axvline(event.at, color=TONES[event.good], lw=0.7, alpha=0.6, zorder=1.5)
    last = max([end, *(_label_end(event, point) for event, _ in flags)])
    most = (last - begin) / 16
    answers.set_xlim(begin, last)
    answers.xaxis.set_major_locator(MultipleLocator(next((t for t in TICKS if t >= most), most), begin))
    answers.xaxis.set_major_formatter(lambda at, _: clock(at - begin))
    return figure


def _label_end(event: Event, point: float) -> float:
    return event.at + (len(event.kind) + 1.5) * LETTER * point


def _flags(events: Sequence[Event], point: float) -> Placed:
    """Return each event with the row of its label: above all labels to its right that it would overlap."""
    flags: list[tuple[Event, int]] = []
    for event in reversed(events):
        overlapping = [row for other, row in flags if other.at < _label_end(event, point)]
        flags.append((event, 1 + max(overlapping, default=-1)))
    return flags


def _dots(events: Sequence[Event], point: float) -> Placed:
    """Return each event with its level: dots that would overlap are stacked."""
    dots: list[tuple[Event, int]] = []
    for event in events:
        taken = {level for other, level in dots if event.at - other.at < 7 * point}
        dots.append((event, min(set(range(len(taken) + 1)) - taken)))
    return dots


def _panels(heights: Sequence[float]) -> tuple[Figure, Sequence[Axes]]:
    height = EDGE + sum(heights) + GAP * (len(heights) - 1) + BOTTOM
    figure = Figure(figsize=(WIDTH, height), dpi=100)
    place = {"left": LEFT / WIDTH, "right": 1 - RIGHT / WIDTH, "bottom": BOTTOM / height, "top": 1 - EDGE / height}
    gap = GAP * len(heights) / sum(heights)  # Matplotlib's unit is the mean height of the panels
    panels = figure.subplots(
        len(heights), sharex=True, gridspec_kw={"height_ratios": heights, "hspace": gap, **place}
    )
    return figure, panels.tolist()


def _head(axes: Axes, top: float, releases: Sequence[Release], flags: Placed, end: float, point: float) -> None:
    axes.set_ylim(0, top)
    axes.set_axis_off()
    begins = [release.events[0].at for release in releases]
    for release, x, until in zip(releases, begins, [*begins[1:], end], strict=False):
        title = _short(release.title, max(3, int((until - x) / point / LETTER)))
        left, color = x + 4 * point, BAD if release.verdict == "rolled back" else GOOD
        axes.text(left, top - 0.13, title, color=INK, weight="bold", va="center")
        axes.text(left, top - 0.28, release.verdict, color=color, va="center")
    for event, row in flags:
        y, color = (row + 0.5) * ROW, TONES[event.good]
        axes.vlines(event.at, 0, y + 0.06, color=color, lw=0.7, alpha=0.6)
        axes.text(event.at + 2.5 * point, y, event.kind, color=color, va="center")


def _gates(axes: Axes, dots: Placed, levels: int) -> None:
    for good, name, marker, size, face, edge in (
        (True, "passed", "o", 4.0, GOOD, GOOD),
        (False, "failed", "X", 6.0, BAD, PAPER),
        (None, "no data", "o", 3.6, PAPER, MUTED),
    ):
        x = [event.at for event, _ in dots if event.good is good]
        y = [level for event, level in dots if event.good is good]
        axes.plot(x, y, marker, ms=size, mfc=face, mec=edge, mew=0.8, label=name, clip_on=False)
    axes.set_ylim(-0.6, levels - 0.4)
    axes.set_yticks([])
    _title(axes, "Gate measurements")


def _weight(axes: Axes, samples: Sequence[Sample], changes: Sequence[Event], point: float) -> None:
    x, weights = [sample.at for sample in samples], [sample.weight for sample in samples]
    axes.fill_between(x, weights, step="post", color=CANARY, alpha=0.18, lw=0)
    axes.step(x, weights, where="post", color=CANARY, lw=1.8)
    x, weights = [event.at for event in changes], [event.weight for event in changes]
    axes.plot(x, weights, "o", ms=4.5, mfc=PAPER, mec=CANARY, mew=1.4, clip_on=False)
    for weight, group in groupby(samples, key=lambda sample: sample.weight):
        if 0 < weight < 100:
            axes.text(next(group).at + 5 * point, weight + 9, f"{weight} %", color=INK, va="center")
    axes.set_ylim(0, 104)
    axes.set_yticks([0, 50, 100])
    axes.set_title("Canary weight, %")


def _errors(axes: Axes, samples: Sequence[Sample]) -> None:
    percent = [[sample.stable_errors, sample.canary_errors] for sample in samples]
    # The gate's limit is one percent, and a bad release reaches a hundred.
    axes.set_yscale("symlog", linthresh=1, linscale=0.7)
    axes.set_ylim(-0.06, 130)
    axes.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    _versions(axes, samples, 100 * np.array(percent, dtype=float), 100 * limit("router-errors"), "%")
    _title(axes, "Server errors at the router, %")


def _latency(axes: Axes, samples: Sequence[Sample]) -> None:
    seconds = np.array([[sample.stable_p95, sample.canary_p95] for sample in samples], dtype=float)
    seen = seconds[seconds > 0]
    axes.set_yscale("log")
    axes.set_ylim(min([0.01, *seen]) / 1.3, max([1, *seen]) * 1.3)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    _versions(axes, samples, seconds, limit("router-latency-p95"), "s")
    _title(axes, "P95 latency at the router, s")


def _versions(
    axes: Axes, samples: Sequence[Sample], values: NDArray[np.float64], gate_limit: float, unit: str
) -> None:
    """Draw the gate's limit, and the stable and the canary version's column of `values`; NaN is not drawn."""
    x = np.array([sample.at for sample in samples])
    # The canary's line is thinner, so that both are visible where they coincide.
    for y, color, width, name in zip(values.T, (STABLE, CANARY), (2.3, 1.5), ("stable", "canary"), strict=True):
        axes.plot(x, y, color=color, lw=width, label=name)
        known = np.pad(~np.isnan(y), 1)
        alone = known[1:-1] & ~known[:-2] & ~known[2:]  # a value between two gaps, where no line is drawn
        axes.plot(x[alone], y[alone], "o", color=color, ms=width, mew=0)
    axes.axhline(gate_limit, color=BAD, lw=1, ls=(0, (4, 3)), label=f"gate limit, {gate_limit:g} {unit}")


def _answers(axes: Axes, samples: Sequence[Sample]) -> None:
    x = [sample.at for sample in samples]
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


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.legend(bbox_to_anchor=(1, 1), ncols=9)


def _short(text: str, letters: int) -> str:
    return shorten(printable(text), letters, placeholder="…")
