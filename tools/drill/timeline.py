"""The picture of a story: one time axis, and a panel for each thing that changes along it."""

from collections.abc import Sequence
from itertools import groupby
from textwrap import shorten
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator, NullLocator
from numpy.typing import NDArray

from tools.drill.recording import Act, Mark, Sample, Story

Values = NDArray[np.float64]

# Told apart by lightness too, so that they survive colour blindness and a grey print.
STABLE, CANARY, GOOD, BAD, INK, MUTED = "#1f5fa8", "#e39b0b", "#00796b", "#b3123f", "#1f2933", "#616e7c"
PAPER, FAINT, NEUTRAL, ROSE = "#ffffff", "#d9dfe6", "#f0f3f7", "#fbecef"
VERSIONS = ("#c3cedb", "#8d9db1", "#b49fcd", "#79b0a5", "#d8c7a8", "#a9797f")
ERROR_LIMIT, P95_LIMIT = 1.0, 0.5  # percent, seconds; manifests/iris/analysistemplate-slo.yaml decides with them

WIDTH, LEFT, RIGHT, BOTTOM, GAP, EDGE = 12.0, 0.5, 0.12, 0.3, 0.4, 0.06  # inches
TITLES, ROW, LEVEL = 0.42, 0.16, 0.11  # inches
SMALL = 8.0  # points
LETTER = 0.62 * SMALL  # its mean width, rather too wide than too narrow
TICKS = (5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)  # seconds


class Scale(NamedTuple):
    """What is where along the time axis."""

    begin: float
    length: float  # seconds

    @property
    def point(self) -> float:
        """The seconds in a point, the unit of type."""
        return self.length / ((WIDTH - LEFT - RIGHT) * 72)

    def x(self, mark: Mark) -> float:
        """Return where the mark is."""
        return mark.at - self.begin

    def after(self, mark: Mark) -> float:
        """Return where the mark's name ends."""
        return self.x(mark) + (len(mark.kind) + 1.5) * LETTER * self.point


def begin(story: Story) -> float:
    """Return when the story begins: with its first sample or mark, whichever is earlier."""
    return min(_times(story), default=0.0)


def end(story: Story) -> float:
    """Return when it ends."""
    return max(_times(story), default=0.0)


