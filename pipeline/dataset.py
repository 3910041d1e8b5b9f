"""The data set: what is classified, by which features, and what is believed of them.

The one module that knows it, and the one to write anew for another (docs/BRING-YOUR-OWN-MODEL.md). Everything
behind the pipeline reads model.json.
"""

from typing import NamedTuple

from numpy.typing import ArrayLike
from sklearn.datasets import load_iris


class Feature(NamedTuple):
    """One measurement: the values that are believed, both ends included, and the step in which they come."""

    name: str
    low: float
    high: float
    step: float


NAME = "iris"
MODEL_NAME = "iris-classifier"  # of the experiment, the registered model and the ONNX graph
# From nothing to half as much again as the largest flower in the data (7.9, 4.4, 6.9 and 2.5 cm), in whole
# centimetres: wide enough for any flower of the three species, and a row in millimetres falls outside. They were
# measured to the millimetre.
FEATURES = (
    Feature("sepal_length_cm", 0.0, 12.0, 0.1),
    Feature("sepal_width_cm", 0.0, 7.0, 0.1),
    Feature("petal_length_cm", 0.0, 10.0, 0.1),
    Feature("petal_width_cm", 0.0, 4.0, 0.1),
)
CLASSES = ("setosa", "versicolor", "virginica")
ROWS = (50, 50, 50)  # of each class
TEST_ROWS = 10  # of each class, held out: they become the recorded answers of the golden gate


def read() -> tuple[ArrayLike, ArrayLike]:
    """Return features [150, 4] and labels [150], which index CLASSES."""
    features, labels = load_iris(return_X_y=True)
    return features, labels
