"""Two pictures for the registry: where the model errs, and what it looks at."""

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from pipeline.dataset import CLASSES
from pipeline.evaluation import Evaluation

ROOM = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)  # inches
INK, PALE = "#1f2933", "#ffffff"


def confusion(evaluation: Evaluation) -> Figure:
    """Draw the confusion matrix of the test rows: true classes down, predicted ones across."""
    counts = evaluation.confusion
    right, total = counts.trace(), counts.sum()
    figure = Figure(figsize=(5.4, 5.0), dpi=150, layout=ROOM)
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues", vmin=0, vmax=counts.sum(axis=1).max() * 1.25)
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            color = PALE if count > counts.max() / 2 else INK
            axes.text(column, row, str(count), ha="center", va="center", fontsize=18, color=color)
    axes.set_title(f"{evaluation.algorithm}: {right} of {total} test rows named right", fontsize=11, pad=12)
    axes.set_xticks(range(len(CLASSES)), CLASSES)
    axes.set_yticks(range(len(CLASSES)), CLASSES, rotation=90, va="center")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    _bare(figure)
    return figure


def importance(shares: dict[str, float]) -> Figure:
    """Draw each feature's share of the forest's decisions, the largest on top."""
    names = sorted(shares, key=lambda name: shares[name])
    figure = Figure(figsize=(6.0, 2.8), dpi=150, layout=ROOM)
    axes = figure.subplots()
    bars = axes.barh(names, [shares[name] for name in names], color="#4c8bbf", height=0.62)
    axes.bar_label(bars, fmt="%.2f", padding=4, color=INK)
    axes.set_title("random_forest: share of each feature in its decisions", fontsize=11, pad=10)
    axes.set_xlim(0, max(shares.values()) * 1.15)
    axes.set_xticks([])
    _bare(figure)
    return figure


def _bare(figure: Figure) -> None:
    for axes in figure.axes:
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, colors=INK)