def clock(seconds: float) -> str:
    """Return a time since the begin as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def printable(text: str) -> str:
    """Return the text with a sign in place of what shows nothing, or changes how the rest is shown."""
    return "".join(sign if sign.isprintable() or sign in "\n\t\u00a0" else "\ufffd" for sign in text)


def timeline(story: Story) -> Figure:
    """Draw a story that has samples; where a sample has no value is a gap."""
    scale = Scale(begin(story), max(end(story) - begin(story), 1.0))
    marks = sorted((mark for act in story.acts for mark in act.marks), key=lambda mark: mark.at)
    flags = _flags([mark for mark in marks if mark.kind not in {"gate", "weight"}], scale)
    dots = _dots([mark for mark in marks if mark.kind == "gate"], scale)
    rows = 1 + max((row for _, row in flags), default=-1)
    levels = 1 + max((level for _, level in dots), default=0)
    figure, panels = _panels([TITLES + rows * ROW, levels * LEVEL, 0.8, 1.1, 1.1, 1.35])
    head, gates, weight, errors, latency, answers = panels
    _head(head, story.acts, flags, scale)
    _gates(gates, dots, scale)
    _weight(weight, story.samples, [mark for mark in marks if mark.kind == "weight"], scale)
    _errors(errors, story.samples, scale)
    _latency(latency, story.samples, scale)
    _answers(answers, story.samples, scale)
    for axes in panels:
        _spans(axes, story.acts, scale)
    for axes in panels[1:]:
        for mark, _ in flags:
            axes.axvline(scale.x(mark), color=_tone(mark), lw=0.7, alpha=0.6, zorder=1.5)
    _time(panels, max([scale.length, *(scale.after(mark) for mark, _ in flags)]))
    return figure


def _times(story: Story) -> list[float]:
    return [sample.at for sample in story.samples] + [mark.at for act in story.acts for mark in act.marks]


def _tone(mark: Mark) -> str:
    return MUTED if mark.good is None else GOOD if mark.good else BAD


def _flags(marks: Sequence[Mark], scale: Scale) -> list[tuple[Mark, int]]:
    # Each with its row. From right to left, a name above all that stand in its way: no line runs through a name.
    flags: list[tuple[Mark, int]] = []
    for mark in reversed(marks):
        in_the_way = [row for other, row in flags if scale.x(other) < scale.after(mark)]
        flags.append((mark, 1 + max(in_the_way, default=-1)))
    return flags


def _dots(marks: Sequence[Mark], scale: Scale) -> list[tuple[Mark, int]]:
    # Each with its level: what was measured at the same time stands one above the other.
    dots: list[tuple[Mark, int]] = []
    for mark in marks:
        taken = {level for other, level in dots if mark.at - other.at < 7 * scale.point}
        dots.append((mark, min(set(range(len(taken) + 1)) - taken)))
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


def _spans(axes: Axes, acts: Sequence[Act], scale: Scale) -> None:
    for act in acts:
        if act.marks:
            tint = ROSE if act.verdict == "taken back" else NEUTRAL
            axes.axvspan(*(scale.x(mark) for mark in _ends(act)), color=tint, lw=0, zorder=0)


def _ends(act: Act) -> tuple[Mark, Mark]:
    ordered = sorted(act.marks, key=lambda mark: mark.at)
    return ordered[0], ordered[-1]


def _head(axes: Axes, acts: Sequence[Act], flags: Sequence[tuple[Mark, int]], scale: Scale) -> None:
    top = TITLES + ROW * (1 + max((row for _, row in flags), default=-1))
    axes.set_ylim(0, top)
    axes.set_axis_off()
    begun = [(scale.x(_ends(act)[0]), act) for act in acts if act.marks]
    for (x, act), (until, _) in zip(begun, [*begun[1:], (scale.length, None)], strict=False):
        title = _short(act.title, max(3, int((until - x) / scale.point / LETTER)))
        left = x + 4 * scale.point
        _text(axes, left, top - 0.13, title, color=INK, weight="bold", size=SMALL)
        _text(axes, left, top - 0.28, act.verdict, color=BAD if act.verdict == "taken back" else GOOD, size=SMALL)
    for mark, row in flags:
        y = (row + 0.5) * ROW
        axes.vlines(scale.x(mark), 0, y + 0.06, color=_tone(mark), lw=0.7, alpha=0.6)
        _text(axes, scale.x(mark) + 2.5 * scale.point, y, mark.kind, color=_tone(mark), size=SMALL)


def _gates(axes: Axes, dots: Sequence[tuple[Mark, int]], scale: Scale) -> None:
    for good, name, marker, size, face, edge in (
        (True, "good", "o", 4.0, GOOD, GOOD),
        (False, "bad", "X", 6.0, BAD, PAPER),
        (None, "no data", "o", 3.6, PAPER, MUTED),
    ):
        x = [scale.x(mark) for mark, _ in dots if mark.good is good]
        y = [level for mark, level in dots if mark.good is good]
        axes.plot(x, y, marker, ms=size, mfc=face, mec=edge, mew=0.8, label=name, clip_on=False)
    axes.set_ylim(-0.6, max((level for _, level in dots), default=0) + 0.6)
    axes.set_yticks([])
    _title(axes, "Gate measurements")


def _weight(axes: Axes, samples: Sequence[Sample], marks: Sequence[Mark], scale: Scale) -> None:
    x, weights = _x(samples, scale), [sample.weight for sample in samples]
    axes.fill_between(x, weights, step="post", color=CANARY, alpha=0.18, lw=0)
    axes.step(x, weights, where="post", color=CANARY, lw=1.8)
    at = [next((each.weight for each in samples if each.at >= mark.at), weights[-1]) for mark in marks]
    axes.plot([scale.x(mark) for mark in marks], at, "o", ms=4.5, mfc=PAPER, mec=CANARY, mew=1.4, clip_on=False)
    for weight, group in groupby(samples, key=lambda sample: sample.weight):
        if 0 < weight < 100:
            left = next(group).at - scale.begin + 5 * scale.point
            _text(axes, left, weight + 9, f"{weight} %", color=INK, size=SMALL)
    axes.set_ylim(0, 104)
    axes.set_yticks([0, 50, 100])
    _title(axes, "Canary weight, %")


def _errors(axes: Axes, samples: Sequence[Sample], scale: Scale) -> None:
    stable = _values([sample.stable_errors for sample in samples]) * 100
    canary = _values([sample.canary_errors for sample in samples]) * 100
    axes.set_yscale("symlog", linthresh=1, linscale=0.7)  # one percent decides, and a bad release has a hundred
    axes.set_ylim(-0.06, 130)
    axes.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    _pair(axes, _x(samples, scale), stable, canary)
    axes.axhline(ERROR_LIMIT, color=BAD, lw=1, ls=(0, (4, 3)), label="limit of the gate, 1 %")
    _title(axes, "Server errors as the router sees them, %")


def _latency(axes: Axes, samples: Sequence[Sample], scale: Scale) -> None:
    stable = _values([sample.stable_p95 for sample in samples])
    canary = _values([sample.canary_p95 for sample in samples])
    seen = np.concatenate([stable, canary])
    seen = seen[seen > 0]
    axes.set_yscale("log")
    axes.set_ylim(min([0.01, *seen]) / 1.3, max([1, *seen]) * 1.3)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _pair(axes, _x(samples, scale), stable, canary)
    axes.axhline(P95_LIMIT, color=BAD, lw=1, ls=(0, (4, 3)), label="limit of the gate, 0.5 s")
    _title(axes, "P95 of the answers, s")


def _pair(axes: Axes, x: Values, stable: Values, canary: Values) -> None:
    # The canary's line is the thinner one: where both are the same, both are seen.
    for values, color, width, name in ((stable, STABLE, 2.3, "stable"), (canary, CANARY, 1.5, "canary")):
        axes.plot(x, values, color=color, lw=width, label=name)
        there = np.pad(~np.isnan(values), 1)
        alone = there[1:-1] & ~there[:-2] & ~there[2:]  # between two gaps, where no line is drawn
        axes.plot(x[alone], values[alone], "o", color=color, ms=width, mew=0)


def _answers(axes: Axes, samples: Sequence[Sample], scale: Scale) -> None:
    x = _x(samples, scale)
    seconds = np.maximum(np.diff(x, prepend=x[0] - 1), 1)
    versions = sorted({each for sample in samples for each in sample.answers}, key=lambda each: (len(each), each))
    # The bad ones lie at the bottom, where the eye finds even one.
    counts = [[sample.bad for sample in samples]]
    counts += [[sample.answers.get(version, 0) for sample in samples] for version in versions]
    colors = [BAD] + [VERSIONS[number % len(VERSIONS)] for number in range(len(versions))]
    names = ["bad"] + [f"model {_short(version, 16)}" for version in versions]
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
        legend = axes.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=9,
            frameon=False,
            fontsize=SMALL,
            labelcolor=INK,
            borderpad=0,
            borderaxespad=0.5,
            handlelength=1.6,
            handletextpad=0.5,
            columnspacing=1.6,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _text(axes: Axes, x: float, y: float, text: str, color: str, size: float, weight: str = "normal") -> None:
    # Texts come from commits: a dollar sign in one is no formula.
    axes.text(x, y, text, color=color, fontsize=size, fontweight=weight, va="center", parse_math=False)


def _short(text: str, letters: int) -> str:
    return shorten(printable(text), letters, placeholder="…")
