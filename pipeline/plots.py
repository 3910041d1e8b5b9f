"""Plots for the registry: the confusion matrix and the feature importances."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from sklearn.metrics import ConfusionMatrixDisplay

from pipeline.dataset import CLASSES
from pipeline.evaluation import Evaluation

PADDING = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)  # inches


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Plot the confusion matrix of the test rows."""
    counts = evaluation.confusion
    figure, axes = _figure(5.8, 5.0)
    display = ConfusionMatrixDisplay(counts, display_labels=CLASSES)
    display.plot(ax=axes, cmap="Blues", colorbar=False, text_kw={"fontsize": 18})
    axes.set_title(
        f"{evaluation.algorithm}: {counts.trace()} of {counts.sum()} test rows correct", fontsize=11, pad=12
    )
    return figure


def feature_importance(importance: dict[str, float]) -> Figure:
    """Plot the importance of each feature for the forest, the largest at the top."""
    names = sorted(importance, key=lambda name: importance[name])
    figure, axes = _figure(6.0, 2.8)
    bars = axes.barh(names, [importance[name] for name in names], height=0.62)
    axes.bar_label(bars, fmt="%.2f", padding=4)
    axes.set_title("random_forest: feature importance", fontsize=11, pad=10)
    axes.set_xlim(0, max(importance.values()) * 1.15)
    axes.set_xticks([])
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of that size in inches, without a frame and tick marks."""
    figure = Figure(figsize=(width, height), dpi=150, layout=PADDING)
    axes = figure.subplots()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure, axes
