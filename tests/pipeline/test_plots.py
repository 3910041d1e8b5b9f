"""The plots show the values that they were made from."""

from io import BytesIO

from matplotlib.figure import Figure

from pipeline import plots
from pipeline.evaluation import Evaluation
from pipeline.names import Algorithm


def test_the_confusion_matrix_shows_every_count_and_the_total(evaluations: dict[Algorithm, Evaluation]) -> None:
    evaluation = evaluations[Algorithm.LOGISTIC_REGRESSION]
    figure = plots.confusion_matrix(evaluation)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == [str(count) for count in evaluation.confusion.flat]
    assert axes.get_title() == f"logistic_regression: {evaluation.confusion.trace()} of 30 test rows correct"
    assert is_png(figure)


def test_the_most_important_feature_is_at_the_top() -> None:
    figure = plots.feature_importance({"petal_length_cm": 0.5, "sepal_width_cm": 0.1, "petal_width_cm": 0.4})
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == "petal_length_cm"
    assert [text.get_text() for text in axes.texts] == ["0.10", "0.40", "0.50"]
    assert is_png(figure)


def is_png(figure: Figure) -> bool:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue().startswith(b"\x89PNG")
