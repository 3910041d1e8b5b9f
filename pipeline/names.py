"""Names that the modules and the command line share; a light import, because `--help` must be fast."""

from enum import StrEnum

# The registry alias of the model that last passed the gate. It does not say what runs: git does.
PRODUCTION_ALIAS = "production"
SEED = 42  # default seed of the candidates; the number itself does not matter


class Algorithm(StrEnum):
    """The candidates, simplest first; the order breaks ties."""

    LOGISTIC_REGRESSION = "logistic_regression"
    SVM = "svm"
    RANDOM_FOREST = "random_forest"
