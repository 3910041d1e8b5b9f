"""The data set: features with their bounds, classes, and where the rows come from.

No other module knows the data. To use another data set, replace this file (docs/BRING-YOUR-OWN-MODEL.md).
Everything downstream of the pipeline reads model.json.
"""

from typing import NamedTuple

from numpy.typing import ArrayLike
from sklearn.datasets import load_iris


class Feature(NamedTuple):
    """A feature: its plausible range, both ends included, and the resolution of its measurements."""

    name: str
    low: float
    high: float
    step: float


NAME = "iris"
MODEL_NAME = "iris-classifier"  # name of the experiment, the registered model and the ONNX graph
# Upper bounds are 1.5 times the largest flower in the data (7.9, 4.4, 6.9 and 2.5 cm), in whole centimetres. They
# admit any flower of the three species and reject a row in millimetres. The data was measured to the millimetre.
FEATURES = (
    Feature("sepal_length_cm", 0.0, 12.0, 0.1),
    Feature("sepal_width_cm", 0.0, 7.0, 0.1),
    Feature("petal_length_cm", 0.0, 10.0, 0.1),
    Feature("petal_width_cm", 0.0, 4.0, 0.1),
)
CLASSES = ("setosa", "versicolor", "virginica")
ROWS = (50, 50, 50)  # per class
TEST_ROWS = 10  # per class, held out; they become the golden vectors


def read() -> tuple[ArrayLike, ArrayLike]:
    """Return features [150, 4] and labels [150]; labels are indices into CLASSES."""
    features, labels = load_iris(return_X_y=True)
    return features, labels
