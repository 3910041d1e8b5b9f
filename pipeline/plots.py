"""Plots for the registry: the confusion matrix and the feature importances."""

from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

from pipeline.dataset import CLASSES
from pipeline.evaluation import Evaluation


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """Plot the confusion matrix of the test rows."""
    counts = evaluation.confusion
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    ConfusionMatrixDisplay(counts, display_labels=CLASSES).plot(ax=axes, cmap="Blues", colorbar=False)
    axes.set_title(f"{evaluation.algorithm}: {counts.trace()} of {counts.sum()} test rows correct")
    return figure


def feature_importance(importance: dict[str, float]) -> Figure:
    """Plot the importance of each feature for the forest, the largest at the top."""
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    names = sorted(importance, key=lambda name: importance[name])
    axes.bar_label(axes.barh(names, [importance[name] for name in names]), fmt="%.2f", padding=3)
    axes.margins(x=0.15)  # room for the labels
    axes.set_title("random_forest: feature importance")
    return figure
